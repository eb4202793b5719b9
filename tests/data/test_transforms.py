import numpy as np
import pytest

from xdyna.data.transforms import random_resized_crop


def test_a_scale_of_one_does_nothing() -> None:
    size, crop = random_resized_crop(np.random.default_rng(0), target=(96, 64), scale=[1, 1])
    assert size == (96, 64)
    assert (crop.box, crop.size) == ((0, 0, 64, 96), (96, 64))


def test_share_of_the_area_and_position() -> None:
    rng = np.random.default_rng(0)
    drawn = [random_resized_crop(rng, target=(128, 96), scale=[0.5, 0.9]) for _ in range(4000)]
    shares = np.array([128 * 96 / (h * w) for (h, w), _ in drawn])
    assert shares.min() == pytest.approx(0.5, abs=0.01)
    assert shares.max() == pytest.approx(0.9, abs=0.01)
    assert shares.mean() == pytest.approx(0.7, abs=0.01)
    for axis, side in ((0, 96), (1, 128)):  # left, top
        slack = np.array([(w, h)[axis] - side for (h, w), _ in drawn])
        offsets = np.array([crop.box[axis] for _, crop in drawn])
        assert (offsets >= 0).all()
        assert (offsets <= slack).all()
        assert (offsets / slack).mean() == pytest.approx(0.5, abs=0.02)
        assert {0.0, 1.0} <= set(offsets / slack)
    assert all(crop.size == (128, 96) and crop.box[2:] == (96, 128) for _, crop in drawn)
