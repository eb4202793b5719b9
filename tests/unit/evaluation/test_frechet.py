"""Frechet distance against analytic values, scipy's matrix root and two-pass moments."""

import numpy as np
import pytest
import scipy.linalg

from xdyna.evaluation.metrics.frechet import Moments, frechet_distance


def moments(features: np.ndarray, *, portion: int | None = None) -> Moments:
    result = Moments(features.shape[1])
    for start in range(0, len(features), portion or len(features)):
        result.add(features[start : start + (portion or len(features))])
    return result


def gaussian(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    """Moments that are exactly these (population)."""
    result = Moments(len(mean), 1000)
    result.mean, result.scatter = np.asarray(mean, float), np.asarray(covariance, float) * 1000
    return result


def features(n: int = 300, d: int = 12, *, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 5 * rng.normal(size=d)


def test_moments_are_numpys() -> None:
    x = features() + 1e4  # far from zero: a naive sum of squares would lose digits
    result = moments(x, portion=7)
    np.testing.assert_allclose(result.mean, x.mean(axis=0), rtol=1e-12)
    for ddof in (0, 1):
        np.testing.assert_allclose(result.covariance(ddof), np.cov(x.T, ddof=ddof), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_shards_add_up(shards: int) -> None:
    x, whole = features(), moments(features())
    merged = Moments(x.shape[1])
    for rank in range(shards):
        merged.merge(moments(x[rank::shards]))
    assert merged.count == len(x)
    np.testing.assert_allclose(merged.scatter, whole.scatter, rtol=1e-9, atol=1e-9)
    other = moments(features(seed=1))
    assert frechet_distance(merged, other, ddof=1) == pytest.approx(frechet_distance(whole, other, ddof=1), rel=1e-9)


def test_commuting_gaussians() -> None:
    """Diagonal covariances: the sum over channels of (m1 - m2)^2 + (s1 - s2)^2."""
    rng = np.random.default_rng(3)
    m1, m2, s1, s2 = rng.normal(size=(4, 6))
    q, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    a, b = (gaussian(q @ m, q @ np.diag(s**2) @ q.T) for m, s in ((m1, s1), (m2, s2)))
    expected = ((m1 - m2) ** 2).sum() + ((abs(s1) - abs(s2)) ** 2).sum()
    assert frechet_distance(a, b, ddof=0) == pytest.approx(expected, rel=1e-9)


def test_a_shift_alone() -> None:
    x = features()
    shift = np.linspace(-1, 1, x.shape[1])
    assert frechet_distance(moments(x), moments(x + shift), ddof=1) == pytest.approx((shift**2).sum(), rel=1e-6)


def test_distance_to_itself() -> None:
    x = moments(features())
    assert frechet_distance(x, x, ddof=1) < 1e-9 * np.trace(x.covariance(1))


@pytest.mark.parametrize("n", [300, 9])  # more and fewer features than channels
def test_scipys_matrix_root(n: int) -> None:
    x, y = features(n, seed=4), features(n, seed=5)
    s1, s2 = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm((s1 + 1e-12 * np.eye(12)) @ (s2 + 1e-12 * np.eye(12))).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * np.trace(root)
    assert frechet_distance(moments(x), moments(y), ddof=1) == pytest.approx(expected, rel=1e-6)


def test_what_cannot_be_measured_is_said() -> None:
    with pytest.raises(ValueError, match="expected at least 2"):
        frechet_distance(moments(features(1)), moments(features(1)), ddof=1)
    with pytest.raises(ValueError, match="NaN"):
        Moments(2).add(np.array([[1.0, np.nan]]))
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        Moments(2).add(np.zeros((3, 4)))
