"""Scenes of fluids and air that move by themselves: fire, waterfall, sea, clouds. Lengths are image heights."""

from __future__ import annotations

import numpy as np

from xdyna.puppets.world.canvas import mix
from xdyna.puppets.world.scene import Scene, blend, grid, lookup, sample_tile, tile_noise
from xdyna.puppets.world.scenes_static import meadow, scene_canvas, shrink, sky, vertical

Size = tuple[int, int]


def fire(size: Size, rng: np.random.Generator) -> Scene:
    """A wall of flames at night: two layers of noise rise at different speeds and cool with height."""
    sky = ((22, 20, 46), (66, 34, 64)) if rng.uniform() < 0.5 else ((16, 28, 48), (40, 52, 78))
    canvas = scene_canvas(vertical(size, ((0, sky[0]), (0.8, sky[1]), (1, (60, 30, 34)))))
    aspect = size[1] / size[0]
    for _ in range(26):
        star = np.array([rng.uniform(0, aspect), rng.uniform(0, 0.5)])
        canvas.ellipse(star, (0.004, 0.004), (226, 222, 240))
    back = shrink(canvas.pixels)
    x, y = grid(size)
    tile = tile_noise(rng, scale=(5.0, 8.0))
    speed, height = rng.uniform(0.6, 0.9), rng.uniform(0.55, 0.75)
    colors = lookup([(0, (120, 20, 20)), (0.30, (196, 40, 24)), (0.52, (244, 110, 32)), (0.75, (255, 190, 60)),
                     (1.0, (255, 244, 190))])  # fmt: skip
    wide = tile_noise(rng, scale=(10.0, 10.0))
    low = (1 - y) / height

    def frame(time: float) -> np.ndarray:
        bend = 0.05 * np.sin(5.0 * y + 4.0 * x + 3.1 * time).astype(np.float32)
        first = sample_tile(tile, 1.1 * x + bend, 0.85 * y + speed * time)
        second = sample_tile(wide, 0.9 * x - bend + 0.37, 0.6 * y + 0.62 * speed * time)
        heat = 1.25 * (0.55 * first + 0.45 * second) + 0.62 - 1.15 * low
        return blend(back, colors[(heat * 190).clip(0, 255).astype(np.uint8)], ((heat - 0.22) * 5).clip(0, 1))

    return Scene(frame, low < 1.42)


def waterfall(size: Size, rng: np.random.Generator) -> Scene:
    """Water falls over a cliff into a pool: streaks run down, foam boils at the foot, ripples come nearer."""
    aspect = size[1] / size[0]
    rock = ((118, 112, 120), (132, 108, 94), (96, 112, 118))[int(rng.integers(3))]
    canvas = scene_canvas(vertical(size, ((0, mix(rock, (255, 255, 255), 0.15)), (1, mix(rock, (20, 24, 40), 0.3)))))
    for _ in range(46):
        at, radius = np.array([rng.uniform(0, aspect), rng.uniform(0, 0.8)]), rng.uniform(0.05, 0.12)
        tone = mix(rock, (255, 250, 240) if rng.uniform() < 0.5 else (30, 30, 50), rng.uniform(0.05, 0.3))
        canvas.ellipse(at, (radius, 0.7 * radius), tone, angle=rng.uniform(-0.5, 0.5))
    for _ in range(30):
        side = rng.uniform(-0.05, 0.2) if rng.uniform() < 0.5 else rng.uniform(0.8, 1.05)
        leaf = mix((70, 140, 80), (150, 190, 90), rng.uniform(0, 1))
        canvas.ellipse(np.array([side * aspect, rng.uniform(0, 0.75)]), (0.05, 0.035), leaf)
    back = shrink(canvas.pixels)
    x, y = grid(size)
    streaks, foam = tile_noise(rng, scale=(2.2, 16.0)), tile_noise(rng, scale=(4.0, 3.0))
    centre, half, pool = aspect * rng.uniform(0.42, 0.58), rng.uniform(0.27, 0.38) * aspect, rng.uniform(0.74, 0.82)
    speed = rng.uniform(0.55, 0.8)
    edge = half + 0.03 * np.sin(9 * y + rng.uniform(0, 6)) + 0.02 * np.sin(23 * y) + 0.1 * y
    curtain = ((edge - np.abs(x - centre)) / 0.02).clip(0, 1) * (y < pool)
    water = ((y - pool) / 0.01).clip(0, 1)
    colors = lookup([(0, (58, 122, 186)), (0.4, (112, 178, 222)), (0.75, (190, 226, 244)), (1.0, (255, 255, 255))])
    deep = lookup([(0, (34, 98, 140)), (0.5, (60, 140, 176)), (0.85, (120, 194, 210)), (1.0, (230, 246, 248))])
    alpha = np.maximum(curtain, water).astype(np.float32)
    near = 0.08 / (y - pool + 0.08)

    def frame(time: float) -> np.ndarray:
        fall = sample_tile(streaks, 0.9 * x + 0.02 * np.sin(7 * y), 0.5 * y - speed * time)
        ripple = sample_tile(foam, 0.9 * (x - centre) * near, 3.2 * near + 0.22 * time)
        boil = sample_tile(foam, 0.8 * x + 0.1 * time, 0.8 * y - 0.5 * time)
        spray = np.exp(-(((y - pool) / 0.055) ** 2)) * (np.abs(x - centre) < edge + 0.05) * (0.35 + 0.9 * boil)
        falling, flat = colors[(fall * 255).astype(np.uint8)], deep[(ripple * 255).astype(np.uint8)]
        image = blend(back, np.where(water[..., None] > 0.5, flat, falling), alpha)
        return blend(image, np.full_like(image, 255), spray.clip(0, 1).astype(np.float32))

    return Scene(frame, (alpha > 0.05) | ((np.abs(y - pool) < 0.1) & (np.abs(x - centre) < edge + 0.05)))


def sea(size: Size, rng: np.random.Generator) -> Scene:
    """Waves roll towards a beach: crest lines of several depths, each with its own length and speed, and a wash."""
    aspect = size[1] / size[0]
    horizon = rng.uniform(0.34, 0.46)
    skies = (((110, 176, 236), (220, 238, 246)), ((250, 150, 120), (254, 222, 160)), ((140, 120, 200), (250, 190, 190)))
    top, low = skies[int(rng.integers(3))]
    canvas = scene_canvas(vertical(size, ((0, top), (horizon, low), (1, low))))
    sun = np.array([rng.uniform(0.1, 0.9) * aspect, horizon - rng.uniform(0.05, 0.2)])
    canvas.ellipse(sun, (0.08, 0.08), mix(low, (255, 250, 200), 0.8))
    back = canvas.pixels
    deep, shallow = (36, 104, 168), (104, 200, 206)
    sand = ((240, 214, 166), (232, 196, 150), (246, 228, 190))[int(rng.integers(3))]
    layers = 6
    phases, rate = rng.uniform(0, 6.3, (layers, 2)), rng.uniform(0.85, 1.25)
    columns = np.linspace(-0.02, aspect + 0.02, 40)
    beach = rng.uniform(0.82, 0.88)
    levels = horizon + (beach - 0.02 - horizon) * np.linspace(0, 1, layers) ** 1.3

    def frame(time: float) -> np.ndarray:
        canvas = scene_canvas(back.copy())
        for k, level in enumerate(levels):
            share = k / (layers - 1)
            size_k, length = 0.004 + 0.022 * share, 24.0 - 13.0 * share
            turn = rate * (2.2 + 0.5 * k) * time
            y = (
                level
                + size_k
                * (
                    np.sin(length * columns - turn + phases[k, 0])
                    + 0.5 * np.sin(1.7 * length * columns + 0.6 * turn + phases[k, 1])
                )
                + 0.5 * size_k * np.sin(1.4 * rate * time + phases[k, 0])
            )
            shape = np.stack([np.r_[columns, columns[-1], columns[0]], np.r_[y, 1.1, 1.1]], 1)
            canvas.fill(shape, mix(deep, shallow, share))
            if k:
                canvas.stroke(shape[:40], 0.004 + 0.008 * share, mix(shallow, (255, 255, 255), 0.4 + 0.5 * share))
        wash = beach + 0.035 * np.sin(0.8 * rate * time + phases[0, 0]) + 0.012 * np.sin(7 * columns + 0.7 * time)
        shape = np.stack([np.r_[columns, columns[-1], columns[0]], np.r_[wash, 1.1, 1.1]], 1)
        canvas.fill(shape, sand)
        canvas.stroke(shape[:40], 0.022, (250, 254, 252))
        return shrink(canvas.pixels)

    y = grid(size)[1]
    return Scene(frame, (y > horizon - 0.02) & (y < beach + 0.065))


def clouds(size: Size, rng: np.random.Generator) -> Scene:
    """Heaps of cloud drift over hills, the near ones lower and faster, and billow slowly."""
    horizon, aspect = rng.uniform(0.52, 0.64), size[1] / size[0]
    back, low = sky(size, rng, horizon=horizon)
    front = scene_canvas(np.zeros((*back.shape[:2], 4), np.uint8))
    meadow(front, rng, aspect, horizon=horizon, haze=low)
    land = front.image()
    clear = 1 - land[..., 3:] / 255.0
    drift = rng.uniform(0.16, 0.28) * rng.choice((-1.0, 1.0))
    heaps = []
    for k in range(7):
        near = k / 6
        puffs = rng.uniform(0, 1, (6, 3))
        heaps.append((rng.uniform(0, 1), 0.06 + 0.30 * (k * 3 % 7) / 6, 0.10 + 0.07 * near, 0.5 + 0.5 * near, puffs))

    def frame(time: float) -> np.ndarray:
        canvas = scene_canvas(back.copy())
        for x, y, wide, speed, puffs in heaps:
            span = aspect + 4 * wide
            middle = np.array([(x * span + drift * speed * time) % span - 2 * wide, y])
            shares = np.linspace(-1, 1, len(puffs))
            swell = 1 + 0.16 * np.sin(1.1 * time + 6.28 * puffs[:, 2])
            radii = wide * (0.34 + 0.16 * puffs[:, 0]) * (1.25 - 0.55 * np.abs(shares)) * swell
            spots = middle + np.stack([shares * wide, -0.75 * radii - 0.05 * puffs[:, 1] * wide], 1)
            shade = mix(low, (214, 220, 238), 0.7)
            for color, lift in ((shade, 0.0), ((255, 254, 252), 0.16)):
                for spot, radius in zip(spots, radii, strict=True):
                    canvas.ellipse(spot - [0, lift * wide], (radius, (0.92 - lift) * radius), color)
        return np.rint(canvas.image() * clear + land[..., :3]).astype(np.uint8)

    return Scene(frame, clear[..., 0] > 0.1)
