"""Losses of training, as pure functions. Noising and v are the scheduler's (`add_noise`, `get_velocity`).

Shape legend: B clips, C channels, T generated frames, h w latent grid.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor


def offset_noise(noise: Tensor, offset_BC: Tensor, strength: float) -> Tensor:
    """Noise with one extra value per clip and channel, so that the mean brightness is learned too.

    Args:
        noise: (B, C, ...) standard normal.
        offset_BC: (B, C) standard normal.
        strength: of the offset; 0 changes nothing (0.05 - 0.1 are common).

    Returns:
        Tensor: the shape of `noise`.

    Source: "Diffusion with offset noise" (N. Guttenberg, 2023).
    """
    return noise + strength * offset_BC.reshape(*offset_BC.shape, *(1 for _ in noise.shape[2:]))


def min_snr_weight(alphas_cumprod_B: Tensor, gamma: float, *, of_velocity: bool = False) -> Tensor:
    """Min-SNR weight of the error of predicted noise, min(SNR, gamma) / SNR with SNR = a / (1 - a), or of predicted v,
    min(SNR, gamma) / (SNR + 1) (arXiv 2303.09556, section 3.4).

    Args:
        alphas_cumprod_B: (B,) a_t.
        gamma: the cut; 5 in the paper.
        of_velocity: the network predicts v.

    Returns:
        Tensor: (B,), in (0, 1].
    """
    snr = alphas_cumprod_B / (1 - alphas_cumprod_B)
    return snr.clamp(max=gamma) / (snr + 1 if of_velocity else snr)


def velocity_weight(alphas_cumprod_B: Tensor, cut: float) -> Tensor:
    """Weight 1 / a that turns the error of predicted noise into that of v = sqrt(a) e - sqrt(1 - a) x_0.

    Plain noise prediction hardly counts what goes wrong at high noise, where a clip's layout is decided: an error of
    the image is scaled by the signal-to-noise ratio. The error of v weighs noise and image alike.

    Args:
        alphas_cumprod_B: (B,) a_t.
        cut: largest weight.

    Returns:
        Tensor: (B,), 1 .. cut.

    Source: Salimans & Ho, arXiv 2202.00512, section 4 ("SNR + 1" weighting) and appendix D (v).
    """
    return (1 / alphas_cumprod_B).clamp(max=cut)


def clip_losses(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error of each clip. Args: (B, ...) twice, weights that broadcast to it. Returns: (B,) float32."""
    error = (prediction.float() - target.float()) ** 2
    return reduce(error if weights is None else error * weights, "b ... -> b", "mean")


def huber_losses(prediction: Tensor, target: Tensor, c: float, weights: Tensor | None = None) -> Tensor:
    """Pseudo-Huber error sqrt(d^2 + c^2) - c of each clip, mean over its elements.

    Args:
        prediction: (B, ...).
        target: the same shape.
        c: where squares turn into absolute values; 0 for absolute values alone.
        weights: broadcast to the shape; None for 1.

    Returns:
        Tensor: (B,) float32.

    Source: Song & Dhariwal, arXiv 2310.14189, section 3.3.
    """
    difference = prediction.float() - target.float()
    error = difference.abs() if c == 0 else (difference**2 + c**2).sqrt() - c
    return reduce(error if weights is None else error * weights, "b ... -> b", "mean")


def person_weights(
    pose: Tensor, grid: tuple[int, int], weight: float, *, features: Tensor | None = None, of_features: float = 1.0
) -> Tensor:
    """Weights of the error: `weight` near the drawn skeleton, 1 elsewhere, then scaled to a mean of 1 in each clip.

    Near is within an eighth of the image's height, which takes in clothes and hair. MimicMotion (arXiv 2406.19680)
    weighs hands in the same way.

    Args:
        pose: (B, T, C, H, W) skeletons, any type, black where there is none.
        grid: (h, w) of the weights: that of the latents, or of the pixels.
        weight: of the error near the skeleton.
        features: (B, T, C, H, W) local face patches: eyes and mouth on black; None for none.
        of_features: weight of the error there, if larger.

    Returns:
        Tensor: float32 (B, 1, T, h, w).
    """

    def shown(images: Tensor) -> Tensor:
        brightest = rearrange(images, "b t c h w -> (b t) c h w").amax(dim=1, keepdim=True)
        return F.adaptive_max_pool2d((brightest > 0).float(), grid)

    reach = max(1, round(grid[0] / 8))
    columns = F.max_pool2d(shown(pose), (2 * reach + 1, 1), stride=1, padding=(reach, 0))
    near = F.max_pool2d(columns, (1, 2 * reach + 1), stride=1, padding=(0, reach))
    weights = 1 + (weight - 1) * near
    if features is not None:
        weights = torch.maximum(weights, 1 + (of_features - 1) * shown(features))
    weights = rearrange(weights, "(b t) 1 h w -> b 1 t h w", b=pose.shape[0])
    return weights / weights.mean(dim=(1, 2, 3, 4), keepdim=True)


def reconstruction_loss(
    output_NCHW: Tensor, target_NCHW: Tensor, *, l1: float, edges: float, weights: Tensor | None = None
) -> Tensor:
    """Autoencoder loss: mean squared error, plus L1, plus L1 of the image's gradients at three scales (thin lines).

    Args:
        output_NCHW: (N, C, H, W) decoded images in [-1, 1].
        target_NCHW: the originals.
        l1: weight of the L1 term.
        edges: weight of the gradient terms.
        weights: (N, 1, H, W) of the errors at each pixel; None for 1 everywhere.

    Returns:
        Tensor: (N,).
    """
    error = output_NCHW.float() - target_NCHW.float()
    weight = torch.ones_like(error[:, :1]) if weights is None else weights
    loss = reduce((error**2 + l1 * error.abs()) * weight, "n c h w -> n", "mean")
    for scale in range(3):
        if scale:
            error, weight = F.avg_pool2d(error, 2), F.avg_pool2d(weight, 2)
        if min(error.shape[-2:]) < 2:
            break
        for dim, size in ((-2, error.shape[-2] - 1), (-1, error.shape[-1] - 1)):
            slopes = error.diff(dim=dim).abs() * weight.narrow(dim, 0, size)
            loss = loss + edges / 6 * reduce(slopes, "n c h w -> n", "mean")
    return loss


def kl_to_standard_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)), averaged over the elements of each image.

    Args:
        mean: (N, ...).
        logvar: the same shape.

    Returns:
        Tensor: float32 (N,).
    """
    kl = 0.5 * (mean.float() ** 2 + logvar.float().exp() - 1 - logvar.float())
    return reduce(kl, "n ... -> n", "mean")


def frames_to_clips(frames: Tensor, clips: int) -> Tensor:
    """(B * T, C, h, w) -> (B, C, T, h, w)."""
    return rearrange(frames, "(b t) c h w -> b c t h w", b=clips)
