"""The published crops: what of an image is kept when it has another aspect than the video."""

import numpy as np

from xdyna.media.image import CropResize, center_crop, top_quarter_crop


def published_crop(size_hw: tuple[int, ...], target_hw: tuple[int, int], *, face: bool) -> CropResize:
    """The published crops: with face control everything is cut a quarter of the slack from above, else centred.

    Args:
        size_hw: (H, W, ...) of the image in px.
        target_hw: (H, W) of the video in px.
        face: whether the face ControlNet runs.

    Returns:
        CropResize: of the largest box that has the video's aspect.
    """
    return (top_quarter_crop if face else center_crop)((size_hw[0], size_hw[1]), target_hw)


def fit_image(image: np.ndarray, crop: CropResize, *, face: bool) -> np.ndarray:
    """The reference image at the video's size, resized as published.

    Args:
        image: uint8 (H, W, 3).
        crop: where it is cut.
        face: whether the face ControlNet runs: then pixels are averaged over areas, else interpolated.

    Returns:
        np.ndarray: uint8, at the crop's size.
    """
    return crop.image(image, interpolation="area" if face else "bilinear")
