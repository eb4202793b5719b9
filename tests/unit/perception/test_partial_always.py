"""Alignment and suitability where anything may be hidden: bounds, numbers, what is missing stays missing."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.perception.test_align import SIZE, STANDING, dance, figure, moved, person
from tests.unit.perception.test_fit_always import CAMERAS, MODES
from tests.unit.perception.test_retarget import built
from xdyna.media.image import CropResize
from xdyna.perception.errors import PerceptionError
from xdyna.perception.retarget import BOUNDS, fit_track
from xdyna.pipelines.suitability import assess

HIDDEN = st.sets(st.integers(0, 17), max_size=15)
ODD = st.fixed_dictionaries({part: st.floats(0.15, 6.0) for part in ("arms", "legs", "torso", "shoulders")})
QUICK = settings(max_examples=15, deadline=None)


def without(points: np.ndarray, hidden: set[int]) -> np.ndarray:
    seen = points.copy()
    seen[..., sorted(hidden), :] = 0
    return seen


@MODES
@QUICK
@given(ODD, CAMERAS, HIDDEN, HIDDEN, st.integers(0, 3))
def test_partial_people_of_odd_builds(mode, build, camera, ours, theirs, seed) -> None:
    """Either a refusal, or finite points, ratios within their bounds, and no joint that was not there."""
    clip = moved(dance(12, seed=seed), size=(900, 800), **camera)
    clip.body[:] = without(clip.body, ours)
    reference = person(without(figure(built(STANDING, **build)), theirs), face=False)
    fit = None
    with contextlib.suppress(PerceptionError):
        fit = fit_track(clip, reference, size=SIZE, mode=mode)
    if fit is not None:
        assert np.isfinite(fit.track.body).all()
        np.testing.assert_array_equal(fit.track.body[..., 2] > 0, clip.body[..., 2] > 0)
        if fit.report.ratios:
            torso = fit.report.ratios["torso"]
            assert fit.report.scale / 2 * 0.998 <= torso <= fit.report.scale * 2 * 1.002
            for part, ratio in fit.report.ratios.items():
                bound = BOUNDS.get(part, 2.0)
                assert torso / bound * 0.998 <= ratio <= torso * bound * 1.002 or part == "hands"
    crop = CropResize(box=(0, 0, SIZE[1], SIZE[0]), size=SIZE)
    found = assess(
        clip, reference, placed=clip if fit is None else fit.track, shape=(*SIZE, 3), crop=crop,
        aligned=None if fit is None else fit.report.scale,
    )  # fmt: skip
    assert all(0 <= check.score <= 1 for check in found.checks)
    assert found.verdict in ("good", "warn", "refuse", "unknown")
    assert all(check.advice for check in found.checks if check.level != "pass")


@QUICK
@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_a_ratio_beyond_its_bound_is_the_bound(arms, legs) -> None:
    reference = person(figure(built(STANDING, arms=arms, legs=legs)), face=False)
    try:
        ratios = fit_track(dance(12), reference, size=SIZE, mode="bones").report.ratios
    except PerceptionError:
        return
    expected = ratios["torso"] * min(max(arms, 0.5), 2.0)
    if 0.5 <= legs <= 2:  # else the reference counts as sitting, or is too small to be measured
        assert ratios["forearms"] == pytest.approx(expected, rel=0.05)
