"""Writing a cache of clips (see `xdyna.data.cached`), so that training needs neither renderer nor encoder.

A shard appears complete or not at all, and its bytes follow from the options, the seed and the autoencoder alone: an
interrupted writer continues where it stopped and ends with the same files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.numpy import save_file
from torch import Tensor, nn

from xdyna.data.cached import (
    INDEX,
    LATENTS,
    METADATA,
    POINTS,
    CachedClips,
    Header,
    Shard,
    checksum,
    read_header,
    recipe,
    shard_metadata,
    shard_path,
)
from xdyna.data.clips import ClipDataset
from xdyna.data.options import DataConfig, DataError
from xdyna.data.sources import Faces, Video
from xdyna.media.atomic import atomic_output
from xdyna.perception.errors import NoFaceError
from xdyna.perception.face_patch import face_boxes

__all__ = ["CachedClips", "vae_digest", "write_cache"]

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]


def vae_digest(vae: nn.Module) -> str:
    """SHA-256 of the weights that an autoencoder's latents follow from (all but the decoder's), by name and value.

    It is the same in any floating-point type that holds them.

    Args:
        vae: on any device.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        if name.startswith(("decoder.", "post_quant_conv.")):
            continue
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def write_cache(
    folder: Path,
    dataset: ClipDataset,
    *,
    clips: int,
    encode: Encode,
    vae: str,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Write the whole videos of the first samples of a data set, or what is missing of them.

    Args:
        folder: where to; made if missing.
        dataset: of source "puppet" or "footage", without `num_clips` and `buckets`.
        clips: number of samples, >= 1.
        encode: uint8 (N, 3, H, W) RGB -> mean and standard deviation of the posterior, unscaled, (N, 4, h, w) each.
        vae: digest of the autoencoder behind `encode`.
        progress: called with the number of finished clips, from those that were there already on.

    Raises:
        DataError: another data source, a folder with another cache or other files, latents that are not finite.
        MediaError: the folder cannot be written.
    """
    header = Header(vae=vae, seed=dataset.seed, clips=clips, options=_options(dataset.config))
    _check(dataset.config, clips)
    _open_folder(folder, header)
    done = 0
    for number, size in enumerate(header.shard_sizes()):
        path = shard_path(folder, number)
        if not _is_complete(path, header, number):
            first = done
            _write_shard(path, dataset, range(first, first + size), encode, header, number, progress)
        done += size
        progress(done)


def _options(config: DataConfig) -> dict[str, Any]:
    """The options that decide what is in a cache."""
    own = {"puppet": ("video_frames",), "footage": ("source", "manifests", "verify", "frames", "stride", "reference")}
    names = ("split", "height", "width", "crop_scale", "scene_ratio", *own[config.source])
    return {**{name: getattr(config, name) for name in names}, "other_faces": config.face == "cross"}


def _check(config: DataConfig, clips: int) -> None:
    if config.source == "cache" or config.num_clips is not None:
        raise DataError(
            f"a cache is written from videos, whose number is that of the clips; got data.source={config.source} and "
            f"data.num_clips={config.num_clips}: give data.source=puppet or footage, and leave data.num_clips out"
        )
    if config.buckets:
        raise DataError(
            f"a cache has pictures of one size; got data.buckets={config.buckets}: leave it out, and set data.height "
            f"and data.width"
        )
    if clips < 1:
        raise DataError(f"clips: got {clips}, expected 1 or more")


def _open_folder(folder: Path, header: Header) -> None:
    """Write the index into a new folder, or see that the folder is this very cache."""
    if not (folder / INDEX).is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise DataError(f"'{folder}' holds other files; choose an empty or a new folder")
        with atomic_output(folder / INDEX) as temporary:
            temporary.write_text(json.dumps(header.to_json(), indent=2) + "\n", encoding="utf-8")
        return
    there, asked = ({**h.to_json(), **h.options} for h in (read_header(folder), header))
    differing = [f"{key} {there[key]!r} (now {asked[key]!r})" for key in asked if there[key] != asked[key]]
    differing = [text for text in differing if not text.startswith("options ")]
    if differing:
        raise DataError(
            f"'{folder}' holds a cache with other settings: {', '.join(differing)}; give the same to continue it, or "
            f"choose another folder"
        )
    for leftover in folder.glob(".clips-*.part.safetensors"):  # of a writer that was killed
        leftover.unlink()


def _is_complete(path: Path, header: Header, number: int) -> bool:
    """Whether a shard is there with all its clips undamaged."""
    if not path.is_file():
        return False
    try:
        shard = Shard(path, header, number)
        for row in range(len(shard.recipes)):
            shard.clip(row)
    except DataError:
        return False
    return True


def _write_shard(
    path: Path,
    dataset: ClipDataset,
    indices: range,
    encode: Encode,
    header: Header,
    number: int,
    progress: Callable[[int], None],
) -> None:
    tensors: dict[str, np.ndarray] = {}
    recipes, checksums = [], []
    for row, index in enumerate(indices):
        video, arrays = dataset.readable(index, lambda take: (take.video, _clip_arrays(take.video, encode)))
        tensors.update({f"{row:03d}.{name}": array for name, array in arrays.items()})
        recipes.append(recipe(video))
        checksums.append(checksum(arrays))
        progress(index + 1)
    metadata = json.dumps(shard_metadata(header, number, recipes, checksums))
    with atomic_output(path, overwrite=True) as temporary:
        try:
            save_file(tensors, temporary, metadata={METADATA: metadata})
        except SafetensorError as error:
            raise DataError(f"'{path}' cannot be written: {error}; is the disk full?") from error


def _clip_arrays(video: Video, encode: Encode) -> dict[str, np.ndarray]:
    """Everything a cache keeps of one video; see `cached.Shard.clip`."""
    rows = np.arange(video.length)
    shot = video.shot(rows, reference=0)
    assert shot.frames is not None
    pixels = torch.from_numpy(np.ascontiguousarray(rearrange(shot.frames, "t h w c -> t c h w")))
    arrays = {}
    for name, tensor in zip(LATENTS, encode(pixels), strict=True):
        arrays[name] = tensor.detach().to("cpu", torch.float16).contiguous().numpy()
        if not np.isfinite(arrays[name]).all():
            raise DataError(f"{video.clip_id}: {name} of the autoencoder is not finite in float16; is it trained?")
    for name in POINTS:
        arrays[name] = np.ascontiguousarray(getattr(shot.track, name))
    arrays["pictures"], arrays["picture_ends"] = _compressed(shot.frames)
    if shot.faces is not None:
        arrays["other_pictures"], arrays["other_ends"] = _compressed(_around_faces(shot.faces))
        arrays["other_face"] = np.ascontiguousarray(shot.faces.landmarks)
    return arrays


def _around_faces(faces: Faces) -> np.ndarray:
    """The frames, black outside everything that a face patch of any clip of them can show."""
    kept = np.zeros_like(faces.frames)
    try:
        boxes = np.array(face_boxes(faces.landmarks, size=(faces.frames.shape[1], faces.frames.shape[2])))
    except NoFaceError:
        return kept
    left, top = boxes[:, :2].min(axis=0)
    right, bottom = boxes[:, 2:].max(axis=0)
    kept[:, top:bottom, left:right] = faces.frames[:, top:bottom, left:right]
    return kept


def _compressed(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(T, H, W, 3) RGB -> PNG files one after the other, and where each ends."""
    files = [cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].reshape(-1) for picture in pictures]
    return np.concatenate(files), np.cumsum([len(file) for file in files])
