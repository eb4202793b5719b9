"""Small images of a video for measuring, without its letterbox. The video is streamed, never held."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from xdyna.media import CropResize, MediaError, read_frames

ANALYSIS_SIDE = 320
"""Longer side of the small images, px."""

Box = tuple[int, int, int, int]
"""left, top, width, height in px of the upright image."""

_BAR_FRAMES = 16  # frames of the video in which bars must be the same
_BLACK = 26  # brightest value of a bar; compression leaves black at 0 to 16
_SAFETY = 2  # px cut off beyond a bar, where compression blurs its edge
_LEAST = 0.3  # of each side must remain, or the darkness is the image's own


def analysis_size(size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of the small images of an image of `size` (H, W); never larger than it."""
    scale = min(1.0, ANALYSIS_SIDE / max(size))
    return max(8, round(size[0] * scale)), max(8, round(size[1] * scale))


def sampled(count: int, wanted: int) -> np.ndarray:
    """Up to `wanted` of `count` positions, evenly, without repeats, the first and the last among them; int64."""
    return np.unique(np.linspace(0, count - 1, min(wanted, count)).round().astype(np.int64))


def find_crop(path: Path, *, count: int, letterbox: bool) -> Box:
    """The part of the image that is not letterbox, with even sides.

    Bars are rows and columns at the edges that stay black over frames from all over the video.

    Args:
        path: the video.
        count: number of its frames.
        letterbox: whether bars are cut off; otherwise only odd sides become even.

    Returns:
        The box.

    Raises:
        MediaError: no frame can be read, or the image is too small to be cropped.
    """
    brightest: np.ndarray | None = None
    for frame in read_frames(path, sampled(count, _BAR_FRAMES) if letterbox else [0]):
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        brightest = grey if brightest is None else np.maximum(brightest, grey)
    if brightest is None:
        raise MediaError(f"video '{path}' has no frame; copy or download it again")
    return bars_off(brightest) if letterbox else _even(0, 0, brightest.shape[1], brightest.shape[0])


def bars_off(brightest: np.ndarray) -> Box:
    """The box inside black bars.

    Args:
        brightest: (H, W) uint8, the largest brightness of every pixel over many frames.

    Returns:
        The box with even sides; the whole image (but for odd sides) where it has no bars, or would hardly remain.
    """
    height, width = brightest.shape
    top, bottom = _ends((np.percentile(brightest, 98, axis=1) > _BLACK), height)
    left, right = _ends((np.percentile(brightest[top:bottom], 98, axis=0) > _BLACK), width)
    # A row is shorter without the bars at its sides: what looked black before may hold the image's edge.
    top, bottom = _ends((np.percentile(brightest[:, left:right], 98, axis=1) > _BLACK), height)
    if bottom - top < _LEAST * height or right - left < _LEAST * width:
        top, bottom, left, right = 0, height, 0, width
    return _even(left, top, right - left, bottom - top)


def _ends(lit: np.ndarray, side: int) -> tuple[int, int]:
    """First and last position that is lit (the last one excluded), past the blurred edge of a bar."""
    where = np.flatnonzero(lit)
    if not len(where):
        return 0, side
    first, last = int(where[0]), int(where[-1])
    start = first + _SAFETY if first > 0 else 0
    end = last + 1 - _SAFETY if last < side - 1 else side
    return (start, end) if start < end else (0, side)


def _even(left: int, top: int, width: int, height: int) -> Box:
    if min(width, height) < 2:
        raise MediaError(f"the image is {width} x {height} px; expected at least 2 px a side")
    return left, top, width - width % 2, height - height % 2


def small_frames(path: Path, crop: Box) -> Iterator[np.ndarray]:
    """All frames in turn, cropped and small.

    Args:
        path: the video.
        crop: what is kept of the image.

    Returns:
        Iterator over uint8 (h, w, 3) RGB of `analysis_size`.

    Raises:
        MediaError: the video cannot be read.
    """
    place = CropResize(box=crop, size=analysis_size((crop[3], crop[2])))
    return (place.image(frame) for frame in read_frames(path))
