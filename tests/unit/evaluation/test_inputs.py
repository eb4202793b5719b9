"""Pairing: folders, lists, frame folders, and what is said when they do not fit."""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from xdyna.core.errors import UsageError
from xdyna.evaluation.generate import read_tests
from xdyna.evaluation.inputs import Entry, counted, from_folders, from_list, read_case, read_video, videos_in
from xdyna.evaluation.masks import read_masks
from xdyna.evaluation.metrics.dynamics import TemporalRatio, WarpingError
from xdyna.evaluation.metrics.images import FrameMetric
from xdyna.media.writer import VideoWriter


def frames(seed: int, *, count: int = 4, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 6, 8, 3), dtype=np.uint8)
    return np.stack([cv2.resize(f, size[::-1], interpolation=cv2.INTER_CUBIC) for f in coarse])


def write(path: Path, images: np.ndarray, *, fps: float = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, fps=fps, size=images.shape[1:3]) as writer:
        for image in images:
            writer.write(image)
    return path


def write_images(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    for k, image in enumerate(images):
        cv2.imwrite(str(folder / f"{k:03d}.png"), image[..., ::-1])
    return folder


def test_folders_are_paired_by_name_and_the_rest_is_listed(tmp_path: Path) -> None:
    for name in ("b", "a", "sub/c", "only_here"):
        write(tmp_path / "g" / f"{name}.mp4", frames(1))
    write_images(tmp_path / "t" / "a", frames(2))
    for name in ("b", "sub/c", "only_there"):
        write(tmp_path / "t" / f"{name}.mp4", frames(3))
    (tmp_path / "t" / "notes.txt").write_text("no video")
    write(tmp_path / "t" / ".hidden" / "x.mp4", frames(3))
    found = from_folders(tmp_path / "g", tmp_path / "t")
    assert [entry.id for entry in found.entries] == ["a", "b", "sub/c"]
    assert found.unpaired == {"generated": ["only_here"], "truth": ["only_there"]}


def test_what_infer_writes_beside_its_videos_is_no_result(tmp_path: Path) -> None:
    g = tmp_path / "g"
    for name in ("a.mp4", "a.grid.mp4", "sub/b.mp4", "sub/b.grid.mp4", "own.grid.mp4"):
        write(g / name, frames(1))
    for name in ("a.sheet.png", "sub/b.sheet.png"):
        cv2.imwrite(str(g / name), frames(1)[0])
    assert sorted(videos_in(g)) == ["a", "own.grid", "sub/b"]  # own.grid: there is no video "own"
    assert from_folders(g).companions == 4


@pytest.mark.parametrize("form", ["{}.png", "{:03d}.png", "frame{}.png", "f_{}_x.png", "2_{:02d}.png"])
def test_frames_are_ordered_by_number(tmp_path: Path, form: str) -> None:
    """Twelve grey levels in time: by text 10 and 11 come before 2."""
    for k in (11, 3, 10, 0, 1, 2, 9, 4, 5, 8, 6, 7):
        cv2.imwrite(str(tmp_path / form.format(k)), np.full((32, 32, 3), 20 * k, np.uint8))
    assert read_video(tmp_path).frames[:][:, 0, 0, 0].tolist() == [20 * k for k in range(12)]
    masks = read_masks(tmp_path, frames=12)
    assert masks[:, 0, 0].tolist() == [20 * k >= 128 for k in range(12)]


def test_single_files(tmp_path: Path) -> None:
    one, other = write(tmp_path / "x.mp4", frames(1)), write(tmp_path / "y.mp4", frames(2))
    found = from_folders(one, other)
    assert (found.entries[0].id, found.entries[0].truth) == ("x", other)


def test_frame_folders_are_read_exactly(tmp_path: Path) -> None:
    images = frames(5)
    video = read_video(write_images(tmp_path / "clip", images))
    assert np.array_equal(video.frames, images)
    again = read_video(tmp_path / "clip")
    assert again.digest == video.digest
    (tmp_path / "clip" / "002.png").write_bytes((tmp_path / "clip" / "001.png").read_bytes())
    assert read_video(tmp_path / "clip").digest != video.digest
    assert len(read_video(tmp_path / "clip", max_frames=2).frames) == 2


def test_memory_does_not_grow_with_the_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded block by block where the video is larger than what is kept; the numbers are those of arrays."""
    truth, generated = (frames(seed, count=160, size=(96, 128)) for seed in (1, 2))  # 5.9 MB each
    paths = [write(tmp_path / f"{k}.mp4", pixels) for k, pixels in enumerate((generated, truth[:, :64, :80]))]
    case, _ = read_case(Entry("a", *paths))
    whole = replace(
        case, **{k: replace(v, frames=v.frames[:]) for k, v in (("generated", case.generated), ("truth", case.truth))}
    )
    metrics = [FrameMetric("mae"), TemporalRatio(), WarpingError()]
    expected = [metric.measure(whole) for metric in metrics]
    monkeypatch.setattr("xdyna.evaluation.frames.KEPT_BYTES", 2**20)
    case, _ = read_case(Entry("a", *paths))
    tracemalloc.start()
    try:
        found = [metric.measure(case) for metric in metrics]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == expected
    assert peak < 5 * 2**20


def test_a_part_of_a_video_is_another_video(tmp_path: Path) -> None:
    path = write(tmp_path / "x.mp4", frames(1, count=6))
    assert len(read_video(path, max_frames=3).frames) == 3
    assert read_video(path, max_frames=3).digest != read_video(path).digest
    assert read_video(path, max_frames=99).digest == read_video(path).digest


def test_policies_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "g" / "a.mp4", frames(1, count=6), fps=8)
    write(tmp_path / "t" / "a.mp4", frames(1, count=4, size=(96, 128)), fps=12)
    write(tmp_path / "g" / "b.mp4", frames(1))
    write(tmp_path / "t" / "b.mp4", frames(2))
    read = [read_case(entry) for entry in from_folders(tmp_path / "g", tmp_path / "t").entries]
    assert [policies for _, policies in read] == [["fps", "length", "size"], []]
    assert counted(policies for _, policies in read) == {"fps": 1, "length": 1, "size": 1}
    truth, generated = read[0][0].paired
    assert truth.shape == generated.shape == (4, 96, 128, 3)


def test_lists(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", frames(1))
    write(tmp_path / "b.mp4", frames(2))
    (tmp_path / "pairs.csv").write_text("id,generated,truth,driving\nz,a.mp4,b.mp4,\ny,b.mp4,a.mp4,a.mp4\n")
    entries = from_list(tmp_path / "pairs.csv").entries
    assert [(e.id, e.driving) for e in entries] == [("y", tmp_path / "a.mp4"), ("z", None)]
    rows = [{"generated": "a.mp4", "truth": "b.mp4"}, {"generated": "b.mp4"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert [(e.id, e.truth) for e in from_list(tmp_path / "pairs.jsonl").entries] == [
        ("a", tmp_path / "b.mp4"),
        ("b", None),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("generated,truht\na.mp4,a.mp4\n", "unknown field 'truht'"),
        ("generated\nnone.mp4\n", "does not exist"),
        ("truth\na.mp4\n", "no 'generated'"),
        ("generated\na.mp4\na.mp4\n", "occurs twice"),
        ("generated\n", "no pairs"),
    ],
)
def test_bad_lists(text: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", frames(1))
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        from_list(tmp_path / "pairs.csv")
    (tmp_path / "pairs.jsonl").write_text("{not json")
    with pytest.raises(ValueError, match="cannot be read"):
        from_list(tmp_path / "pairs.jsonl")
    with pytest.raises(ValueError, match="does not exist"):
        from_list(tmp_path / "none.csv")


def test_bad_folders(tmp_path: Path) -> None:
    write(tmp_path / "g" / "a.mp4", frames(1))
    write(tmp_path / "t" / "b.mp4", frames(1))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no videos"):
        from_folders(tmp_path / "g", tmp_path / "empty")
    with pytest.raises(ValueError, match="no video has the same name"):
        from_folders(tmp_path / "g", tmp_path / "t")
    with pytest.raises(ValueError, match="missing"):
        from_folders(tmp_path / "none")
    write_images(tmp_path / "t" / "sub" / "x", frames(1))
    write(tmp_path / "t" / "sub" / "x.mp4", frames(1))
    with pytest.raises(ValueError, match="have one name"):
        videos_in(tmp_path / "t")
    with pytest.raises(ValueError, match="no masks for the generated video 'a'"):
        from_folders(tmp_path / "g", tmp_path / "g", masks=tmp_path / "empty")


@pytest.mark.parametrize("name", ["../made", "a/../../made", "/tmp/made", "a\0b", ".", "", "a//b", "x" * 300, "a\nb"])
def test_ids_of_a_test_list_stay_in_the_folder(name: str, tmp_path: Path) -> None:
    """Lists come from others, and the videos that they name replace what is there."""
    for file in ("a.png", "b.npz"):
        (tmp_path / file).touch()
    (tmp_path / "list.json").write_text(json.dumps([{"ref": "a.png", "drive": "b.npz", "id": name}]))
    with pytest.raises(UsageError, match="is no name of a file inside of a folder"):
        read_tests(tmp_path / "list.json")
