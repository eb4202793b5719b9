"""Windows cover every frame once and never hold a cut."""

import numpy as np
import pytest

from tests.unit.preprocess.figures import backdrop
from xdyna.config.preprocess import PreprocessOptions
from xdyna.preprocess.shots import find_windows

pytest.importorskip("scenedetect", reason="needs the data extra")

SIZE = (48, 64)


def shots(*lengths: int) -> list[np.ndarray]:
    """Shots of moving, tinted images; pixel (0, 0) of frame k holds k."""
    frames = []
    for number, length in enumerate(lengths):
        wide = backdrop((SIZE[0], SIZE[1] + 80), seed=number)
        wide[..., number % 3] //= 3
        frames += [wide[:, k % 40 : k % 40 + SIZE[1]].copy() for k in range(length)]
    for k, frame in enumerate(frames):
        frame[0, 0] = k
    return frames


def cut(frames: list[np.ndarray], low: int = 8, high: int = 20) -> list[tuple[int, int, int]]:
    windows = list(find_windows(frames, PreprocessOptions(min_frames=low, max_frames=high)))
    for window in windows:
        numbers = window.frames[:, 0, 0, 0].tolist()
        assert numbers == list(range(window.start, window.start + len(numbers))), "the frames are those they say"
    assert sum(len(w.frames) for w in windows) == len(frames)
    return [(w.start, len(w.frames), w.shot) for w in windows]


def test_cuts_are_found_to_the_frame():
    assert cut(shots(15, 9, 18)) == [(0, 15, 15), (15, 9, 9), (24, 18, 18)]


@pytest.mark.parametrize("first", [1, 2, 3, 4])
def test_cuts_near_both_ends(first: int):
    assert cut(shots(first, 15)) == [(0, first, first), (first, 15, 15)]
    assert cut(shots(15, first)) == [(0, 15, 15), (15, first, first)]


def test_long_shots_are_parted():
    assert cut(shots(45)) == [(0, 20, 20), (20, 20, 40), (40, 5, 45)]
    assert cut(shots(25, 40)) == [(0, 20, 20), (20, 5, 25), (25, 20, 20), (45, 20, 40)]


@pytest.mark.parametrize("length", [19, 20, 21, 22, 23, 24])
def test_a_cut_right_behind_a_full_window(length: int):
    found = cut(shots(length, 10))
    assert (length, 10, 10) in found
    assert all(start + frames <= length or start >= length for start, frames, _ in found)


def test_no_more_is_held_than_needed():
    """A stream much longer than a window: whatever was handed out is forgotten."""
    alive: list[int] = []

    class Counted(np.ndarray):
        def __del__(self) -> None:
            if self.base is None:
                alive[-1] -= 1

    def stream():
        alive.append(0)
        for frame in shots(120):
            counted = np.ndarray.__new__(Counted, frame.shape, np.uint8)
            counted[:] = frame
            alive[-1] += 1
            yield counted
            assert alive[-1] <= 20 + 8
            del counted

    assert len([w.start for w in find_windows(stream(), PreprocessOptions(min_frames=8, max_frames=20))]) == 6


def test_nothing_comes_of_nothing():
    assert cut([]) == []
    assert cut(shots(1)) == [(0, 1, 1)]
