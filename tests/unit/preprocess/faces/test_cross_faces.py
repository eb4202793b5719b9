"""Other identities' faces of whole data sets, with a reenactor that is easy to recognise in the files."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.unit.data.footage_sets import build_set, record
from xdyna.config.data import DataError
from xdyna.data.face_files import patch_boxes, read_faces, seen, write_faces
from xdyna.data.records import MANIFEST, SKIPPED, ClipRecord, place
from xdyna.data.sources import Faces
from xdyna.data.store import (
    read_arrays,
    read_dataset,
    read_manifest,
    validate,
    write_arrays,
    write_manifest,
    write_skips,
)
from xdyna.preprocess.faces.cross_faces import REASONS, SUMMARY, FacesSummary, add_faces
from xdyna.preprocess.faces.reenact import Portrait, ReenactError, keep_boxes
from xdyna.puppets.world import render_clip

SEED = 5


class Painter:
    """Paints face boxes in the mean colour of the other's image; remembers what it was asked for."""

    name, version = "painter", "1"

    def __init__(self, refused: int = 0) -> None:
        self.calls: list[tuple[np.ndarray, np.ndarray, Portrait, Portrait | None]] = []
        self.refused = refused

    def reenact(
        self, frames: np.ndarray, landmarks: np.ndarray, other: Portrait, *, own: Portrait | None = None
    ) -> Faces:
        self.calls.append((frames, landmarks, other, own))
        if len(self.calls) <= self.refused:
            raise ReenactError("this one cannot be used", reason="no_portrait")
        color = other.image.mean(axis=(0, 1)).astype(np.uint8)
        pictures = np.full_like(frames, color)
        boxes = patch_boxes(landmarks, size=(frames.shape[1], frames.shape[2]))
        return Faces(keep_boxes(pictures, boxes), landmarks.astype(np.float32))


def clips() -> list[ClipRecord]:
    """Three people in training, one of them twice; two people in validation; a scene."""
    return [
        record("anna-0000", group="anna", frames=4),
        record("anna-0001", group="anna", frames=5),
        record("ben-0000", group="ben", frames=4),
        record("cleo-0000", group="cleo", frames=4),
        record("dan-0000", group="dan", frames=4, split="validation"),
        record("eve-0000", group="eve", frames=4, split="validation"),
        record("sea-0000", group="sea", frames=4, kind="scene"),
    ]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_set(tmp_path_factory.mktemp("made") / "set", clips())


@pytest.fixture
def folder(dataset: Path, tmp_path: Path) -> Path:
    """A copy that may be changed; the videos stay where they are."""
    return Path(shutil.copytree(dataset, tmp_path / "set", ignore=shutil.ignore_patterns("videos")))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def lenders(folder: Path) -> dict[str, str]:
    """Clip -> clip that lends the face, from the files themselves."""
    found = {}
    for path in (folder / "faces").glob("*/*.npz"):
        with np.load(path) as arrays:
            recipe = json.loads(str(arrays["recipe"]))
        found[recipe["clip"]] = recipe["other"].split(":")[0]
    return found


def test_every_human_clip_gets_another_ones_face(folder: Path):
    painter, seen_progress = Painter(), []
    summary = add_faces(folder, painter, seed=SEED, progress=seen_progress.append)
    assert (summary.made, summary.kept, summary.failed) == (6, 0, {})
    assert seen_progress == [0, 1, 2, 3, 4, 5, 6]
    records = {r.clip_id: r for r in read_manifest(folder / MANIFEST)}
    assert records["sea-0000"].faces == ""
    for clip, other in lenders(folder).items():
        assert records[clip].faces == place("faces", clip, ".npz")
        assert records[other].group != records[clip].group, "never the same person"
        assert records[other].split == records[clip].split
    assert len(lenders(folder)) == 6
    write_skips(folder / SKIPPED, [])
    assert validate(folder) == []


def test_files_hold_what_the_reenactor_gave(folder: Path):
    painter = Painter()
    add_faces(folder, painter, seed=SEED)
    made = read_dataset(folder)
    for clip, (_, _, other, own) in zip([r for r in made.records if r.kind == "human"], painter.calls, strict=True):
        arrays = made.arrays(clip)
        faces = read_faces(folder / clip.faces)
        assert faces.frames.shape == (clip.frames, clip.height, clip.width, 3)
        found = seen(arrays.face)
        np.testing.assert_allclose(faces.landmarks[found], arrays.face[found], atol=1e-4)
        color = other.image.mean(axis=(0, 1)).astype(np.uint8)
        for frame, there, points in zip(faces.frames, found, arrays.face, strict=True):
            assert frame.any() == there
            if there:
                x, y = points[30, :2].round().astype(int)
                assert (frame[y, x] == color).all()
        assert own is not None
        assert own.name.startswith(f"clip '{clip.source_id.split('-')[0]}")


def test_the_reenactor_sees_the_clip(folder: Path):
    """The landmarks it gets lie on the face in the frames it gets: in letterboxed video, cut to the face."""
    painter = Painter()
    add_faces(folder, painter, seed=SEED)
    frames, landmarks, *_ = painter.calls[0]
    truth = render_clip(0, 0, 0, frames=6, size=(64, 64))
    x, y = landmarks[0, 30, :2].round().astype(int)
    true_x, true_y = truth.face[2, 30, :2].round().astype(int)
    size = min(x, y, 6)
    seen_patch = frames[0, y - size : y + size, x - size : x + size].astype(float)
    true_patch = truth.frames[2, true_y - size : true_y + size, true_x - size : true_x + size].astype(float)
    assert np.abs(seen_patch - true_patch).mean() < 25, "up to what the video codec loses"


def test_the_same_seed_gives_the_same_bytes(folder: Path, dataset: Path, tmp_path: Path):
    second = Path(shutil.copytree(dataset, tmp_path / "second", ignore=shutil.ignore_patterns("videos")))
    add_faces(folder, Painter(), seed=SEED)
    add_faces(second, Painter(), seed=SEED)
    assert files(folder) == files(second)
    third = Path(shutil.copytree(dataset, tmp_path / "third", ignore=shutil.ignore_patterns("videos")))
    chosen = set()
    for seed in range(6):
        shutil.rmtree(third / "faces", ignore_errors=True)
        add_faces(third, Painter(), seed=seed)
        chosen.add(lenders(third)["anna-0000"])
    assert chosen == {"ben-0000", "cleo-0000"}, "the seed decides, within the split"


def test_it_continues_where_it_stopped(folder: Path, dataset: Path, tmp_path: Path):
    whole = Path(shutil.copytree(dataset, tmp_path / "whole", ignore=shutil.ignore_patterns("videos")))
    add_faces(whole, Painter(), seed=SEED)

    class Interrupted(Painter):
        def reenact(self, *args: object, **kwargs: object) -> Faces:
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().reenact(*args, **kwargs)  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        add_faces(folder, Interrupted(), seed=SEED)
    assert not list(folder.rglob("*.part*"))
    painter = Painter()
    summary = add_faces(folder, painter, seed=SEED)
    assert (summary.made, summary.kept) == (4, 2)
    assert files(folder) == files(whole)
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    again = Painter()
    assert add_faces(folder, again, seed=SEED).kept == 6
    assert again.calls == []
    assert stamps == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_other_settings_are_refused(folder: Path):
    add_faces(folder, Painter(), seed=SEED)
    with pytest.raises(DataError, match=r"seed 5 \(now 6\)"):
        add_faces(folder, Painter(), seed=6)
    other = Painter()
    other.version = "2"
    with pytest.raises(DataError, match=r"version '1' \(now '2'\)"):
        add_faces(folder, other, seed=SEED)
    (folder / SUMMARY).write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        add_faces(folder, Painter(), seed=SEED)


def test_a_picture_that_cannot_be_used_is_replaced_by_the_next_ones(folder: Path):
    painter = Painter(refused=1)
    summary = add_faces(folder, painter, seed=SEED)
    assert summary.made == 6
    first, second = painter.calls[0][2], painter.calls[1][2]
    assert first.name != second.name
    assert lenders(folder)["anna-0000"] in second.name


def test_failures_are_counted_by_reason(folder: Path):
    arrays = read_arrays(folder / "clips" / "anna-0000.npz")
    write_arrays(folder / "clips" / "anna-0000.npz", dataclasses.replace(arrays, face=np.zeros_like(arrays.face)))
    records = read_manifest(folder / MANIFEST)
    gone = [dataclasses.replace(r, path="/nowhere.mp4") if r.clip_id == "ben-0000" else r for r in records]
    write_manifest(folder / MANIFEST, gone)
    summary = add_faces(folder, Painter(), seed=SEED)
    assert summary.failed == {"anna-0000": "no_face", "ben-0000": "unreadable"}
    assert summary.reasons == {"no_face": 1, "unreadable": 1}
    assert set(summary.reasons) <= set(REASONS)
    assert summary.made == 4
    by_id = {r.clip_id: r for r in read_manifest(folder / MANIFEST)}
    assert by_id["anna-0000"].faces == by_id["ben-0000"].faces == ""
    assert json.loads((folder / SUMMARY).read_text())["failed"] == summary.failed
    every = add_faces(folder, Painter(refused=99), seed=SEED)
    assert (every.made, every.kept) == (0, 4)


def test_nobody_else_is_there(tmp_path: Path):
    alone = build_set(tmp_path / "set", [record("anna-0000", group="anna", frames=3),
                                         record("anna-0001", group="anna", frames=3)])  # fmt: skip
    summary = add_faces(alone, Painter(), seed=0)
    assert summary == FacesSummary(0, 0, {"anna-0000": "no_other", "anna-0001": "no_other"})


def test_the_other_split_lends_where_a_split_has_one_person(tmp_path: Path):
    pair = build_set(tmp_path / "set", [record("anna-0000", group="anna", frames=3),
                                        record("dan-0000", group="dan", frames=3, split="test")])  # fmt: skip
    assert add_faces(pair, Painter(), seed=0).made == 2
    assert lenders(pair) == {"anna-0000": "dan-0000", "dan-0000": "anna-0000"}


# Files


def some_faces() -> Faces:
    rng = np.random.default_rng(0)
    landmarks = np.ones((4, 68, 3), np.float32)
    landmarks[..., :2] = rng.uniform(30, 42, (4, 68, 2))
    landmarks[2] = 0
    frames = rng.integers(1, 255, (4, 80, 96, 3), dtype=np.uint8)
    return Faces(keep_boxes(frames, patch_boxes(landmarks, size=(80, 96))), landmarks)


def test_faces_come_back(tmp_path: Path):
    faces, path = some_faces(), tmp_path / "a.npz"
    write_faces(path, faces, recipe={"clip": "x"})
    found = read_faces(path)
    np.testing.assert_array_equal(found.frames, faces.frames)
    np.testing.assert_array_equal(found.landmarks, faces.landmarks)
    rows = np.array([3, 1, 1])
    np.testing.assert_array_equal(read_faces(path, rows).frames, faces.frames[rows])
    np.testing.assert_array_equal(read_faces(path, rows).landmarks, faces.landmarks[rows])
    assert found.frames[0].any()
    assert not found.frames[2].any()


@pytest.mark.parametrize("rows", [[4], [-1], [], [[0]]])
def test_rows_that_are_not_there(tmp_path: Path, rows: list):
    write_faces(tmp_path / "a.npz", some_faces(), recipe={})
    with pytest.raises(DataError, match="there are 4"):
        read_faces(tmp_path / "a.npz", rows)


def test_damaged_files(tmp_path: Path):
    path = tmp_path / "a.npz"
    write_faces(path, some_faces(), recipe={})
    whole = path.read_bytes()
    with pytest.raises(DataError, match="not a file"):
        read_faces(tmp_path / "b.npz")
    rng = np.random.default_rng(1)
    for _ in range(20):
        path.write_bytes(whole[: rng.integers(0, len(whole) - 1)])
        with pytest.raises(DataError, match="damaged"):
            read_faces(path)
    intact = 0
    for _ in range(40):  # a flipped bit is found, or lies where it means nothing (dates, padding)
        broken = bytearray(whole)
        broken[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(broken))
        try:
            found = read_faces(path)
        except DataError:
            continue
        intact += 1
        np.testing.assert_array_equal(found.frames, some_faces().frames)
    assert intact < 20


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", np.array("other")),
        ("boxes", np.full((4, 4), 500)),
        ("boxes", np.zeros((3, 4), np.int64)),
        ("ends", np.array([5, 4, 3, 2])),
        ("landmarks", np.full((4, 68, 3), np.nan, np.float32)),
        ("size", np.array([0, 96])),
        ("pictures", np.zeros(7)),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, name: str, value: np.ndarray):
    path = tmp_path / "a.npz"
    write_faces(path, some_faces(), recipe={})
    with np.load(path) as found:
        arrays = dict(found)
    np.savez(path, **{**arrays, name: value})
    with pytest.raises(DataError, match=r"faces '.*a\.npz'"):
        read_faces(path)
