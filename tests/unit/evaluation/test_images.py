"""Image metrics against plain numpy, scikit-image and the bug as it was published."""

import numpy as np
import pytest
import skimage.color
import skimage.metrics

from xdyna.evaluation.metric import Case, Video
from xdyna.evaluation.metrics import images
from xdyna.evaluation.metrics.images import DEFINITIONS, FrameMetric


def noise(seed: int, shape: tuple[int, ...] = (3, 24, 32, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def case(truth: np.ndarray, generated: np.ndarray) -> Case:
    return Case("a", Video("g", generated, 8.0, "1"), Video("t", truth, 8.0, "2"))


def value(name: str, *cases: Case) -> float:
    metric = FrameMetric(name)
    return metric.reduce([metric.measure(c) for c in cases])[name]


def test_errors_are_numpys() -> None:
    a, b = noise(1), noise(2)
    error = np.abs(a.astype(float) - b.astype(float))
    assert value("mae", case(a, b)) == pytest.approx(error.mean())
    assert value("l1", case(a, b)) == pytest.approx(error.mean() / (24 * 32))
    per_frame = [10 * np.log10(255**2 / (e**2).mean()) for e in error]
    assert value("psnr", case(a, b)) == pytest.approx(np.mean(per_frame))
    library = [skimage.metrics.peak_signal_noise_ratio(x, y) for x, y in zip(a, b, strict=True)]
    assert value("psnr", case(a, b)) == pytest.approx(np.mean(library))


def test_the_published_bug_is_reproduced() -> None:
    a, b = noise(1), noise(2)
    published = [20 * np.log10(255.0 / np.sqrt(np.mean((x - y) ** 2))) for x, y in zip(a, b, strict=True)]
    assert value("psnr_uint8wrap", case(a, b)) == pytest.approx(np.mean(published))
    assert value("psnr_uint8wrap", case(a, b)) > value("psnr", case(a, b)) + 10


def test_ssim_by_hand() -> None:
    """Every 7 x 7 window that fits, by a loop."""
    a, b = noise(3, (1, 12, 11, 3)), noise(4, (1, 12, 11, 3))
    import cv2

    x, y = (cv2.cvtColor(v[0], cv2.COLOR_RGB2GRAY).astype(float) for v in (a, b))
    c1, c2, values = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for i in range(12 - 6):
        for j in range(11 - 6):
            p, q = x[i : i + 7, j : j + 7].ravel(), y[i : i + 7, j : j + 7].ravel()
            (vx, cov), (_, vy) = np.cov(p, q)
            mx, my = p.mean(), q.mean()
            values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert value("ssim", case(a, b)) == pytest.approx(np.mean(values), rel=1e-6)


def test_equal_images() -> None:
    same = case(noise(1), noise(1))
    values = {name: value(name, same) for name in DEFINITIONS}
    assert values == {"l1": 0, "mae": 0, "psnr": 100, "psnr_uint8wrap": 100, "ssim": pytest.approx(1)}


def test_frames_count_alike_in_long_and_short_videos() -> None:
    """The mean is over frames, not over videos."""
    short = case(np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 10, np.uint8))
    long = case(np.zeros((3, 8, 8, 3), np.uint8), np.full((3, 8, 8, 3), 50, np.uint8))
    assert value("mae", short, long) == pytest.approx((10 + 3 * 50) / 4)


def test_other_sizes_and_lengths_are_brought_to_the_truths() -> None:
    flat = np.full((2, 16, 16, 3), 90, np.uint8)
    assert value("psnr", case(flat, np.full((5, 40, 28, 3), 90, np.uint8))) == 100
    truth, generated = case(flat, noise(5, (5, 40, 28, 3))).paired
    assert truth.shape == generated.shape == (2, 16, 16, 3)


def test_what_cannot_be_compared_is_said() -> None:
    with pytest.raises(ValueError, match="no ground truth"):
        FrameMetric("mae").measure(Case("a", Video("g", noise(1), 8.0, "1")))
    with pytest.raises(ValueError, match="7 x 7"):
        images.ssim_grey(noise(1, (6, 9, 3)), noise(2, (6, 9, 3)))
