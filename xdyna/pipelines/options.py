"""Values that a caller may give in place of computed or drawn ones, beyond diffusers' own call arguments."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Precomputed:
    """Values to use in place of computed or drawn ones: parity tests, other crops, continued runs. N videos.

    Attributes:
        reference_latents: (N, 4, h, w), scaled by the VAE's scaling factor.
        prior: (N, 4, T, h, w) start of the generated frames before noise is added.
        offsets: window offset of each timestep.
        start_step: number of steps already done; the call's `latents` are then the state after these.
    """

    reference_latents: Tensor | None = None
    prior: Tensor | None = None
    offsets: Sequence[int] | None = None
    start_step: int = 0

    def check(self, latents: Tensor | None, *, shape: tuple[int, int, int, int, int], steps: int) -> None:
        """See whether the values fit the videos to be made.

        Args:
            latents: the call's own.
            shape: (N, C, T, h, w) of the videos.
            steps: timesteps of the scheduler.

        Raises:
            ValueError: a wrong shape, a start step out of range, or one without latents.
        """
        n, c, _, h, w = shape
        values = {"latents": latents, "prior": self.prior, "reference latents": self.reference_latents}
        for name, value in values.items():
            wanted = (n, c, h, w) if name == "reference latents" else shape
            if value is not None and (tuple(value.shape[1:]) != wanted[1:] or value.shape[0] not in (1, n)):
                raise ValueError(f"{name} have shape {tuple(value.shape)}, expected {wanted}")
        if not 0 <= self.start_step <= steps or (self.start_step and latents is None):
            raise ValueError(
                f"start_step is {self.start_step} of {steps} steps {'with' if latents is not None else 'without'} "
                "latents; expected 0 to all steps, and latents to start later than at step 0"
            )
        if self.offsets is not None and len(self.offsets) != steps:
            raise ValueError(f"{len(self.offsets)} window offsets given for {steps} steps")


@dataclass(frozen=True)
class Windows:
    """How frames are denoised together.

    Attributes:
        context_frames: generated frames per window.
        context_overlap: frames shared by neighbouring windows.
        context_schedule: "uniform" (closed loop) or "uniform_open" (the end is not tied to the beginning).
    """

    context_frames: int
    context_overlap: int
    context_schedule: str


@dataclass(frozen=True)
class Draws:
    """What is drawn for one video.

    Attributes:
        blurred: (1, 4, T, h, w) in [0, 1); where it is below 1/2 the similarity prior is the blurred reference.
        noise: (1, 4, T, h, w).
        offsets: window offset of each timestep.
    """

    blurred: Tensor
    noise: Tensor
    offsets: list[int]
