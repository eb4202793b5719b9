"""Resampling by time, for any times: against a search by hand; ends, order, identity."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdyna.media.video import natural_fps, nominal_fps, resample_indices

STEPS = st.lists(st.floats(0.004, 0.5), min_size=0, max_size=40)


def by_hand(times: np.ndarray, duration: float, fps: float) -> list[int]:
    """The latest frame that is shown by then, one output frame after the other."""
    shown = []
    for k in range(max(1, int(np.floor(duration * fps + 0.5)))):
        latest = 0
        for number, time in enumerate(times):
            if time <= times[0] + k / fps + 1e-3:
                latest = number
        shown.append(latest)
    return shown


@given(STEPS, st.floats(0, 50), st.floats(0.5, 60), st.floats(0.01, 1))
def test_each_frame_is_the_latest_by_then(steps, begin, fps, last) -> None:
    times = begin + np.concatenate([[0.0], np.cumsum(steps)])
    duration = float(times[-1] - times[0]) + last
    found = resample_indices(times, duration=duration, fps=fps)
    assert found.tolist() == by_hand(times, duration, fps)
    assert found[0] == int(np.searchsorted(times, times[0] + 1e-3, side="right")) - 1
    assert (np.diff(found) >= 0).all()
    assert found.max() <= len(times) - 1


@given(STEPS, st.floats(0.5, 60), st.integers(1, 20))
def test_fewer_frames_are_the_first_ones(steps, fps, most) -> None:
    times = np.concatenate([[0.0], np.cumsum(steps)])
    duration = float(times[-1]) + 0.1
    whole = resample_indices(times, duration=duration, fps=fps)
    assert resample_indices(times, duration=duration, fps=fps, max_frames=most).tolist() == whole[:most].tolist()


@given(st.integers(1, 200), st.floats(1, 240), st.sampled_from([0.0, 1e-3, 1e-4]))
def test_at_the_same_rate_every_frame_is_shown_once(count, fps, rounded) -> None:
    times = np.arange(count) / fps
    if rounded:  # as containers round them
        times = np.floor(times / rounded) * rounded
    assert resample_indices(times, duration=count / fps, fps=fps).tolist() == list(range(count))


@given(st.integers(2, 200), st.floats(1, 120), st.integers(2, 6))
def test_at_an_nth_of_the_rate_every_nth_frame_is_shown(count, fps, n) -> None:
    found = resample_indices(np.arange(count) / fps, duration=count / fps, fps=fps / n)
    assert found.tolist() == [k * n for k in range(len(found))]
    # A half goes either way; there is always one.
    assert abs(len(found) - max(count / n, 0.5)) <= 0.5 + 1e-9


@given(st.floats(0.05, 1000), st.floats(0.5, 60))
def test_the_natural_rate_is_a_whole_part_within_the_limit(source, limit) -> None:
    rate = natural_fps(source, limit)
    parts = source / float(rate)
    assert rate <= limit * (1 + 1e-9)
    assert parts == pytest.approx(round(parts), rel=1e-3)
    if round(parts) > 1:  # the next larger one is too large
        assert float(rate) * round(parts) / (round(parts) - 1) > limit * (1 - 1e-3)


@given(st.sampled_from([8, 12, 24, 25, 30, 50, 60]), st.integers(20, 80), st.sets(st.integers(1, 18), max_size=3))
def test_lost_frames_do_not_change_the_nominal_rate(fps, count, lost) -> None:
    times = np.delete(np.arange(count) / fps, sorted(lost))
    assert nominal_fps(times) == pytest.approx(fps)
