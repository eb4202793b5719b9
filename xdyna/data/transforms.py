"""Augmentation of a clip: one crop for all its frames, its reference and its keypoints."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from xdyna.media import CropResize, center_crop


def random_resized_crop(
    rng: np.random.Generator, *, target: tuple[int, int], scale: Sequence[float]
) -> tuple[tuple[int, int], CropResize]:
    """A random resized crop for images that can be rendered at any size.

    Instead of enlarging a part of an image, which blurs, the image is rendered larger and a window of the target's
    size is cut out: the same geometry without any resampling.

    Args:
        rng: two or three numbers are drawn from it.
        target: (H, W) of the result, px.
        scale: [lowest, highest] share of the image's area that is kept, in (0, 1].

    Returns:
        (H, W) to render at, and the crop from there to `target`.
    """
    share = rng.uniform(scale[0], scale[1])
    height, width = (round(side / share**0.5) for side in target)
    top, left = (int(rng.integers(0, slack + 1)) for slack in (height - target[0], width - target[1]))
    return (height, width), CropResize(box=(left, top, target[1], target[0]), size=target)


def crop_around(
    draws: Sequence[float],
    *,
    image: tuple[int, int],
    target: tuple[int, int],
    scale: Sequence[float],
    person: Sequence[float] | None = None,
) -> CropResize:
    """A random resized crop for images of any size, which keeps the person in it.

    Args:
        draws: three random numbers in [0, 1): size, place across, place down.
        image: (H, W) of the images, px.
        target: (H, W) of the result, px.
        scale: [lowest, highest] share of the area that is kept of the largest part with the target's aspect, in (0, 1].
        person: (left, top, right, bottom) in px of the image; None for nobody.

    Returns:
        The crop. Where the person does not fit, it is centred across and its head is kept.
    """
    share = scale[0] + (scale[1] - scale[0]) * draws[0]
    _, _, widest, highest = center_crop(image, target).box
    width, height = (max(1, round(side * share**0.5)) for side in (widest, highest))
    across, down = (None, None) if person is None else ((person[0], person[2]), (person[1], person[3]))
    if down is not None and down[1] - down[0] > height:
        down = (down[0], down[0] + height)
    left = _offset(draws[1], side=width, whole=image[1], span=across)
    top = _offset(draws[2], side=height, whole=image[0], span=down)
    return CropResize(box=(left, top, width, height), size=target)


def _offset(draw: float, *, side: int, whole: int, span: tuple[float, float] | None) -> int:
    """Where a part of `side` of `whole` px begins: anywhere such that it holds the span, else centred on that."""
    first, last = 0, whole - side
    if span is not None:
        low, high = max(span[0], 0.0), min(span[1], float(whole))
        first, last = max(first, math.ceil(high - side)), min(last, math.floor(low))
        if first > last:
            return min(max(round((low + high - side) / 2), 0), whole - side)
    return first + int(draw * (last - first + 1))
