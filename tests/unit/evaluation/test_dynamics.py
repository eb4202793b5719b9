"""Liveliness and steadiness: textures that move by known steps, loops by hand, and what each metric must see."""

import cv2
import numpy as np
import pytest

from xdyna.evaluation.masks import Masker
from xdyna.evaluation.metric import Case, Metric, Video
from xdyna.evaluation.metrics.dynamics import (
    AppearanceDrift,
    Flicker,
    TemporalRatio,
    WarpingError,
    optical_flow,
    visible,
    warp,
)

SIDE = 64


def texture(seed: int = 0) -> np.ndarray:
    """Smooth noise, twice as wide as a frame."""
    noise = np.random.default_rng(seed).normal(size=(SIDE, 2 * SIDE, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return (127 + 50 * smooth / smooth.std()).clip(0, 255).astype(np.uint8)


def moving(frames: int = 5, *, step: int = 2, seed: int = 0) -> np.ndarray:
    wide = texture(seed)
    return np.stack([wide[:, step * t : step * t + SIDE] for t in range(frames)])


def case(truth: np.ndarray, generated: np.ndarray, masks: np.ndarray | None = None) -> Case:
    given = None if masks is None else (masks, masks)
    return Case("c", Video("g", generated, 8.0, "g"), Video("t", truth, 8.0, "t"), masks=given)


def value(metric: Metric, *cases: Case) -> float:
    return metric.reduce([metric.measure(c) for c in cases])[metric.columns[0].name]


def noisy(frames: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(size=frames.shape) * sigma
    return (frames + noise).round().clip(0, 255).astype(np.uint8)


def test_flow_of_a_known_step() -> None:
    """Frame t shows column c + 2t: what is at x in frame 0 is at x - 2 in frame 1."""
    frames = moving(2)
    flow = optical_flow(frames[0], frames[1])[8:-8, 8:-8]
    assert np.abs(np.median(flow[..., 0]) + 2) < 0.1
    assert np.abs(np.median(flow[..., 1])) < 0.1


def test_warping_by_whole_pixels() -> None:
    frame = texture()[:, :SIDE]
    flow = np.zeros((SIDE, SIDE, 2), np.float32)
    flow[..., 0], flow[..., 1] = 3, -2
    moved, inside = warp(frame, flow)
    assert np.array_equal(moved[2:, :-3], frame[:-2, 3:])
    assert inside[2:, :-3].all()
    assert not inside[:2].any()
    assert not inside[:, -3:].any()
    assert np.array_equal(visible(flow, -flow), inside)
    assert not visible(flow, flow).any()


def test_temporal_ratio_by_hand() -> None:
    truth, lively = moving(step=1), moving(step=3)
    energy = [np.square(np.diff(v.astype(float), axis=0)).mean() for v in (truth, lively)]
    assert value(TemporalRatio(), case(truth, lively)) == pytest.approx(energy[1] / energy[0])
    assert value(TemporalRatio(), case(truth, truth[[0] * 5])) == 0
    assert value(TemporalRatio(), case(truth, truth)) == 1
    three = [case(truth, truth), case(truth, truth[[0] * 5]), case(truth, lively)]
    notes = TemporalRatio().reduce([TemporalRatio().measure(c) for c in three])
    assert notes["temporal_ratio"] == 1  # the median
    assert notes["temporal_ratio.within_half_and_double"] == pytest.approx(1 / 3)


def test_regions_are_measured_by_themselves() -> None:
    truth = moving()
    masks = np.zeros(truth.shape[:3], bool)
    masks[:, :, : SIDE // 2] = True
    frozen = truth.copy()
    frozen[:, :, SIDE // 2 :] = truth[:1, :, SIDE // 2 :]  # the background stands still
    given = case(truth, frozen, masks)
    assert value(TemporalRatio("figure", Masker(None)), given) == 1
    assert value(TemporalRatio("background", Masker(None)), given) == 0
    assert 0 < value(TemporalRatio(), given) < 1


@pytest.mark.parametrize("metric", [WarpingError(), Flicker()])
def test_trembling_is_seen_and_grows(metric: Metric) -> None:
    truth = moving()
    truth[:, :, SIDE // 2 :] = truth[:1, :, SIDE // 2 :]  # something that stands still, for flicker
    values = [value(metric, case(truth, noisy(truth, sigma))) for sigma in (0, 2, 5, 10, 20)]
    assert values == sorted(values)
    assert values[1] < values[-1] / 5


def test_flicker_of_white_noise() -> None:
    """x(t-1) - 2 x(t) + x(t+1) of independent noise has variance 6 sigma^2."""
    still = np.full((12, SIDE, SIDE, 3), 128, np.uint8)
    assert value(Flicker(), case(still, noisy(still, 8))) == pytest.approx(8 * np.sqrt(6), rel=0.02)
    assert value(Flicker(), case(still, still)) == 0


def test_a_moving_texture_is_no_error_of_warping() -> None:
    truth = moving(step=2)
    floor = value(WarpingError(), case(truth, truth))
    shuffled = truth[[0, 3, 1, 4, 2]]
    assert floor < 0.2
    assert value(WarpingError(), case(truth, shuffled)) > 20 * floor
    assert value(WarpingError(), case(truth[[0] * 5], truth[[0] * 5])) == 0


def test_drift_of_the_looks() -> None:
    frames = np.full((17, SIDE, SIDE, 3), (200, 40, 40), np.uint8)
    masks = np.zeros(frames.shape[:3], bool)
    masks[:, 16:48, 16:48] = True
    metric = AppearanceDrift(Masker(None))
    assert value(metric, case(frames, frames, masks)) == 0
    changed = frames.copy()
    for t in range(17):
        changed[t, 16 : 16 + 2 * t, 16:48] = (40, 40, 200)  # more and more of it
    drift = value(metric, case(frames, changed, masks))
    assert drift > 0.3
    background = frames.copy()
    background[5:, :10] = 0
    assert value(metric, case(frames, background, masks)) == 0


def test_what_cannot_be_measured_is_said() -> None:
    one = moving(1)
    for metric in (TemporalRatio(), WarpingError(), Flicker()):
        with pytest.raises(ValueError, match="frame"):
            metric.measure(case(one, one))
    with pytest.raises(ValueError, match="does not move"):
        TemporalRatio().measure(case(one[[0, 0]], one[[0, 0]]))
    with pytest.raises(ValueError, match="stands still"):
        Flicker().measure(case(moving(), moving()))
    empty = np.zeros((5, SIDE, SIDE), bool)
    with pytest.raises(ValueError, match="empty"):
        TemporalRatio("figure", Masker(None)).measure(case(moving(), moving(), empty))
    with pytest.raises(ValueError, match="no figure"):
        AppearanceDrift(Masker(None)).measure(case(moving(), moving(), empty))
