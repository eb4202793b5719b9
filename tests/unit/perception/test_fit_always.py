"""Alignment, for people of any build, place and size: against their true keypoints."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.perception.test_align import SIZE, STANDING, dance, figure, moved, person
from tests.unit.perception.test_retarget import angles, built, distance
from xdyna.perception.retarget import fit_track

BUILDS = st.fixed_dictionaries(
    {part: st.floats(0.7, 1.4) for part in ("arms", "legs", "torso", "shoulders")},
    optional={"head": st.floats(0.7, 1.5)},
)
CAMERAS = st.fixed_dictionaries(
    {"scale": st.floats(0.3, 2.5), "offset": st.tuples(st.floats(-300, 300), st.floats(-300, 300))}
)
MODES = pytest.mark.parametrize("mode", ["global", "bones", "auto"])
QUICK = settings(max_examples=25, deadline=None)


@QUICK
@given(BUILDS, CAMERAS, st.integers(0, 5))
def test_bones_keep_every_angle(build, camera, seed) -> None:
    driving = moved(dance(20, seed=seed), size=(900, 800), **camera)
    fit = fit_track(driving, person(figure(built(**build)), face=False), size=SIZE, mode="bones")
    assert distance(angles(fit.track.body), angles(driving.body)) < 2e-3


@MODES
@QUICK
@given(BUILDS, CAMERAS, st.integers(0, 5))
def test_another_camera_changes_nothing(mode, build, camera, seed) -> None:
    """Whatever similarity the driving video was taken by: the result is the one of the plain clip."""
    clip, reference = dance(20, seed=seed), person(figure(built(**build)), face=False)
    plain = fit_track(clip, reference, size=SIZE, mode=mode)
    other = fit_track(moved(clip, size=SIZE, **camera), reference, size=SIZE, mode=mode)
    assert other.report.mode == plain.report.mode
    assert other.report.scale * camera["scale"] == pytest.approx(plain.report.scale, rel=2e-3)
    np.testing.assert_allclose(other.track.body[..., :2], plain.track.body[..., :2], atol=1.5)
    np.testing.assert_array_equal(other.track.body[..., 2] > 0, clip.body[..., 2] > 0)


@QUICK
@given(BUILDS, CAMERAS, st.integers(0, 5))
def test_auto_is_never_worse_than_global_for_whole_bodies(build, camera, seed) -> None:
    """The truth is the same dance, with the bones of the reference."""
    clip = dance(20, seed=seed)
    truth = built(clip.body[..., :2].astype(np.float64), **build)
    reference = person(figure(built(STANDING, **build)), face=False)
    driving = moved(clip, size=(900, 800), **camera)
    off = {
        mode: float(
            np.linalg.norm(
                fit_track(driving, reference, size=SIZE, mode=mode).track.body[..., :2] - truth, axis=-1
            ).mean()
        )
        for mode in ("global", "auto")
    }
    assert off["auto"] <= off["global"] + 1.0  # px of a figure of 418: rounding of the quantiles
