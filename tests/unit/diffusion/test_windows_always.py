"""What holds for windows of any numbers; and that a frame's predictions are weighted to one."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xdyna.diffusion.windows import open_windows, uniform_windows
from xdyna.pipelines.denoise import _average

SCHEDULES = pytest.mark.parametrize("schedule", [uniform_windows, open_windows])


@st.composite
def numbers(draw: st.DrawFn) -> tuple[int, dict[str, int]]:
    """frames; context, overlap, offset."""
    context = draw(st.integers(1, 24))
    overlap, offset = draw(st.integers(0, context - 1)), draw(st.integers(0, context - 1))
    return draw(st.integers(1, 90)), {"context": context, "overlap": overlap, "offset": offset}


@SCHEDULES
@given(numbers())
def test_every_frame_is_in_some_window_and_once_in_each(schedule, drawn) -> None:
    frames, options = drawn
    windows = schedule(frames, **options)
    assert {frame for window in windows for frame in window} == set(range(frames))
    assert {len(window) for window in windows} == {min(frames, options["context"])}
    assert all(len(set(window)) == len(window) for window in windows)
    if schedule is open_windows:  # neighbours share what they should, or more at the ends
        starts = [window[0] for window in windows]
        assert all(0 < b - a <= options["context"] - options["overlap"] for a, b in pairwise(starts))
    elif frames > options["context"]:
        step = options["context"] - options["overlap"]
        assert len(windows) == -(-frames // step)
        for before, after in pairwise(windows):
            assert before[step:] == after[: len(before) - step]


@SCHEDULES
@settings(max_examples=40)
@given(numbers())
def test_the_windows_of_a_frame_weigh_one_together(schedule, drawn) -> None:
    frames, options = drawn
    windows = schedule(frames, **options)
    values = torch.from_numpy(np.random.default_rng(frames).normal(size=(len(windows), 1, 1, len(windows[0]), 1, 1)))
    ones = _average(torch.ones_like(values), windows, slice(0, frames))
    torch.testing.assert_close(ones, torch.ones_like(ones))
    found = _average(values, windows, slice(0, frames)).flatten()
    for frame in range(frames):  # by hand: the mean of all that say something about it
        said = [values[k, 0, 0, window.index(frame)].item() for k, window in enumerate(windows) if frame in window]
        assert found[frame].item() == pytest.approx(sum(said) / len(said), abs=1e-6)
