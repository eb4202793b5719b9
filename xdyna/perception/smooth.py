"""Keypoints through time: short gaps are filled, and jitter is filtered by choice."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from xdyna.perception.errors import PerceptionError

_MAX_SPAN = 1.0  # s between the sightings around a gap that is filled


@dataclass(frozen=True)
class OneEuro:
    """Settings of the one-euro filter: slow movements are smoothed, fast ones pass.

    Attributes:
        min_cutoff: cutoff frequency at rest, Hz; lower is smoother.
        beta: how much the cutoff rises with speed, Hz per (image height / s).
        derivative_cutoff: cutoff frequency of the speed estimate, Hz.

    Raises:
        PerceptionError: a cutoff that is not positive, or a negative beta.

    Source: Casiez, Roussel, Vogel, "1 Euro Filter", CHI 2012.
    """

    min_cutoff: float = 1.5
    beta: float = 4.0
    derivative_cutoff: float = 1.0

    def __post_init__(self) -> None:
        if not (self.min_cutoff > 0 and self.derivative_cutoff > 0 and self.beta >= 0):
            raise PerceptionError(f"{self} cannot filter: cutoffs must be above 0 Hz, beta at least 0")


def fill_gaps(
    points: np.ndarray, *, times: np.ndarray, max_gap: int, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Fill points that are missing for a few frames.

    Between two sightings positions are interpolated linearly and the confidence is the lower of the two; at the ends of
    the clip the nearest sighting is held. Gaps of more than `max_gap` frames stay as they are, and so do gaps of more
    than a second: nothing is known about so long a time.

    Args:
        points: (T, K, 3) x px, y px, confidence.
        times: (T,) s, ascending.
        max_gap: longest gap that is filled, frames; 0 fills nothing.
        threshold: points of lower confidence count as missing, in (0, 1].

    Returns:
        filled: (T, K, 3) float32.
        changed: (T, K) bool, which points were filled.
    """
    filled = np.array(points, dtype=np.float32)
    changed = np.zeros(points.shape[:2], dtype=bool)
    count = len(points)
    for joint in range(points.shape[1]):
        seen = np.flatnonzero(points[:, joint, 2] >= threshold)
        if not len(seen):
            continue
        for before, after in zip([-1, *seen], [*seen, count], strict=True):
            gap = int(after) - int(before) - 1
            if not 0 < gap <= max_gap or times[min(after, count - 1)] - times[max(before, 0)] > _MAX_SPAN:
                continue
            rows = np.arange(before + 1, after)
            start = filled[before if before >= 0 else after, joint].copy()
            end = filled[after if after < count else before, joint].copy()
            weight = ((rows - before) / (gap + 1))[:, None]
            filled[rows, joint, :2] = start[:2] + weight * (end[:2] - start[:2])
            filled[rows, joint, 2] = min(start[2], end[2])
            changed[rows, joint] = True
    return filled, changed


def one_euro(points: np.ndarray, *, times: np.ndarray, height: int, settings: OneEuro) -> np.ndarray:
    """Filter the positions of points, each unbroken run of sightings on its own.

    The filter runs forward and backward and the two are averaged, so that nothing lags behind the image.

    Args:
        points: (T, K, 3) x px, y px, confidence; confidence 0 is missing.
        times: (T,) s, ascending.
        height: height of the image, px: the unit of speed.
        settings: of the filter.

    Returns:
        (T, K, 3) float32; confidences unchanged.
    """
    filtered = np.array(points, dtype=np.float32)
    for joint in range(points.shape[1]):
        seen = np.flatnonzero(points[:, joint, 2] > 0)
        for run in np.split(seen, np.flatnonzero(np.diff(seen) > 1) + 1):
            if len(run) < 2:
                continue
            positions = points[run, joint, :2].astype(np.float64) / height
            steps = np.diff(times[run])
            forward = _one_euro_pass(positions, steps, settings)
            backward = _one_euro_pass(positions[::-1], steps[::-1], settings)[::-1]
            filtered[run, joint, :2] = (forward + backward) / 2 * height
    return filtered


def _one_euro_pass(positions: np.ndarray, steps: np.ndarray, settings: OneEuro) -> np.ndarray:
    """One causal pass over (N, 2) positions with (N - 1,) time steps in s; equations 1-7 of the paper."""
    result = positions.copy()
    speed = np.zeros(2)
    for row, step in enumerate(steps, start=1):
        if step <= 0:  # the same frame shown twice
            result[row] = result[row - 1]
            continue
        weight = _smoothing(settings.derivative_cutoff, step)
        speed = weight * (positions[row] - result[row - 1]) / step + (1 - weight) * speed
        weight = _smoothing(settings.min_cutoff + settings.beta * np.abs(speed), step)
        result[row] = weight * positions[row] + (1 - weight) * result[row - 1]
    return result


def _smoothing(cutoff: float | np.ndarray, step: float) -> float | np.ndarray:
    """Weight of the new value for a cutoff in Hz and a time step in s."""
    ratio = 2 * math.pi * cutoff * step
    return ratio / (ratio + 1)
