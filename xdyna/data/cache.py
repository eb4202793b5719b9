"""Writing a cache of clips (see `xdyna.data.cached`), so that training needs neither renderer nor encoder.

A shard appears complete or not at all, and its bytes follow from the options, the seed and the autoencoder alone: an
interrupted writer continues where it stopped and ends with the same files.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from einops import rearrange
from safetensors import SafetensorError
from safetensors.numpy import save_file
from torch import Tensor, nn

from xdyna.config.data import DataConfig, DataError
from xdyna.core.atomic import atomic_output
from xdyna.data.cached import (
    INDEX,
    LATENTS,
    METADATA,
    POINTS,
    TOKENS,
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
from xdyna.data.sources import Faces, Video
from xdyna.perception.errors import NoFaceError
from xdyna.perception.face_patch import face_boxes

__all__ = ["CachedClips", "TokenMaker", "token_digest", "vae_digest", "write_cache"]

Encode = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class TokenMaker:
    """What makes image tokens.

    Attributes:
        encode: uint8 (N, 3, H, W) RGB -> tokens (N, S, D).
        digest: `token_digest` of its weights.
    """

    encode: Callable[[Tensor], Tensor]
    digest: str


def vae_digest(vae: nn.Module) -> str:
    """SHA-256 of the weights that an autoencoder's latents follow from (all but the decoder's), by name and value.

    It is the same in any floating-point type that holds them.

    Args:
        vae: on any device.

    Returns:
        64 hexadecimal digits.
    """
    encoder = {n: t for n, t in vae.state_dict().items() if not n.startswith(("decoder.", "post_quant_conv."))}
    return _digest(encoder)


def token_digest(image_encoder: nn.Module, image_projection: nn.Module) -> str:
    """SHA-256 of the weights that image tokens follow from; see `vae_digest`.

    Args:
        image_encoder: CLIP vision model.
        image_projection: the Resampler.

    Returns:
        64 hexadecimal digits.
    """
    parts = {"encoder": image_encoder, "projection": image_projection}
    return _digest({f"{part}.{n}": t for part, module in parts.items() for n, t in module.state_dict().items()})


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
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
    tokens: TokenMaker | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Write the whole videos of the first samples of a data set, or what is missing of them.

    Args:
        folder: where to; made if missing.
        dataset: of source "puppet", "footage" or "shards", without `num_clips` and `buckets`.
        clips: number of samples, >= 1.
        encode: uint8 (N, 3, H, W) RGB -> mean and standard deviation of the posterior, unscaled, (N, 4, h, w) each.
        vae: digest of the autoencoder behind `encode`.
        tokens: makes image tokens of every frame, as if it were the reference; None for none.
        progress: called with the number of finished clips, from those that were there already on.

    Raises:
        DataError: another data source, a folder with another cache or other files, latents that are not finite.
        MediaError: the folder cannot be written.
    """
    digest = tokens.digest if tokens is not None else None
    header = Header(vae=vae, seed=dataset.seed, clips=clips, options=_options(dataset.config), tokens=digest)
    _check(dataset.config, clips)
    _open_folder(folder, header)
    done = 0
    for number, size in enumerate(header.shard_sizes()):
        path = shard_path(folder, number)
        if not _is_complete(path, header, number):
            first = done
            arrays = functools.partial(_clip_arrays, encode=encode, tokens=tokens)
            _write_shard(path, dataset, range(first, first + size), arrays, header, number, progress)
        done += size
        progress(done)


def _options(config: DataConfig) -> dict[str, Any]:
    """The options that decide what is in a cache."""
    of_dataset = ("source", "manifests", "verify", "frames", "fps", "stride", "reference")
    own = {"puppet": ("video_frames",), "footage": of_dataset, "shards": of_dataset}
    names = ("split", "height", "width", "crop_scale", "scene_ratio", *own[config.source])
    return {**{name: getattr(config, name) for name in names}, "other_faces": config.face == "cross"}


def _check(config: DataConfig, clips: int) -> None:
    if config.source == "cache" or config.num_clips is not None:
        raise DataError(
            f"a cache is written from videos, whose number is that of the clips; got data.source={config.source} and "
            f"data.num_clips={config.num_clips}: give data.source=puppet, footage or shards, and leave data."
            f"num_clips out"
        )
    if config.buckets:
        raise DataError(
            f"a cache has images of one size; got data.buckets={config.buckets}: leave it out, and set data.height "
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
    keys = [key for key in {**asked, **there} if key != "options" and there.get(key) != asked.get(key)]
    differing = [f"{key} {there.get(key)!r} (now {asked.get(key)!r})" for key in keys]
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
    arrays_of: Callable[[Video], dict[str, np.ndarray]],
    header: Header,
    number: int,
    progress: Callable[[int], None],
) -> None:
    tensors: dict[str, np.ndarray] = {}
    recipes, checksums = [], []
    for row, index in enumerate(indices):
        video, arrays = dataset.readable(index, lambda take: (take.video, arrays_of(take.video)))
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


def _clip_arrays(video: Video, *, encode: Encode, tokens: TokenMaker | None) -> dict[str, np.ndarray]:
    """Everything a cache keeps of one video; see `cached.Shard.clip`."""
    rows = np.arange(video.length)
    shot = video.window(rows, reference=0)
    assert shot.frames is not None
    pixels = torch.from_numpy(np.ascontiguousarray(rearrange(shot.frames, "t h w c -> t c h w")))
    arrays = {}
    encoded = dict(zip(LATENTS, encode(pixels), strict=True))
    if tokens is not None:
        encoded[TOKENS] = tokens.encode(pixels)
    for name, tensor in encoded.items():
        arrays[name] = tensor.detach().to("cpu", torch.float16).contiguous().numpy()
        if not np.isfinite(arrays[name]).all():
            raise DataError(f"{video.clip_id}: {name} is not finite in float16; is the encoder trained?")
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
