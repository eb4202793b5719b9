"""CLIP's image preprocessing as tensor operations: images that lie on a GPU stay there.

    pixels = (round(V (H image)) / 255 - mean) / std, cropped at the centre

H and V are Pillow's bicubic filter as matrices: antialiased, with coefficients of 22 bits, one direction after the
other, each rounded to 8 bits. Their products are whole numbers below 2^53, exact in float64: the result has the bytes
that Pillow's has. Which direction comes first, Pillow decides by the size; it is found on noise the first time that a
size comes. Images on the host, and sizes for which neither order gives Pillow's bytes, go through the preprocessing
itself.

Shape legend: N images, C channels, H W pixels.
"""

import functools
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from xdyna.core.device import to_device

BITS = 22  # of the filter's coefficients (Pillow, src/libImaging/Resample.c, PRECISION_BITS)
EXPECTED = {"do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True, "resample": 3}


def clip_pixels(images: Tensor, extractor: Any) -> Tensor:
    """What CLIP's vision model is given.

    Args:
        images: uint8 (N, 3, H, W) RGB, on any device.
        extractor: CLIP's preprocessing (transformers).

    Returns:
        Tensor: float32 (N, 3, side, side), on the images' device; the numbers are the extractor's.
    """
    if images.device.type not in ("cpu", "mps") and is_usual(extractor):  # MPS has no float64
        size = (images.shape[-2], images.shape[-1])
        order = pass_order(size, resized_size(size, extractor))
        if order is not None:
            return clip_pixels_as_tensors(images, extractor, order)
    arrays = rearrange(images.cpu(), "n c h w -> n h w c").numpy()
    return to_device(extractor(images=list(arrays), return_tensors="pt").pixel_values, images.device)


def resize_bicubic(images: Tensor, size: tuple[int, int], order: tuple[int, int]) -> Tensor:
    """Resize as Pillow does (`Image.resize(..., BICUBIC)`).

    Args:
        images: uint8 (N, C, H, W).
        size: (H, W) of the result, px.
        order: (-1, -2) for across, then down; (-2, -1) for down, then across.

    Returns:
        Tensor: uint8 (N, C, *size).

    Source: Pillow, src/libImaging/Resample.c.
    """
    x = images.double()
    for axis in order:
        length = size[axis]
        if x.shape[axis] != length:
            weights = _filter(x.shape[axis], length, x.device)
            sums = x @ weights if axis == -1 else weights.mT @ x
            x = torch.floor((sums + (1 << (BITS - 1))) / (1 << BITS)).clamp(0, 255)
    return x.to(torch.uint8)


@functools.lru_cache(maxsize=32)
def _filter(source: int, target: int, device: torch.device) -> Tensor:
    """Whole-numbered weights of the bicubic filter (a = -0.5), float64 (source, target)."""
    scale = source / target
    widening = max(scale, 1.0)
    weights = np.zeros((source, target))
    for k in range(target):
        center = (k + 0.5) * scale
        first = max(int(center - 2 * widening + 0.5), 0)
        last = min(int(center + 2 * widening + 0.5), source)
        x = np.abs((np.arange(first, last) - center + 0.5) * (1.0 / widening))
        near = (1.5 * x - 2.5) * x * x + 1
        far = (((x - 5) * x + 8) * x - 4) * -0.5
        values = np.where(x < 1, near, np.where(x < 2, far, 0.0))
        values = values / sum(values.tolist())
        weights[first:last, k] = np.trunc(np.where(values < 0, -0.5, 0.5) + values * (1 << BITS))
    return torch.from_numpy(weights).to(device)


def clip_pixels_as_tensors(images: Tensor, extractor: Any, order: tuple[int, int]) -> Tensor:
    """`clip_pixels` on the images' device. Args: see there; order: of `pass_order`."""
    resized = resize_bicubic(images, resized_size((images.shape[-2], images.shape[-1]), extractor), order)
    height, width = extractor.crop_size["height"], extractor.crop_size["width"]
    top, left = (resized.shape[-2] - height) // 2, (resized.shape[-1] - width) // 2
    cropped = resized[..., top : top + height, left : left + width]
    scaled = (cropped.double() * extractor.rescale_factor).float()
    mean, std = _statistics(tuple(extractor.image_mean), tuple(extractor.image_std), images.device)
    return (scaled - mean) / std


@functools.lru_cache(maxsize=8)
def _statistics(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    first, second = (torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1) for values in (mean, std))
    return first.to(device), second.to(device)


def is_usual(extractor: Any) -> bool:
    """Whether this is CLIP's own preprocessing, which is written out here."""
    size, crop = dict(getattr(extractor, "size", None) or {}), dict(getattr(extractor, "crop_size", None) or {})
    side = size.get("shortest_edge")
    return (
        all(getattr(extractor, name, None) == value for name, value in EXPECTED.items())
        and {name for name, value in size.items() if value is not None} == {"shortest_edge"}
        and side is not None
        and max(crop.get("height") or side + 1, crop.get("width") or side + 1) <= side
    )


def resized_size(size: tuple[int, int], extractor: Any) -> tuple[int, int]:
    """Size (H, W) of an image of `size` (H, W) when its shorter edge is the extractor's."""
    side = extractor.size["shortest_edge"]
    long = int(side * max(size) / min(size))
    return (side, long) if size[0] <= size[1] else (long, side)


@functools.lru_cache(maxsize=256)
def pass_order(size: tuple[int, int], resized: tuple[int, int]) -> tuple[int, int] | None:
    """The order in which `resize_bicubic` gives the bytes of the Pillow that is installed.

    Args:
        size: (H, W) of the images, px.
        resized: (H, W) of the result, px.

    Returns:
        tuple: for `resize_bicubic`; None where neither does. Found on noise that reaches both ends of the range.
    """
    noise = np.random.default_rng(0).integers(-64, 320, (*size, 3)).clip(0, 255).astype(np.uint8)
    expected = np.array(Image.fromarray(noise).resize((resized[1], resized[0]), Image.Resampling.BICUBIC))
    images = rearrange(torch.from_numpy(noise), "h w c -> 1 c h w")
    for order in ((-1, -2), (-2, -1)):
        ours = rearrange(resize_bicubic(images, resized, order), "1 c h w -> h w c")
        if torch.equal(ours, torch.from_numpy(expected)):
            return order
    return None
