"""Classifier-free guidance and the scaling of control images."""

from collections.abc import Sequence

import torch
from torch import Tensor


def classifier_free_guidance(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """e = e_u + s (e_c - e_u) (Ho & Salimans, arXiv 2207.12598, in the form Stable Diffusion uses)."""
    return unconditional + scale * (conditional - unconditional)


def condition_range(condition: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each clip's condition, over all frames, channels and pixels.

    Args:
        condition: (B, ...) of any type.

    Returns:
        tuple: float32 (B, 1, ...) twice, with as many axes as the condition.
    """
    axes = tuple(range(1, condition.ndim))
    return condition.amin(axes, keepdim=True).float(), condition.amax(axes, keepdim=True).float()


def scale_condition(condition: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Scale control images from [low, high] to [0, 1].

    The published sampler takes `low` and `high` from the whole clip's tensor (all frames and channels), not from a
    frame or a window. A clip without any contrast (blank conditions, as scene videos have them) gives zeros.

    Args:
        condition: any shape, values in [low, high].
        low: smallest value of the clip; of each clip, shapes that broadcast.
        high: largest value.

    Returns:
        Tensor: the same shape, float32.
    """
    first, last = (torch.as_tensor(x, dtype=torch.float32) for x in (low, high))
    return (condition.float() - first) / torch.where(last > first, last - first, 1.0)


def check_interval(interval: Sequence[float]) -> tuple[float, float]:
    """The interval of the noise schedule in which guidance runs (Kynkaanniemi et al., arXiv 2404.07724, section 3).

    Args:
        interval: [low, high], shares of the schedule, 0 to 1.

    Returns:
        tuple: low, high.

    Raises:
        ValueError: another form.
    """
    if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= 1:
        raise ValueError(f"guidance_interval is {list(interval)}, expected [low, high] with 0 <= low < high <= 1")
    return float(interval[0]), float(interval[1])
