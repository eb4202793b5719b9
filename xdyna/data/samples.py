"""What the training data are made of: one `Sample` per clip, one `Batch` per step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xdyna.core.device import to_device

ON_HOST = ("index", "drop_text")  # reading them from a GPU would wait for all that it has to do


@dataclass(frozen=True)
class Sample:
    """One clip of T frames with its reference and conditions.

    Attributes:
        index: number of the sample in the run.
        clip_id: which video it is from, for people to read.
        kind: "human" or "scene".
        pixels: uint8 (1 + T, 3, H, W) RGB, the reference first; (1, 3, H, W), the reference alone, where there are
            latents.
        pose: uint8 (T, 3, H, W) RGB; None (black) for scenes.
        face: uint8 (T, 6, H, W), local and global patch as the face ControlNet expects them; None (black) for scenes
            and where there is no face.
        latents_mean: float32 (1 + T, 4, h, w), mean of the autoencoder's posterior, unscaled; None without a cache.
        latents_std: float32 (1 + T, 4, h, w), its standard deviation; None without a cache.
        drop_image: train without image tokens (classifier-free guidance).
        drop_text: train without text tokens.
        drop_face: train without the face ControlNet.
        caption: text; "" for rendered clips, as the published model was trained and used.
        image_tokens: float32 (S, D), tokens of the reference image; None where they are computed while training.
    """

    index: int
    clip_id: str
    kind: str
    pixels: Tensor
    pose: Tensor | None
    face: Tensor | None
    latents_mean: Tensor | None
    latents_std: Tensor | None
    drop_image: bool
    drop_text: bool
    drop_face: bool
    caption: str
    image_tokens: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """B samples.

    Attributes:
        index: int64 (B,).
        clip_id: B names.
        kind: B times "human" or "scene".
        pixels: uint8 (B, 1 + T, 3, H, W), or (B, 1, 3, H, W) with latents; see `Sample`.
        pose: uint8 (B, T, 3, H, W); where no sample has any, one zero that is seen everywhere (`expand`): nothing is
            carried from process to process or to a device.
        face: uint8 (B, T, 6, H, W); likewise.
        latents_mean: float32 (B, 1 + T, 4, h, w) or None.
        latents_std: float32 (B, 1 + T, 4, h, w) or None.
        drop_image: bool (B,).
        drop_text: bool (B,).
        drop_face: bool (B,).
        caption: B texts.
        image_tokens: float32 (B, S, D) or None.
    """

    index: Tensor
    clip_id: list[str]
    kind: list[str]
    pixels: Tensor
    pose: Tensor
    face: Tensor
    latents_mean: Tensor | None
    latents_std: Tensor | None
    drop_image: Tensor
    drop_text: Tensor
    drop_face: Tensor
    caption: list[str]
    image_tokens: Tensor | None = None

    def __len__(self) -> int:
        return len(self.clip_id)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on a device, but for `index` and `drop_text`, which the host reads."""
        tensors: dict[str, Any] = {
            name: _moved(value, device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and name not in ON_HOST
        }
        return dataclasses.replace(self, **tensors)


def _moved(value: Tensor, device: torch.device | str) -> Tensor:
    """On a device; of a value that is expanded to all places, the value is moved."""
    if any(value.stride()):
        return to_device(value, device)
    return to_device(value[(slice(0, 1),) * value.ndim], device).expand(value.shape)


def collate(samples: Sequence[Sample]) -> Batch:
    """Join samples of equal sizes.

    Args:
        samples: at least one; with latents and image tokens all or none.

    Returns:
        The batch, in the order given.
    """

    def stacked(tensors: Sequence[Tensor | None]) -> Tensor | None:
        present = [tensor for tensor in tensors if tensor is not None]
        assert len(present) in (0, len(tensors)), "latents or image tokens of some samples only"
        return torch.stack(present) if present else None

    def filled(maps: Sequence[Tensor | None], channels: int) -> Tensor:
        frames = samples[0].pixels if samples[0].latents_mean is None else samples[0].latents_mean
        blank = torch.zeros((), dtype=torch.uint8)
        shape = (len(frames) - 1, channels, *samples[0].pixels.shape[-2:])
        if all(each is None for each in maps):
            return blank.expand(len(maps), *shape)
        return torch.stack([blank.expand(shape) if each is None else each for each in maps])

    return Batch(
        index=torch.tensor([sample.index for sample in samples]),
        clip_id=[sample.clip_id for sample in samples],
        kind=[sample.kind for sample in samples],
        pixels=torch.stack([sample.pixels for sample in samples]),
        pose=filled([sample.pose for sample in samples], 3),
        face=filled([sample.face for sample in samples], 6),
        latents_mean=stacked([sample.latents_mean for sample in samples]),
        latents_std=stacked([sample.latents_std for sample in samples]),
        drop_image=torch.tensor([sample.drop_image for sample in samples]),
        drop_text=torch.tensor([sample.drop_text for sample in samples]),
        drop_face=torch.tensor([sample.drop_face for sample in samples]),
        caption=[sample.caption for sample in samples],
        image_tokens=stacked([sample.image_tokens for sample in samples]),
    )
