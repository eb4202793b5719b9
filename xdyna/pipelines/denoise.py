"""The sampling loop: noise prediction over overlapping windows, guidance, scheduler steps.

The videos of a batch advance side by side, each exactly as it would alone.

Shape legend: N videos, S tokens, c their channels, B branches of guidance (2 = [unconditional, conditional], or 1),
T generated frames, h w latent grid.
Nothing here draws random numbers: noise and window offsets come in (see `prepare.py`).
"""

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import ControlNetModel, SchedulerMixin
from einops import rearrange
from torch import Tensor

from xdyna.diffusion.guidance import classifier_free_guidance, condition_range, scale_condition
from xdyna.models.attention import CrossAttentionCache
from xdyna.models.controls import ControlResiduals, merge_residuals, run_controlnet, share_work
from xdyna.models.denoiser import Denoiser, Tokens


@dataclass(frozen=True)
class Condition:
    """One ControlNet with the control images of the whole clip.

    Attributes:
        controlnet: the net.
        images: uint8 (T, C, 8h, 8w), kept where they are and moved to the device by the window.
    """

    controlnet: ControlNetModel
    images: Tensor

    @property
    def value_range(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest value of the whole clip, () each, on the host."""
        low, high = condition_range(self.images[None])
        return low.cpu().squeeze(), high.cpu().squeeze()

    def scaled(self, frames: Sequence[int], value_range: tuple[Tensor, Tensor], like: Tensor) -> Tensor:
        """Some frames for the ControlNet: images in [0, 1], on the device and in the dtype of `like`."""
        images = self.images[list(frames)].to(like.device)
        return scale_condition(images, *value_range).to(like.dtype)


EMBEDDED_FRAMES = 192
"""Frames of a video whose embedded control images are kept: 1.8 GB for both ControlNets at 896 x 512 px in 16 bits."""


class EmbeddedConditions:
    """Control images of one ControlNet as it embeds them, which no timestep enters: once per clip is enough.

    Only frames below a fixed number are kept, on the device, so that memory does not grow with the video; those of
    later frames are computed in each step. The ControlNet embeds them itself in its first pass over them, where weights
    that are kept elsewhere are at hand.

    Args:
        condition: the ControlNet with the images of the whole clip.
        frames: how many frames are kept.
    """

    def __init__(self, condition: Condition, frames: int) -> None:
        self.condition, self.frames = condition, frames
        self.value_range = condition.value_range
        self._kept: dict[int, Tensor] = {}
        share_work(condition.controlnet)

    def residuals(self, sample: Tensor, timestep: Tensor, text: Tensor, frames: Sequence[int]) -> ControlResiduals:
        """The ControlNet's residuals; its dtype need not be the UNet's.

        Args:
            sample: (N, 4, h, w) noisy latents of these frames.
            timestep: scalar.
            text: (1, S, D).
            frames: their N numbers.

        Returns:
            ControlResiduals: in the dtype of `sample`.
        """
        net = self.condition.controlnet
        own, text = sample.to(net.dtype), text.to(net.dtype)
        if all(frame in self._kept for frame in frames):
            embedded = torch.stack([self._kept[frame] for frame in frames])
            residuals = run_controlnet(net, own, timestep, text, embedded)
        else:
            images = self.condition.scaled(frames, self.value_range, own)
            hook = net.controlnet_cond_embedding.register_forward_hook(
                lambda _, inputs, output: self._keep(frames, output)
            )
            try:
                residuals = run_controlnet(net, own, timestep, text, images)
            finally:
                hook.remove()
        return ControlResiduals(
            tuple(level.to(sample.dtype) for level in residuals.down), residuals.mid.to(sample.dtype)
        )

    def _keep(self, frames: Sequence[int], embedded: Tensor) -> None:
        for frame, row in zip(frames, embedded, strict=True):
            if frame < self.frames:
                self._kept[frame] = row.clone()


class ControlResidualCache:
    """ControlNet residuals of one denoising step, computed once per frame although windows overlap.

    A frame's residuals are dropped after the last window that holds it, so that memory does not grow with the video.

    Args:
        conditions: the ControlNets; their value ranges are taken here, over the whole clip.
        tokens: text for the ControlNets.
        embedded_frames: frames whose embedded control images are kept from step to step.

    Attributes:
        keys: what cross-attention makes of the tokens, for all steps.
    """

    def __init__(
        self, conditions: Sequence[Condition], tokens: Tokens, *, embedded_frames: int = EMBEDDED_FRAMES
    ) -> None:
        self.conditions = [EmbeddedConditions(condition, embedded_frames) for condition in conditions]
        self.tokens, self.keys = tokens, CrossAttentionCache()
        self._texts = tokens.distinct_text
        self._frames: dict[int, ControlResiduals] = {}
        self._uses: Counter[int] = Counter()

    def start(self, windows: Sequence[Sequence[int]]) -> None:
        """Forget everything and learn which frames the coming step needs, and how often."""
        self._frames.clear()
        self._uses = Counter(frame for window in windows for frame in window)

    def window(self, latents: Tensor, timestep: Tensor, window: Sequence[int]) -> ControlResiduals | None:
        """Residuals of the frames of one window.

        Args:
            latents: (1, 4, T, h, w) of the whole clip, in the networks' dtype.
            timestep: scalar.
            window: frame numbers.

        Returns:
            ControlResiduals: each (B or 1, C, frames, ., .); None without ControlNets.
        """
        if not self.conditions:
            return None
        new = [frame for frame in window if frame not in self._frames]
        if new:
            for frame, residuals in zip(new, self._compute(latents, timestep, new), strict=True):
                self._frames[frame] = residuals
        out = _stack_frames([self._frames[frame] for frame in window])
        for frame in window:
            self._uses[frame] -= 1
            if not self._uses[frame]:
                del self._frames[frame]
        return out

    def _compute(self, latents: Tensor, timestep: Tensor, frames: list[int]) -> Iterator[ControlResiduals]:
        sample = rearrange(latents[:, :, frames], "1 c t h w -> t c h w")
        per_text = [
            merge_residuals([condition.residuals(sample, timestep, text, frames) for condition in self.conditions])
            for text in self._texts.split(1)
        ]
        for i in range(len(frames)):
            rows = [r.select([i]) for r in per_text]
            yield ControlResiduals(
                tuple(torch.cat(level) for level in zip(*(r.down for r in rows), strict=True)),
                torch.cat([r.mid for r in rows]),
            )


def _stack_frames(frames: list[ControlResiduals]) -> ControlResiduals:
    down = tuple(torch.stack(level, dim=2) for level in zip(*(f.down for f in frames), strict=True))
    return ControlResiduals(down, torch.stack([f.mid for f in frames], dim=2))


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
        on_window: called after each window (progress).

    Returns:
        Tensor: (B, 4, T, h, w) float32.
    """
    rows, dtype = tokens.text.shape[0], denoiser.unet.dtype
    latents, reference = latents.to(dtype), reference.to(dtype)
    total = torch.zeros(rows, *latents.shape[1:], device=latents.device)
    count = torch.zeros(latents.shape[2], device=latents.device)
    controls.start(windows)
    for window in windows:
        frames = list(window)
        out = denoiser.predict(
            latents[:, :, frames],
            timestep,
            tokens,
            reference_BC1hw=reference,
            residuals=controls.window(latents, timestep, frames),
            features=reference_features,
            keys=controls.keys,
        )
        total[:, :, frames] += out.float()
        count[frames] += 1
        on_window()
    return total / count[:, None, None]


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
