"""CLIP's preprocessing as tensor operations: the bytes of Pillow and the numbers of transformers."""

import numpy as np
import pytest
import torch
from PIL import Image

from xdyna.checkpoints.build import build_feature_extractor
from xdyna.models.clip_pixels import (
    clip_pixels,
    clip_pixels_as_tensors,
    is_usual,
    pass_order,
    resize_bicubic,
    resized_size,
)


def noise(size: tuple[int, int], *, extreme: bool, count: int = 2) -> torch.Tensor:
    drawn = torch.randint(256, (count, 3, *size), generator=torch.Generator().manual_seed(sum(size)))
    return ((drawn > 127) * 255 if extreme else drawn).to(torch.uint8)


@pytest.mark.parametrize("extreme", [False, True], ids=["noise", "black and white"])
@pytest.mark.parametrize(
    ("size", "side"),
    [((64, 64), 32), ((128, 128), 32), ((448, 256), 224), ((200, 355), 224), ((97, 61), 64), ((316, 69), 64)],
)
def test_equals_the_preprocessing_bit_by_bit(size: tuple[int, int], side: int, extreme: bool) -> None:
    extractor, images = build_feature_extractor(side), noise(size, extreme=extreme)
    expected = extractor(images=[np.asarray(image.permute(1, 2, 0)) for image in images], return_tensors="pt")
    order = pass_order(size, resized_size(size, extractor))
    assert order is not None
    assert torch.equal(clip_pixels_as_tensors(images, extractor, order), expected.pixel_values)
    assert torch.equal(clip_pixels(images, extractor), expected.pixel_values)


def test_the_order_of_the_two_directions_matters() -> None:
    """Rounding in between: only one order has Pillow's bytes, and `pass_order` finds it."""
    size, to = (316, 69), (293, 64)
    image = noise(size, extreme=True, count=1)
    pillow = Image.fromarray(image[0].permute(1, 2, 0).numpy()).resize((to[1], to[0]), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(pillow)).permute(2, 0, 1)[None]
    equal = {order: torch.equal(resize_bicubic(image, to, order), expected) for order in ((-1, -2), (-2, -1))}
    assert sorted(equal.values()) == [False, True]
    assert equal[pass_order(size, to)]


def test_another_preprocessing_is_left_to_itself() -> None:
    extractor = build_feature_extractor(32)
    assert is_usual(extractor)
    extractor.resample = 2
    assert not is_usual(extractor)
    squashing = build_feature_extractor(32)
    squashing.size = {"height": 32, "width": 32}
    assert not is_usual(squashing)
    padding = build_feature_extractor(32)
    padding.crop_size = {"height": 40, "width": 40}
    assert not is_usual(padding)
