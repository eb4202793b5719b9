import itertools

import pytest

from xdyna.diffusion.windows import open_windows, uniform_windows, window_schedule


def test_closed_windows_by_hand():
    assert uniform_windows(20, context=16, overlap=4, offset=3) == [
        [(0 + k + 3) % 20 for k in range(16)],
        [(12 + k + 3) % 20 for k in range(16)],
    ]


@pytest.mark.parametrize("schedule", [uniform_windows, open_windows])
def test_every_frame_is_covered(schedule):
    for frames in (1, 2, 15, 16, 17, 29, 100):
        for offset in range(16):
            windows = schedule(frames, context=16, overlap=4, offset=offset)
            assert {frame for window in windows for frame in window} == set(range(frames))
            assert all(len(window) == min(frames, 16) for window in windows)
            assert all(len(set(window)) == len(window) for window in windows)


def test_open_windows_never_join_end_and_beginning():
    for offset in range(16):
        for window in open_windows(50, context=16, overlap=4, offset=offset):
            assert window == list(range(window[0], window[0] + 16))


def test_open_windows_overlap_enough_and_do_not_repeat():
    windows = open_windows(100, context=16, overlap=4, offset=5)
    starts = [window[0] for window in windows]
    assert starts == sorted(set(starts))
    assert all(b - a <= 12 for a, b in itertools.pairwise(starts))


@pytest.mark.parametrize(("frames", "context", "overlap"), [(0, 16, 4), (20, 0, 0), (20, 4, 4), (20, 4, -1)])
def test_bad_sizes(frames, context, overlap):
    with pytest.raises(ValueError, match=r"expected 0 <= overlap < context|at least 1 is needed"):
        uniform_windows(frames, context=context, overlap=overlap, offset=0)


def test_unknown_schedule():
    with pytest.raises(ValueError, match="'closed' is unknown; choose one of uniform, uniform_open"):
        window_schedule("closed")
