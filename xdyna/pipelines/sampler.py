"""Denoising of one video; those of a batch advance side by side, each exactly as it would alone."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from xdyna.models.denoiser import Denoiser, Tokens
from xdyna.pipelines.denoise import Condition, ControlResidualCache, guide, predict_noise


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
    ) -> None:
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
            self._controls = ControlResidualCache(self.conditions, tokens)
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
            on_window=on_window,
        )
        noise = guide(prediction, scale)
        return self.scheduler.step(noise, timestep, latents, return_dict=False, **self.extra)[0]
