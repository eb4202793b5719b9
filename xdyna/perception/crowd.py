"""Many people in one frame: where to look for them, who was found twice, and what somebody wears.

A detector that sees a whole frame at 224 px misses small people beside large ones, so it is shown squares of the frame
as well; what the squares give overlaps and is merged here.
"""

from __future__ import annotations

from collections.abc import Iterable

import cv2
import numpy as np

from xdyna.perception.draw import CONFIDENCE
from xdyna.perception.topology import LEFT_HIP, LEFT_SHOULDER, RIGHT_HIP, RIGHT_SHOULDER
from xdyna.perception.types import Person

_ALIKE = 0.5  # mean distance of two poses' landmarks, in torsos of the larger one, below which they are one person
_WITHIN = 0.8  # share of a pose's box that lies in another's ...
_PART = 0.6  # ... and its height over the other's, below which it is taken for a part of the other (a leg, a shadow)
_COVERED = 0.6  # share of a square in somebody's box above which nobody else has room in it
_BINS = (4, 8, 8)  # lightness, and the two axes of colour
_LEAST = 16  # px of a torso below which nothing is said about its colours


def tiles(frame_hw: tuple[int, ...], *, side: float, step: float) -> list[tuple[int, int, int]]:
    """Squares that cover a frame, evenly spread and overlapping.

    Args:
        frame_hw: (H, W) px.
        side: of the squares, in shorter sides of the frame, at most 1.
        step: largest distance between neighbours, in the same unit.

    Returns:
        (left, top, side) px of each; none where one square would be the whole frame.
    """
    size = round(side * min(frame_hw))
    rows, columns = (
        np.linspace(0, length - size, 1 + int(np.ceil((length - size) / (step * min(frame_hw))))).astype(int).tolist()
        for length in frame_hw[:2]
    )
    return [(left, top, size) for top in rows for left in columns] if max(frame_hw) > size else []


def torso(pose: np.ndarray) -> float:
    """Length from the middle of the shoulders to the middle of the hips, px. Args: pose: (33, 3) of MediaPipe Pose."""
    return float(np.linalg.norm(pose[[11, 12], :2].mean(axis=0) - pose[[23, 24], :2].mean(axis=0)))


def distinct(poses: Iterable[np.ndarray], *, known: Iterable[np.ndarray] = ()) -> list[np.ndarray]:
    """Poses that are nobody's a second time, the surest first.

    Args:
        poses: (33, 3) px and visibility of each.
        known: poses of people who count already.

    Returns:
        Some of `poses`: none that has its landmarks where those of a surer or known one are, or that lies in the box of
        one much larger.
    """
    kept: list[np.ndarray] = []
    before = list(known)
    for pose in sorted(poses, key=lambda pose: -pose[:, 2].mean()):
        if not any(_same(pose, other) for other in [*before, *kept]):
            kept.append(pose)
    return kept


def covered(square: tuple[int, int, int], poses: Iterable[np.ndarray]) -> bool:
    """Whether a square shows little but one person who is known. Args: square: (left, top, side) px; poses: (33, 3)."""
    left, top, side = square
    for pose in poses:
        low, high = _box(pose)
        common = (np.minimum(high, (left + side, top + side)) - np.maximum(low, (left, top))).clip(0)
        if float(np.prod(common)) > _COVERED * side**2:
            return True
    return False


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two poses are of one person."""
    apart = np.linalg.norm(first[:, :2] - second[:, :2], axis=1).mean()
    if apart <= _ALIKE * max(torso(first), torso(second)):
        return True
    boxes = sorted((_box(first), _box(second)), key=lambda box: float(np.prod(box[1] - box[0])))
    (low, high), (other_low, other_high) = boxes
    common = float(np.prod((np.minimum(high, other_high) - np.maximum(low, other_low)).clip(0)))
    part = float((high - low)[1]) < _PART * float((other_high - other_low)[1])
    return part and common > _WITHIN * float(np.prod(high - low))


def _box(pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return pose[:, :2].min(axis=0), pose[:, :2].max(axis=0)


def torso_colors(frame: np.ndarray, person: Person) -> np.ndarray | None:
    """What somebody wears: a histogram of the colours between shoulders and hips.

    Args:
        frame: (H, W, 3) uint8 RGB.
        person: in px of the frame.

    Returns:
        (256,) float32, shares that sum to 1, of CIE L*a*b*; None where too little of the torso is seen.
    """
    joints = person.body[[RIGHT_SHOULDER, LEFT_SHOULDER, LEFT_HIP, RIGHT_HIP]]
    if (joints[:, 2] < CONFIDENCE).any():
        return None
    height, width = frame.shape[:2]
    left, top = np.floor(joints[:, :2].min(axis=0)).astype(int).clip(0)
    right, bottom = np.minimum(np.ceil(joints[:, :2].max(axis=0)).astype(int) + 1, (width, height))
    if min(right - left, bottom - top) < 2:
        return None
    mask = np.zeros((bottom - top, right - left), np.uint8)
    outline = np.round(joints[:, :2] - (left, top)).astype(np.int32)
    cv2.fillConvexPoly(mask, cv2.convexHull(outline), (1,))
    if int(mask.sum()) < _LEAST:
        return None
    lab = cv2.cvtColor(np.ascontiguousarray(frame[top:bottom, left:right]), cv2.COLOR_RGB2LAB)
    # Cloth lies close to grey (128): the axes of colour are told apart from 64 to 192.
    lab[..., 1:] = lab[..., 1:].clip(64, 191)
    counts = cv2.calcHist([lab], [0, 1, 2], mask, list(_BINS), [0, 256, 64, 192, 64, 192])
    total = float(counts.sum())
    return (counts / total).astype(np.float32).ravel() if total else None


def unlike(first: np.ndarray, second: np.ndarray) -> float:
    """How far apart two histograms are, in [0, 1]. Source: Bhattacharyya 1943, as Hellinger's distance."""
    return float(np.sqrt(max(0.0, 1.0 - float(np.sqrt(first * second).sum()))))
