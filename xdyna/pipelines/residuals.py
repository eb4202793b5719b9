"""What ControlNets add in one denoising step: each frame once, from conditions that are embedded once per clip.

Shape legend: T generated frames, N images, C channels, h w latent grid, S tokens, D their channels, B branches.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import ControlNetModel
from einops import rearrange
from torch import Tensor

from xdyna.core.scratch import drop_pages
from xdyna.diffusion.guidance import condition_range, scale_condition
from xdyna.models.attention import CrossAttentionCache
from xdyna.models.controls import ControlResiduals, merge_residuals, run_controlnet, shallow_residuals, share_work
from xdyna.models.denoiser import Tokens
from xdyna.pipelines.resume import blocks


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
        ranges = []
        for frames in blocks(len(self.images)):
            ranges.append(torch.stack(condition_range(self.images[None, frames])).flatten().cpu())
            drop_pages()
        lows, highs = torch.stack(ranges, dim=1)
        return lows.amin(), highs.amax()

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

    def residuals(
        self, sample: Tensor, timestep: Tensor, text: Tensor, frames: Sequence[int], *, depth: int | None
    ) -> ControlResiduals:
        """The ControlNet's residuals; its dtype need not be the UNet's.

        Args:
            sample: (N, 4, h, w) noisy latents of these frames.
            timestep: scalar.
            text: (1, S, D).
            frames: their N numbers.
            depth: so many residuals, see `shallow_residuals`; None for all.

        Returns:
            ControlResiduals: in the dtype of `sample`.
        """
        net = self.condition.controlnet
        run = run_controlnet if depth is None else partial(shallow_residuals, depth=depth)
        own, text = sample.to(net.dtype), text.to(net.dtype)
        if all(frame in self._kept for frame in frames):
            embedded = torch.stack([self._kept[frame] for frame in frames])
            residuals = run(net, own, timestep, text, embedded)
        else:
            images = self.condition.scaled(frames, self.value_range, own)
            hook = net.controlnet_cond_embedding.register_forward_hook(
                lambda _, inputs, output: self._keep(frames, output)
            )
            try:
                residuals = run(net, own, timestep, text, images)
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
        chunk: frames that go through a ControlNet at a time; None for all that a window needs.
        embedded_frames: frames whose embedded control images are kept from step to step.
    """

    def __init__(
        self,
        conditions: Sequence[Condition],
        tokens: Tokens,
        *,
        chunk: int | None = None,
        embedded_frames: int = EMBEDDED_FRAMES,
    ) -> None:
        self.chunk = chunk
        self.depth: int | None = None
        self.conditions = [EmbeddedConditions(condition, embedded_frames) for condition in conditions]
        self.tokens = tokens
        self._keys: dict[tuple[int, int], CrossAttentionCache] = {}
        self._texts = tokens.distinct_text
        self._frames: dict[int, ControlResiduals] = {}
        self._uses: Counter[int] = Counter()

    def keys(self, branch: slice, windows: int = 1) -> CrossAttentionCache:
        """What cross-attention makes of the tokens of some branches of guidance, for so many windows, for all steps."""
        return self._keys.setdefault((branch.start, windows), CrossAttentionCache())

    def start(self, windows: Sequence[Sequence[int]], *, depth: int | None = None) -> None:
        """Forget everything and learn which frames the coming step needs, and how often.

        Args:
            windows: frame numbers of each window.
            depth: so many residuals, of the highest resolutions, are needed; None for all.
        """
        self.depth = depth
        self._frames.clear()
        self._uses = Counter(frame for window in windows for frame in window)

    def window(self, latents: Tensor, timestep: Tensor, window: Sequence[int]) -> ControlResiduals | None:
        """Residuals of the frames of one window.

        Args:
            latents: (1, 4, T, h, w) of the whole clip, wherever and of whatever type.
            timestep: scalar.
            window: frame numbers.

        Returns:
            ControlResiduals: each (B or 1, C, frames, ., .); None without ControlNets.
        """
        if not self.conditions:
            return None
        new = [frame for frame in window if frame not in self._frames]
        size = self.chunk or max(len(new), 1)
        for part in (new[k : k + size] for k in range(0, len(new), size)):
            for frame, residuals in zip(part, self._compute(latents, timestep, part), strict=True):
                self._frames[frame] = residuals
        out = _stack_frames([self._frames[frame] for frame in window])
        for frame in window:
            self._uses[frame] -= 1
            if not self._uses[frame]:
                del self._frames[frame]
        return out

    def _compute(self, latents: Tensor, timestep: Tensor, frames: list[int]) -> Iterator[ControlResiduals]:
        sample = rearrange(latents[:, :, frames].to(self.tokens.text), "1 c t h w -> t c h w")
        per_text = [
            merge_residuals([c.residuals(sample, timestep, text, frames, depth=self.depth) for c in self.conditions])
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
