"""Images: reading any common file as 8-bit RGB, writing PNG, and the crops that bring an image to the model's size.

Pixel coordinates: (x, y) with whole numbers at pixel centres, as OpenCV has them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from xdyna.core.atomic import atomic_output
from xdyna.core.errors import FileError
from xdyna.media.errors import MediaError, check_input_file

MIN_SIDE = 32
LARGE_SIDE = 8192
REDUCED_SIDE = 4096
MAX_SIDE = 20_000
MAX_PIXELS = 200_000_000  # 0.8 GB once decoded, whatever the file's own size
_ORIENTATION = 0x0112  # of EXIF; from 5 on the image is shown on its side

# Others have decoders that start programs (EPS), or that hardly anybody has ever tried.
_FORMATS = ("PNG", "JPEG", "HEIF", "WEBP", "AVIF", "BMP", "DIB", "TIFF", "GIF")
_BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, TypeError, OverflowError,
    RuntimeError,
)  # fmt: skip
_PIL_LIMIT = threading.Lock()


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image as it is meant to be seen.

    The EXIF orientation is applied; transparency is laid on white; CMYK, palette, grey and 16-bit images are
    converted; an embedded colour profile other than sRGB is honoured; of an animation the first frame is taken. A
    image with a side above 8192 px is reduced (Lanczos) to 4096 px on its long side.

    Args:
        path: the image file: PNG, JPEG, HEIC, WebP, AVIF, BMP, TIFF or GIF.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        MediaError: missing, a folder, empty, not an image, damaged or truncated, a side below 32 px or above
            20,000 px, more than 200 million px, or a pixel format without a defined 8-bit meaning (32-bit float or
            integer).
    """
    path = check_input_file(path, what="image")
    with _without_pixel_limit():
        try:
            with Image.open(path, formats=_formats()) as opened:
                _check_size(opened.size, path)
                image = _decode(opened, path)
        except UnidentifiedImageError as error:
            raise MediaError(f"'{path}' is not an image ({_looks_like(path)}); {_EXPECTED}") from error
        except FileError:
            raise
        except MemoryError as error:
            raise MediaError(f"image '{path}' does not fit into memory; reduce it first") from error
        except _BROKEN as error:
            raise MediaError(
                f"image '{path}' is damaged or truncated ({error}); copy it again or re-save it"
            ) from error
    return np.array(image, dtype=np.uint8)


def image_size(path: str | os.PathLike[str], *, upright: bool = False) -> tuple[int, int]:
    """What an image's header declares, before anything is decoded.

    Args:
        path: the image file.
        upright: as it is shown (EXIF), instead of as it is stored.

    Returns:
        (width, height) px.

    Raises:
        MediaError: missing, a folder, empty, or not an image.
    """
    path = check_input_file(path, what="image")
    with _without_pixel_limit():
        try:
            with Image.open(path, formats=_formats()) as opened:
                # What is in the head alone: `getexif` of a PNG would decode it.
                turned = upright and Image.Image.getexif(opened).get(_ORIENTATION, 1) in (5, 6, 7, 8)
                return opened.size[::-1] if turned else opened.size
        except _BROKEN as error:  # UnidentifiedImageError is an OSError
            raise MediaError(f"'{path}' is not an image ({_looks_like(path)}); {_EXPECTED}") from error


_EXPECTED = "expected a PNG, JPEG, HEIC, WebP, AVIF, BMP, TIFF or GIF file"


@functools.cache
def _formats() -> tuple[str, ...]:
    """What Pillow may open; it is taught HEIC, in which phones take photos, and stands them upright by itself."""
    with contextlib.suppress(ImportError):  # no wheel for this platform; the error then says what to do
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextlib.contextmanager
def _without_pixel_limit() -> Iterator[None]:
    """Lift Pillow's global pixel limit: the size is checked here, by side."""
    with _PIL_LIMIT, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _check_size(size: tuple[int, int], path: Path) -> None:
    width, height = size
    if min(size) < MIN_SIDE:
        raise MediaError(f"image '{path}' is {width} x {height} px; each side needs at least {MIN_SIDE} px")
    if max(size) > MAX_SIDE:
        raise MediaError(f"image '{path}' is {width} x {height} px; at most {MAX_SIDE} px a side, reduce it first")
    if width * height > MAX_PIXELS:
        raise MediaError(
            f"image '{path}' is {width} x {height} px; at most {MAX_PIXELS // 10**6} million px, reduce it first"
        )


def _decode(opened: Image.Image, path: Path) -> Image.Image:
    """Load, reduce, turn upright and convert to RGB."""
    large = max(opened.size) > LARGE_SIDE
    if large:  # JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, which saves most of the memory
        opened.draft(None, (REDUCED_SIDE, REDUCED_SIDE))
    opened.load()
    image: Image.Image = opened
    if image.mode not in _CONVERTERS:
        raise MediaError(
            f"image '{path}' has {image.mode!r} pixels (32-bit or special), which have no defined 8-bit value; "
            f"save it as 8-bit RGB"
        )
    if large:
        if image.mode in ("P", "PA", "1"):  # indices must not be averaged
            image = _to_rgb(image)
        if image.mode.startswith("I;16"):
            image = _grey16_to_grey8(image)
        ratio = REDUCED_SIDE / max(image.size)
        target = (max(1, round(image.width * ratio)), max(1, round(image.height * ratio)))
        exif, info = opened.getexif(), dict(opened.info)
        image = image.resize(target, Image.Resampling.LANCZOS, reducing_gap=3.0)
        image.info.update(info)
        image.info["exif"] = exif.tobytes()
    upright = ImageOps.exif_transpose(image)
    return _to_rgb(upright)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any supported mode to 8-bit sRGB, transparency on white."""
    kind = _CONVERTERS[image.mode]
    if kind == "grey16":
        image = _grey16_to_grey8(image)
    if kind == "alpha" or "transparency" in image.info:
        colours = image.convert("RGBA")
        flat = Image.new("RGBA", colours.size, (255, 255, 255, 255))
        flat.alpha_composite(colours)
        return _apply_profile(flat.convert("RGB"), image.info.get("icc_profile"))
    if image.mode in ("RGB", "CMYK"):
        image = _apply_profile(image, image.info.get("icc_profile"))
    return image if image.mode == "RGB" else image.convert("RGB")


_CONVERTERS = {
    **dict.fromkeys(("1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV"), "plain"),
    **dict.fromkeys(("LA", "La", "PA", "RGBA", "RGBa"), "alpha"),
    **dict.fromkeys(("I;16", "I;16L", "I;16B", "I;16N"), "grey16"),
}


def _grey16_to_grey8(image: Image.Image) -> Image.Image:
    """0..65535 to 0..255 by value; Pillow's own conversion would clip at 255."""
    values = np.asarray(image).astype(np.uint16)
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _apply_profile(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert to sRGB through the embedded ICC profile, where there is a usable one that is not sRGB itself."""
    if not profile:
        return image
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return image
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):  # a damaged profile must not make the image unreadable
        return image
    return converted if converted is not None else image


def _looks_like(path: Path) -> str:
    with path.open("rb") as handle:
        head = handle.read(64)
    if head[4:8] == b"ftyp":
        if head[8:12] in (b"heic", b"heix", b"mif1", b"hevc"):
            missing = importlib.util.find_spec("pillow_heif") is None
            return "an HEIC image, " + ("which needs: pip install pillow-heif" if missing else "and damaged")
        return "a video"
    if head[:4] == b"\x1aE\xdf\xa3" or head[:4] == b"RIFF":
        return "a video or sound file"
    if head.lstrip()[:5].lower() in (b"<!doc", b"<html", b"<?xml", b"<svg "):
        return "a web page or SVG drawing"
    return f"it starts with {head[:8]!r}"


def write_png(path: str | os.PathLike[str], image: np.ndarray, *, overwrite: bool = False) -> Path:
    """Write an image as PNG; the file appears complete or not at all.

    Args:
        path: the file; missing folders are made.
        image: uint8 (H, W, 3) RGB or (H, W) grey.
        overwrite: whether an existing file may be replaced.

    Returns:
        The path written.

    Raises:
        MediaError: the target exists, cannot be written, or `image` has another shape or type.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)) or image.size == 0:
        raise MediaError(f"a PNG needs a uint8 array (H, W, 3) or (H, W); given {image.dtype} {image.shape}")
    path = Path(path)
    with atomic_output(path, overwrite=overwrite) as temporary:
        Image.fromarray(np.ascontiguousarray(image)).save(temporary, format="PNG", compress_level=6)
    return path


@dataclass(frozen=True)
class CropResize:
    """Cut a box out of an image and bring it to a size; moves images and keypoints alike.

    Attributes:
        box: (left, top, width, height) in px of the source image.
        size: (H, W) of the result in px.
    """

    box: tuple[int, int, int, int]
    size: tuple[int, int]

    def image(self, array: np.ndarray, *, interpolation: Literal["area", "bilinear"] = "area") -> np.ndarray:
        """Crop and resize an image.

        Args:
            array: (H, W) or (H, W, C), uint8 or float32.
            interpolation: "area" (averages when reducing; official for face control) or "bilinear" (that of Pillow: a
                triangle as wide as the reduction, so that nothing flickers; the pixels outside the box count nothing).

        Returns:
            The image of `size`, same type and number of channels; the very pixels where the box has that size.

        Raises:
            MediaError: the box reaches outside `array`, the interpolation has another name, or a type that "bilinear"
                cannot do.
        """
        if interpolation not in ("area", "bilinear"):
            raise MediaError(f"interpolation '{interpolation}' is unknown; choose one of ['area', 'bilinear']")
        left, top, width, height = self.box
        if array.ndim not in (2, 3) or top + height > array.shape[0] or left + width > array.shape[1]:
            raise MediaError(
                f"crop box {self.box} (left, top, width, height) does not fit an image of shape {array.shape}"
            )
        cut = np.ascontiguousarray(array[top : top + height, left : left + width])
        if cut.shape[:2] == self.size:
            return cut.copy()
        if interpolation == "bilinear":
            return _resize_bilinear(cut, self.size)
        resized = cv2.resize(cut, (self.size[1], self.size[0]), interpolation=cv2.INTER_AREA)
        return resized.reshape(*self.size, *array.shape[2:])  # OpenCV drops a single channel

    def points(self, xy: np.ndarray) -> np.ndarray:
        """Map pixel coordinates of the source image to the result.

        Args:
            xy: (..., 2) x, y in px.

        Returns:
            (..., 2), same float type (float64 for whole numbers); points outside the box land outside the result.
        """
        xy = np.asarray(xy)
        dtype = xy.dtype if np.issubdtype(xy.dtype, np.floating) else np.float64
        left, top, width, height = self.box
        scale = np.array([self.size[1] / width, self.size[0] / height])
        return ((xy - np.array([left, top]) + 0.5) * scale - 0.5).astype(dtype)


def _resize_bilinear(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pillow's bilinear resize of (H, W) or (H, W, C), any number of channels."""
    if array.dtype not in (np.uint8, np.float32):
        raise MediaError(f"bilinear resizing needs uint8 or float32; given {array.dtype}: convert the image first")
    if array.ndim == 2 or (array.dtype == np.uint8 and array.shape[2] == 3):
        return np.array(Image.fromarray(array).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    channels = [_resize_bilinear(np.ascontiguousarray(array[..., k]), size) for k in range(array.shape[2])]
    return np.stack(channels, axis=-1)


def _largest_box(size_hw: tuple[int, int], target_hw: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the largest box of the target's aspect inside an image, rounded down."""
    (height, width), (target_height, target_width) = size_hw, target_hw
    if min(height, width, target_height, target_width) < 1:
        raise MediaError(f"crop from {size_hw} to {target_hw} (H, W): all sides must be at least 1 px")
    # The order of the two operations decides the last pixel, so it is kept: divide first, then multiply.
    if width / height < target_width / target_height:
        return width, max(1, int(width / target_width * target_height))
    return max(1, int(height / target_height * target_width)), height


def top_quarter_crop(size_hw: tuple[int, int], target_hw: tuple[int, int]) -> CropResize:
    """The crop used with face control: largest box of the target aspect, centred across, its top at 1/4 of the slack.

    Args:
        size_hw: (H, W) of the source in px.
        target_hw: (H, W) of the result in px.

    Returns:
        The crop; use it for the reference, the driving frames and the poses alike.

    Raises:
        MediaError: a side below 1 px.

    Source: X-Dyna inference (face control), integer arithmetic included.
    """
    width, height = _largest_box(size_hw, target_hw)
    box = ((size_hw[1] - width) // 2, (size_hw[0] - height) // 4, width, height)
    return CropResize(box=box, size=(int(target_hw[0]), int(target_hw[1])))


def center_crop(size_hw: tuple[int, int], target_hw: tuple[int, int]) -> CropResize:
    """The crop used without face control: largest box of the target aspect, centred.

    Args:
        size_hw: (H, W) of the source in px.
        target_hw: (H, W) of the result in px.

    Returns:
        The crop.

    Raises:
        MediaError: a side below 1 px.
    """
    width, height = _largest_box(size_hw, target_hw)
    box = ((size_hw[1] - width) // 2, (size_hw[0] - height) // 2, width, height)
    return CropResize(box=box, size=(int(target_hw[0]), int(target_hw[1])))
