"""What a caller hands to the pipeline, in any of diffusers' forms, as lists: one entry per video to be made.

Images: PIL, array (H, W, C) or tensor (C, H, W); several as a list, an array (N, H, W, C) or a tensor (N, C, H, W).
Videos: a list of images, array (T, H, W, C) or tensor (T, C, H, W); several as a list of these, an array
(N, T, H, W, C) or a tensor (N, T, C, H, W). Numbers are uint8, or floating-point numbers in [0, 1].
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

ImageInput: TypeAlias = Image.Image | np.ndarray | Tensor | Sequence[Image.Image | np.ndarray | Tensor]
VideoInput: TypeAlias = (
    np.ndarray
    | Tensor
    | Sequence[Image.Image]
    | Sequence[np.ndarray]
    | Sequence[Tensor]
    | Sequence[Sequence[Image.Image]]
)
Item = TypeVar("Item")


def as_images(images: ImageInput) -> list[Image.Image]:
    """Images in any form -> RGB images.

    Args:
        images: see the head of this file; 3 channels.

    Returns:
        list[Image.Image]: one per image.

    Raises:
        ValueError: another type, another number of channels, or values out of range.
    """
    if isinstance(images, np.ndarray | Tensor):
        entries = list(images) if images.ndim == 4 else [images]
    else:
        entries = list(images) if isinstance(images, list | tuple) else [images]
    if not entries:
        raise ValueError("image is an empty list; expected at least one image")
    return [_as_image(entry) for entry in entries]


def as_videos(videos: VideoInput, name: str, *, channels: int) -> list[Tensor]:
    """Videos in any form -> one uint8 tensor each; uint8 arrays are not copied, but for read-only ones.

    Args:
        videos: see the head of this file.
        name: of the argument, for messages.
        channels: expected C.

    Returns:
        list[Tensor]: uint8 (T, C, H, W) each.

    Raises:
        ValueError: another shape or type, no frames, or values out of range.
    """
    if isinstance(videos, np.ndarray | Tensor):
        entries: list[Any] = list(videos) if videos.ndim == 5 else [videos]
    elif isinstance(videos, list | tuple) and videos:
        first = videos[0]
        single = isinstance(first, Image.Image) or (isinstance(first, np.ndarray | Tensor) and first.ndim == 3)
        entries = [videos] if single else list(videos)
    else:
        raise ValueError(f"{name} is {_kind(videos)}; expected the frames of a video")
    return [_as_video(entry, name, channels) for entry in entries]


def repeated(entries: Sequence[Item], count: int, name: str, *, each: int = 1) -> list[Item]:
    """One entry per video: a single one serves all.

    Args:
        entries: what was given.
        count: videos, without those that `each` adds.
        name: of the argument, for messages.
        each: how often every entry is used, one after the other.

    Raises:
        ValueError: neither one entry nor `count`.
    """
    if len(entries) not in (1, count):
        raise ValueError(f"{name} has {len(entries)} entries for {count} videos; give one per video, or one for all")
    return [entry for entry in list(entries) * (count if len(entries) == 1 else 1) for _ in range(each)]


def count_videos(
    counts: Mapping[str, int | None], own: Mapping[str, int | None] | None = None, *, each: int = 1
) -> int:
    """How many videos a call makes: the largest number of entries that any argument has, times `each`.

    Args:
        counts: entries of each argument; None where it was not given.
        own: the same of arguments that have an entry for every video, those that `each` adds included.
        each: videos per entry.

    Returns:
        int: at least 1.

    Raises:
        ValueError: arguments with different numbers of entries, none of them 1.
    """
    own = own or {}
    largest = [max(value for value in (1, *given.values()) if value is not None) for given in (counts, own)]
    count = max(largest) if each == 1 else largest[0] * each
    for name, value in [*counts.items(), *own.items()]:
        wanted = count if name in own else count // each
        if value is not None and value not in (1, wanted):
            raise ValueError(f"{name} has {value} entries for {wanted} videos; give one per video, or one for all")
    return count


def _as_image(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if not isinstance(image, np.ndarray | Tensor):
        raise ValueError(f"the image is {_kind(image)}, expected a PIL image, an array (H, W, 3) or a tensor (3, H, W)")
    array = rearrange(image.cpu(), "c h w -> h w c").numpy() if isinstance(image, Tensor) and image.ndim == 3 else image
    if array.ndim != 3 or array.shape[-1] != 3:
        raise ValueError(f"the image has shape {tuple(image.shape)}, expected an array (H, W, 3) or a tensor (3, H, W)")
    return Image.fromarray(_as_uint8(_as_tensor(np.asarray(array)), "the image").numpy())


def _as_video(video: Any, name: str, channels: int) -> Tensor:
    if isinstance(video, list | tuple):
        video = _stacked(video, name)
    if not isinstance(video, np.ndarray | Tensor):
        raise ValueError(f"{name} is {_kind(video)}; expected the frames of a video")
    frames = video if isinstance(video, Tensor) else _as_tensor(video)
    layout = f"a tensor (frames, {channels}, H, W)" if isinstance(video, Tensor) else f"(frames, H, W, {channels})"
    if frames.ndim == 4 and isinstance(video, np.ndarray):
        frames = rearrange(frames, "t h w c -> t c h w")
    if frames.ndim != 4 or frames.shape[1] != channels or not frames.shape[0]:
        raise ValueError(f"{name} has shape {tuple(video.shape)}, expected {layout} with at least one frame")
    return _as_uint8(frames, name)


def _as_tensor(array: np.ndarray) -> Tensor:
    """The same memory, or a copy of what may not be written to: tensors know no read-only memory."""
    return torch.as_tensor(np.require(array, requirements=["C", "W"]))


def _stacked(frames: Sequence[Any], name: str) -> np.ndarray | Tensor:
    """Frames of one video, each an image, as one array or tensor."""
    if not frames:
        raise ValueError(f"{name} has an empty list of frames; expected at least one frame")
    entries: list[Any] = [
        np.asarray(frame.convert("RGB")) if isinstance(frame, Image.Image) else frame for frame in frames
    ]
    kinds = {f"{_kind(entry)} {tuple(getattr(entry, 'shape', ()))}" for entry in entries}
    if len(kinds) > 1 or not isinstance(entries[0], np.ndarray | Tensor):
        raise ValueError(f"the frames of {name} are {', '.join(sorted(kinds))}; expected images of one kind and size")
    return torch.stack(entries) if isinstance(entries[0], Tensor) else np.stack(entries)


def _as_uint8(values: Tensor, name: str) -> Tensor:
    if values.dtype == torch.uint8:
        return values
    if not values.is_floating_point():
        raise ValueError(f"{name} has type {values.dtype}, expected uint8, or floating-point numbers in [0, 1]")
    low, high = torch.aminmax(values)
    if not (low >= 0 and high <= 1):
        raise ValueError(f"{name} has values from {float(low):g} to {float(high):g}, expected [0, 1]")
    return (values.float() * 255).round().to(torch.uint8)


def _kind(value: Any) -> str:
    return "an empty list" if isinstance(value, list | tuple) and not value else f"a {type(value).__name__}"
