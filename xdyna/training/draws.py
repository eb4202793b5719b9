"""What is random in a loss: timesteps, noise, samples of the posterior. All of a sample is drawn from a generator
of (seed, sample index), so that a loss does not depend on the batch size, on the number of processes or on where a run
was interrupted.

Shape legend: B clips, F = 1 + T frames (frame 0 is the reference), C channels, h w latent grid, S tokens.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Streams of random numbers that must not meet: training noise, validation noise.
TRAINING, VALIDATION = 0, 1
GOLDEN_RATIO = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Draw:
    """What is random in the loss of a batch.

    Attributes:
        timestep: int64 (B,), 0 .. steps - 1.
        noise: (B, C, T, h, w).
        posterior: (B, C, F, h, w) standard normal, for a sample of the autoencoder's posterior.
    """

    timestep: Tensor
    noise: Tensor
    posterior: Tensor


@dataclass(frozen=True)
class Inputs:
    """What a diffusion loss needs beside the batch, on the networks' device.

    Attributes:
        timestep: int64 (B,).
        noise: (B, C, T, h, w).
        posterior: (B, C, F, h, w).
        text: (B, S, D), text tokens.
    """

    timestep: Tensor
    noise: Tensor
    posterior: Tensor
    text: Tensor


def sample_generator(
    seed: int, index: int, stream: int = TRAINING, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Generator of one sample; that of validation is the same in every run.

    Args:
        seed: of the run.
        index: global sample index.
        stream: `TRAINING` or `VALIDATION`.
        device: where it draws; the numbers differ from one kind of device to another.
    """
    state = np.random.SeedSequence([seed if stream == TRAINING else 0, index, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


def spread_timestep(seed: int, index: int, steps: int) -> int:
    """Timestep of a sample such that those of neighbouring samples lie evenly apart, whatever the batch size.

    floor(steps * frac(u + index * golden ratio)): uniform over many samples, and the largest gap among n neighbours is
    below 2.2 / n. Stratified timesteps reduce the variance of a diffusion loss (Kingma et al., arXiv 2107.00630, I.1).

    Args:
        seed: gives u.
        index: global sample index.
        steps: number of timesteps.

    Returns:
        int: 0 .. steps - 1.
    """
    start = float(np.random.default_rng([seed, 7]).random())
    return int(((start + index * GOLDEN_RATIO) % 1.0) * steps)
