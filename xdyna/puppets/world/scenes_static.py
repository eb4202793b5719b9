"""Still scenes: gradient, wall, checker floor, hills. Coordinates are image heights, (0, 0) at the top left."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from xdyna.puppets.world.canvas import OVERSAMPLE, Canvas, Color, mix

Stops = Sequence[tuple[float, Color]]

_PALETTES: tuple[tuple[Color, Color, Color], ...] = (
    ((126, 196, 232), (250, 232, 206), (240, 170, 132)), ((250, 208, 190), (244, 160, 150), (150, 98, 140)),
    ((60, 92, 150), (126, 160, 206), (240, 220, 210)), ((160, 214, 190), (232, 240, 206), (120, 170, 130)),
    ((190, 170, 226), (246, 214, 232), (130, 150, 210)), ((250, 222, 130), (250, 180, 110), (220, 110, 96)),
    ((96, 178, 178), (214, 238, 226), (60, 120, 140)), ((226, 226, 232), (250, 248, 244), (170, 176, 196)),
)  # fmt: skip


def palette(rng: np.random.Generator) -> tuple[Color, Color, Color]:
    """Three colours that go together, in random order of the outer ones."""
    first, second, third = _PALETTES[int(rng.integers(len(_PALETTES)))]
    return (first, second, third) if rng.uniform() < 0.6 else (third, second, first)


def vertical(size: tuple[int, int], stops: Stops) -> np.ndarray:
    """A vertical gradient.

    Args:
        size: (H, W) px of the image.
        stops: (place from 0 at the top to 1, RGB), ascending.

    Returns:
        (2 H, 2 W, 3) uint8.
    """
    height, width = size[0] * OVERSAMPLE, size[1] * OVERSAMPLE
    rows = np.linspace(0, 1, height)
    columns = [np.interp(rows, [p for p, _ in stops], [color[c] for _, color in stops]) for c in range(3)]
    return np.repeat(np.rint(np.stack(columns, -1)).astype(np.uint8)[:, None], width, 1)


def scene_canvas(pixels: np.ndarray) -> Canvas:
    """A canvas in image heights on (2 H, 2 W, 3) pixels."""
    return Canvas(pixels, unit=pixels.shape[0] / OVERSAMPLE, origin=(-0.5, -0.5))


def ridge(rng: np.random.Generator, aspect: float, level: float, rough: float) -> np.ndarray:
    """A closed polygon below a random line of hills at about `level`."""
    x = np.linspace(-0.02, aspect + 0.02, 60)
    phases, waves = rng.uniform(0, 6.3, 4), np.array([3.0, 6.1, 10.3, 17.0])
    y = level - rough * (np.sin(waves[:, None] * x + phases[:, None]) / waves[:, None] * 3).sum(0)
    return np.stack([np.r_[x, x[-1], x[0]], np.r_[y, 1.1, 1.1]], 1)


def _gradient(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    height, width = size[0] * OVERSAMPLE, size[1] * OVERSAMPLE
    first, second, third = (np.array(color) for color in palette(rng))
    turn = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:height, 0:width]
    along = (np.cos(turn) * (x / width - 0.5) + np.sin(turn) * (y / height - 0.5)) / 1.42 + 0.5
    share = along[..., None]
    colors = np.where(share < 0.5, first + 2 * share * (second - first), second + (2 * share - 1) * (third - second))
    canvas = scene_canvas(np.rint(colors).clip(0, 255).astype(np.uint8))
    aspect = width / height
    for _ in range(int(rng.integers(0, 7))):
        at = np.array([rng.uniform(0, aspect), rng.uniform(0, 0.9)])
        radius = rng.uniform(0.02, 0.09)
        canvas.ellipse(at, (radius, radius), mix(tuple(second), (255, 255, 255), rng.uniform(0.2, 0.6)))
    return canvas.pixels


def _wall(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    first, second, third = palette(rng)
    paint, floor_y = mix(first, (255, 255, 255), 0.25), rng.uniform(0.72, 0.84)
    canvas = scene_canvas(vertical(size, ((0, paint), (1, mix(paint, second, 0.3)))))
    aspect = size[1] / size[0]
    style = int(rng.integers(3))
    if style == 0:
        _bricks(canvas, rng, aspect, mix(third, (178, 96, 76), 0.5))
    else:
        tone, width = mix(paint, third, 0.22), rng.uniform(0.06, 0.12)
        for x in np.arange(0, aspect + width, 2 * width):
            right = x + width if style == 1 else x + 0.15 * width
            canvas.fill(np.array([(x, 0), (right, 0), (right, 1), (x, 1)]), tone)
        _furniture(canvas, rng, aspect, third)
    wood = mix((176, 128, 92), third, 0.3)
    canvas.fill(np.array([(0, floor_y), (aspect, floor_y), (aspect, 1.1), (0, 1.1)]), wood)
    for k in np.linspace(-1.2, 2.2, 12):
        line = np.array([(aspect * (0.5 + (k - 0.5) * 0.6), floor_y), (aspect * k, 1.0)])
        canvas.stroke(line, 0.006, mix(wood, (60, 36, 30), 0.25))
    canvas.stroke(np.array([(0, floor_y), (aspect, floor_y)]), 0.022, mix(paint, (255, 255, 255), 0.6))
    return canvas.pixels


def _bricks(canvas: Canvas, rng: np.random.Generator, aspect: float, color: Color) -> None:
    canvas.fill(np.array([(0, 0), (aspect, 0), (aspect, 1), (0, 1)]), mix(color, (235, 220, 205), 0.55))
    rows, wide = 13, 0.145
    for row in range(rows):
        for x in np.arange(-wide * (row % 2) / 2, aspect, wide):
            box = np.array([(x + 0.006, row / rows + 0.006), (x + wide - 0.006, (row + 1) / rows - 0.006)])
            corners = box[[0, 0, 1, 1], [0, 0, 0, 0]], box[[0, 1, 1, 0], [1, 1, 1, 1]]
            canvas.fill(np.stack(corners, 1), mix(color, (255, 220, 190), rng.uniform(0, 0.3)))


def _furniture(canvas: Canvas, rng: np.random.Generator, aspect: float, accent: Color) -> None:
    """A window or an image at each side."""
    for side in (0.02, 0.68):
        left, top = aspect * (side + rng.uniform(0, 0.06)), rng.uniform(0.06, 0.2)
        wide, tall = 0.24 * aspect, rng.uniform(0.22, 0.34)
        corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)])
        canvas.fill(corners * [wide, tall] + [left, top], (250, 246, 238))
        inner = corners * [wide - 0.04, tall - 0.04] + [left + 0.02, top + 0.02]
        if rng.uniform() < 0.5:
            canvas.fill(inner, (170, 214, 240))
            middle = left + wide / 2
            canvas.stroke(np.array([(middle, top), (middle, top + tall)]), 0.016, (250, 246, 238))
        else:
            canvas.fill(inner, mix(accent, (255, 240, 220), 0.5))
            canvas.ellipse(inner.mean(0), (0.05, 0.05), accent)


def _checker(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    first, second, third = palette(rng)
    canvas = scene_canvas(vertical(size, ((0, first), (0.62, second), (1, second))))
    aspect, horizon = size[1] / size[0], rng.uniform(0.56, 0.70)
    light, dark = mix(second, (255, 255, 255), 0.55), mix(third, (40, 40, 60), 0.25)
    canvas.fill(np.array([(0, horizon), (aspect, horizon), (aspect, 1.1), (0, 1.1)]), light)
    centre, tile = aspect * rng.uniform(0.35, 0.65), rng.uniform(0.14, 0.2)
    depth = 1 / np.linspace(0.12, 1.0, 10)  # distance from the viewer, nearest last
    rows = horizon + (1.05 - horizon) / depth
    for r in range(len(rows) - 1):
        for k in range(-14, 14):
            if (r + k) % 2:
                near, far = tile / depth[r + 1], tile / depth[r]
                quad = [(centre + k * far, rows[r]), (centre + (k + 1) * far, rows[r]),
                        (centre + (k + 1) * near, rows[r + 1]), (centre + k * near, rows[r + 1])]  # fmt: skip
                canvas.fill(np.array(quad), dark)
    return canvas.pixels


def sky(size: tuple[int, int], rng: np.random.Generator, *, horizon: float) -> tuple[np.ndarray, Color]:
    """A sky with a sun.

    Args:
        size: (H, W) px of the image.
        rng: chooses colours and the sun's place.
        horizon: image heights.

    Returns:
        (2 H, 2 W, 3) uint8 and the RGB at the horizon.
    """
    skies = (((96, 160, 226), (206, 232, 244)), ((246, 190, 150), (252, 232, 196)), ((150, 140, 206), (250, 206, 206)))
    top, low = skies[int(rng.integers(len(skies)))]
    canvas = scene_canvas(vertical(size, ((0, top), (horizon + 0.08, low), (1, low))))
    sun = np.array([rng.uniform(0.08, 0.92) * size[1] / size[0], rng.uniform(0.08, 0.24)])
    canvas.ellipse(sun, (0.085, 0.085), mix(low, (255, 244, 190), 0.6))
    canvas.ellipse(sun, (0.06, 0.06), (255, 246, 214))
    return canvas.pixels, low


def meadow(canvas: Canvas, rng: np.random.Generator, aspect: float, *, horizon: float, haze: Color) -> None:
    """Draw ridges that fade into the haze, trees, and a meadow with flowers."""
    greens = ((112, 176, 96), (150, 186, 84), (92, 160, 120))
    green = greens[int(rng.integers(3))]
    for k, share in enumerate((0.75, 0.5, 0.25)):
        tone = mix(mix(green, (60, 90, 110), 0.35), haze, share)
        canvas.fill(ridge(rng, aspect, horizon + 0.05 * k, 0.05 - 0.012 * k), tone)
    edge = horizon + 0.17
    for _ in range(int(rng.integers(1, 4))):
        foot = np.array([rng.uniform(0, 1) * aspect, edge + 0.02])
        tall = rng.uniform(0.14, 0.26)
        canvas.limb((foot, foot - [0, 0.5 * tall]), (0.012, 0.008), (112, 80, 64), outlined=False)
        crown = mix(green, (40, 96, 70), rng.uniform(0.3, 0.7))
        for dx, dy, r in ((0, 0.72, 0.3), (-0.2, 0.55, 0.22), (0.2, 0.55, 0.22)):
            canvas.ellipse(foot + [dx * tall, -dy * tall], (r * tall, r * tall), crown)
    canvas.fill(ridge(rng, aspect, edge, 0.02), green)
    canvas.fill(ridge(rng, aspect, edge + 0.14, 0.02), mix(green, (40, 90, 50), 0.16))
    for _ in range(36):
        spot = np.array([rng.uniform(0, aspect), rng.uniform(edge + 0.05, 1.0)])
        color = ((255, 252, 240), (250, 214, 96), (240, 140, 160), mix(green, (30, 80, 40), 0.4))[int(rng.integers(4))]
        canvas.ellipse(spot, (0.009, 0.009), color)


def landscape(size: tuple[int, int], rng: np.random.Generator, *, horizon: float = 0.5) -> np.ndarray:
    """Sky and meadow in one, (2 H, 2 W, 3) uint8; arguments as in `sky`."""
    pixels, low = sky(size, rng, horizon=horizon)
    meadow(scene_canvas(pixels), rng, size[1] / size[0], horizon=horizon, haze=low)
    return pixels


_STILL: dict[str, Callable[[tuple[int, int], np.random.Generator], np.ndarray]] = {
    "gradient": _gradient, "wall": _wall, "checker": _checker, "hills": landscape,
}  # fmt: skip
STATIC_SCENES = tuple(_STILL)


def shrink(pixels: np.ndarray) -> np.ndarray:
    """(2 H, 2 W, C) uint8 averaged to (H, W, C)."""
    size = (pixels.shape[1] // OVERSAMPLE, pixels.shape[0] // OVERSAMPLE)
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))


def draw_static(kind: str, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A still scene, (H, W, 3) uint8 RGB, of a size (H, W)."""
    return shrink(_STILL[kind](size, rng))
