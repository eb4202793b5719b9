"""A data set as tar files in the form of WebDataset, for training from object stores and sequential disks.

    SHARDS/
      index.json               what was exported, files and clips per split
      train-000000.tar         samples: KEY.json (the record), KEY.npz (its numbers), KEY.mp4 (its frames alone, without
      validation-000000.tar    letterbox), and KEY.faces.npz where the clip has another identity's face

Keys are numbers in the manifest's order. Every file follows from the data set alone, byte by byte.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdyna.config.data import SPLITS, DataError
from xdyna.core.atomic import atomic_output
from xdyna.data.addresses import local_copy
from xdyna.data.records import MANIFEST, ClipArrays, ClipRecord
from xdyna.data.store import read_arrays, read_dataset, write_if_changed
from xdyna.media import VideoWriter
from xdyna.preprocess.engines import Engine, Failure
from xdyna.preprocess.inspect import clip_frames

FORMAT = "xdyna-shards-1"
INDEX = "index.json"


@dataclass(frozen=True)
class Shard:
    """One tar file to write.

    Attributes:
        path: the file.
        first: number of its first clip.
        records: its clips.
    """

    path: Path
    first: int
    records: tuple[ClipRecord, ...]


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
class ShardWork:
    """Writes one shard of a data set; what a worker does."""

    dataset: Path

    def __call__(self, shard: Shard) -> int:
        """Write a shard unless it is there. Returns: the number of its clips."""
        if not shard.path.is_file():
            with (
                atomic_output(shard.path) as temporary,
                tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
            ):
                for number, record in enumerate(shard.records, shard.first):
                    for suffix, data in self._files(record).items():
                        entry = tarfile.TarInfo(f"{number:09d}.{suffix}")  # owner 0, time 0, mode 644
                        entry.size = len(data)
                        tar.addfile(entry, io.BytesIO(data))
        return len(shard.records)

    def _files(self, record: ClipRecord) -> dict[str, bytes]:
        arrays = read_arrays(self.dataset / record.arrays)
        files = {
            "json": (json.dumps(dataclasses.asdict(record), indent=1, sort_keys=True) + "\n").encode(),
            "npz": (self.dataset / record.arrays).read_bytes(),
        }
        with tempfile.TemporaryDirectory(prefix="xdyna-") as folder, local_copy(record.path) as local:
            video = Path(folder, "clip.mp4")
            with VideoWriter(video, fps=record.fps, size=(record.height, record.width)) as writer:
                for frame in clip_frames(record, arrays, local):
                    writer.write(frame)
            files["mp4"] = video.read_bytes()
        if record.faces:
            files["faces.npz"] = (self.dataset / record.faces).read_bytes()
        return files


def write_shards(
    dataset: Path,
    out: Path,
    engine: Engine,
    *,
    clips_per_shard: int = 256,
    progress: Callable[[int], None] = lambda clips: None,
) -> int:
    """Export a finished data set; an interrupted export goes on.

    Args:
        dataset: its folder.
        out: where to; empty or new, or the same export begun before.
        engine: who encodes the clips.
        clips_per_shard: at most so many in a file.
        progress: told the number of clips of each finished shard.

    Returns:
        The number of shards.

    Raises:
        DataError: no finished data set, other files in `out`, a video that is gone or has changed.
        MediaError: a file cannot be written.
    """
    if clips_per_shard < 1:
        raise DataError(f"clips per shard: got {clips_per_shard}, expected 1 or more")
    shards = _plan(dataset, out, clips_per_shard)
    index = {
        "format": FORMAT,
        "manifest_sha256": hashlib.sha256((dataset / MANIFEST).read_bytes()).hexdigest(),
        "clips_per_shard": clips_per_shard,
        "shards": {shard.path.name: len(shard.records) for shard in shards},
    }
    content = (json.dumps(index, indent=1) + "\n").encode()
    path = out / INDEX
    if path.is_file():
        if path.read_bytes() != content:
            raise DataError(f"'{out}' holds shards of another data set or of another size; choose a new folder")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"'{out}' holds other files; choose an empty or new folder for shards")
    write_if_changed(path, content)
    for number, result in engine.run(shards, ShardWork(dataset)):
        if isinstance(result, Failure):
            raise DataError(f"shard '{shards[number].path.name}' cannot be written: {result.reason}")
        progress(result)
    return len(shards)


def _plan(dataset: Path, out: Path, size: int) -> list[Shard]:
    """Shards of each split in the manifest's order."""
    records = read_dataset(dataset).records
    shards, first = [], 0
    for split in SPLITS:
        mine = [record for record in records if record.split == split]
        for number, begin in enumerate(range(0, len(mine), size)):
            part = tuple(mine[begin : begin + size])
            shards.append(Shard(out / f"{split}-{number:06d}.tar", first, part))
            first += len(part)
    return shards


def read_shards(folder: Path, split: str | None = None) -> Iterator[Sample]:
    """The clips of exported shards, in order.

    Args:
        folder: of the shards.
        split: only this one; None: all.

    Yields:
        The samples.

    Raises:
        DataError: no shards there, another version, a shard that is missing or damaged.
    """
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        version, names = index["format"], list(index["shards"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"'{folder}' holds no shards: {INDEX} is missing or damaged ({error})") from error
    if version != FORMAT:
        raise DataError(f"shards '{folder}' have format '{version}', this program reads '{FORMAT}'; export them again")
    for name in names:
        if split is None or name.rpartition("-")[0] == split:
            yield from _read_shard(folder / name)


def _read_shard(path: Path) -> Iterator[Sample]:
    try:
        with tarfile.open(path, "r:") as tar:
            files: dict[str, bytes] = {}
            current = ""
            for entry in tar:
                key, _, suffix = entry.name.partition(".")
                if files and key != current:
                    yield _sample(files)
                    files = {}
                content = tar.extractfile(entry)
                files[suffix], current = content.read() if content is not None else b"", key
            if files:
                yield _sample(files)
    except (OSError, tarfile.TarError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise DataError(f"shard '{path}' is missing or damaged ({error}); remove it and export again") from error


def _sample(files: dict[str, bytes]) -> Sample:
    record: dict[str, Any] = json.loads(files["json"])
    with tempfile.TemporaryDirectory(prefix="xdyna-") as folder:
        path = Path(folder, "arrays.npz")
        path.write_bytes(files["npz"])
        arrays = read_arrays(path)
    return Sample(ClipRecord(**record), arrays, files["mp4"], files.get("faces.npz"))
