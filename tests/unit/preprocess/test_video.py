"""One video through all steps, on made-up footage whose people, cuts and faults are known."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.unit.preprocess.figures import JOINTS, BlockBackend, backdrop, put_person, write_video
from xdyna.config.data import DataError
from xdyna.config.preprocess import PreprocessOptions
from xdyna.data.records import REASONS, VideoOutcome, VideoSource
from xdyna.data.store import read_arrays
from xdyna.media import read_image
from xdyna.preprocess import people
from xdyna.preprocess.video import THUMBNAIL_SIDE, process_video

pytest.importorskip("scenedetect", reason="needs the data extra")

SIZE = (144, 160)
COUNT = 26


@pytest.fixture(autouse=True)
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are people in this file."""
    backend = BlockBackend()
    monkeypatch.setattr(people, "pose_backend", lambda name: backend)


def options(**changes: object) -> PreprocessOptions:
    return PreprocessOptions(**{"min_frames": 24, "max_frames": 40, "min_side": 64, **changes})  # type: ignore[arg-type]


def place_of(k: int) -> tuple[int, int, int, int]:
    """The person of frame k walks to the right, 2 px a frame."""
    return 20 + 2 * k, 20, 70 + 2 * k, 120


def walk(count: int = COUNT, *, seed: int = 0, **person: object) -> list[np.ndarray]:
    return [put_person(backdrop(SIZE, seed), place_of(k), **person) for k in range(count)]  # type: ignore[arg-type]


def scene(count: int = COUNT, *, seed: int = 1, wall: int | None = None) -> list[np.ndarray]:
    """A ball that rolls through a still room; `wall` paints one channel of it dark."""
    frames = [backdrop(SIZE, seed) for _ in range(count)]
    for frame in frames if wall is not None else ():
        frame[..., wall] //= 2
    return [cv2.circle(frame, (20 + 4 * k, 100), 15, (90, 90, 90), -1) for k, frame in enumerate(frames)]


def run(path: Path, *, kind: str | None = None, folder: Path | None = None, **changes: object) -> VideoOutcome:
    source = VideoSource("clip", str(path), kind, caption="hello", license="CC0", group="g")
    return process_video(source, path, options(**changes), folder or path.parent / "set")


def test_a_person_in_letterbox(tmp_path: Path):
    """Bars of 20 px above and 14 px at the left; the numbers are those of the image inside."""
    top, left = 20, 14
    framed = [np.pad(frame, [(top, 0), (left, 0), (0, 0)]) for frame in walk()]
    outcome = run(write_video(tmp_path / "a.mp4", framed))
    assert not outcome.skips, outcome.skips
    (clip,) = outcome.clips
    assert (clip.clip_id, clip.kind, clip.start, clip.frames, clip.fps) == ("clip-0000", "human", 0, COUNT, 12)
    assert (clip.caption, clip.license, clip.group, clip.split) == ("hello", "CC0", "g", "")
    assert outcome.sha256 == clip.sha256
    assert outcome.seconds == pytest.approx(COUNT / 12)
    assert left <= clip.crop_left <= left + 4, "past the bar and its blurred edge"
    assert top <= clip.crop_top <= top + 4
    assert (clip.width, clip.height) == (SIZE[1] + left - clip.crop_left, SIZE[0] + top - clip.crop_top)
    assert clip.width % 2 == clip.height % 2 == 0

    arrays = read_arrays(tmp_path / "set" / clip.arrays)
    shift = np.array([left - clip.crop_left, top - clip.crop_top])
    for k in (0, 11, COUNT - 1):
        block = np.array(place_of(k), float)
        expected = block[:2] + JOINTS * (block[2:] - block[:2]) + shift
        np.testing.assert_allclose(arrays.body[k, :, :2], expected, atol=2)
        inside = [block[0] + 2.5, block[1] + 6, block[2] - 2.5, block[3] - 5] + np.tile(shift, 2)
        np.testing.assert_allclose(arrays.boxes[k], inside, atol=2.5)
    scale = 64 / max(clip.width, clip.height)
    assert arrays.mask.shape[1:] == (round(clip.height * scale), round(clip.width * scale))
    assert arrays.mask.mean() == pytest.approx(50 * 100 / (clip.width * clip.height), rel=0.1)
    np.testing.assert_allclose(arrays.times, np.arange(COUNT) / 12, atol=1e-6)
    np.testing.assert_array_equal(arrays.frame_index, np.arange(COUNT))
    assert clip.person_height == pytest.approx(0.89 * 100 / clip.height, abs=0.03)
    assert clip.confidence == pytest.approx(0.9, abs=0.05)
    assert clip.camera < 0.01 < clip.motion
    (thumbnail,) = (tmp_path / "set" / "thumbnails").rglob("*.jpg")
    assert max(read_image(thumbnail).shape[:2]) <= THUMBNAIL_SIDE


def test_same_video_same_bytes(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", walk() + scene(5))
    first, second = run(path, folder=tmp_path / "one"), run(path, folder=tmp_path / "two")
    assert first == second
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert len(files) == 3, "an .npz and two thumbnails"
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_shots_become_clips_of_their_kind(tmp_path: Path):
    outcome = run(write_video(tmp_path / "a.mp4", [*walk(), *scene(30), *scene(10, seed=5, wall=2), *walk(44, seed=3)]))
    assert [(c.clip_id, c.kind, c.start, c.frames) for c in outcome.clips] == [
        ("clip-0000", "human", 0, 26), ("clip-0001", "scene", 26, 30), ("clip-0003", "human", 66, 40),
    ]  # fmt: skip
    assert [(s.reason, s.start, s.frames) for s in outcome.skips] == [("too_short", 56, 10), ("too_short", 106, 4)]
    assert all((tmp_path / "set" / skip.thumbnail).is_file() for skip in outcome.skips)
    scene_clip = outcome.clips[1]
    arrays = read_arrays(tmp_path / "set" / scene_clip.arrays)
    assert not any(np.any(a) for a in (arrays.body, arrays.face, arrays.hands, arrays.boxes, arrays.mask))
    assert (scene_clip.person_height, scene_clip.confidence) == (0, 0)
    assert len({clip.phash for clip in outcome.clips}) == 3


def test_first_clips_only(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", [*walk(), *scene(30), *walk(seed=3)])
    assert [c.start for c in run(path, max_clips=1).clips] == [0]
    assert [c.start for c in run(path, max_clips=1, kinds=["scene"]).clips] == [26]


def shaken() -> list[np.ndarray]:
    image, rng = backdrop((SIZE[0], 400), 4), np.random.default_rng(0)
    offsets = rng.integers(0, 20, 200) + 100
    return [image[:, offsets[k] : offsets[k] + SIZE[1]] for k in range(COUNT)]


def captioned() -> list[np.ndarray]:
    frames = scene()
    for frame in frames:
        cv2.rectangle(frame, (8, 118), (150, 140), (0, 0, 0), -1)
        cv2.putText(frame, "and so he said", (14, 132), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255,) * 3, 1, cv2.LINE_AA)
    return frames


def pair() -> list[np.ndarray]:
    return [put_person(frame, (110, 15, 158, 130), channel=1) for frame in walk(20)] + walk(6)


def tiny() -> list[np.ndarray]:
    return [put_person(frame, (50 + k, 50, 62 + k, 74)) for k, frame in enumerate(scene())]


FAULTS: list[tuple[str, str, Callable[[], list[np.ndarray]], str | None, dict]] = [
    ("too_short", "cut", lambda: walk(20), None, {}),
    ("too_small", "probe", walk, None, {"min_side": 150}),
    ("static", "quality", lambda: [backdrop(SIZE)] * COUNT, None, {}),
    ("camera_shake", "quality", shaken, None, {}),
    ("text_overlay", "quality", captioned, None, {}),
    ("several_people", "kind", pair, "human", {"cut_change": 255}),
    ("partly_people", "kind", lambda: walk(13) + [backdrop(SIZE)] * 13, None, {"cut_change": 255}),
    ("no_person", "kind", scene, "human", {}),
    ("unwanted_kind", "kind", scene, None, {"kinds": ["human"]}),
    ("unwanted_kind", "kind", walk, None, {"kinds": ["scene"]}),
    ("small_person", "quality", tiny, None, {}),
    ("low_confidence", "quality", lambda: walk(sure=0.38), None, {}),
    ("occluded", "quality", lambda: walk(hidden=0.7), None, {"min_person": 0.1}),
    ("no_face", "quality", lambda: walk(face=False), None, {}),
]


def visited() -> list[np.ndarray]:
    """Somebody comes by between the frames that are looked at first."""
    frames = walk()
    return [put_person(f, (112, 15, 158, 130), channel=1) if 1 <= k <= 11 else f for k, f in enumerate(frames)]


def test_others_between_the_first_looks(tmp_path: Path):
    outcome = run(write_video(tmp_path / "a.mp4", visited()), looks=2, cut_change=255)
    assert [(s.stage, s.reason) for s in outcome.skips] == [("people", "several_people")]
    assert "42%" in outcome.skips[0].detail, "11 of 26 frames"


@pytest.mark.parametrize(("reason", "stage", "frames", "kind", "changes"), FAULTS, ids=[f[0] for f in FAULTS])
def test_faults(tmp_path: Path, reason: str, stage: str, frames: Callable, kind: str | None, changes: dict):
    outcome = run(write_video(tmp_path / "a.mp4", frames()), kind=kind, **changes)
    assert not outcome.clips
    (skip,) = outcome.skips
    assert (skip.reason, skip.stage) == (reason, stage), skip
    assert reason in REASONS
    assert not skip.detail[0].islower()
    assert skip.detail.endswith(".")
    assert any(letter.isdigit() for letter in skip.detail) or reason == "unwanted_kind"


def test_a_listed_scene_may_show_people(tmp_path: Path):
    (clip,) = run(write_video(tmp_path / "a.mp4", pair()), kind="scene", cut_change=255).clips
    assert clip.kind == "scene"


def test_videos_that_are_none(tmp_path: Path):
    (tmp_path / "text.mp4").write_text("this is no video " * 100)
    (tmp_path / "empty.mp4").touch()
    for name, stage in (("missing.mp4", "read"), ("empty.mp4", "read"), ("text.mp4", "probe")):
        outcome = run(tmp_path / name)
        (skip,) = outcome.skips
        assert (skip.stage, skip.reason, skip.start, outcome.seconds) == (stage, "unreadable", -1, 0)
        assert name in skip.detail
        assert bool(outcome.sha256) == (stage == "probe")


def test_a_folder_that_cannot_be_written_is_no_fault_of_the_video(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", scene())
    (tmp_path / "set").write_text("a file")
    with pytest.raises(DataError, match="cannot be written"):
        run(path)


def test_programming_errors_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    path = write_video(tmp_path / "a.mp4", walk())
    monkeypatch.setattr(people, "person_numbers", broken)
    with pytest.raises(ZeroDivisionError):
        run(path)
