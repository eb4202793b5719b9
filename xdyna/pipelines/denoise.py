"""The sampling loop: noise prediction over overlapping windows, guidance, scheduler steps.

Shape legend: H halves of guidance (2 = [unconditional, conditional], or 1), T generated frames, h w latent grid.
Nothing here draws random numbers: noise and window offsets come in (see `prepare.py`).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ControlNetModel
from einops import rearrange
from torch import Tensor

from xdyna.diffusion.guidance import classifier_free_guidance, scale_condition
from xdyna.models.controls import ControlResiduals, merge_residuals, run_controlnet
from xdyna.models.reference_net import ReferenceNet
from xdyna.models.unet import XDynaUNet


@dataclass(frozen=True)
class Condition:
    """One ControlNet with the condition pictures of the whole clip.

    Attributes:
        controlnet: the net.
        pictures: uint8 (T, C, 8h, 8w), kept where they are and moved to the device by the window.
    """

    controlnet: ControlNetModel
    pictures: Tensor

    @property
    def value_range(self) -> tuple[float, float]:
        """Smallest and largest value of the whole clip."""
        low, high = torch.aminmax(self.pictures)
        return float(low), float(high)


@dataclass(frozen=True)
class Tokens:
    """Text and image tokens, one row per half of guidance.

    Attributes:
        text: (H, S, c).
        image: (H, S', c) or None.
    """

    text: Tensor
    image: Tensor | None

    @property
    def same_text(self) -> bool:
        """True when both halves have the same text, so that ControlNets need to run only once."""
        return bool((self.text == self.text[:1]).all())


class ControlResidualCache:
    """ControlNet residuals of one denoising step, computed once per frame although windows overlap.

    A frame's residuals are dropped after the last window that holds it, so that memory does not grow with the video.

    Args:
        conditions: the ControlNets; their value ranges are taken here, over the whole clip.
        tokens: text for the ControlNets.
    """

    def __init__(self, conditions: Sequence[Condition], tokens: Tokens) -> None:
        self.conditions = [(condition, *condition.value_range) for condition in conditions]
        self.tokens = tokens
        self._texts = tokens.text[:1] if tokens.same_text else tokens.text
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
            ControlResiduals: each (H or 1, C, frames, ., .); None without ControlNets.
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
        per_text = []
        for text in self._texts.split(1):
            outputs = []
            for condition, low, high in self.conditions:
                pictures = scale_condition(condition.pictures[frames].to(sample.device), low, high)
                dtype = condition.controlnet.dtype  # need not be the UNet's
                inputs = sample.to(dtype), timestep, text.to(dtype), pictures.to(dtype)
                outputs.append(run_controlnet(condition.controlnet, *inputs))
            per_text.append(merge_residuals(outputs))
        for i in range(len(frames)):
            rows = [r.select([i]) for r in per_text]
            yield ControlResiduals(
                tuple(torch.cat(level).to(sample.dtype) for level in zip(*(r.down for r in rows), strict=True)),
                torch.cat([r.mid for r in rows]).to(sample.dtype),
            )


def _stack_frames(frames: list[ControlResiduals]) -> ControlResiduals:
    down = tuple(torch.stack(level, dim=2) for level in zip(*(f.down for f in frames), strict=True))
    return ControlResiduals(down, torch.stack([f.mid for f in frames], dim=2))


def read_reference(net: ReferenceNet, reference: Tensor, tokens: Tokens) -> tuple[Tensor, ...]:
    """ReferenceNet features of a clip: neither timestep nor window enters them, so once per clip is enough.

    Args:
        net: the ReferenceNet.
        reference: (1, 4, 1, h, w) clean latents of the reference.
        tokens: text and image tokens per half.

    Returns:
        tuple[Tensor, ...]: one (H, L, C) per spatial self-attention.
    """
    halves = tokens.text.shape[0]
    image = tokens.image.to(net.dtype) if tokens.image is not None else None
    return net(reference[:, :, 0].to(net.dtype).expand(halves, -1, -1, -1), tokens.text.to(net.dtype), image)


def predict_noise(
    unet: XDynaUNet,
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
        unet: the network.
        latents: (1, 4, T, h, w) noisy latents, scaled for the network.
        reference: (1, 4, 1, h, w) clean latents of the reference; joins every window as frame 0.
        timestep: scalar.
        windows: lists of frame numbers that together hold every frame.
        tokens: text and image tokens per half.
        controls: residual cache of the clip.
        reference_features: what `read_reference` gave; empty without a ReferenceNet.
        on_window: called after each window (progress).

    Returns:
        Tensor: (H, 4, T, h, w) float32.
    """
    halves = tokens.text.shape[0]
    latents, reference = latents.to(unet.dtype), reference.to(unet.dtype)
    total = torch.zeros(halves, *latents.shape[1:], device=latents.device)
    count = torch.zeros(latents.shape[2], device=latents.device)
    controls.start(windows)
    for window in windows:
        frames = list(window)
        residuals = controls.window(latents, timestep, frames)
        sample = torch.cat([reference, latents[:, :, frames]], dim=2).expand(halves, -1, -1, -1, -1)
        out = unet(
            sample,
            timestep,
            tokens.text,
            tokens.image,
            down_residuals=residuals.down if residuals else (),
            mid_residual=residuals.mid if residuals else None,
            reference_features=reference_features,
        ).sample
        total[:, :, frames] += out[:, :, 1:].float()
        count[frames] += 1
        on_window()
    return total / count[:, None, None]


def guide(prediction: Tensor, scale: float) -> Tensor:
    """Combine the halves: (H, 4, T, h, w) -> (1, 4, T, h, w)."""
    if prediction.shape[0] == 1:
        return prediction
    unconditional, conditional = prediction.chunk(2)
    return classifier_free_guidance(unconditional, conditional, scale)
