import numpy as np
import pytest

from xdyna.data.transforms import crop_around, random_resized_crop


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


@pytest.mark.parametrize("image", [(1080, 1920), (1920, 1080), (128, 96), (50, 40)])
def test_crop_of_real_images(image: tuple[int, int]) -> None:
    """The target's aspect, the share asked for of the largest such part, anywhere in the image."""
    rng, target = np.random.default_rng(0), (128, 96)
    largest = min(image[0] / 128, image[1] / 96)
    crops = [crop_around(rng.random(3), image=image, target=target, scale=[0.5, 0.9]) for _ in range(2000)]
    boxes = np.array([crop.box for crop in crops])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= image[1]).all()
    assert (boxes[:, 1] + boxes[:, 3] <= image[0]).all()
    np.testing.assert_allclose(boxes[:, 2] / boxes[:, 3], 96 / 128, atol=1.5 / boxes[:, 3].min())
    share = boxes[:, 2] * boxes[:, 3] / (largest**2 * 128 * 96)
    assert share.mean() == pytest.approx(0.7, abs=0.03)
    for axis, side in ((0, image[1]), (1, image[0])):
        slack = side - boxes[:, axis + 2]
        assert (boxes[:, axis] == 0).any()
        assert (boxes[:, axis] == slack).any()
        assert (boxes[:, axis] / slack).mean() == pytest.approx(0.5, abs=0.03)
    assert all(crop.size == target for crop in crops)


def test_crop_keeps_a_person_that_fits() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array(
        [
            crop_around(
                rng.random(3), image=(1080, 1920), target=(64, 64), scale=[0.3, 1], person=(1000, 400, 1400, 900)
            ).box
            for _ in range(500)
        ]
    )
    assert (boxes[:, 0] <= 1000).all()
    assert (boxes[:, 0] + boxes[:, 2] >= 1400).all()
    assert (boxes[:, 1] <= 400).all()
    assert (boxes[:, 1] + boxes[:, 3] >= 900).all()
    assert len(set(boxes[:, 0].tolist())) > 200


def test_crop_of_a_person_that_does_not_fit() -> None:
    """Centred across, with the head; boxes may reach outside the image."""
    crop = crop_around((0, 0.9, 0.9), image=(400, 400), target=(64, 64), scale=[0.25, 1], person=(-20, 100, 310, 420))
    assert crop.box == (55, 100, 200, 200)


def test_a_crop_of_everything() -> None:
    crop = crop_around((0.3, 0.5, 0.5), image=(96, 64), target=(96, 64), scale=[1, 1])
    assert crop.box == (0, 0, 64, 96)
