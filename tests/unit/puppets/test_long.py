"""Numbers of a long video on errors that are known."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from xdyna.diffusion.windows import open_windows, uniform_windows
from xdyna.puppets.long import over_time
from xdyna.puppets.long_report import draw, table
from xdyna.puppets.world import PuppetClip, render_clip

FRAMES = 24
WINDOWS = open_windows(FRAMES, context=8, overlap=2, offset=3)


@pytest.fixture(scope="module")
def truth() -> PuppetClip:
    """Of grey frames that can be made darker and lighter by 100 levels; figure and masks are as rendered."""
    clip = render_clip(1, 2, 3, frames=FRAMES, size=(64, 64), scene_kind="wall")
    return replace(clip, frames=(clip.frames // 8 + 110).astype(np.uint8))


def shifted(truth: PuppetClip, levels: np.ndarray) -> np.ndarray:
    return (truth.frames.astype(int) + np.asarray(levels).reshape(-1, 1, 1, 1)).astype(np.uint8)


def test_the_truth_itself_is_perfect(truth):
    found = over_time(truth.frames, truth, WINDOWS)
    row = found.summary(4)
    assert row["psnr"] == row["first"] == row["last"] == 100
    assert row["drift"] == 0
    assert not found.change.any()
    assert row["flicker"] == row["flicker_truth"] <= 1
    assert row["ends"] == row["ends_truth"]


def test_drift_is_the_slope_of_psnr(truth):
    """An error of 10 levels in the first half and of 20 in the second: 6.02 dB less."""
    row = over_time(shifted(truth, np.repeat([10, 20], FRAMES // 2)), truth, WINDOWS).summary(4)
    assert row["first"] == pytest.approx(20 * math.log10(25.5))
    assert row["first"] - row["last"] == pytest.approx(20 * math.log10(2))
    slope = np.polyfit(np.arange(FRAMES), np.repeat([row["first"], row["last"]], FRAMES // 2), 1)[0]
    assert row["drift"] == pytest.approx(100 * slope)
    assert row["drift"] < -row["drift_error"] < 0
    steady = over_time(shifted(truth, np.full(FRAMES, 10)), truth, WINDOWS).summary(4)
    assert steady["drift"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    "windows", [WINDOWS, uniform_windows(FRAMES, context=8, overlap=2, offset=3)], ids=["open", "closed"]
)
def test_a_jump_at_borders_is_a_seam(truth, windows):
    """The error changes by 1 level from frame to frame, and by 4 where another set of windows begins."""
    member = [[k for k, window in enumerate(windows) if t in window] for t in range(FRAMES)]
    jumps = np.array([4 if a != b else 1 for a, b in itertools.pairwise(member)])
    signs = np.where(np.arange(FRAMES - 1) % 2, 1, -1)
    found = over_time(shifted(truth, np.concatenate([[0], np.cumsum(signs * jumps)])), truth, windows)
    assert found.borders.sum() == (jumps == 4).sum() > 4
    assert found.summary(4)["seam"] == pytest.approx(4)
    assert found.summary(4)["seam_error"] == 0


def test_flicker_is_that_of_what_stands_still(truth):
    moving = (truth.mask | truth.dynamic)[..., None]
    trembling = shifted(truth, np.where(np.arange(FRAMES) % 2, 3, -3))
    figure, scene = np.where(moving, trembling, truth.frames), np.where(moving, truth.frames, trembling)
    alone = over_time(truth.frames, truth, WINDOWS).summary(4)["flicker"]
    assert over_time(figure, truth, WINDOWS).summary(4)["flicker"] == pytest.approx(alone)
    assert over_time(scene, truth, WINDOWS).summary(4)["flicker"] == pytest.approx(6, abs=0.1)


def test_what_moves_everywhere_has_no_flicker(truth):
    found = over_time(truth.frames, replace(truth, dynamic=np.ones_like(truth.dynamic)), WINDOWS)
    assert math.isnan(found.summary(4)["flicker"])


def test_ends(truth):
    levels = np.zeros(FRAMES, int)
    levels[-1] = 50
    row = over_time(shifted(truth, levels), truth, WINDOWS).summary(4)
    assert abs(row["ends"] - row["ends_truth"]) == pytest.approx(50, abs=2 * row["ends_truth"])


def test_another_number_of_frames_is_told(truth):
    with pytest.raises(ValueError, match="23 frames were generated, the truth has 24"):
        over_time(truth.frames[1:], truth, WINDOWS)


def test_table_and_plot(truth, tmp_path):
    found = {name: over_time(truth.frames, truth, WINDOWS) for name in ("uniform", "uniform_open")}
    text = table({name: values.summary(4) for name, values in found.items()}, 4)
    assert [line.count("|") for line in text.splitlines()] == [10] * 4
    assert "uniform (closed) | 100.00 | 100.00 | 100.00 | 100.00 | +0.00 ± 0.00 | - |" in text
    draw(found, tmp_path / "long.png", fps=12)
    assert (tmp_path / "long.png").read_bytes().startswith(b"\x89PNG")
