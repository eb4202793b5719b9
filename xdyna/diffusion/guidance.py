"""Classifier-free guidance and the scaling of condition pictures."""

import torch
from torch import Tensor


def classifier_free_guidance(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """e = e_u + s (e_c - e_u) (Ho & Salimans, arXiv 2207.12598, in the form Stable Diffusion uses)."""
    return unconditional + scale * (conditional - unconditional)


def scale_condition(condition: Tensor) -> Tensor:
    """Scale condition pictures to [0, 1] by the minimum and maximum of the whole clip's tensor (published behaviour).

    A clip without any contrast (blank conditions, as scene videos have them) gives zeros.

    Args:
        condition: any shape, any range; all frames of the clip together.

    Returns:
        Tensor: the same shape, floating point.
    """
    values = condition.float()
    low, high = torch.aminmax(values)
    if low == high:
        return torch.zeros_like(values)
    return (values - low) / (high - low)
