import dataclasses
import io
import time
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.preprocess.made import arrays_of, record_of
from xdyna.config.data import DataError
from xdyna.core.files import file_sha256
from xdyna.data.records import DATASET_FILE, MANIFEST, SKIPPED, ClipArrays, ClipRecord, Skip
from xdyna.data.store import (
    read_arrays,
    read_dataset,
    read_manifest,
    read_skips,
    validate,
    write_arrays,
    write_if_changed,
    write_manifest,
    write_skips,
)


def equal(one: ClipArrays, other: ClipArrays) -> bool:
    names = [field.name for field in dataclasses.fields(ClipArrays)]
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        and getattr(one, name).dtype == getattr(other, name).dtype
        for name in names
    )


@pytest.mark.parametrize("mask", [(64, 37), (9, 16), (1, 1)])
def test_arrays_come_back_as_they_were(tmp_path, mask) -> None:
    arrays = arrays_of(7, start=3, mask=mask)
    write_arrays(tmp_path / "a.npz", arrays)
    assert equal(read_arrays(tmp_path / "a.npz"), arrays)


def test_masks_are_bits(tmp_path) -> None:
    write_arrays(tmp_path / "a.npz", arrays_of(50, mask=(64, 64)))
    with np.load(tmp_path / "a.npz") as stored:
        assert stored["mask"].nbytes == 50 * 64 * 64 / 8


def test_equal_arrays_give_equal_bytes_at_any_time(tmp_path, monkeypatch) -> None:
    write_arrays(tmp_path / "a.npz", arrays_of())
    monkeypatch.setattr(time, "time", lambda: 2e9)
    monkeypatch.setattr(time, "localtime", lambda *_: time.gmtime(2e9))
    write_arrays(tmp_path / "b.npz", arrays_of())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_an_equal_file_is_not_touched(tmp_path) -> None:
    path = tmp_path / "x"
    assert write_if_changed(path, b"one")
    before = path.stat()
    assert not write_if_changed(path, b"one")
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert path.stat().st_ino == before.st_ino
    assert write_if_changed(path, b"two")
    assert path.read_bytes() == b"two"


def changed(**values: np.ndarray) -> ClipArrays:
    return dataclasses.replace(arrays_of(), **values)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            changed(body=np.zeros((4, 18, 3), np.float32)),
            r"body is float32 \(4, 18, 3\), expected float32 \(5, 18, 3\)",
        ),
        (changed(body=np.zeros((5, 18, 3))), "body is float64"),
        (changed(hands=np.full((5, 2, 21, 3), np.nan, np.float32)), "hands holds NaN"),
        (changed(face=np.full((5, 68, 3), 2, np.float32)), "face holds confidences from 2 to 2"),
        (changed(mask=np.zeros((5, 0, 3), bool)), "mask is bool"),
        (changed(boxes=np.full((5, 4), np.inf, np.float32)), "boxes holds NaN or infinite"),
        (changed(times=np.array([0, 1, 1, 2, 3.0])), "times does not ascend"),
        (changed(frame_index=np.arange(5) - 1), "frame_index does not ascend from 0"),
        (arrays_of(0), "with at least one frame"),
    ],
)
def test_bad_arrays_are_not_written(tmp_path, arrays, message) -> None:
    with pytest.raises(DataError, match=message):
        write_arrays(tmp_path / "a.npz", arrays)
    assert not (tmp_path / "a.npz").exists()


def rewritten(path: Path, **changes: object) -> None:
    """An .npz with some arrays changed or, where None, left out."""
    with np.load(path) as stored:
        arrays = {**{name: stored[name] for name in stored.files}, **changes}
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in arrays.items() if array is not None})
    path.write_bytes(buffer.getvalue())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"face": None}, r"lack \['face'\]"),
        ({"format": np.array("xdyna-dataset-0")}, "format 'xdyna-dataset-0', expected 'xdyna-dataset-1'"),
        ({"body": np.full((5, 18, 3), np.nan, np.float32)}, "body holds NaN"),
        ({"times": np.zeros((3,))}, "expected"),
        ({"mask": np.zeros((5, 64, 3), np.uint8)}, "mask has 3 bytes a row for a width of 37"),
        ({"mask": np.zeros((5, 64, 5), bool)}, "mask is bool"),
        ({"mask_width": np.array("wide")}, "mask is"),
        ({"body": np.array([{}], dtype=object)}, "damaged or no .npz"),
    ],
)
def test_bad_files_are_named(tmp_path, changes, message) -> None:
    path = tmp_path / "a.npz"
    write_arrays(path, arrays_of())
    rewritten(path, **changes)
    with pytest.raises(DataError, match=message) as caught:
        read_arrays(path)
    assert str(path) in str(caught.value)


def test_damaged_files_are_named(tmp_path) -> None:
    path = tmp_path / "a.npz"
    write_arrays(path, arrays_of())
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"not a zip file", whole[:300] + bytes(200) + whole[500:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"cannot be read.*run the same scripts/preprocess.py command again"):
            read_arrays(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_arrays(tmp_path / "missing.npz")


def test_manifest_comes_back_sorted_and_with_equal_bytes(tmp_path) -> None:
    records = [
        record_of("b-0001", start=10), record_of("b-0000", caption='a "quoted", text\nof two lines'),
        record_of("a-0000", faces="faces/ab/x.npz", fps=30000 / 1001),
    ]  # fmt: skip
    write_manifest(tmp_path / "m.parquet", records)
    assert read_manifest(tmp_path / "m.parquet") == [records[2], records[1], records[0]]
    write_manifest(tmp_path / "n.parquet", records[::-1])
    assert (tmp_path / "m.parquet").read_bytes() == (tmp_path / "n.parquet").read_bytes()


def test_skips_come_back(tmp_path) -> None:
    skips = [Skip("b", "b.mp4", "read", "unreadable", "x"), Skip("a", "a.mp4", "quality", "static", "y", 3, 4, "t.jpg")]
    write_skips(tmp_path / "s.parquet", skips)
    assert read_skips(tmp_path / "s.parquet") == skips[::-1]
    write_skips(tmp_path / "s.parquet", [])
    assert read_skips(tmp_path / "s.parquet") == []
    with pytest.raises(DataError, match="reason 'ugly' of 'a' is none of"):
        write_skips(tmp_path / "s.parquet", [Skip("a", "a.mp4", "quality", "ugly", "")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "dog"}, "kind is 'dog', expected one of human, scene"),
        ({"split": ""}, "split is ''"),
        ({"frames": 0}, "frames is 0, expected 1 or more"),
        ({"start": -1}, "start is -1"),
        ({"fps": float("nan")}, "must be finite"),
        ({"phash": "xyz"}, "phash is 'xyz', expected 16 hexadecimal digits"),
        ({"arrays": "../../etc/passwd"}, "expected a path below the data set folder"),
        ({"faces": "/etc/passwd"}, "expected a path below the data set folder"),
    ],
)
def test_bad_records_are_refused(tmp_path, change, message) -> None:
    with pytest.raises(DataError, match=message):
        write_manifest(tmp_path / "m.parquet", [record_of(**change)])


def test_ids_given_twice_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="clip 'film-0000' is there twice"):
        write_manifest(tmp_path / "m.parquet", [record_of(), record_of()])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns(["phash"]), r"missing columns \['phash'\], unknown columns \[\]"),
        (lambda table: table.append_column("more", pa.array([1])), r"unknown columns \['more'\]"),
        (lambda table: table.set_column(10, "frames", pa.array(["5"])), "column"),
        (lambda table: table.set_column(0, "clip_id", pa.array([None], pa.string())), "column clip_id has 1 empty"),
        (lambda table: table.replace_schema_metadata({}), "format 'none', this program reads 'xdyna-dataset-1'"),
        (lambda table: table.replace_schema_metadata({"xdyna_format": "xdyna-dataset-9"}), "format 'xdyna-dataset-9'"),
        (lambda table: pa.concat_tables([table, table]), "is there twice"),
    ],
)
def test_a_manifest_of_another_form_is_refused(tmp_path, change, message) -> None:
    path = tmp_path / "m.parquet"
    write_manifest(path, [record_of()])
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(DataError, match=message) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)


def test_a_damaged_manifest_is_named(tmp_path) -> None:
    path = tmp_path / "m.parquet"
    with pytest.raises(DataError, match=r"does not exist; give a folder that scripts/preprocess\.py has finished"):
        read_manifest(path)
    write_manifest(path, [record_of()])
    whole = path.read_bytes()
    for damaged in (b"", b"PAR1", whole[:-9], whole[:40] + bytes(60) + whole[100:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=f"'{path}' is damaged|format|column"):
            read_manifest(path)


@pytest.fixture
def dataset(tmp_path) -> Path:
    """A folder with one clip; its video is a file of a few bytes."""
    video = tmp_path / "film.mp4"
    video.write_bytes(b"video")
    folder = tmp_path / "set"
    record = record_of(path=str(video), sha256=file_sha256(video))
    write_arrays(folder / record.arrays, arrays_of())
    write_manifest(folder / MANIFEST, [record])
    write_skips(folder / SKIPPED, [])
    (folder / DATASET_FILE).write_text('{"format": "xdyna-dataset-1", "options": {"preprocess": {"min_frames": 5}}}')
    return folder


def test_a_data_set_is_read(dataset) -> None:
    found = read_dataset(dataset)
    assert found.options == {"preprocess": {"min_frames": 5}}
    assert [record.clip_id for record in found.records] == ["film-0000"]
    assert equal(found.arrays(found.record("film-0000")), arrays_of())
    with pytest.raises(DataError, match="has no clip 'x'; the first of 1: film-0000"):
        found.record("x")
    assert validate(dataset, videos=True) == []


def test_what_does_not_fit_is_told(dataset) -> None:
    record: ClipRecord = read_dataset(dataset).records[0]
    write_manifest(dataset / MANIFEST, [dataclasses.replace(record, frames=6, faces="faces/x.npz")])
    Path(record.path).write_bytes(b"other")
    problems = validate(dataset, videos=True)
    assert [any(word in problem for problem in problems) for word in ("holds 5 frames", "faces/x", "other bytes")] == [
        True
    ] * 3
    assert len(validate(dataset)) == 2
    (dataset / record.arrays).unlink()
    Path(record.path).unlink()
    problems = validate(dataset, videos=True)
    assert any(record.arrays in problem for problem in problems)
    assert any("film.mp4' does not exist" in problem for problem in problems)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"format": "xdyna-dataset-1"}', "is damaged"),
        ('{"format": "xdyna-dataset-2", "options": {}}', "has format 'xdyna-dataset-2', this program reads"),
        (None, "is no finished data set"),
    ],
)
def test_a_bad_header_is_named(dataset, text, message) -> None:
    (dataset / DATASET_FILE).unlink() if text is None else (dataset / DATASET_FILE).write_text(text)
    with pytest.raises(DataError, match=message):
        read_dataset(dataset)


def test_remote_videos_are_compared_too(dataset) -> None:
    record = read_dataset(dataset).records[0]
    write_manifest(dataset / MANIFEST, [dataclasses.replace(record, path=f"file://{record.path}")])
    assert validate(dataset, videos=True) == []
    Path(record.path).write_bytes(b"other")
    assert "has other bytes" in validate(dataset, videos=True)[0]
    write_manifest(dataset / MANIFEST, [dataclasses.replace(record, path="memory://nothing.mp4")])
    assert "'memory://nothing.mp4' cannot be read" in validate(dataset, videos=True)[0]


def test_data_sets_of_earlier_versions_are_read(dataset) -> None:
    """Their manifests have a column more, which was always empty, and one of another name."""
    path, records = dataset / MANIFEST, read_dataset(dataset).records
    table = pq.read_table(path)
    names, metadata = table.column_names, table.schema.metadata
    table = table.rename_columns(["licence" if name == "license" else name for name in names])
    table = table.replace_schema_metadata(metadata)
    pq.write_table(table.append_column(pa.field("latents", pa.string(), nullable=False), [[""] * len(table)]), path)
    assert {"latents", "licence"} <= set(pq.read_table(path).column_names)
    assert read_dataset(dataset).records == records
