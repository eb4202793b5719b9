"""A data set folder on disk: arrays of clips (.npz), tables (Parquet), what reads them back, and what checks them.

Everything is written completely or not at all, and the same values give the same bytes: two folders made from the same
footage are equal file by file. Reading is strict: whatever does not fit is a `DataError` that names the file.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from xdyna.config.data import KINDS, SPLITS, DataError
from xdyna.core.atomic import atomic_output
from xdyna.core.files import file_sha256
from xdyna.data.addresses import local_copy
from xdyna.data.records import (
    DATASET_FILE,
    FORMAT,
    FORMER_FIELDS,
    MANIFEST,
    REASONS,
    SKIPPED,
    ClipArrays,
    ClipRecord,
    Skip,
)
from xdyna.media.errors import check_input_file
from xdyna.perception.errors import PerceptionError
from xdyna.perception.types import read_npz

_POINTS = {"body": (18, 3), "hands": (2, 21, 3), "face": (68, 3)}
_KEYS = ("format", *_POINTS, "boxes", "mask", "mask_width", "times", "frame_index")
_FORMAT_KEY = b"xdyna_format"
_COLUMN_TYPES = {"str": pa.string(), "int": pa.int64(), "float": pa.float64()}
_AGAIN = "remove the file and run the same scripts/preprocess.py command again"

Row = TypeVar("Row", ClipRecord, Skip)


def write_if_changed(path: Path, data: bytes) -> bool:
    """Write a file atomically, unless it holds these very bytes already.

    Args:
        path: the file; missing folders are made.
        data: its whole content.

    Returns:
        Whether it was written; an equal file keeps its time of modification.

    Raises:
        MediaError: it cannot be written.
    """
    if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
        return False
    with atomic_output(path, overwrite=True) as temporary:
        temporary.write_bytes(data)
    return True


# Arrays of a clip


def write_arrays(path: Path, arrays: ClipArrays) -> None:
    """Write the numbers of a clip, the mask as bits; an existing file is replaced.

    Args:
        path: the .npz.
        arrays: what to write; see `ClipArrays` for shapes and units.

    Raises:
        DataError: wrong shapes or types, NaN, confidences outside [0, 1], times or frames that do not ascend.
        MediaError: it cannot be written.
    """
    _check_arrays(arrays, f"clip '{path}'")
    columns = {name: getattr(arrays, name) for name in (*_POINTS, "boxes", "times", "frame_index")}
    columns["mask"] = np.packbits(arrays.mask, axis=-1)
    columns["mask_width"] = np.int64(arrays.mask.shape[2])
    columns["format"] = np.array(FORMAT)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **columns)  # its entries carry a fixed date
    write_if_changed(path, buffer.getvalue())


def read_arrays(path: Path, *, what: str | None = None) -> ClipArrays:
    """Read the numbers of a clip.

    Args:
        path: an .npz of `write_arrays`.
        what: name of the clip in messages; default: the path.

    Returns:
        The arrays, checked.

    Raises:
        DataError: missing, damaged or truncated file, another format, missing keys, wrong shapes or values.
    """
    what = what or f"clip '{path}'"
    try:
        found = read_npz(path, keys=_KEYS)
    except PerceptionError as error:
        raise DataError(f"{what} cannot be read: {error}; {_AGAIN}") from error
    if str(found["format"]) != FORMAT:
        raise DataError(f"{what} has format '{found['format']}', expected '{FORMAT}'; preprocess its video again")
    packed, width = found["mask"], found["mask_width"]
    if width.shape != () or width.dtype.kind not in "iu" or packed.dtype != np.uint8 or packed.ndim != 3:
        raise DataError(f"{what}: mask is {packed.dtype} {packed.shape}, expected bits of (T, h, w); {_AGAIN}")
    if not packed.shape[2] == -(-int(width) // 8) > 0:
        raise DataError(f"{what}: mask has {packed.shape[2]} bytes a row for a width of {int(width)}; {_AGAIN}")
    mask = np.unpackbits(packed, axis=-1, count=int(width)).astype(bool)
    arrays = ClipArrays(mask=mask, **{name: found[name] for name in (*_POINTS, "boxes", "times", "frame_index")})
    _check_arrays(arrays, what)
    return arrays


def _check_arrays(arrays: ClipArrays, what: str) -> None:
    """Refuse arrays that are not as `ClipArrays` says."""
    count = len(np.atleast_1d(arrays.times))
    expected: dict[str, tuple[type, tuple[int | None, ...]]] = {
        **{name: (np.float32, (count, *shape)) for name, shape in _POINTS.items()},
        "boxes": (np.float32, (count, 4)),
        "mask": (np.bool_, (count, None, None)),
        "times": (np.float64, (count,)),
        "frame_index": (np.int64, (count,)),
    }
    for name, (kind, shape) in expected.items():
        array = np.asarray(getattr(arrays, name))
        fits = len(array.shape) == len(shape) and all(
            side == wish if wish is not None else side > 0 for side, wish in zip(array.shape, shape, strict=True)
        )
        if array.dtype != kind or not fits or not count:
            wanted = tuple("any" if wish is None else wish for wish in shape)
            raise DataError(
                f"{what}: {name} is {array.dtype} {array.shape}, expected {np.dtype(kind).name} {wanted} with at least "
                f"one frame; {_AGAIN}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{what}: {name} holds NaN or infinite values; {_AGAIN}")
    for name in _POINTS:
        confidence = getattr(arrays, name)[..., 2]
        if confidence.min() < 0 or confidence.max() > 1:
            raise DataError(
                f"{what}: {name} holds confidences from {confidence.min():.3g} to {confidence.max():.3g}, expected 0 "
                f"to 1; {_AGAIN}"
            )
    for name in ("times", "frame_index"):
        values = getattr(arrays, name)
        if values[0] < 0 or (np.diff(values) <= 0).any():
            raise DataError(f"{what}: {name} does not ascend from 0 or more ({values[:4].tolist()} ...); {_AGAIN}")


def check_arrays_fit(arrays: ClipArrays, record: ClipRecord, what: str) -> None:
    """Refuse numbers of other frames than the record says.

    Args:
        arrays: of a clip.
        record: of the same clip.
        what: name of the clip, for messages.

    Raises:
        DataError: another number of frames, or another first one.
    """
    if len(arrays.times) != record.frames or int(arrays.frame_index[0]) != record.start:
        raise DataError(
            f"{what} holds {len(arrays.times)} frames from {arrays.frame_index[0]} on, the manifest says "
            f"{record.frames} from {record.start} on; {_AGAIN}"
        )


# Tables


def write_manifest(path: Path, records: Sequence[ClipRecord]) -> None:
    """Write the manifest, sorted by source and first frame; an existing one is replaced.

    Args:
        path: `DATASET/manifest.parquet`.
        records: all clips.

    Raises:
        DataError: a record that `read_manifest` would refuse.
        MediaError: it cannot be written.
    """
    check_records(records, f"manifest '{path}'")
    ordered = sorted(records, key=lambda record: (record.source_id, record.start, record.clip_id))
    write_if_changed(path, _table_bytes(ClipRecord, ordered))


def read_manifest(path: Path) -> list[ClipRecord]:
    """Read the manifest.

    Args:
        path: `DATASET/manifest.parquet`.

    Returns:
        All clips in the manifest's order.

    Raises:
        DataError: missing or damaged file, another format version, missing, unknown or wrongly typed columns, empty
            cells, ids given twice, values out of range.
    """
    records = _read_table(ClipRecord, path)
    check_records(records, f"manifest '{path}'")
    return records


def write_skips(path: Path, skips: Sequence[Skip]) -> None:
    """Write `DATASET/skipped.parquet`, sorted by source, first frame and stage. Raises as `write_manifest`."""
    _check_skips(skips, f"table '{path}'")
    write_if_changed(path, _table_bytes(Skip, sorted(skips, key=lambda skip: (skip.source_id, skip.start, skip.stage))))


def read_skips(path: Path) -> list[Skip]:
    """Read `DATASET/skipped.parquet`. Raises as `read_manifest`."""
    skips = _read_table(Skip, path)
    _check_skips(skips, f"table '{path}'")
    return skips


def _schema(kind: type[Row]) -> pa.Schema:
    columns = [pa.field(f.name, _COLUMN_TYPES[str(f.type)], nullable=False) for f in dataclasses.fields(kind)]
    return pa.schema(columns, metadata={_FORMAT_KEY: FORMAT.encode()})


def _table_bytes(kind: type[Row], rows: Sequence[Row]) -> bytes:
    schema = _schema(kind)
    table = pa.table({name: [getattr(row, name) for row in rows] for name in schema.names}, schema=schema)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", version="2.6", row_group_size=1 << 16)
    return buffer.getvalue()


def _read_table(kind: type[Row], path: Path) -> list[Row]:
    if not path.is_file():
        raise DataError(f"table '{path}' does not exist; give a folder that scripts/preprocess.py has finished")
    try:
        table = pq.ParquetFile(io.BytesIO(path.read_bytes())).read()
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"table '{path}' is damaged or no Parquet file ({reason}); {_AGAIN}") from error
    version = (table.schema.metadata or {}).get(_FORMAT_KEY, b"none").decode(errors="replace")
    if version != FORMAT:
        raise DataError(
            f"table '{path}' has format '{version}', this program reads '{FORMAT}'; preprocess the footage again"
        )
    schema = _schema(kind)
    table = table.rename_columns([FORMER_FIELDS.get(name, name) for name in table.column_names])
    table = table.drop_columns([""] if "" in table.column_names else [])
    if sorted(table.column_names) != sorted(schema.names):
        missing = sorted(set(schema.names) - set(table.column_names))
        unknown = sorted(set(table.column_names) - set(schema.names))
        raise DataError(f"table '{path}': missing columns {missing}, unknown columns {unknown}; {_AGAIN}")
    for column in schema:
        found = table.column(column.name)
        if found.type != column.type:
            raise DataError(f"table '{path}': column {column.name} is {found.type}, expected {column.type}; {_AGAIN}")
        if found.null_count:
            raise DataError(f"table '{path}': column {column.name} has {found.null_count} empty cells; {_AGAIN}")
    columns = table.select(schema.names).to_pydict()
    return [kind(*values) for values in zip(*columns.values(), strict=True)]


def check_records(records: Sequence[ClipRecord], what: str) -> None:
    """Refuse records that contradict themselves or each other.

    Args:
        records: of one data set.
        what: where they are from, for messages.

    Raises:
        DataError: ids given twice, values out of range.
    """
    seen: set[str] = set()
    for record in records:
        if record.clip_id in seen:
            raise DataError(f"{what}: clip '{record.clip_id}' is there twice; every clip has an id of its own")
        seen.add(record.clip_id)
        for problem in _record_problems(record):
            raise DataError(f"{what}: clip '{record.clip_id}': {problem}")


def _record_problems(record: ClipRecord) -> Iterator[str]:
    if not record.clip_id or not record.source_id:
        yield "clip_id and source_id must not be empty"
    for name, choices in (("kind", KINDS), ("split", SPLITS)):
        if getattr(record, name) not in choices:
            yield f"{name} is {getattr(record, name)!r}, expected one of {', '.join(choices)}"
    for name, low in (("start", 0), ("frames", 1), ("crop_left", 0), ("crop_top", 0), ("width", 1), ("height", 1)):
        if getattr(record, name) < low:
            yield f"{name} is {getattr(record, name)}, expected {low} or more"
    numbers = (record.fps, record.person_height, record.confidence, record.motion, record.camera)
    if not all(math.isfinite(number) for number in numbers) or record.fps <= 0:
        yield "fps, person_height, confidence, motion and camera must be finite, fps above 0"
    if len(record.phash) != 16 or not set(record.phash) <= set("0123456789abcdef"):
        yield f"phash is {record.phash!r}, expected 16 hexadecimal digits"
    for name in ("arrays", "faces"):
        value = Path(getattr(record, name))
        if value.is_absolute() or ".." in value.parts:
            yield f"{name} is '{value}', expected a path below the data set folder"


def _check_skips(skips: Sequence[Skip], what: str) -> None:
    for skip in skips:
        if skip.reason not in REASONS:
            raise DataError(f"{what}: reason {skip.reason!r} of '{skip.source_id}' is none of {', '.join(REASONS)}")


# The whole folder


@dataclass(frozen=True)
class Dataset:
    """A finished data set.

    Attributes:
        root: its folder.
        records: all clips.
        options: of `PreprocessOptions`, as plain values.
    """

    root: Path
    records: list[ClipRecord]
    options: dict[str, Any]

    def arrays(self, record: ClipRecord) -> ClipArrays:
        """The numbers of a clip; they fit the record.

        Raises:
            DataError: see `read_arrays`; or another number of frames than the record says.
        """
        path = self.root / record.arrays
        arrays = read_arrays(path)
        check_arrays_fit(arrays, record, f"clip '{path}'")
        return arrays

    def record(self, clip_id: str) -> ClipRecord:
        """The clip of an id.

        Raises:
            DataError: no such clip; the message names some that are there.
        """
        for record in self.records:
            if record.clip_id == clip_id:
                return record
        some = ", ".join(record.clip_id for record in self.records[:5])
        raise DataError(f"data set '{self.root}' has no clip '{clip_id}'; the first of {len(self.records)}: {some}")


def read_dataset(folder: Path) -> Dataset:
    """Read a data set folder.

    Args:
        folder: where `dataset.json` and the manifest are.

    Returns:
        The data set; arrays are read later, clip by clip.

    Raises:
        DataError: no finished data set there, a damaged file, or another format version.
    """
    path = folder / DATASET_FILE
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        version, options = header["format"], dict(header["options"])
    except FileNotFoundError as error:
        raise DataError(f"'{folder}' is no finished data set: it has no {DATASET_FILE}; {_UNFINISHED}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"'{path}' is damaged ({type(error).__name__}: {error}); {_AGAIN}") from error
    if version != FORMAT:
        raise DataError(
            f"data set '{folder}' has format '{version}', this program reads '{FORMAT}'; preprocess the footage again"
        )
    return Dataset(folder, read_manifest(folder / MANIFEST), options)


_UNFINISHED = "make one with scripts/preprocess.py, or finish it with the same command"


def validate(folder: Path, *, videos: bool = False) -> list[str]:
    """Check a data set: every clip's arrays exist and fit, files that the manifest names are there.

    Args:
        folder: the data set.
        videos: whether the videos are read too, to compare their bytes with the manifest.

    Returns:
        One sentence a problem; nothing when all is well.

    Raises:
        DataError: see `read_dataset`.
    """
    dataset = read_dataset(folder)
    read_skips(folder / SKIPPED)
    problems = []
    for record in dataset.records:
        try:
            dataset.arrays(record)
        except DataError as error:
            problems.append(str(error))
        if record.faces and not (folder / record.faces).exists():
            problems.append(f"clip '{record.clip_id}': '{folder / record.faces}' is missing")
    if videos:
        problems += _video_problems(dataset.records)
    return problems


def _video_problems(records: Sequence[ClipRecord]) -> Iterator[str]:
    for path, sha256 in sorted({(record.path, record.sha256) for record in records}):
        try:
            with local_copy(path) as local:
                found = file_sha256(check_input_file(local, what="video"))
        except (OSError, ImportError, ValueError) as error:  # a FileError is a ValueError
            yield f"video '{path}' cannot be read: {error}"
            continue
        if found != sha256:
            yield f"video '{path}' has other bytes than when the data set was made; preprocess it again"
