"""Values that a caller may give in place of computed or drawn ones, beyond diffusers' own call arguments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xdyna.models.denoiser import Tokens
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
        token_downsampling: see `XDynaUNet.forward`; 1 is exact.
    """

    reuse: Reuse = Reuse()
    apart: bool = False
    control_chunk: int | None = None
    token_downsampling: int = 1

    def __post_init__(self) -> None:
        """Check the number."""
        if self.token_downsampling < 1:
            raise ValueError(f"token_downsampling is {self.token_downsampling}, expected 1 or more")


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


@dataclass(frozen=True)
class Embeddings:
    """Text and image tokens of N videos; a step's callback may replace them.

    Attributes:
        prompt_embeds: (N, S, c).
        negative_prompt_embeds: (N, S, c), or None: then guidance cannot run.
        image_embeds: (N, S', c), or None for a UNet without image tokens.
        negative_image_embeds: (N, S', c) or None.
    """

    prompt_embeds: Tensor
    negative_prompt_embeds: Tensor | None
    image_embeds: Tensor | None
    negative_image_embeds: Tensor | None

    def __post_init__(self) -> None:
        """Check the shapes."""
        for positive, negative in (
            ("prompt_embeds", "negative_prompt_embeds"),
            ("image_embeds", "negative_image_embeds"),
        ):
            value, other = getattr(self, positive), getattr(self, negative)
            if value is not None and value.ndim != 3:
                raise ValueError(f"{positive} have shape {tuple(value.shape)}, expected (videos, tokens, channels)")
            if other is not None and (value is None or value.shape[1:] != other.shape[1:]):
                shape = tuple(value.shape) if value is not None else None
                raise ValueError(
                    f"{positive} have shape {shape} but {negative} {tuple(other.shape)}; both must have the same"
                )

    def replaced(self, changes: Mapping[str, Tensor]) -> "Embeddings":
        """These with some tensors replaced; itself when none is another one."""
        new = {name: value for name, value in changes.items() if value is not getattr(self, name)}
        return replace(self, **new) if new else self

    def repeated(self, count: int, *, each: int = 1) -> "Embeddings":
        """With `count` rows; a single row serves all. Each row then stands `each` times, one after the other.

        Raises:
            ValueError: another number of rows.
        """
        rows = {}
        for name, value in vars(self).items():
            if value is not None and value.shape[0] not in (1, count):
                raise ValueError(f"{name} have {value.shape[0]} rows for {count} videos; give one per video, or one")
            if value is not None:
                value = value.repeat(count, 1, 1) if len(value) != count else value
                value = value.repeat_interleave(each, dim=0) if each > 1 else value
            rows[name] = value
        return Embeddings(**rows)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Embeddings":
        """All tokens on a device, in a dtype."""
        moved = {name: value.to(device, dtype) for name, value in vars(self).items() if value is not None}
        return replace(self, **moved)

    def tokens(self, number: int, *, guided: bool) -> Tokens:
        """The tokens of one video.

        Args:
            number: of the video.
            guided: with a row for the unconditional branch, before that of the conditional one.

        Returns:
            Tokens: of 2 rows, or of 1.

        Raises:
            ValueError: guidance without negative tokens.
        """
        if guided and (
            self.negative_prompt_embeds is None
            or (self.image_embeds is not None and self.negative_image_embeds is None)
        ):
            raise ValueError(
                "guidance_scale is above 1, which needs an unconditional branch; give negative_prompt_embeds and "
                "negative_image_embeds too, or a guidance_scale of 1"
            )

        def rows(positive: Tensor | None, negative: Tensor | None) -> Tensor | None:
            if positive is None:
                return None
            row = slice(number, number + 1)
            return torch.cat([negative[row], positive[row]]) if guided and negative is not None else positive[row]

        text = rows(self.prompt_embeds, self.negative_prompt_embeds)
        assert text is not None
        return Tokens(text, rows(self.image_embeds, self.negative_image_embeds))
