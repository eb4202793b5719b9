"""Tar shards of a data set (`preprocess.shards` writes them), read clip by clip: a source of training data.

    SHARDS/
      index.json               what was exported, shards and their numbers of clips
      train-000000.tar         of each clip KEY.json (the record), KEY.npz (its numbers), KEY.mp4 (its frames alone,
      validation-000000.tar    without letterbox), KEY.faces.npz where it has another identity's face, KEY.sums.json
                               (SHA-256 of the others)

Shards are in the form of WebDataset, and not compressed: where each file lies is known after one pass over the headers,
so any clip is read by itself, in any order, from local folders and from whatever fsspec reads (`s3://...`).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
import numpy as np

from xdyna.config.data import DataError
from xdyna.data.footage import FootageSource
from xdyna.data.footage_video import FootageVideo
from xdyna.data.records import ClipArrays, ClipRecord, clip_record
from xdyna.data.sources import ClipError
from xdyna.data.store import check_arrays_fit, check_records, read_arrays
from xdyna.data.verify import State
from xdyna.media import read_frames

FORMAT = "xdyna-shards-1"
INDEX = "index.json"
RECORD, ARRAYS, VIDEO, FACES, SUMS = "json", "npz", "mp4", "faces.npz", "sums.json"


@dataclass(frozen=True)
class Sample:
    """One clip out of a shard.

    Attributes:
        record: as in the manifest.
        arrays: its numbers.
        video: bytes of an mp4 with the clip's frames; an odd side is one px longer there.
        faces: bytes of the other identity's faces, as `add_faces` wrote them; None where there are none.
    """

    record: ClipRecord
    arrays: ClipArrays
    video: bytes
    faces: bytes | None = None


@dataclass(frozen=True)
class Member:
    """Where a file of a clip lies.

    Attributes:
        shard: name of the tar file.
        offset: first byte in it.
        size: bytes.
        sha256: of the bytes; None in shards that were exported without.
    """

    shard: str
    offset: int
    size: int
    sha256: str | None


@dataclass(frozen=True, eq=False)
class ShardSet:
    """Exported shards; nothing is open between two calls, so that it may cross processes.

    Attributes:
        address: the folder, local or of fsspec.
        records: all clips, in the shards' order.
        members: clip id -> suffix -> where the file lies.
    """

    address: str
    records: list[ClipRecord]
    members: dict[str, dict[str, Member]]

    @property
    def root(self) -> Path:
        """The folder as a path: a name for messages and clip ids."""
        return Path(self.address)

    def read(self, record: ClipRecord, suffix: str, *, verify: bool = True) -> bytes:
        """A file of a clip.

        Args:
            record: the clip.
            suffix: `ARRAYS`, `VIDEO` or `FACES`.
            verify: whether its SHA-256 is looked at, where the shard has one.

        Raises:
            ClipError: there is none, other bytes than were exported, or a shard that cannot be read.
        """
        member = self.members[record.clip_id].get(suffix)
        if member is None:
            raise ClipError(f"clip '{record.clip_id}' of shards '{self.address}' has no .{suffix}; export them again")
        try:
            with _open(_join(self.address, member.shard)) as file:
                file.seek(member.offset)
                data = file.read(member.size)
        except (OSError, ValueError) as error:
            raise ClipError(f"shard '{_join(self.address, member.shard)}' cannot be read: {error}") from error
        if len(data) != member.size or (
            verify and member.sha256 is not None and hashlib.sha256(data).hexdigest() != member.sha256
        ):
            raise ClipError(
                f"clip '{record.clip_id}': its .{suffix} in shard '{_join(self.address, member.shard)}' has other "
                f"bytes than were exported; remove the shard and export again"
            )
        return data

    def arrays(self, record: ClipRecord) -> ClipArrays:
        """The numbers of a clip; they fit the record.

        Raises:
            DataError: missing or damaged, or another number of frames than the record says.
        """
        what = f"clip '{record.clip_id}' of shard '{self.members[record.clip_id][ARRAYS].shard}'"
        with unpacked(self.read(record, ARRAYS)) as path:
            arrays = read_arrays(path, what=what)
        check_arrays_fit(arrays, record, what)
        return arrays


def open_shards(address: str, split: str | None = None) -> ShardSet:
    """Look through the shards of a folder.

    Args:
        address: local folder, or address of fsspec.
        split: only the clips of this one; None: all.

    Returns:
        The clips and where their files lie.

    Raises:
        DataError: no shards there, another version, a shard that is missing, damaged or has another number of clips
            than the index says.
    """
    try:
        with _open(_join(address, INDEX)) as file:
            index = json.loads(file.read())
        version, counts = index["format"], {str(name): int(count) for name, count in index["shards"].items()}
    except (OSError, ImportError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"'{address}' holds no shards: {INDEX} is missing or damaged ({error}); make them with "
            f"scripts/preprocess.py --out DATASET --shards FOLDER"
        ) from error
    if version != FORMAT:
        raise DataError(f"shards '{address}' have format '{version}', this program reads '{FORMAT}'; export them again")
    records: list[ClipRecord] = []
    members: dict[str, dict[str, Member]] = {}
    for name, count in counts.items():
        if split is not None and name.rpartition("-")[0] != split:
            continue
        found = _scan(address, name)
        if len(found) != count:
            raise DataError(
                f"shard '{_join(address, name)}' holds {len(found)} clips, {INDEX} says {count}; remove it and export "
                f"again"
            )
        records += [record for record, _ in found]
        members.update((record.clip_id, files) for record, files in found)
    check_records(records, f"shards '{address}'")
    return ShardSet(address, records, members)


def read_shards(folder: Path, split: str | None = None) -> Iterator[Sample]:
    """The clips of exported shards, in order.

    Args:
        folder: of the shards.
        split: only this one; None: all.

    Yields:
        The samples.

    Raises:
        DataError: see `open_shards`.
    """
    shards = open_shards(str(folder), split)
    for record in shards.records:
        faces = shards.read(record, FACES) if FACES in shards.members[record.clip_id] else None
        yield Sample(record, shards.arrays(record), shards.read(record, VIDEO), faces)


def _scan(address: str, name: str) -> list[tuple[ClipRecord, dict[str, Member]]]:
    """The clips of a shard and where their files lie, by its headers and the two small files of each clip."""
    path = _join(address, name)
    clips: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        if os.path.basename(name) != name:
            raise ValueError("its name is no file name")
        with _open(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for entry in tar:
                key, _, suffix = entry.name.partition(".")
                clips.setdefault(key, {})[suffix] = entry
            return [_clip(tar, files, name) for files in clips.values()]
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) and error.args else str(error)
        raise DataError(f"shard '{path}' is missing or damaged ({reason}); remove it and export again") from error


def _clip(tar: tarfile.TarFile, files: dict[str, tarfile.TarInfo], shard: str) -> tuple[ClipRecord, dict[str, Member]]:
    record = clip_record(_json(tar, files[RECORD]))
    sums = _json(tar, files[SUMS]) if SUMS in files else {}
    members = {
        suffix: Member(shard, entry.offset_data, entry.size, sums.get(suffix))
        for suffix, entry in files.items()
        if suffix in (ARRAYS, VIDEO, FACES)
    }
    for suffix in (ARRAYS, VIDEO):
        if suffix not in members:
            raise KeyError(f".{suffix} of clip '{record.clip_id}'")
    return record, members


def _json(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> dict[str, Any]:
    content = tar.extractfile(entry)
    value = json.loads(content.read()) if content is not None else None
    if not isinstance(value, dict):
        raise ValueError(f"{entry.name} is no object")
    return value


def _join(address: str, name: str) -> str:
    return f"{address.rstrip('/')}/{name}"


@contextlib.contextmanager
def _open(address: str) -> Iterator[BinaryIO]:
    """A local or remote file for reading."""
    if "://" not in address:
        with open(address, "rb") as local:
            yield local
        return
    system, inner = fsspec.core.url_to_fs(address)
    with system.open(inner, "rb") as file:
        yield cast(BinaryIO, file)


_CHANGED = itertools.count(1)


@contextlib.contextmanager
def unpacked(data: bytes) -> Iterator[Path]:
    """Bytes as a file, which is gone afterwards.

    On Linux it is in memory and has no name that could be left behind, however the process ends.

    Args:
        data: its content.

    Yields:
        Where this process (alone) can read it.
    """
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("xdyna"), "wb") as file:
            file.write(data)
            file.flush()
            path = Path(f"/proc/self/fd/{file.fileno()}")
            changed = next(_CHANGED)  # numbers come again: without it another file of one number might be taken for it
            os.utime(path, ns=(changed, changed))
            yield path
        return
    with tempfile.TemporaryDirectory(prefix="xdyna-") as folder:
        path = Path(folder, "file")
        path.write_bytes(data)
        yield path


@dataclass(frozen=True, eq=False)
class ShardVideo(FootageVideo):
    """A clip of shards: as the same clip of the data set, but for its frames, which were encoded once more."""

    dataset: ShardSet  # type: ignore[assignment]

    @property
    def path(self) -> Path:
        """Name of the clip's video in messages: no file is there."""
        return Path(self.dataset.members[self.record.clip_id][VIDEO].shard, f"{self.record.clip_id}.mp4")

    @property
    def corner(self) -> tuple[int, int]:
        """Frames in shards have no letterbox."""
        return 0, 0

    def _read(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        with unpacked(self.dataset.read(self.record, VIDEO, verify=self.verify)) as path:
            yield from read_frames(path, rows.tolist())

    def _faces_file(self) -> AbstractContextManager[Path]:
        return unpacked(self.dataset.read(self.record, FACES, verify=self.verify))


class ShardSource(FootageSource):
    """The clips of exported shards; `manifests` are their folders. Order, draws and crops are those of the data sets
    that were exported; see `FootageSource`.
    """

    video_type = ShardVideo

    def _open(self, folder: str) -> ShardSet:  # type: ignore[override]
        return open_shards(folder)

    def _preflight(self) -> dict[str, State]:
        """Shards hold their sums: each file is compared when it is read, which is whole anyway."""
        return {}

    def _refuse_remote(self) -> None:
        """Shards hold their videos, wherever these came from."""
