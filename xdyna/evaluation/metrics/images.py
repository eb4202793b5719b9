"""Frame-by-frame fidelity: L1, MAE, PSNR, SSIM, as DisCo's protocol has them (arXiv 2307.00040) and as they should be.

All compare `Case.paired`: uint8 RGB frames, the generated ones resized bilinearly to the truth, cut to the shorter
video. What is reported is the mean over all frames of all videos.

Shape legend: T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from skimage.metrics import structural_similarity

from xdyna.evaluation.metric import HIGHER, LOWER, Case, Column, Metric, Record, pooled, pooled_means
from xdyna.media.frame_metrics import PEAK, psnr

SSIM_WINDOW = 7  # px


def mean_absolute_error(truth: np.ndarray, generated: np.ndarray) -> float:
    """mean |a - b| over pixels and channels.

    Args:
        truth: uint8 (H, W, 3).
        generated: uint8 (H, W, 3).

    Returns:
        0 to 255.
    """
    return float(np.abs(truth.astype(np.float64) - generated).mean())


def l1_disco(truth: np.ndarray, generated: np.ndarray) -> float:
    """The L1 that the field's tables print (0.5 - 5 E-04): the mean absolute error divided by the number of pixels once
    more. It falls with the square of the resolution: compare it at one size only.

    Args:
        truth: uint8 (H, W, 3).
        generated: uint8 (H, W, 3).
    """
    return mean_absolute_error(truth, generated) / (truth.shape[0] * truth.shape[1])


def psnr_float(truth: np.ndarray, generated: np.ndarray) -> float:
    """Peak signal-to-noise ratio of one frame.

    Args:
        truth: uint8 (H, W, 3).
        generated: uint8 (H, W, 3).

    Returns:
        dB.
    """
    return psnr(float(np.square(truth.astype(np.float64) - generated).mean()))


def psnr_uint8wrap(truth: np.ndarray, generated: np.ndarray) -> float:
    """The PSNR of widely shared evaluation code, which subtracts and squares in uint8.

    Both overflow modulo 256, so that large errors count as small ones. Only to compare with numbers
    that were published with it.

    Args:
        truth: uint8 (H, W, 3).
        generated: uint8 (H, W, 3).

    Returns:
        dB, usually far above the true value.
    """
    difference = (truth.astype(np.int64) - generated) % 256
    return psnr(float((difference**2 % 256).mean()))


def ssim_grey(truth: np.ndarray, generated: np.ndarray) -> float:
    """Structural similarity of the grey images: uniform 7 x 7 window, sample covariance, borders of 3 px left out.

    Args:
        truth: uint8 (H, W, 3), at least 7 x 7 px.
        generated: uint8 (H, W, 3).

    Returns:
        -1 to 1.

    Raises:
        ValueError: smaller images.

    Source: Wang et al. 2004, in scikit-image's implementation.
    """
    if min(truth.shape[:2]) < SSIM_WINDOW:
        raise ValueError(f"SSIM was given frames of {truth.shape[0]} x {truth.shape[1]} px; its window is 7 x 7 px")
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (truth, generated)]
    return float(structural_similarity(*grey, win_size=SSIM_WINDOW, data_range=PEAK))


@dataclass(frozen=True)
class _Definition:
    column: Column
    of_frame: Callable[[np.ndarray, np.ndarray], float]


DEFINITIONS: dict[str, _Definition] = {
    "l1": _Definition(Column("l1", "L1 (DisCo: mean error / pixels)", LOWER, digits=8), l1_disco),
    "mae": _Definition(Column("mae", "MAE", LOWER, digits=3), mean_absolute_error),
    "psnr": _Definition(Column("psnr", "PSNR", HIGHER, digits=2), psnr_float),
    "psnr_uint8wrap": _Definition(Column("psnr_uint8wrap", "PSNR (uint8 bug)", HIGHER, digits=2), psnr_uint8wrap),
    "ssim": _Definition(Column("ssim", "SSIM", HIGHER, digits=4), ssim_grey),
}


class FrameMetric(Metric):
    """One of `DEFINITIONS`.

    Args:
        name: its key.
    """

    def __init__(self, name: str) -> None:
        self._definition = DEFINITIONS[name]
        self.name, self.version = name, "1"
        self.needs = frozenset({"truth"})
        self.columns = (self._definition.column,)

    def measure(self, case: Case) -> Record:
        """See `Metric.measure`."""
        truth, generated = case.paired
        return Record(
            pooled(self.name, [self._definition.of_frame(a, b) for a, b in zip(truth, generated, strict=True)])
        )

    def reduce(self, records: Iterable[Record]) -> dict[str, float]:
        """See `Metric.reduce`."""
        return {self.name: float("nan"), **pooled_means(records)}
