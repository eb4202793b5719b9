"""Augmentation of a clip: one crop for all its frames, its reference and its key points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xdyna.media import CropResize


def random_resized_crop(
    rng: np.random.Generator, *, target: tuple[int, int], scale: Sequence[float]
) -> tuple[tuple[int, int], CropResize]:
    """A random resized crop for pictures that can be rendered at any size.

    Instead of enlarging a part of a picture, which blurs, the picture is rendered larger and a window of the target's
    size is cut out: the same geometry without any resampling.

    Args:
        rng: two or three numbers are drawn from it.
        target: (H, W) of the result, px.
        scale: [lowest, highest] share of the picture's area that is kept, in (0, 1].

    Returns:
        (H, W) to render at, and the crop from there to `target`.
    """
    share = rng.uniform(scale[0], scale[1])
    height, width = (round(side / share**0.5) for side in target)
    top, left = (int(rng.integers(0, slack + 1)) for slack in (height - target[0], width - target[1]))
    return (height, width), CropResize(box=(left, top, target[1], target[0]), size=target)
