"""Random weights that are the same everywhere: to compare a network with another implementation of it, without its
published file."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def random_weights(like: Mapping[str, Tensor], *, seed: int = 0) -> dict[str, Tensor]:
    """Weights under which a deep network keeps its signal.

    Convolutions and matrices: normal with variance 2 / inputs; norms near 1; variances in 0.5 .. 1.5; biases small.
    Each tensor depends on its name and the seed alone (numpy's PCG64), not on the version of PyTorch.

    Args:
        like: a state dict, for names, shapes and types.
        seed: of the draw.
    """
    drawn = {}
    for name, tensor in like.items():
        rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
        if not tensor.is_floating_point():
            drawn[name] = torch.zeros_like(tensor)
            continue
        values = rng.standard_normal(tuple(tensor.shape))
        if name.endswith("running_var"):
            values = 0.5 + rng.random(tuple(tensor.shape))
        elif tensor.ndim > 1:
            values *= math.sqrt(2 / math.prod(tensor.shape[1:]))
        elif name.endswith("weight"):
            values = 1 + 0.1 * values
        else:
            values *= 0.1
        drawn[name] = torch.from_numpy(values.astype(np.float32))
    return drawn


def random_images(count: int, *, side: int = 64, seed: int = 0) -> np.ndarray:
    """Smooth random images, uint8 (count, side, side + 16, 3)."""
    rng = np.random.Generator(np.random.PCG64(seed))
    y, x = np.mgrid[0:side, 0 : side + 16] / side
    images = np.zeros((count, side, side + 16, 3))
    for image in images:
        for channel in range(3):
            for _ in range(6):
                fx, fy, phase, strength = rng.standard_normal(4)
                image[..., channel] += strength * np.sin(5 * (fx * x + fy * y) + 6 * phase)
    return (127 + 40 * images).clip(0, 255).astype(np.uint8)
