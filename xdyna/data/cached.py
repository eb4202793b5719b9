"""Reading a cache of clips: whole videos with the autoencoder's latents (written by `xdyna.data.cache`).

A cache is a folder with `index.json` and shards of 64 clips (`clips-00000.safetensors`, ...), read by memory map. Each
clip has all frames of its video, so start, stride and reference are drawn anew for every sample; its crop was drawn
once, when it was written. Every clip has a checksum that is looked at whenever it is read.
"""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from safetensors import SafetensorError, safe_open

from xdyna.config.data import DataConfig, DataError
from xdyna.data.footage_video import FootageVideo
from xdyna.data.schedule import Bucket, ClipPlace, ClipPool
from xdyna.data.sources import ClipWindow, Faces, Latents, Video, named
from xdyna.perception import PoseTrack

FORMAT = "xdyna-clips-1"
SHARD_CLIPS = 64
INDEX = "index.json"
METADATA = "xdyna"  # the one metadata entry of a shard: several would be written in random order
TOKENS = "image_tokens"
LATENTS, POINTS = ("latents_mean", "latents_std"), ("body", "hands", "face")
# Options a reader must share with the writer: they are in the pixels.
_SAME = {
    "puppet": ("split", "height", "width", "crop_scale", "video_frames"),
    "footage": ("split", "height", "width", "crop_scale"),
    "shards": ("split", "height", "width", "crop_scale"),
}
_OPEN_SHARDS = 64


@dataclass(frozen=True)
class Header:
    """What a cache holds; the content of its index.

    Attributes:
        vae: digest of the autoencoder (`cache.vae_digest`).
        seed: of everything random.
        clips: number of clips.
        options: the entries of `DataConfig` that decide the content.
        tokens: digest of what made the image tokens (`cache.token_digest`); None: there are none.
    """

    vae: str
    seed: int
    clips: int
    options: dict[str, Any]
    tokens: str | None = None

    def shard_sizes(self) -> list[int]:
        """Number of clips of each shard."""
        return [min(SHARD_CLIPS, self.clips - first) for first in range(0, self.clips, SHARD_CLIPS)]

    def to_json(self) -> dict[str, Any]:
        """The index as it is written."""
        own = {name: value for name, value in self.__dict__.items() if name != "tokens" or value is not None}
        return {"format": FORMAT, "shard_clips": SHARD_CLIPS, **own}


def shard_path(folder: Path, number: int) -> Path:
    """The file of shard `number`."""
    return folder / f"clips-{number:05d}.safetensors"


def read_header(folder: Path) -> Header:
    """Read the index of a cache.

    Raises:
        DataError: no cache, a damaged index, or another format.
    """
    path = folder / INDEX
    if not path.is_file():
        raise DataError(f"data.cache: '{folder}' holds no {INDEX}; give one written by scripts/preprocess.py cache")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["format"] != FORMAT or index["shard_clips"] != SHARD_CLIPS:
            raise DataError(f"cache '{folder}' has format {index['format']!r}, expected {FORMAT!r}; write it again")
        numbers = int(index["seed"]), int(index["clips"])
        return Header(str(index["vae"]), *numbers, dict(index["options"]), index.get("tokens"))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DataError(f"cache index '{path}' is damaged ({error}); remove the folder and write it again") from error


def checksum(arrays: Mapping[str, np.ndarray]) -> int:
    """CRC-32 of the arrays of one clip, with their names, types and shapes."""
    value = 0
    for name in sorted(arrays):
        value = zlib.crc32(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode(), value)
        value = zlib.crc32(np.ascontiguousarray(arrays[name]).data, value)
    return value


def shard_metadata(
    header: Header, number: int, recipes: Sequence[Mapping[str, Any]], checksums: Sequence[int]
) -> dict[str, Any]:
    """What a shard says about itself.

    Args:
        header: of the cache.
        number: of the shard.
        recipes: what each clip was rendered from.
        checksums: of each clip.
    """
    recipes_checksum = zlib.crc32(json.dumps(recipes, sort_keys=True).encode())
    return {
        **header.to_json(),
        "shard": number,
        "recipes": list(recipes),
        "recipes_checksum": recipes_checksum,
        "checksums": list(checksums),
    }


class Shard:
    """One shard, opened by memory map.

    Args:
        path: the file.
        header: of the cache it must belong to.
        number: of the shard.

    Raises:
        DataError: missing, truncated, damaged, or part of another cache.
    """

    def __init__(self, path: Path, header: Header, number: int) -> None:
        self.path = path
        if not path.is_file():
            raise DataError(
                f"cache '{path.parent}' is incomplete: {path.name} of {len(header.shard_sizes())} shards is missing; "
                f"run the same scripts/preprocess.py cache command again, it continues"
            )
        try:
            self._file = safe_open(path, framework="numpy")
            metadata = json.loads((self._file.metadata() or {})[METADATA])
            self.recipes: list[dict[str, Any]] = metadata["recipes"]
            self.checksums: list[int] = metadata["checksums"]
            expected = shard_metadata(header, number, self.recipes, self.checksums)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise self._damaged(str(error)) from error
        if metadata.get("recipes_checksum") != expected["recipes_checksum"]:
            raise self._damaged("the checksum of its description differs")
        if metadata != expected or len(self.checksums) != header.shard_sizes()[number]:
            raise DataError(f"'{path}' is part of another cache; remove it and run scripts/preprocess.py cache again")

    def clip(self, row: int) -> dict[str, np.ndarray]:
        """All arrays of one clip of V frames, checked.

        Returns:
            Arrays by name: `LATENTS` float16 (V, 4, h, w); `POINTS` float32; "images" uint8, V PNG files one after
            the other, and "picture_ends" int64 (V,), where each ends; where the cache has other faces "other_pictures",
            "other_ends" and "other_face" of these; where it has image tokens `TOKENS` float16 (V, S, D).

        Raises:
            DataError: the clip is damaged.
        """
        prefix = f"{row:03d}."
        try:
            names = [name for name in self._file.keys() if name.startswith(prefix)]  # noqa: SIM118 (not a dict)
            arrays = {name.removeprefix(prefix): self._file.get_tensor(name) for name in names}
        except (SafetensorError, OSError, ValueError) as error:
            raise self._damaged(str(error)) from error
        if checksum(arrays) != self.checksums[row]:
            raise self._damaged(f"the checksum of clip {row} differs")
        return arrays

    def _damaged(self, reason: str) -> DataError:
        return DataError(
            f"shard '{self.path}' is damaged or truncated ({reason}); remove it and run the same "
            f"scripts/preprocess.py cache command again, it writes only what is missing"
        )


@dataclass(frozen=True)
class StoredClip:
    """A clip of real footage, as a cache knows it.

    Attributes:
        clip_id: as of `FootageVideo`.
        kind: "human" or "scene".
        length: frames.
        caption: text.
        fps: frames/s.
        has_faces: whether another identity's face is there.
    """

    clip_id: str
    kind: str
    length: int
    caption: str
    fps: float
    has_faces: bool

    def without_faces(self) -> StoredClip:
        """The same without another identity's face."""
        return replace(self, has_faces=False)

    def mask(self, rows: np.ndarray) -> np.ndarray:
        """A cache keeps no masks.

        Raises:
            DataError: always.
        """
        raise DataError(f"clip '{self.clip_id}' of a cache has no masks; read it with data.source=footage")


RENDERED = "xdyna.puppets.source.PuppetVideo"
"""What made the clips of a cache that are not of footage; it renders their masks again."""


class Origin(Protocol):
    """What a cached clip was made from."""

    @property
    def kind(self) -> str:
        """ "human" or "scene"."""

    @property
    def clip_id(self) -> str:
        """See `Video`."""

    @property
    def length(self) -> int:
        """See `Video`."""

    @property
    def caption(self) -> str:
        """See `Video`."""

    @property
    def fps(self) -> float:
        """Frames/s."""

    @property
    def has_faces(self) -> bool:
        """Whether another identity's face is there."""

    def without_faces(self) -> Origin:
        """The same without another identity's face."""

    def mask(self, rows: np.ndarray) -> np.ndarray:
        """See `Video`."""


class CachedVideo:
    """A video of a cache; see `sources.Video`.

    Args:
        shard: where it is.
        row: its place there.
        origin: what it was made from.
        size: (H, W) of its images, px.
        tokens: give its image tokens.
    """

    def __init__(self, shard: Shard, row: int, origin: Origin, size: tuple[int, int], *, tokens: bool = False) -> None:
        self._shard, self._row, self.origin, self._size, self._tokens = shard, row, origin, size, tokens

    @property
    def clip_id(self) -> str:
        """As of the video it was made from."""
        return self.origin.clip_id

    @property
    def length(self) -> int:
        """Number of frames."""
        return self.origin.length

    @property
    def fps(self) -> float:
        """As of the video it was made from."""
        return self.origin.fps

    @property
    def caption(self) -> str:
        """As of the video it was made from."""
        return self.origin.caption

    def window(self, rows: np.ndarray, *, reference: int) -> ClipWindow:
        """The reference's image and the latents of reference and frames.

        Raises:
            DataError: the clip is damaged.
        """
        arrays, chosen = self._arrays, np.concatenate([[reference], rows])
        mean, std = (arrays[name][chosen].astype(np.float32) for name in LATENTS)
        body, hands, face = (arrays[name][rows] for name in POINTS)
        fps = self.origin.fps
        track = PoseTrack(body, hands, face, self._size, times=rows / fps, frame_index=rows)
        faces = None
        if self.origin.has_faces:
            faces = Faces(self._pictures("other_pictures", "other_ends", rows), arrays["other_face"][rows])
        picture = self._pictures("pictures", "picture_ends", np.array([reference]))[0]
        tokens = arrays[TOKENS][reference].astype(np.float32) if self._tokens else None
        return ClipWindow(picture, None, Latents(mean, std, tokens), track, faces)

    def own_faces(self, rows: np.ndarray, shot: ClipWindow) -> Faces:
        """See `sources.Video`."""
        return Faces(self._pictures("pictures", "picture_ends", rows), shot.track.face)

    def mask(self, rows: np.ndarray) -> np.ndarray:
        """Rendered anew.

        Raises:
            DataError: real footage, whose masks a cache does not hold.
        """
        return self.origin.mask(rows)

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        return self._shard.clip(self._row)

    def _pictures(self, name: str, ends: str, rows: np.ndarray) -> np.ndarray:
        """Decode some of the images: uint8 (N, H, W, 3)."""
        stops = self._arrays[ends]
        starts = np.concatenate([[0], stops[:-1]])
        files = (self._arrays[name][starts[row] : stops[row]] for row in rows)
        return np.stack([cv2.cvtColor(cv2.imdecode(file, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB) for file in files])


def paced(config: DataConfig) -> DataConfig:
    """The options of a cache with the frame rates that it was written for, where they name neither rate nor stride.

    Raises:
        DataError: as `read_header`.
    """
    if config.cache is None or config.fps is not None or config.stride is not None:
        return config
    written = read_header(Path(config.cache)).options
    fps = written.get("fps")
    return replace(config, fps=fps, stride=None if fps else written.get("stride"))


class CachedClips:
    """The videos of a cache; see `sources.Source`.

    Args:
        config: the options; `cache` is the folder.
        vae: digest of the autoencoder that is trained with.
        tokens: digest of what makes image tokens, where those of the cache are to be used, if it has any.

    Raises:
        DataError: no cache, incomplete, damaged, of another autoencoder or image encoder, or of other options.
    """

    def __init__(self, config: DataConfig, *, vae: str | None, tokens: str | None = None) -> None:
        assert config.cache is not None
        self.folder, self._size = Path(config.cache), config.size
        self.header = read_header(self.folder)
        self._check(config, vae)
        self._tokens = tokens is not None and self.header.tokens is not None
        if self._tokens and tokens != self.header.tokens:
            raise DataError(
                f"cache '{self.folder}' holds image tokens of another image encoder or Resampler; write it again with "
                f"scripts/preprocess.py cache --tokens, or without"
            )
        self._shards: dict[int, Shard] = {}
        self._recipes: dict[str, list[tuple[int, int, Origin]]] = {"human": [], "scene": []}
        for number in range(len(self.header.shard_sizes())):
            for row, recipe in enumerate(self._shard(number).recipes):
                video = _video(recipe).without_faces() if config.face != "cross" else _video(recipe)
                if video.length >= config.shortest(video.fps):
                    self._recipes[video.kind].append((number, row, video))
        if self.header.options.get("source", "puppet") == "puppet":
            for _, _, video in itertools.islice(itertools.chain(*self._recipes.values()), 1):
                config.check_length(video.fps)  # that of all of them
        for kind, recipes in self._recipes.items():
            if config.num_clips is not None and config.scene_ratio != (1 if kind == "human" else 0):
                if len(recipes) < config.num_clips:
                    raise DataError(
                        f"data.num_clips is {config.num_clips}, but cache '{self.folder}' has {len(recipes)} {kind} "
                        f"videos; lower it"
                    )
                del recipes[config.num_clips :]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}  # open files stay in their process

    @property
    def buckets(self) -> Sequence[Bucket]:
        """One size; the videos of each kind are one set."""
        stocks = {kind: (ClipPool(count=len(there)),) if there else () for kind, there in self._recipes.items()}
        return (Bucket(self._size, 1.0, stocks),)

    def video(self, bucket: int, slot: ClipPlace, rng: np.random.Generator) -> CachedVideo:
        """The video of a slot."""
        assert slot.number is not None, "a cache is a finite set"
        shard, row, origin = self._recipes[slot.kind][slot.number]
        return CachedVideo(self._shard(shard), row, origin, self._size, tokens=self._tokens)

    def _shard(self, number: int) -> Shard:
        if number not in self._shards:
            if len(self._shards) >= _OPEN_SHARDS:
                del self._shards[next(iter(self._shards))]
            self._shards[number] = Shard(shard_path(self.folder, number), self.header, number)
        return self._shards[number]

    def _check(self, config: DataConfig, vae: str | None) -> None:
        if vae is None:
            raise DataError(
                f"cache '{self.folder}' holds latents, so the digest of the autoencoder that is trained with is needed "
                f"(build_loader(..., vae=vae_digest(vae))), to check that they are its own"
            )
        if vae != self.header.vae:
            raise DataError(
                f"cache '{self.folder}' was written with another autoencoder ({self.header.vae[:12]}, this run has "
                f"{vae[:12]}); write it again with scripts/preprocess.py cache --vae, or use data=puppet"
            )
        options = self.header.options
        for name in _SAME[options.get("source", "puppet")]:
            given, written = getattr(config, name), options[name]
            if given != written:
                raise DataError(
                    f"data.{name} is {given}, but cache '{self.folder}' was written with {written}; set data.{name}="
                    f"{written}, or write another cache"
                )
        if config.face == "cross" and not options["other_faces"]:
            raise DataError(
                f"data.face is 'cross', but cache '{self.folder}' holds no other faces; write one with data.face=cross"
            )


def recipe(video: Video) -> dict[str, Any]:
    """What a cache says about a video, as JSON values."""
    if not isinstance(video, FootageVideo):
        rendered: dict[str, Any] = video.recipe()  # type: ignore[attr-defined]
        return rendered
    record = video.record
    has_faces = video.faces and bool(record.faces)
    stored = StoredClip(video.clip_id, record.kind, record.frames, record.caption, record.fps, has_faces)
    return {"footage": asdict(stored)}


def _video(recipe: Mapping[str, Any]) -> Origin:
    if "footage" in recipe:
        return StoredClip(**recipe["footage"])
    origin: Origin = named(RENDERED).from_recipe(recipe)
    return origin
