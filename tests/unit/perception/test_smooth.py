import numpy as np
import pytest

from xdyna.perception import OneEuro, PerceptionError
from xdyna.perception.smooth import fill_gaps, one_euro


def make_points(confidences: list[float]) -> np.ndarray:
    rows = np.arange(len(confidences), dtype=np.float64)
    return np.stack([10 + 3 * rows, 50 - 2 * rows, np.array(confidences)], axis=1)[:, None].astype(np.float32)


def fill(points: np.ndarray, *, max_gap: int = 2, fps: float = 8):
    hidden = points.copy()
    hidden[points[..., 2] < 0.3] = 0
    return fill_gaps(hidden, times=np.arange(len(points)) / fps, max_gap=max_gap, threshold=0.3)


def test_short_gaps_are_linear():
    points = make_points([0.9, 0, 0, 0.6, 0.8])
    filled, changed = fill(points)
    np.testing.assert_allclose(filled[:, 0, :2], points[:, 0, :2], atol=1e-5)
    np.testing.assert_allclose(filled[:, 0, 2], [0.9, 0.6, 0.6, 0.6, 0.8])
    assert changed[:, 0].tolist() == [False, True, True, False, False]


def test_long_gaps_stay():
    for points, options in (
        (make_points([0.9, 0, 0, 0, 0.8]), {}),
        (make_points([0.9, 0, 0, 0.8]), {"max_gap": 0}),
        (make_points([0.9, 0, 0, 0.8]), {"fps": 2.9}),  # 3 frames apart: more than a second
        (make_points([0, 0, 0]), {}),
    ):
        filled, changed = fill(points, **options)
        assert not changed.any()
        assert (filled[points[..., 2] == 0] == 0).all()
    assert fill(make_points([0.9, 0, 0, 0.8]), fps=3.1)[1].sum() == 2


def test_ends_hold_the_nearest_sighting():
    points = make_points([0, 0.7, 0.8, 0, 0])
    filled, changed = fill(points)
    np.testing.assert_array_equal(filled[0], filled[1])
    np.testing.assert_array_equal(filled[3], filled[2])
    np.testing.assert_array_equal(filled[4], filled[2])
    assert changed.sum() == 3
    assert not fill(make_points([0, 0, 0, 0.7]))[1].any()


def test_unsure_points_are_replaced_between_sure_ones():
    points = make_points([0.9, 0.9, 0.9])
    points[1, 0] = [500, 500, 0.1]
    filled, _ = fill_gaps(points, times=np.arange(3) / 8, max_gap=1, threshold=0.3)
    np.testing.assert_allclose(filled[1, 0], [13, 48, 0.9], atol=1e-5)


def noisy(rng: np.random.Generator, count: int = 90) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    times = np.arange(count) / 15
    truth = np.stack([200 + 0 * times, 300 + 40 * np.sin(times)], axis=1)
    points = np.ones((count, 1, 3))
    points[:, 0, :2] = truth + rng.normal(0, 3, truth.shape)
    return points.astype(np.float32), truth, times


def test_one_euro_reduces_jitter_without_lag():
    points, truth, times = noisy(np.random.default_rng(0))
    result = one_euro(points, times=times, height=600, settings=OneEuro())
    before, after = (np.diff(p[:, 0, :2], axis=0).std() for p in (points, result))
    assert after < 0.6 * before
    assert np.abs(result[:, 0, :2] - truth).mean() < np.abs(points[:, 0, :2] - truth).mean()
    ramp = np.ones((60, 1, 3), np.float32)
    ramp[:, 0, :2] = np.arange(60)[:, None] * 2
    moved = one_euro(ramp, times=np.arange(60) / 15, height=600, settings=OneEuro())
    np.testing.assert_allclose(moved[20:40], ramp[20:40], atol=0.2)


def test_one_euro_against_the_paper_for_one_pass():
    """Written once more from the paper, scalar by scalar; our result is the mean of both directions."""

    def reference(values: list[float], rate: float, low: float, beta: float, cutoff: float) -> list[float]:
        def alpha(frequency: float) -> float:
            return 1 / (1 + 1 / (2 * np.pi * frequency) * rate)

        out, speed = [values[0]], 0.0
        for value in values[1:]:
            speed = alpha(cutoff) * (value - out[-1]) * rate + (1 - alpha(cutoff)) * speed
            weight = alpha(low + beta * abs(speed))
            out.append(weight * value + (1 - weight) * out[-1])
        return out

    points, _, times = noisy(np.random.default_rng(1), 20)
    settings = OneEuro(min_cutoff=0.8, beta=2.0, derivative_cutoff=1.3)
    result = one_euro(points, times=times, height=100, settings=settings)
    for axis in (0, 1):
        values = (points[:, 0, axis].astype(np.float64) / 100).tolist()
        forward = reference(values, 15, 0.8, 2.0, 1.3)
        backward = reference(values[::-1], 15, 0.8, 2.0, 1.3)[::-1]
        np.testing.assert_allclose(result[:, 0, axis], 50 * (np.array(forward) + backward), rtol=1e-5)


def test_one_euro_leaves_gaps_and_confidences():
    points, _, times = noisy(np.random.default_rng(0), 12)
    points[5] = 0
    points[:, :, 2] *= np.linspace(0.4, 1, 12)[:, None]
    times = times.copy()
    times[8] = times[7]  # a frame shown twice
    result = one_euro(points, times=times, height=600, settings=OneEuro())
    np.testing.assert_array_equal(result[..., 2], points[..., 2])
    np.testing.assert_array_equal(result[5], 0)
    assert np.isfinite(result).all()
    alone = one_euro(points[:5], times=times[:5], height=600, settings=OneEuro())
    np.testing.assert_array_equal(result[:5], alone, "the run after the gap does not reach over it")


def test_one_euro_settings_are_checked():
    with pytest.raises(PerceptionError, match="above 0 Hz"):
        OneEuro(min_cutoff=0)
    with pytest.raises(PerceptionError, match="beta at least 0"):
        OneEuro(beta=-1)
