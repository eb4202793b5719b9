"""Metrics against scikit-image, closed forms and plain loops."""

import math

import cv2
import numpy as np
import pytest

from xdyna.evaluation.metrics.regions import RegionQuality, TemporalEnergy, temporal_energy
from xdyna.media.frame_metrics import psnr, squared_error, ssim_map


def images(*, count: int = 3, size: tuple[int, int] = (37, 45), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Smooth images and noisy copies, uint8 (count, H, W, 3)."""
    rng = np.random.default_rng(seed)
    base = [cv2.GaussianBlur(rng.uniform(0, 255, (*size, 3)), (0, 0), 2) for _ in range(count)]
    truth = np.clip(np.stack(base) * 3 - 255, 0, 255)
    noisy = np.clip(truth + rng.normal(0, 20, truth.shape), 0, 255)
    return truth.round().astype(np.uint8), noisy.round().astype(np.uint8)


def test_ssim_equals_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    for seed in range(3):
        truth, noisy = images(seed=seed)
        for a, b in zip(truth, noisy, strict=True):
            options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
            expected, full = metrics.structural_similarity(a, b, channel_axis=-1, full=True, **options)
            ours = ssim_map(a, b)
            assert abs(np.nanmean(ours) - expected) < 1e-6
            assert 0.05 < expected < 0.95
            assert np.abs(ours - full.mean(axis=2))[5:-5, 5:-5].max() < 1e-6
            assert np.isnan(ours).sum() == ours.size - ours[5:-5, 5:-5].size


def test_ssim_of_flat_images_is_the_luminance_term() -> None:
    """Without variance eq. 13 leaves (2 a b + C1) / (a^2 + b^2 + C1)."""
    a, b, c1 = 100.0, 150.0, 2.55**2
    flat = [np.full((20, 20, 3), value, np.uint8) for value in (a, b)]
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    np.testing.assert_allclose(np.nanmean(ssim_map(*flat)), expected, rtol=1e-9)


def test_masked_quality_equals_a_plain_loop() -> None:
    truth, noisy = images()
    masks = np.random.default_rng(1).random(truth.shape[:3]) < 0.3
    quality = RegionQuality.of(truth, noisy, masks)
    errors, similarities = [], []
    for k in range(len(truth)):
        similar = ssim_map(truth[k], noisy[k])
        for y, x in zip(*np.nonzero(masks[k]), strict=True):
            errors += [(float(truth[k, y, x, c]) - float(noisy[k, y, x, c])) ** 2 for c in range(3)]
            if not math.isnan(similar[y, x]):
                similarities.append(similar[y, x])
    assert quality.mse == pytest.approx(np.mean(errors), rel=1e-12)
    assert quality.psnr == pytest.approx(10 * math.log10(255**2 / np.mean(errors)), rel=1e-12)
    assert quality.ssim == pytest.approx(np.mean(similarities), rel=1e-12)


def test_whole_frame_is_a_full_mask() -> None:
    truth, noisy = images()
    whole, masked = (RegionQuality.of(truth, noisy, masks) for masks in (None, np.ones(truth.shape[:3], bool)))
    assert (whole.mse, whole.ssim) == (masked.mse, masked.ssim)
    assert whole.psnr == pytest.approx(psnr(float(np.mean((truth.astype(float) - noisy) ** 2))))


def test_errors_outside_the_mask_do_not_count() -> None:
    truth, _ = images()
    mask = np.zeros(truth.shape[:3], bool)
    mask[:, 10:20, 10:20] = True
    spoiled = truth.copy()
    spoiled[:, 30:] = 0
    quality = RegionQuality.of(truth, spoiled, mask)
    assert (quality.mse, quality.psnr, quality.ssim) == (0, 100, 1)
    assert RegionQuality.of(truth, spoiled).psnr < 30


def test_empty_region_is_not_a_number() -> None:
    truth, noisy = images()
    quality = RegionQuality.of(truth, noisy, np.zeros(truth.shape[:3], bool))
    assert math.isnan(quality.psnr)
    assert math.isnan(quality.ssim)


def test_psnr() -> None:
    assert psnr(255**2) == 0
    assert psnr(255**2 / 100) == pytest.approx(20)
    assert psnr(0) == psnr(1e-12) == 100


def test_temporal_energy_of_a_flicker() -> None:
    """All of the region switches between two values: the energy is their difference squared."""
    frames = np.zeros((4, 12, 12, 3), np.uint8)
    frames[1::2, :, 6:] = 51  # 0.2
    masks = np.zeros((4, 12, 12), bool)
    masks[:, :, 6:] = True
    assert temporal_energy(frames, masks) == pytest.approx(0.04)
    assert temporal_energy(frames) == pytest.approx(0.02)
    assert temporal_energy(np.repeat(frames[:1], 4, axis=0), masks) == 0


def test_temporal_energy_counts_pixels_of_both_frames() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 9, 8, 3), dtype=np.uint8)
    masks = np.random.default_rng(1).random((5, 9, 8)) < 0.5
    values = [
        np.mean(((frames[k + 1, y, x].astype(float) - frames[k, y, x]) / 255) ** 2)
        for k in range(4)
        for y in range(9)
        for x in range(8)
        if masks[k, y, x] and masks[k + 1, y, x]
    ]
    assert temporal_energy(frames, masks) == pytest.approx(np.mean(values), rel=1e-12)
    assert math.isnan(TemporalEnergy().value)


@pytest.mark.parametrize(
    ("truth", "generated"),
    [
        (np.zeros((20, 20, 3)), np.zeros((20, 20, 3))),
        (np.zeros((20, 20), np.uint8), np.zeros((20, 20), np.uint8)),
        (np.zeros((20, 20, 3), np.uint8), np.zeros((20, 21, 3), np.uint8)),
    ],
)
def test_frames_that_cannot_be_compared(truth: np.ndarray, generated: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected uint8|cannot be compared"):
        squared_error(truth, generated)


def test_wrong_masks_and_small_images() -> None:
    frame = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(ValueError, match="expected bool"):
        RegionQuality().add(frame, frame, np.ones((20, 20)))
    with pytest.raises(ValueError, match="expected bool"):
        TemporalEnergy().add(frame, np.ones((20, 19), bool))
    with pytest.raises(ValueError, match="window"):
        ssim_map(frame[:10], frame[:10])


def test_clips_of_different_lengths() -> None:
    truth, noisy = images()
    for masks in (None, np.ones(truth.shape[:3], bool)):
        with pytest.raises(ValueError, match="zip"):
            RegionQuality.of(truth, noisy[:2], masks)
    with pytest.raises(ValueError, match="zip"):
        temporal_energy(truth, np.ones((2, *truth.shape[1:3]), bool))
