"""Fidelity and liveliness of a clip inside a region: PSNR, SSIM, temporal energy.

Everything is summed in float64 one frame at a time, so that memory does not grow with the clip. Pixel values are those
of uint8 images, 0 to 255, unless said otherwise; a region is a bool mask per frame, None is the whole frame.

Shape legend: T frames, H W pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from xdyna.media.frame_metrics import PEAK, psnr, squared_error, ssim_map


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


def _region(mask: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    if mask is None:
        return np.ones(shape[:2], bool)
    if mask.dtype != np.bool_ or mask.shape != shape[:2]:
        raise ValueError(f"a mask has shape {mask.shape} and type {mask.dtype}, expected bool {shape[:2]} as its frame")
    return mask
