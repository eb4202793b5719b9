"""Classifier-free guidance and the scaling of condition pictures."""

import torch
from torch import Tensor


def classifier_free_guidance(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """e = e_u + s (e_c - e_u) (Ho & Salimans, arXiv 2207.12598, in the form Stable Diffusion uses)."""
    return unconditional + scale * (conditional - unconditional)


def scale_condition(condition: Tensor, low: float, high: float) -> Tensor:
    """Scale condition pictures from [low, high] to [0, 1].

    The published sampler takes `low` and `high` from the whole clip's tensor (all frames and channels), not from a
    frame or a window. A clip without any contrast (blank conditions, as scene videos have them) gives zeros.

    Args:
        condition: any shape, values in [low, high].
        low: smallest value of the clip.
        high: largest value of the clip.

    Returns:
        Tensor: the same shape, float32.
    """
    values = condition.float()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)
