"""What a caller may choose: sampling settings, and values to use in place of computed or drawn ones."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SamplingOptions:
    """How to sample. The defaults are the published settings.

    Attributes:
        steps: denoising steps.
        guidance: classifier-free guidance scale; at 1 or below only the conditional half runs.
        context_frames: generated frames per window.
        context_overlap: frames shared by neighbouring windows.
        context_schedule: "uniform" (closed loop, published) or "uniform_open" (the end is not tied to the beginning).
        similarity_prior: start from the noised reference picture; False starts from pure noise.
        decode_chunk: pictures decoded at a time.
    """

    steps: int = 25
    guidance: float = 7.5
    context_frames: int = 16
    context_overlap: int = 4
    context_schedule: str = "uniform"
    similarity_prior: bool = True
    decode_chunk: int = 4

    def __post_init__(self) -> None:
        """Check the ranges that would fail late."""
        for name in ("steps", "context_frames", "decode_chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")


@dataclass(frozen=True)
class Precomputed:
    """Values to use in place of computed or drawn ones: parity tests, cached embeddings, continued runs.

    Attributes:
        reference_latents: (1, 4, h, w), scaled by the VAE's scaling factor.
        text_tokens: (2, S, c), rows [unconditional, conditional].
        image_tokens: (2, S', c), rows [unconditional, conditional].
        prior: (1, 4, T, h, w) start of the generated frames before noise is added.
        noise: (1, 4, T, h, w).
        offsets: window offset of each step.
        latents: (1, 4, T, h, w) noisy latents to start step `start_step` from.
        start_step: number of steps already done.
    """

    reference_latents: Tensor | None = None
    text_tokens: Tensor | None = None
    image_tokens: Tensor | None = None
    prior: Tensor | None = None
    noise: Tensor | None = None
    offsets: Sequence[int] | None = None
    latents: Tensor | None = None
    start_step: int = 0


def check_precomputed(given: Precomputed, *, frames: int, grid: tuple[int, ...], steps: int) -> None:
    """See whether precomputed values fit a clip.

    Args:
        given: the values.
        frames: T generated frames.
        grid: latent (h, w).
        steps: denoising steps.

    Raises:
        ValueError: a wrong shape, or a start step without latents (or the other way round).
    """
    for name in ("prior", "noise", "latents"):
        value = getattr(given, name)
        if value is not None and (value.shape[0] != 1 or tuple(value.shape[2:]) != (frames, *grid)):
            raise ValueError(
                f"precomputed {name} has shape {tuple(value.shape)}, expected (1, channels, {frames} frames, h, w) "
                f"with (h, w) = {grid}"
            )
    for name in ("text_tokens", "image_tokens"):
        value = getattr(given, name)
        if value is not None and (value.ndim != 3 or value.shape[0] != 2):
            raise ValueError(f"precomputed {name} has shape {tuple(value.shape)}, expected (2, tokens, channels)")
    if not 0 <= given.start_step <= steps or (given.start_step > 0) != (given.latents is not None):
        raise ValueError(
            f"start_step is {given.start_step} of {steps} steps {'with' if given.latents is not None else 'without'} "
            "latents; latents are needed to start later than at step 0, and only then"
        )
