"""A scene as everything else sees it, and textures that moving ones are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Scene:
    """A scene without a figure.

    Attributes:
        frame: time in s (from 0) -> (H, W, 3) uint8 RGB, a new array.
        region: (H, W) bool, where the scene moves.
    """

    frame: Callable[[float], np.ndarray]
    region: np.ndarray


def tile_noise(rng: np.random.Generator, *, side: int = 128, scale: tuple[float, float] = (6.0, 6.0)) -> np.ndarray:
    """Smooth noise that repeats without a seam.

    Args:
        rng: source of the noise.
        side: px of the tile.
        scale: (x, y) standard deviations of the smoothing, px.

    Returns:
        (side, side) float32 in [0, 1]; about even over that range.
    """
    noise = rng.standard_normal((side, side)).astype(np.float32)
    margin = side // 2
    wide = cv2.copyMakeBorder(noise, margin, margin, margin, margin, cv2.BORDER_WRAP)
    wide = cv2.GaussianBlur(wide, (0, 0), sigmaX=scale[0], sigmaY=scale[1])
    smooth = wide[margin:-margin, margin:-margin]
    # The normal distribution's own shape, so that all levels are about as frequent.
    return (1 / (1 + np.exp(-1.6 * (smooth - smooth.mean()) / smooth.std()))).astype(np.float32)


def sample_tile(tile: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Values of a tile at places in tile sides (any real numbers); x, y and the result are float32 of one shape."""
    side = tile.shape[0]
    # cv2 holds coordinates in 16 bits: stay within one period.
    x, y = (x - np.floor(x)) * side, (y - np.floor(y)) * side
    return np.asarray(cv2.remap(tile, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP))


def grid(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """x, y of all pixels in image heights, each (H, W) float32."""
    height, width = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return (x + 0.5) / height, (y + 0.5) / height


def lookup(stops: list[tuple[float, tuple[float, float, float]]]) -> np.ndarray:
    """(256, 3) uint8 colours of the values 0 to 255 from (place in [0, 1], RGB)."""
    places = np.linspace(0, 1, 256)
    columns = [np.interp(places, [p for p, _ in stops], [color[c] for _, color in stops]) for c in range(3)]
    return np.rint(np.stack(columns, -1)).astype(np.uint8)


def blend(under: np.ndarray, over: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """`over` with the coverage `alpha` (H, W) float32 in [0, 1] on `under`; uint8 RGB."""
    share = alpha[..., None]
    return (under + (over.astype(np.float32) - under) * share + 0.5).astype(np.uint8)
