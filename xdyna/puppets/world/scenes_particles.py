"""Scenes of many small things that move: rain, snow, fireworks, grass. Lengths are image heights."""

from __future__ import annotations

import cv2
import numpy as np

from xdyna.puppets.world.canvas import Canvas, mix
from xdyna.puppets.world.scene import Scene, grid
from xdyna.puppets.world.scenes_static import landscape, ridge, scene_canvas, shrink, vertical

Size = tuple[int, int]


def _town(canvas: Canvas, rng: np.random.Generator, aspect: float, ground: float, tone: tuple[float, ...]) -> None:
    """A skyline with lit windows standing on `ground`."""
    x = -0.03
    while x < aspect:
        wide, tall = rng.uniform(0.10, 0.2), rng.uniform(0.16, 0.46)
        house = mix(tone, (20, 20, 50), rng.uniform(0, 0.35))
        canvas.fill(np.array([(x, ground - tall), (x + wide, ground - tall), (x + wide, ground), (x, ground)]), house)
        for wx in np.arange(x + 0.02, x + wide - 0.025, 0.04):
            for wy in np.arange(ground - tall + 0.03, ground - 0.04, 0.055):
                if rng.uniform() < 0.45:
                    box = np.array([(0, 0), (0.02, 0), (0.02, 0.028), (0, 0.028)]) + [wx, wy]
                    canvas.fill(box, mix((255, 220, 130), house, rng.uniform(0, 0.4)))
        x += wide + rng.uniform(-0.01, 0.03)


def rain(size: Size, rng: np.random.Generator) -> Scene:
    """Slanted streaks at three depths over a grey town, and rings on the wet street."""
    aspect = size[1] / size[0]
    tint = ((96, 112, 140), (112, 104, 136), (88, 120, 126))[int(rng.integers(3))]
    canvas = scene_canvas(
        vertical(size, ((0, mix(tint, (30, 34, 60), 0.3)), (0.7, mix(tint, (255, 255, 255), 0.35)), (1, tint)))
    )
    ground = 0.74
    _town(canvas, rng, aspect, ground, mix(tint, (40, 44, 70), 0.5))
    canvas.fill(np.array([(0, ground), (aspect, ground), (aspect, 1.1), (0, 1.1)]), mix(tint, (40, 44, 66), 0.55))
    for _ in range(9):
        at = np.array([rng.uniform(0, aspect), rng.uniform(ground + 0.03, 1)])
        canvas.ellipse(at, (rng.uniform(0.06, 0.16), 0.012), mix(tint, (255, 255, 255), 0.25))
    back = shrink(canvas.pixels)
    slant = rng.uniform(-0.28, 0.28)
    drops = [(rng.uniform(0, 1, (count, 2)), speed, length) for count, speed, length in
             ((34, 1.25, 0.07), (26, 1.7, 0.10), (16, 2.3, 0.15))]  # fmt: skip
    rings = rng.uniform(0, 1, (22, 4))
    color = mix(tint, (255, 255, 255), 0.72)

    def frame(time: float) -> np.ndarray:
        canvas = scene_canvas(cv2.resize(back, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST))
        for k, (seeds, speed, length) in enumerate(drops):
            fall = np.mod(seeds[:, 1] + speed * time / 1.3, 1) * 1.3 - 0.15
            lap = np.floor(seeds[:, 1] + speed * time / 1.3)
            x = np.mod(seeds[:, 0] + 0.381966 * lap, 1) * (aspect + 0.4) - 0.2 + slant * fall
            for px, py in zip(x, fall, strict=True):
                canvas.stroke(np.array([(px, py), (px + slant * length, py + length)]), 0.005 + 0.002 * k, color)
        for x, y, phase, rate in rings:
            turn = time * (0.9 + 0.5 * rate) + phase
            age, lap = turn % 1.0, np.floor(turn)
            at = np.array([(x + 0.618034 * lap) % 1 * aspect, ground + 0.02 + (y + 0.7549 * lap) % 1 * (0.98 - ground)])
            if age < 0.6:
                ring = np.linspace(0, 2 * np.pi, 13)
                radius = 0.05 * age / 0.6 + 0.005
                canvas.stroke(
                    at + radius * np.stack([np.cos(ring), 0.35 * np.sin(ring)], 1), 0.005, mix(color, tint, age)
                )
        return shrink(canvas.pixels)

    return Scene(frame, np.ones(size, bool))


def snow(size: Size, rng: np.random.Generator) -> Scene:
    """Flakes of three sizes drift down, each swinging in its own time, over white hills with firs."""
    aspect = size[1] / size[0]
    top, low = (((70, 92, 150), (176, 196, 226)), ((96, 84, 140), (226, 196, 214)))[int(rng.integers(2))]
    canvas = scene_canvas(vertical(size, ((0, top), (0.65, low), (1, low))))
    canvas.fill(ridge(rng, aspect, 0.56, 0.05), mix(low, (236, 240, 250), 0.5))
    for _ in range(9):
        foot, tall = np.array([rng.uniform(0, aspect), rng.uniform(0.62, 0.72)]), rng.uniform(0.16, 0.32)
        for step in range(3):
            y, half = foot[1] - tall * step * 0.27, tall * (0.30 - 0.075 * step)
            tree = np.array([(foot[0] - half, y), (foot[0] + half, y), (foot[0], y - 0.46 * tall)])
            canvas.fill(tree, mix((46, 96, 92), (255, 255, 255), 0.12 * step))
    canvas.fill(ridge(rng, aspect, 0.70, 0.02), (238, 242, 250))
    canvas.fill(ridge(rng, aspect, 0.84, 0.02), (250, 251, 254))
    back = cv2.resize(shrink(canvas.pixels), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    flakes, wind = rng.uniform(0, 1, (80, 4)), rng.uniform(-0.08, 0.08)

    def frame(time: float) -> np.ndarray:
        canvas = scene_canvas(back.copy())
        for x, y, depth, phase in flakes:
            turn = (0.10 + 0.16 * depth) * time + y
            fall = turn % 1.0
            across = (x + wind * time * (0.5 + depth) + 0.381966 * np.floor(turn)) % 1.0
            swing = 0.025 * np.sin(2.2 * time * (0.7 + 0.6 * phase) + 6.28 * phase)
            at = np.array([across * (aspect + 0.1) - 0.05 + swing, fall * 1.08 - 0.04])
            canvas.ellipse(at, (0.006 + 0.010 * depth,) * 2, (255, 255, 255))
        return shrink(canvas.pixels)

    return Scene(frame, np.ones(size, bool))


def fireworks(size: Size, rng: np.random.Generator) -> Scene:
    """Rockets rise over a town at night and burst into sparks that slow down, sink and fade."""
    aspect = size[1] / size[0]
    canvas = scene_canvas(vertical(size, ((0, (18, 18, 54)), (0.8, (58, 44, 100)), (1, (40, 34, 70)))))
    for _ in range(30):
        canvas.ellipse(np.array([rng.uniform(0, aspect), rng.uniform(0, 0.6)]), (0.003, 0.003), (200, 204, 230))
    ground = 0.86
    _town(canvas, rng, aspect, ground, (44, 42, 84))
    canvas.fill(np.array([(0, ground), (aspect, ground), (aspect, 1.1), (0, 1.1)]), (34, 34, 66))
    back = shrink(canvas.pixels)
    hues = np.array(
        [(255, 120, 110), (255, 214, 110), (130, 230, 160), (120, 200, 255), (226, 140, 255), (255, 250, 230)]
    )
    count = 5
    periods, phases = rng.uniform(1.5, 2.3, count), rng.uniform(0, 1, count)
    places, tones = rng.uniform(0, 1, (count, 16, 2)), rng.integers(len(hues), size=(count, 16))
    turn = np.linspace(0, 2 * np.pi, 20, False) + 0.1
    rise = 0.4

    def frame(time: float) -> np.ndarray:
        canvas = scene_canvas(np.zeros((2 * size[0], 2 * size[1], 3), np.uint8))
        for k in range(count):
            lap, age = divmod(time / periods[k] + phases[k], 1.0)
            age *= periods[k]
            x, y = places[k, int(lap) % 16]
            burst = np.array([(0.06 + 0.88 * x) * aspect, 0.10 + 0.30 * y])
            color = hues[tones[k, int(lap) % 16]]
            if age < rise:
                head = burst + [0, (1 - age / rise) ** 2 * 0.5]
                canvas.stroke(np.stack([head, head + [0, 0.07]]), 0.010, (220, 180, 120))
                continue
            life = (age - rise) / (periods[k] - rise)
            reach, before = (0.25 * (1 - np.exp(-3.2 * max(0.0, t))) for t in (life, life - 0.16))
            fade = (1 - life) ** 0.7
            sink = 0.09 * life**2
            for ring in (1.0, 0.55):
                ends = np.stack([np.cos(turn), np.sin(turn)], 1) * ring
                start, end = burst + before * ends + [0, sink * 0.8], burst + reach * ends + [0, sink]
                for a, b in zip(start, end, strict=True):
                    canvas.stroke(np.stack([a, b]), 0.004 + 0.008 * fade, tuple(fade * color))
        return np.asarray(cv2.add(back, shrink(canvas.pixels)))

    return Scene(frame, grid(size)[1] < 0.94)


def grass(size: Size, rng: np.random.Generator) -> Scene:
    """Tall grass and flowers in the wind: gusts run through as a wave."""
    aspect = size[1] / size[0]
    back = shrink(landscape(size, rng, horizon=rng.uniform(0.34, 0.44)))
    base = cv2.resize(back, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    tones = ((64, 128, 66), (96, 160, 74), (140, 190, 90), (178, 206, 110))
    heads = ((255, 236, 140), (250, 150, 170), (255, 252, 246), (190, 150, 230))
    x = np.arange(-0.03, aspect + 0.03, 0.052)
    foot = np.stack(np.meshgrid(x, np.linspace(0.66, 1.04, 6), indexing="xy"), -1)
    depth = np.repeat(np.arange(6), len(x))
    foot = foot.reshape(-1, 2) + rng.uniform(-0.022, 0.022, (len(depth), 2))
    tall = rng.uniform(0.14, 0.25, len(depth)) * (0.8 + 0.07 * depth)
    tone, flower = rng.integers(4, size=(2, len(depth)))
    blooms, phase = rng.uniform(size=len(depth)) < 0.16, rng.uniform(0, 6.28, len(depth))
    rate, wave, bias = rng.uniform(2.4, 3.6), rng.uniform(4, 7), rng.uniform(-0.15, 0.15)
    share = np.array([0.0, 0.35, 0.7, 1.0])
    half = 0.016 * (1 - share**2)

    def frame(time: float) -> np.ndarray:
        canvas = scene_canvas(base.copy())
        gust = rate * time - wave * foot[:, 0] + 2.0 * foot[:, 1]
        bend = (bias + 0.34 * np.sin(gust) + 0.12 * np.sin(2.3 * rate * time + phase))[:, None]
        middle_x = foot[:, :1] + np.sin(bend) * tall[:, None] * share**1.7
        middle_y = foot[:, 1:] - np.cos(0.6 * bend) * tall[:, None] * share
        sides = [np.stack([middle_x + sign * half, middle_y], -1) for sign in (-1, 1)]
        shapes = np.concatenate([sides[0], sides[1][:, -2::-1]], 1)
        for k, shape in enumerate(shapes):
            canvas.fill(shape, tones[tone[k]])
            if blooms[k]:
                canvas.ellipse(shape[len(share) - 1], (0.020, 0.020), heads[flower[k]])
        return shrink(canvas.pixels)

    return Scene(frame, grid(size)[1] > 0.40)
