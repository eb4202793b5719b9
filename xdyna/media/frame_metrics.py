"""How like two frames are: PSNR and SSIM, defined here and nowhere else.

Pixel values are those of uint8 images, 0 to 255. The SSIM of the field's tables, of grey images with a uniform window,
is scikit-image's (`evaluation/metrics/images.py`).
"""

from __future__ import annotations

import math

import cv2
import numpy as np

PEAK = 255.0
MAX_PSNR = 100.0  # dB, of images without any error
_WINDOW, _SIGMA = 11, 1.5  # px, of SSIM's Gaussian
_C1, _C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


def squared_error(truth: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Squared difference of two images, averaged over the colour channels.

    Args:
        truth: uint8 (H, W, 3).
        generated: uint8 (H, W, 3).

    Returns:
        float64 (H, W), 0 to 255^2.

    Raises:
        ValueError: another shape or type.
    """
    _check_pair(truth, generated)
    return np.square(truth.astype(np.float64) - generated).mean(axis=2)


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio, 10 log10(255^2 / MSE).

    Args:
        mse: mean squared error of pixels in 0 to 255.

    Returns:
        dB, at most 100 (equal images); NaN for NaN (an empty region).
    """
    return MAX_PSNR if mse == 0 else min(MAX_PSNR, 10 * math.log10(PEAK**2 / mse)) if mse > 0 else math.nan


def ssim_map(truth: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Structural similarity at every pixel, averaged over the colour channels.

    Gaussian window of 11 x 11 px with sigma 1.5, population covariance; each channel by itself. Where the window does
    not fit into the image (5 px at each edge) there is no value.

    Args:
        truth: uint8 (H, W, 3), at least 11 x 11 px.
        generated: uint8 (H, W, 3).

    Returns:
        float64 (H, W), -1 to 1; NaN at the edges. Its mean without NaN is the SSIM of the images.

    Raises:
        ValueError: another shape or type, or images smaller than the window.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, eq. 13.
    """
    _check_pair(truth, generated)
    if min(truth.shape[:2]) < _WINDOW:
        raise ValueError(
            f"SSIM was given images of {truth.shape[0]} x {truth.shape[1]} px, but its window is {_WINDOW} x "
            f"{_WINDOW}; give larger ones"
        )
    x, y = truth.astype(np.float64), generated.astype(np.float64)
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    similarity = ((2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)) / (
        (mean_x**2 + mean_y**2 + _C1) * (var_x + var_y + _C2)
    )
    result = np.full(truth.shape[:2], np.nan)
    inner = slice(_WINDOW // 2, -(_WINDOW // 2))
    result[inner, inner] = similarity[inner, inner].mean(axis=2)
    return result


def _blur(values: np.ndarray) -> np.ndarray:
    kernel = cv2.getGaussianKernel(_WINDOW, _SIGMA, cv2.CV_64F)
    return cv2.sepFilter2D(values, cv2.CV_64F, kernel, kernel, borderType=cv2.BORDER_REFLECT)


def _check_pair(truth: np.ndarray, generated: np.ndarray) -> None:
    for image in (truth, generated):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"a frame has shape {image.shape} and type {image.dtype}, expected uint8 (H, W, 3)")
    if truth.shape != generated.shape:
        raise ValueError(f"frames of shape {truth.shape} and {generated.shape} cannot be compared; resize one first")
