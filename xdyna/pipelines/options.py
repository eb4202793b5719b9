"""Values that a caller may give in place of computed or drawn ones, beyond diffusers' own call arguments."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from xdyna.pipelines.solvers import SolverState


@dataclass(frozen=True)
class Precomputed:
    """Values to use in place of computed or drawn ones: parity tests, other crops, continued runs. N videos.

    Attributes:
        reference_latents: (N, 4, h, w), scaled by the VAE's scaling factor.
        prior: (N, 4, T, h, w) start of the generated frames before noise is added.
        offsets: window offset of each timestep.
        start_step: number of steps already done; the call's `latents` are then the state after these.
        solver: `solver_state` after these steps, for schedulers with a history and those that draw noise. One video.
    """

    reference_latents: Tensor | None = None
    prior: Tensor | None = None
    offsets: Sequence[int] | None = None
    start_step: int = 0
    solver: SolverState | None = None

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
        hold: so many steps in a row have the same windows.
    """

    context_frames: int
    context_overlap: int
    context_schedule: str
    hold: int = 1


@dataclass(frozen=True)
class Reuse:
    """Deep features that are kept between steps, see `models/deep.py`. Not exact.

    Attributes:
        interval: every so many steps, all layers run; 1 for all steps (exact).
        depth: skip connections, counted from the highest resolution, whose layers run in every step.
    """

    interval: int = 1
    depth: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.interval < 1 or self.depth < 1:
            raise ValueError(f"reuse has interval {self.interval} and depth {self.depth}, expected 1 or more of both")


@dataclass(frozen=True)
class Savings:
    """What sampling computes less often, or in smaller parts.

    Attributes:
        reuse: of deep features.
        apart: the branches of guidance run one after the other (same result, less memory).
        control_chunk: frames that go through a ControlNet at a time (same result); None for all of a window.
    """

    reuse: Reuse = Reuse()
    apart: bool = False
    control_chunk: int | None = None


@dataclass(frozen=True)
class Draws:
    """What is drawn for one video.

    Attributes:
        blurred: bool (1, 4, T, h, w); where the similarity prior is the blurred reference.
        noise: (1, 4, T, h, w).
        offsets: window offset of each timestep.
    """

    blurred: Tensor
    noise: Tensor
    offsets: list[int]
