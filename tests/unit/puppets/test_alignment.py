"""40 puppet pairs of other builds: the right joints are known."""

import math

import numpy as np
import pytest

from xdyna.puppets.alignment import KINDS, PAIRS, errors, make_pair
from xdyna.puppets.world import puppet_track, render_clip


@pytest.fixture(scope="module")
def measured() -> list[tuple[str, dict[str, float]]]:
    pairs = [make_pair(number) for number in range(PAIRS)]
    return [(pair.kind, errors(pair)) for pair in pairs]


def test_auto_is_near_the_truth(measured):
    """The mean joint error is at most 0.35 of that without alignment (measured: 0.08)."""
    auto, none = (np.mean([found[mode] for _, found in measured]) for mode in ("auto", "none"))
    assert auto <= 0.35 * none
    assert auto < 0.025  # heights of the figure


def test_auto_is_never_worse_than_global(measured):
    assert len(measured) == 40
    for number, (kind, found) in enumerate(measured):
        assert found["auto"] <= found["global"] + 1e-9, f"pair {number}, {kind}: {found}"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "close-up"])
def test_bones_are_better_in_every_kind(measured, kind):
    mine = [found for name, found in measured if name == kind]
    assert len(mine) == 5
    assert np.mean([found["bones"] for found in mine]) < 0.85 * np.mean([found["global"] for found in mine])


def test_pairs_are_what_they_say():
    pairs = {pair.kind: pair for pair in map(make_pair, range(len(KINDS)))}
    assert set(pairs) == set(KINDS)
    assert pairs["half reference"].reference.body[[10, 13], 2].max() == 0
    assert pairs["close-up"].reference.body[[2, 5, 8, 11], 2].max() == 0
    assert pairs["half driving"].driving.body[:, [10, 13], 2].max() == 0
    assert pairs["whole"].driving.body[:, [10, 13], 2].min() == 1
    again = make_pair(3)
    np.testing.assert_array_equal(again.driving.body, pairs["half driving"].driving.body)
    for pair in pairs.values():
        heights = np.ptp(pair.truth.body[0, pair.truth.body[0, :, 2] > 0, 1])
        assert 0 < heights < 1.3 * pair.height
        assert all(math.isfinite(error) for mode, error in errors(pair).items() if mode != "face")


@pytest.mark.parametrize(("start", "stride"), [(0, 1), (5, 2)])
def test_keypoints_without_images_are_those_of_the_images(start, stride):
    made = puppet_track(2_000_003, 2_000_005, frames=6, start=start, stride=stride, size=(96, 128))
    want = render_clip(2_000_003, 2_000_005, 2_000_001, frames=6, start=start, stride=stride, size=(96, 128)).track()
    for name in ("body", "hands", "face", "times"):
        np.testing.assert_array_equal(getattr(made, name), getattr(want, name))
    assert made.size == want.size == (96, 128)
