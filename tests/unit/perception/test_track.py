import itertools
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from xdyna.media import frame_times
from xdyna.perception import OneEuro, PerceptionError, PerceptionWarning, track_person
from xdyna.perception import track as module
from xdyna.perception.cache import default_cache_dir

RED, GREEN, BLUE = 0, 1, 2


def walk(count: int, *, color: int = RED, start: int = 40, step: int = 4, height: int = 90) -> list[list[tuple]]:
    """One person who walks to the right."""
    return [[(color, start + step * k, 40, start + step * k + 40, 40 + height)] for k in range(count)]


def merged(*clips: list[list[tuple]]) -> list[list[tuple]]:
    return [list(itertools.chain(*boxes)) for boxes in zip(*clips, strict=True)]


def center_x(track) -> np.ndarray:
    return track.body[:, [0, 17], 0].mean(axis=1)


def test_all_frames_of_one_person(make_video, color_backend, tmp_path: Path):
    path = make_video(walk(12))
    track = track_person(path, backend=color_backend, cache_dir=tmp_path / "cache")
    assert len(track) == 12
    assert track.size == (160, 240)
    assert track.source == "drive.mp4"
    np.testing.assert_array_equal(track.frame_index, np.arange(12))
    np.testing.assert_allclose(track.times, frame_times(path))
    np.testing.assert_allclose(center_x(track), 59.5 + 4 * np.arange(12), atol=1.5)
    assert (track.summary.frames, track.summary.found, track.summary.filled, track.summary.missing) == (12, 12, 0, 0)
    assert str(track.summary) == "person found in 12 of 12 frames"


def test_repeated_frames_are_detected_once(make_video, color_backend, tmp_path: Path):
    path = make_video(walk(6))
    track = track_person(path, frame_indices=[0, 0, 3, 3, 3, 5], backend=color_backend, cache_dir=tmp_path)
    assert color_backend.calls == 3
    assert track.frame_index.tolist() == [0, 0, 3, 3, 3, 5]
    assert (track.summary.frames, track.summary.found) == (6, 6)
    assert len(track) == 6
    np.testing.assert_array_equal(track.body[2], track.body[4])
    np.testing.assert_allclose(track.times, frame_times(path)[[0, 0, 3, 3, 3, 5]])


def test_the_summary_counts_the_given_frames(make_video, color_backend, tmp_path: Path):
    """Frame 2 is empty and filled, frames 4 and 5 are empty and stay so; each counts as often as it is asked for."""
    frames = walk(8)
    for k in (2, 4, 5):
        frames[k] = []
    asked = [0, 0, 1, 2, 2, 2, 3, 4, 4, 5, 6, 7, 7]
    track = track_person(make_video(frames), frame_indices=asked, backend=color_backend, cache_dir=tmp_path, max_gap=1)
    summary = track.summary
    assert (summary.frames, summary.found, summary.filled, summary.missing) == (13, 7, 3, 3)
    assert color_backend.calls == 8


def test_cache_is_reused_extended_and_equal(make_video, color_backend, tmp_path: Path):
    path, cache = make_video(walk(10)), tmp_path / "cache"
    calls = []
    track_person(
        path, frame_indices=[2, 4], backend=color_backend, cache_dir=cache, progress=lambda *n: calls.append(n)
    )
    assert calls == [(1, 2), (2, 2)]
    first = track_person(path, backend=color_backend, cache_dir=cache)
    assert color_backend.calls == 10, "frames 2 and 4 came from the cache"
    again = track_person(
        path, backend=color_backend, cache_dir=cache, progress=lambda *n: pytest.fail("nothing to detect")
    )
    assert color_backend.calls == 10
    fresh = track_person(path, backend=color_backend, cache_dir=tmp_path / "other")
    for track in (again, fresh):
        for name in ("body", "hands", "face", "times", "frame_index"):
            np.testing.assert_array_equal(getattr(track, name), getattr(first, name))
    assert len(list(cache.iterdir())) == 1, "one file, no temporary ones"


def test_cache_knows_video_and_version(make_video, color_backend, tmp_path: Path):
    cache = tmp_path / "cache"
    first, second = make_video(walk(3)), make_video(walk(3, step=9), name="other.mp4")
    track_person(first, backend=color_backend, cache_dir=cache)
    track_person(second, backend=color_backend, cache_dir=cache)
    assert color_backend.calls == 6
    os.rename(first, tmp_path / "renamed.mp4")
    track_person(tmp_path / "renamed.mp4", backend=color_backend, cache_dir=cache)
    assert color_backend.calls == 6, "the content counts, not the name"
    color_backend.version = "2"
    track_person(second, backend=color_backend, cache_dir=cache)
    assert color_backend.calls == 9


def test_cache_of_another_video_is_not_believed(make_video, color_backend, tmp_path: Path):
    first, second = make_video(walk(3)), make_video(walk(3, start=90), name="other.mp4")
    track_person(first, backend=color_backend, cache_dir=tmp_path / "a")
    want = track_person(second, backend=color_backend, cache_dir=tmp_path / "b")
    wrong, right = next((tmp_path / "a").iterdir()), next((tmp_path / "b").iterdir())
    right.write_bytes(wrong.read_bytes())
    with pytest.warns(PerceptionWarning, match="belongs to another video"):
        track = track_person(second, backend=color_backend, cache_dir=tmp_path / "b")
    np.testing.assert_array_equal(track.body, want.body)


def test_damaged_cache_is_made_anew_with_one_warning(make_video, color_backend, tmp_path: Path):
    path, cache = make_video(walk(4)), tmp_path / "cache"
    want = track_person(path, backend=color_backend, cache_dir=cache)
    file = next(cache.iterdir())
    good = file.read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(12):
        bad = bytearray(good[: rng.integers(len(good))] if trial % 2 else good)
        if trial % 2 == 0:
            bad[rng.integers(60, len(bad) // 2)] ^= 0xFF
        file.write_bytes(bad)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            track = track_person(path, backend=color_backend, cache_dir=cache)
        assert [entry.category for entry in caught] in ([], [PerceptionWarning])
        np.testing.assert_array_equal(track.body, want.body)
    file.write_bytes(good[: len(good) // 2])
    with pytest.warns(PerceptionWarning, match="damaged and will be detected again"):
        track_person(path, backend=color_backend, cache_dir=cache)
    calls = color_backend.calls
    track_person(path, backend=color_backend, cache_dir=cache)
    assert color_backend.calls == calls, "it was mended"


def test_interrupted_detection_keeps_what_was_done(make_video, color_backend, tmp_path: Path):
    path = make_video(walk(8))

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        track_person(path, backend=color_backend, cache_dir=tmp_path / "cache", progress=stop)
    track_person(path, backend=color_backend, cache_dir=tmp_path / "cache")
    assert color_backend.calls == 8


@pytest.mark.parametrize("crowd", ["off", "auto"])
def test_long_videos_are_kept_on_the_way(make_video, color_backend, tmp_path: Path, monkeypatch, crowd):
    """Whoever is killed, or loses power, begins again where the last part was kept."""
    monkeypatch.setattr(module, "_SAVE_EVERY", 2)
    green = walk(9, color=GREEN, start=150, step=3, height=60)
    path = make_video(merged(walk(9), green) if crowd == "auto" else walk(9))
    backend, cache = Searching(color_backend), tmp_path / "cache"
    name = "detect_everybody" if crowd == "auto" else "detect"
    plain, done = getattr(backend, name), itertools.count(1)

    def watched(frame: np.ndarray) -> list:
        if next(done) == 6:
            shutil.copytree(cache, tmp_path / "left")
        return plain(frame)

    setattr(backend, name, watched)
    options = {"person": int(crowd == "auto"), "crowd": crowd}
    track_person(path, backend=backend, cache_dir=cache, **options)
    assert next(done) == 10
    backend.looks = backend.searches = 0
    track_person(path, backend=backend, cache_dir=tmp_path / "left", **options)
    assert (backend.searches if crowd == "auto" else backend.looks) == 5, "four of nine were kept"


def test_unwritable_cache_costs_a_warning(make_video, color_backend, tmp_path: Path):
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(PerceptionWarning, match="cannot be cached"):
        track = track_person(make_video(walk(3)), backend=color_backend, cache_dir=tmp_path / "file" / "cache")
    assert track.summary.found == 3


def test_default_cache_dir(monkeypatch):
    monkeypatch.setenv("XDYNA_CACHE", "/some/where")
    assert default_cache_dir() == Path("/some/where/keypoints")
    monkeypatch.delenv("XDYNA_CACHE")
    assert default_cache_dir() == Path.home() / ".cache" / "xdyna" / "keypoints"


def test_gaps_are_filled_and_counted(make_video, color_backend, tmp_path: Path):
    frames = walk(24)
    for k in (5, 6, *range(12, 20)):
        frames[k] = []
    track = track_person(make_video(frames), backend=color_backend, cache_dir=tmp_path, max_gap=3)
    summary = track.summary
    assert (summary.frames, summary.found, summary.filled, summary.missing) == (24, 14, 2, 8)
    assert track.found.tolist() == [k not in range(12, 20) for k in range(24)]
    np.testing.assert_allclose(center_x(track)[5:7], [79.5, 83.5], atol=1.5)
    assert str(summary) == "person found in 14 of 24 frames, 2 filled from their neighbours, 8 left empty"


def test_filled_hands_go_with_the_wrist(make_video, color_backend, tmp_path: Path):
    detect = color_backend.detect

    def without_hand(frame: np.ndarray):
        people = detect(frame)
        if color_backend.calls == 3:  # frame 2
            people[0].hands[0] = 0
        return people

    color_backend.detect = without_hand
    frames = walk(5, step=0)
    frames[2] = [(RED, 75, 40, 115, 130)]  # a jerk of 35 px
    track = track_person(make_video(frames), backend=color_backend, cache_dir=tmp_path)
    assert track.summary.found == 5
    np.testing.assert_allclose(
        track.hands[2, 0, :, :2] - track.body[2, 7, :2], track.hands[1, 0, :, :2] - track.body[1, 7, :2], atol=1e-3
    )


def test_a_hand_without_a_wrist_is_not_filled(make_video, color_backend, tmp_path: Path):
    """It would lie in the corner of the image: where a wrist is too unsure to be filled, so is what goes with it."""
    detect = color_backend.detect

    def unsure(frame: np.ndarray):
        people = detect(frame)
        people[0].body[7, 2] = 0.2
        if color_backend.calls == 3:  # frame 2
            people[0].hands[0] = 0
            people[0].body[7] = 0
        return people

    color_backend.detect = unsure
    track = track_person(make_video(walk(5)), backend=color_backend, cache_dir=tmp_path)
    assert (track.hands[[0, 1, 3, 4], 0, :, 2] == 1).all()
    assert (track.hands[2, 0] == 0).all()


def test_filled_joints_are_those_of_frames_with_a_person(make_video, color_backend, tmp_path: Path):
    """Of a frame that is filled as a whole no joint is counted by itself."""
    detect = color_backend.detect

    def without_joints(frame: np.ndarray):
        people = detect(frame)
        if color_backend.calls == 2:  # frame 1
            people[0].body[[3, 4]] = 0
        return people

    color_backend.detect = without_joints
    frames = walk(6)
    frames[3] = []
    summary = track_person(make_video(frames), backend=color_backend, cache_dir=tmp_path).summary
    assert (summary.found, summary.filled, summary.joints_filled) == (5, 1, 2)


def test_the_largest_is_followed_when_others_grow(make_video, color_backend, tmp_path: Path):
    big = walk(10, step=2)
    passer = [[(GREEN, 230 - 22 * k, 10, min(239, 270 - 22 * k), 60 + 9 * k)] for k in range(10)]
    track = track_person(make_video(merged(big, passer)), backend=color_backend, cache_dir=tmp_path)
    # Of who is covered an edge is seen: half a width beside the middle.
    np.testing.assert_allclose(center_x(track), 59.5 + 2 * np.arange(10), atol=20)
    assert np.abs(np.diff(center_x(track))).max() < 22


def test_person_n(make_video, color_backend, tmp_path: Path):
    path = make_video(merged(walk(6), walk(6, color=GREEN, start=150, step=3, height=60)))
    left, right = (track_person(path, backend=color_backend, cache_dir=tmp_path, person=n) for n in (0, 1))
    np.testing.assert_allclose(center_x(left), 59.5 + 4 * np.arange(6), atol=1.5)
    np.testing.assert_allclose(center_x(right), 169.5 + 3 * np.arange(6), atol=1.5)
    assert color_backend.calls == 6, "both people come from one detection"
    with pytest.raises(PerceptionError, match=r"person 2 was asked for, but at most 2 people.*--person 0 to 1"):
        track_person(path, backend=color_backend, cache_dir=tmp_path, person=2)


def test_only_the_frames_asked_for_say_how_many_people_there_are(make_video, color_backend, tmp_path: Path):
    """Two are in the second half, which was detected before."""
    late = [[], [], [], *walk(3, color=GREEN, start=150, height=60)]
    path = make_video(merged(walk(6), late))
    track_person(path, backend=color_backend, cache_dir=tmp_path, person=1)
    with pytest.raises(PerceptionError, match=r"person 1 was asked for, but at most 1 people.*--person 0 to 0"):
        track_person(path, frame_indices=[0, 1, 2], backend=color_backend, cache_dir=tmp_path, person=1)


class Searching:
    """A backend of which a look misses the green one, and a search does not. Counts both."""

    name, version = "searching", "1"

    def __init__(self, backend) -> None:
        self._backend, self.looks, self.searches = backend, 0, 0

    def detect(self, frame: np.ndarray) -> list:
        self.looks += 1
        return self._backend.detect(frame * np.array([1, 0, 1], np.uint8))

    def detect_everybody(self, frame: np.ndarray) -> list:
        self.searches += 1
        return self._backend.detect(frame)


def test_where_everybody_is_searched_for(make_video, color_backend, tmp_path: Path):
    """`auto`: the first frame of one alone; all frames where only a search finds the person. All are remembered."""
    both = make_video(merged(walk(6), walk(6, color=GREEN, start=150, step=3, height=60)))
    alone = make_video(walk(6), name="alone.mp4")
    backend = Searching(color_backend)
    for crowd, searches in (("off", 0), ("auto", 1), ("all", 5)):
        backend.searches = 0
        track = track_person(alone, backend=backend, cache_dir=tmp_path, crowd=crowd)
        assert backend.searches == searches, crowd
        np.testing.assert_allclose(center_x(track), 59.5 + 4 * np.arange(6), atol=1.5)
    assert backend.looks == 6, "a look and a search are kept apart, and each is kept"
    with pytest.raises(PerceptionError, match="person 1 was asked for, but at most 1"):
        track_person(both, backend=backend, cache_dir=tmp_path, person=1, crowd="off")
    backend.searches, told = 0, list[tuple[int, int]]()
    track_person(both, backend=backend, cache_dir=tmp_path, person=1, progress=lambda *n: told.append(n))
    assert told == [(6, 6)] * 6, "looks are known, each search is a sign of life"
    for crowd in ("auto", "all", "auto"):
        track = track_person(both, backend=backend, cache_dir=tmp_path, person=1, crowd=crowd)
        np.testing.assert_allclose(center_x(track), 169.5 + 3 * np.arange(6), atol=1.5)
        assert track.summary.found == 6
    assert backend.searches == 6
    with pytest.raises(PerceptionError, match="person 2 was asked for, but at most 2 people"):
        track_person(both, backend=backend, cache_dir=tmp_path, person=2)
    with pytest.raises(PerceptionError, match="crowd is 'some'; expected one of auto, all, off"):
        track_person(both, backend=backend, cache_dir=tmp_path, crowd="some")


def test_a_search_is_kept_when_the_next_one_fails(make_video, color_backend, tmp_path: Path):
    backend = Searching(color_backend)
    path = make_video(merged(walk(6), walk(6, color=GREEN, start=150, step=3, height=60)))
    plain = backend.detect_everybody

    def failing(frame: np.ndarray) -> list:
        if backend.searches == 3:
            raise KeyboardInterrupt
        return plain(frame)

    backend.detect_everybody = failing
    with pytest.raises(KeyboardInterrupt):
        track_person(path, backend=backend, cache_dir=tmp_path, person=1)
    backend.detect_everybody = plain
    track_person(path, backend=backend, cache_dir=tmp_path, person=1)
    assert backend.searches == 6


def test_who_meets_and_goes_back_stays_who_they_are(make_video, color_backend, tmp_path: Path):
    """From the pixels of a video: red and green go behind something from both sides, and come back where they went."""
    way = [8 * min(k, 20 - k) for k in range(21)]
    frames = [[(RED, 20 + x, 40, 60 + x, 130), (GREEN, 182 - x, 42, 222 - x, 130)] for x in way]
    frames[8:13] = [[]] * 5
    path = make_video(frames)
    for person, places in enumerate(([40 + x for x in way], [202 - x for x in way])):
        track = track_person(path, backend=color_backend, cache_dir=tmp_path, person=person)
        seen = np.r_[:8, 13:21]
        np.testing.assert_allclose(center_x(track)[seen], np.array(places)[seen] - 0.5, atol=2)
        track = track_person(path, backend=color_backend, cache_dir=tmp_path, person=person, crowd="off")
        assert abs(center_x(track)[-1] - places[-1]) > 100, "place alone exchanges them"


def test_smooth_is_off_by_default(make_video, color_backend, tmp_path: Path):
    frames = [[(RED, 60 + 6 * (k % 2), 40, 100 + 6 * (k % 2), 130)] for k in range(10)]
    path = make_video(frames)
    raw = track_person(path, backend=color_backend, cache_dir=tmp_path)
    smooth = track_person(path, backend=color_backend, cache_dir=tmp_path, smooth=OneEuro(min_cutoff=0.5, beta=0))
    assert np.abs(np.diff(center_x(raw))).min() > 4
    assert np.abs(np.diff(center_x(smooth))).max() < 3
    np.testing.assert_array_equal(raw.body[..., 2], smooth.body[..., 2])


def test_errors(make_video, color_backend, tmp_path: Path):
    path = make_video(walk(4))
    with pytest.raises(PerceptionError, match=r"from 0 to 4; expected ascending numbers from 0 to 3"):
        track_person(path, frame_indices=[0, 4], backend=color_backend, cache_dir=tmp_path)
    with pytest.raises(PerceptionError, match="ascending"):
        track_person(path, frame_indices=[2, 1], backend=color_backend, cache_dir=tmp_path)
    with pytest.raises(PerceptionError, match="whole numbers"):
        track_person(path, frame_indices=[0.5], backend=color_backend, cache_dir=tmp_path)
    with pytest.raises(PerceptionError, match="0 or more"):
        track_person(path, person=-1, backend=color_backend, cache_dir=tmp_path)
    empty = make_video([[]] * 4, name="empty.mp4")
    with pytest.raises(PerceptionError, match=r"no person was found in any of 4 frames.*large and well lit"):
        track_person(empty, backend=color_backend, cache_dir=tmp_path)
