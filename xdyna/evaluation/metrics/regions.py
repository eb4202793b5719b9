"""Fidelity and liveliness of a clip inside a region: PSNR, SSIM, temporal energy.

Everything is summed in float64 one frame at a time, so that memory does not grow with the clip. Pixel values are those
of uint8 pictures, 0 to 255, unless said otherwise; a region is a bool mask per frame, None is the whole frame.

Shape legend: T frames, H W pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import cv2
import numpy as np

PEAK = 255.0
MAX_PSNR = 100.0  # dB, of pictures without any error
_WINDOW, _SIGMA = 11, 1.5  # px, of SSIM's Gaussian
_C1, _C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2


def squared_error(truth: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Squared difference of two pictures, averaged over the colour channels.

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
        dB, at most 100 (equal pictures); NaN for NaN (an empty region).
    """
    return MAX_PSNR if mse == 0 else min(MAX_PSNR, 10 * math.log10(PEAK**2 / mse)) if mse > 0 else math.nan


def ssim_map(truth: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Structural similarity at every pixel, averaged over the colour channels.

    Gaussian window of 11 x 11 px with sigma 1.5, population covariance; each channel by itself. Where the window does
    not fit into the picture (5 px at each edge) there is no value.

    Args:
        truth: uint8 (H, W, 3), at least 11 x 11 px.
        generated: uint8 (H, W, 3).

    Returns:
        float64 (H, W), -1 to 1; NaN at the edges. Its mean without NaN is the SSIM of the pictures.

    Raises:
        ValueError: another shape or type, or pictures smaller than the window.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, eq. 13.
    """
    _check_pair(truth, generated)
    if min(truth.shape[:2]) < _WINDOW:
        raise ValueError(
            f"SSIM was given pictures of {truth.shape[0]} x {truth.shape[1]} px, but its window is {_WINDOW} x "
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


@dataclass
class Mean:
    """A mean that values are added to in portions.

    Attributes:
        total: sum of the values so far.
        count: how many they were.
    """

    total: float = 0.0
    count: int = 0

    def add(self, values: np.ndarray) -> None:
        """Add values of any shape; NaN are left out."""
        kept = values[~np.isnan(values)]
        self.total += float(kept.sum(dtype=np.float64))
        self.count += kept.size

    @property
    def value(self) -> float:
        """The mean; NaN before the first value."""
        return self.total / self.count if self.count else math.nan


@dataclass
class RegionQuality:
    """PSNR and SSIM of a clip inside a region, fed frame by frame.

    The squared error is averaged over all masked pixels of all frames before it becomes dB; SSIM is the mean of
    `ssim_map` over the masked pixels of all frames.
    """

    _error: Mean = field(default_factory=Mean)
    _similarity: Mean = field(default_factory=Mean)

    def add(self, truth: np.ndarray, generated: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Add one frame.

        Args:
            truth: uint8 (H, W, 3).
            generated: uint8 (H, W, 3).
            mask: bool (H, W), or None for the whole frame.

        Raises:
            ValueError: another shape or type.
        """
        region = _region(mask, truth.shape)
        self._error.add(squared_error(truth, generated)[region])
        self._similarity.add(ssim_map(truth, generated)[region])

    @classmethod
    def of(
        cls, truth: Iterable[np.ndarray], generated: Iterable[np.ndarray], masks: Iterable[np.ndarray] | None = None
    ) -> RegionQuality:
        """A whole clip: T frames, T generated ones and T masks, as in `add`."""
        quality = cls()
        regions = itertools.repeat(None) if masks is None else masks
        pairs = zip(truth, generated, strict=True)
        for (frame, made), mask in zip(pairs, regions, strict=masks is not None):
            quality.add(frame, made, mask)
        return quality

    @property
    def mse(self) -> float:
        """Mean squared error, 0 to 255^2; NaN where the region is empty in all frames."""
        return self._error.value

    @property
    def psnr(self) -> float:
        """dB, at most 100; NaN where the region is empty."""
        return psnr(self.mse)

    @property
    def ssim(self) -> float:
        """-1 to 1; NaN where the region is empty."""
        return self._similarity.value


@dataclass
class TemporalEnergy:
    """How much a region moves: mean squared difference of neighbouring frames in [0, 1], fed frame by frame.

    Counted are the pixels that belong to the region in both frames.
    """

    _energy: Mean = field(default_factory=Mean)
    _last: tuple[np.ndarray, np.ndarray] | None = None

    def add(self, frame: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Add one frame, uint8 (H, W, 3), and its region, bool (H, W) or None for the whole frame.

        Raises:
            ValueError: another shape or type.
        """
        region = _region(mask, frame.shape)
        if self._last is not None:
            previous, previous_region = self._last
            self._energy.add(squared_error(previous, frame)[region & previous_region] / PEAK**2)
        self._last = (frame, region)

    @property
    def value(self) -> float:
        """Mean squared difference in [0, 1]^2; NaN where no pixel is in the region in two neighbouring frames."""
        return self._energy.value


def temporal_energy(frames: Iterable[np.ndarray], masks: Iterable[np.ndarray] | None = None) -> float:
    """`TemporalEnergy` of a whole clip.

    Args:
        frames: T frames, uint8 (H, W, 3).
        masks: T regions, bool (H, W), or None for whole frames.

    Returns:
        Mean squared difference of neighbouring frames, values in [0, 1].
    """
    energy = TemporalEnergy()
    for frame, mask in zip(frames, itertools.repeat(None) if masks is None else masks, strict=masks is not None):
        energy.add(frame, mask)
    return energy.value


def _blur(values: np.ndarray) -> np.ndarray:
    kernel = cv2.getGaussianKernel(_WINDOW, _SIGMA, cv2.CV_64F)
    return cv2.sepFilter2D(values, cv2.CV_64F, kernel, kernel, borderType=cv2.BORDER_REFLECT)


def _region(mask: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    if mask is None:
        return np.ones(shape[:2], bool)
    if mask.dtype != np.bool_ or mask.shape != shape[:2]:
        raise ValueError(f"a mask has shape {mask.shape} and type {mask.dtype}, expected bool {shape[:2]} as its frame")
    return mask


def _check_pair(truth: np.ndarray, generated: np.ndarray) -> None:
    for picture in (truth, generated):
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise ValueError(f"a frame has shape {picture.shape} and type {picture.dtype}, expected uint8 (H, W, 3)")
    if truth.shape != generated.shape:
        raise ValueError(f"frames of shape {truth.shape} and {generated.shape} cannot be compared; resize one first")
