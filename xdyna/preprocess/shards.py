"""A data set as tar files in the form of WebDataset, for training from object stores and sequential disks.

    SHARDS/
      index.json               what was exported, shards and their numbers of clips
      train-000000.tar         of each clip KEY.json (the record), KEY.npz (its numbers), KEY.mp4 (its frames alone,
      validation-000000.tar    without letterbox), KEY.faces.npz where it has another identity's face, KEY.sums.json
                               (SHA-256 of the others)

`data.shards` reads them. Keys are numbers in the manifest's order. Every file follows from the data set alone, byte by
byte.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xdyna.config.data import SPLITS, DataError
from xdyna.core.atomic import atomic_output
from xdyna.data.addresses import local_copy
from xdyna.data.records import MANIFEST, ClipRecord
from xdyna.data.shards import ARRAYS, FACES, FORMAT, INDEX, RECORD, SUMS, VIDEO
from xdyna.data.store import read_arrays, read_dataset, write_if_changed
from xdyna.media import VideoWriter
from xdyna.preprocess.engines import Engine, Failure
from xdyna.preprocess.inspect import clip_frames


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
                    files = self._files(record)
                    sums = {suffix: hashlib.sha256(data).hexdigest() for suffix, data in files.items()}
                    files[SUMS] = (json.dumps(sums, indent=1, sort_keys=True) + "\n").encode()
                    for suffix, data in files.items():
                        entry = tarfile.TarInfo(f"{number:09d}.{suffix}")  # owner 0, time 0, mode 644
                        entry.size = len(data)
                        tar.addfile(entry, io.BytesIO(data))
        return len(shard.records)

    def _files(self, record: ClipRecord) -> dict[str, bytes]:
        arrays = read_arrays(self.dataset / record.arrays)
        files = {
            RECORD: (json.dumps(dataclasses.asdict(record), indent=1, sort_keys=True) + "\n").encode(),
            ARRAYS: (self.dataset / record.arrays).read_bytes(),
        }
        with tempfile.TemporaryDirectory(prefix="xdyna-") as folder, local_copy(record.path) as local:
            video = Path(folder, "clip.mp4")
            with VideoWriter(video, fps=record.fps, size=(record.height, record.width)) as writer:
                for frame in clip_frames(record, arrays, local):
                    writer.write(frame)
            files[VIDEO] = video.read_bytes()
        if record.faces:
            files[FACES] = (self.dataset / record.faces).read_bytes()
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
