"""The sampling loop: noise prediction over overlapping windows, guidance, scheduler steps.

The videos of a batch advance side by side, each exactly as it would alone.

Shape legend: N videos, S tokens, c their channels, B branches of guidance (2 = [unconditional, conditional], or 1),
T generated frames, h w latent grid.
Nothing here draws random numbers: noise and window offsets come in (see `prepare.py`).
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from xdyna.diffusion.guidance import classifier_free_guidance
from xdyna.models.controls import ControlResiduals
from xdyna.models.deep import DeepReuse
from xdyna.models.denoiser import Denoiser, Tokens
from xdyna.pipelines.options import Savings
from xdyna.pipelines.residuals import EMBEDDED_FRAMES, Condition, ControlResidualCache


def predict_noise(
    denoiser: Denoiser,
    latents: Tensor,
    reference: Tensor,
    timestep: Tensor,
    *,
    windows: Sequence[Sequence[int]],
    tokens: Tokens,
    controls: ControlResidualCache,
    reference_features: Sequence[Tensor] = (),
    deep: DeepReuse | None = None,
    step: int = 0,
    apart: bool = False,
    on_window: Callable[[], Any] = lambda: None,
) -> Tensor:
    """Noise prediction for all frames, averaged over the windows that hold each frame.

    Args:
        denoiser: the networks.
        latents: (1, 4, T, h, w) noisy latents, scaled for the network.
        reference: (1, 4, 1, h, w) clean latents of the reference; joins every window as frame 0.
        timestep: scalar.
        windows: lists of frame numbers that together hold every frame.
        tokens: text and image tokens per branch.
        controls: residual cache of the clip.
        reference_features: of `Denoiser.read_reference`; empty without a ReferenceNet.
        deep: deep features kept between steps; None computes all of them.
        step: number of the step, which decides whether they are computed anew.
        apart: the branches of guidance run one after the other, in less memory.
        on_window: called after each window (progress).

    Returns:
        Tensor: (B, 4, T, h, w) float32.
    """
    rows, dtype = tokens.text.shape[0], denoiser.unet.dtype
    latents, reference = latents.to(dtype), reference.to(dtype)
    total = torch.zeros(rows, *latents.shape[1:], device=latents.device)
    count = torch.zeros(latents.shape[2], device=latents.device)
    reuse = deep or DeepReuse(1, 1)
    controls.start(windows, depth=reuse.start(step, windows, rows))
    for window in windows:
        frames = list(window)
        residuals = controls.window(latents, timestep, frames)
        for branch in [slice(k, k + 1) for k in range(rows)] if apart else [slice(0, rows)]:
            out = denoiser.predict(
                latents[:, :, frames],
                timestep,
                tokens.rows(branch),
                reference_BC1hw=reference,
                residuals=_branch(residuals, branch),
                features=[feature[branch] for feature in reference_features],
                keys=controls.keys(branch),
                deep=reuse.of(frames, branch.start),
            )
            total[branch, :, frames] += out.float()
        count[frames] += 1
        on_window()
    return total / count[:, None, None]


def _branch(residuals: ControlResiduals | None, branch: slice) -> ControlResiduals | None:
    """Those of some branches of guidance; a single row serves all."""
    if residuals is None or len(residuals.mid) == 1:
        return residuals
    return ControlResiduals(tuple(level[branch] for level in residuals.down), residuals.mid[branch])


def guide(prediction: Tensor, scale: float) -> Tensor:
    """Combine the branches: (B, 4, T, h, w) -> (1, 4, T, h, w)."""
    if prediction.shape[0] == 1:
        return prediction
    unconditional, conditional = prediction.chunk(2)
    return classifier_free_guidance(unconditional, conditional, scale)


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


class VideoSampler:
    """Takes the steps of one video.

    Args:
        denoiser: the networks.
        scheduler: this video's own (it may keep a history), timesteps set.
        reference: (1, C, 1, h, w) latents of the reference.
        conditions: ControlNets with their control images.
        windows: frame numbers of each window, for each step.
        generator: of schedulers that draw noise in their steps.
        eta: of DDIM, 0 draws no noise.
        savings: what is computed less often, or in smaller parts.
    """

    def __init__(
        self,
        *,
        denoiser: Denoiser,
        scheduler: SchedulerMixin,
        reference: Tensor,
        conditions: Sequence[Condition],
        windows: Sequence[Sequence[Sequence[int]]],
        generator: torch.Generator | None,
        eta: float,
        savings: Savings | None = None,
    ) -> None:
        self.savings = savings or Savings()
        self._deep = DeepReuse(self.savings.reuse.interval, self.savings.reuse.depth)
        self.denoiser = denoiser
        self.scheduler = scheduler
        self.reference = reference
        self.conditions = conditions
        self.windows = windows
        accepted = inspect.signature(scheduler.step).parameters
        self.extra = {k: v for k, v in {"eta": eta, "generator": generator}.items() if k in accepted}
        self._controls: ControlResidualCache | None = None
        self._features: tuple[Tensor, ...] = ()

    def step(
        self,
        latents: Tensor,
        number: int,
        timestep: Tensor,
        *,
        tokens: Tokens,
        scale: float,
        on_window: Callable[[], Any] = lambda: None,
    ) -> Tensor:
        """Take one denoising step.

        Args:
            latents: (1, C, T, h, w).
            number: of the step.
            timestep: its timestep.
            tokens: of this video, with 2 rows for guidance.
            scale: of guidance.
            on_window: called after each window (progress).

        Returns:
            Tensor: (1, C, T, h, w).
        """
        if self._controls is None or self._controls.tokens is not tokens:
            self._controls = ControlResidualCache(
                self.conditions,
                tokens,
                chunk=self.savings.control_chunk,
                embedded_frames=0 if self.savings.apart else EMBEDDED_FRAMES,
            )
            features = self.denoiser.read_reference(self.reference, tokens)
            self._features = tuple(feature.to(self.denoiser.unet.dtype) for feature in features)
        prediction = predict_noise(
            self.denoiser,
            self.scheduler.scale_model_input(latents, timestep),
            self.reference,
            timestep,
            windows=self.windows[number],
            tokens=tokens,
            controls=self._controls,
            reference_features=self._features,
            deep=self._deep,
            step=number,
            apart=self.savings.apart,
            on_window=on_window,
        )
        noise = guide(prediction, scale)
        return self.scheduler.step(noise, timestep, latents, return_dict=False, **self.extra)[0]
