"""Frame similarity prior: the generated frames start from noised copies of the reference image.

Shape legend: B clips, C channels, T generated frames, h w latent grid.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

BLUR_KERNEL = 9
BLUR_SIGMA = 18.0


def gaussian_kernel(size: int, sigma: float) -> Tensor:
    """Normalised one-dimensional Gaussian.

    Args:
        size: number of taps, odd.
        sigma: standard deviation in taps.

    Returns:
        Tensor: (size,), float32, sum 1.
    """
    x = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    weights = torch.exp(-0.5 * (x / sigma) ** 2)
    return weights / weights.sum()


def gaussian_blur(x_NCHW: Tensor, *, size: int = BLUR_KERNEL, sigma: float = BLUR_SIGMA) -> Tensor:
    """Gaussian blur per image and channel, borders reflected.

    Grids smaller than the reflection needs are padded in steps (reflecting what has been reflected).

    Args:
        x_NCHW: (N, C, h, w).
        size: taps of the kernel, odd.
        sigma: standard deviation in pixels.

    Returns:
        Tensor: (N, C, h, w).
    """
    kernel = gaussian_kernel(size, sigma).to(x_NCHW)
    n, _, h, w = x_NCHW.shape
    padded = _reflect(_reflect(rearrange(x_NCHW, "n c h w -> (n c) 1 h w"), size // 2, dim=-1), size // 2, dim=-2)
    blurred = F.conv2d(F.conv2d(padded, kernel[None, None, None, :]), kernel[None, None, :, None])
    return rearrange(blurred, "(n c) 1 h w -> n c h w", n=n, h=h, w=w)


def _reflect(x: Tensor, amount: int, *, dim: int) -> Tensor:
    while amount > 0:
        step = min(amount, x.shape[dim] - 1)
        if step == 0:  # one pixel has nothing to reflect
            pad = (amount, amount, 0, 0) if dim == -1 else (0, 0, amount, amount)
            return F.pad(x, pad, mode="replicate")
        pad = (step, step, 0, 0) if dim == -1 else (0, 0, step, step)
        x, amount = F.pad(x, pad, mode="reflect"), amount - step
    return x


def similarity_prior(reference_BCHW: Tensor, blurred: Tensor) -> Tensor:
    """What the generated frames look like before noise is added (method of the published sampler).

    Args:
        reference_BCHW: (B, C, h, w) scaled latents of the reference image.
        blurred: bool (B, C, T, h, w); True takes the Gaussian-blurred value of the element, False the value itself.
            The published sampler draws it with probability 1/2.

    Returns:
        Tensor: (B, C, T, h, w).
    """
    sharp = repeat(reference_BCHW, "b c h w -> b c t h w", t=blurred.shape[2])
    soft = repeat(gaussian_blur(reference_BCHW), "b c h w -> b c t h w", t=blurred.shape[2])
    return torch.where(blurred, soft, sharp)
