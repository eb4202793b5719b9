"""Numbers of a window of small pictures: motion, the camera's motion, lines of text, a perceptual hash.

Lengths are in heights of the picture, times in s. Legend: T frames of h x w px.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from xdyna.data.preprocess.frames import sampled

_PAIRS = 32  # pairs of frames that are compared per window
_TEXT_FRAMES = 8
_FEATURES = 200
_FEWEST = 12  # features that say something about the camera
_STILL = 0.3  # px a frame: what tracking makes of a still point
_STILL_SHARE = 0.3  # so many still points, and the camera is: things that move by themselves do not keep still
_OUTLIER = 1.0  # px

_TEXT_CONTRAST = 60  # least difference of brightness of strokes and what they are written on
_TEXT_HEIGHT = (0.012, 0.12)  # of a line, shares of the picture's height
_TEXT_WIDTH = 0.1  # shares of the picture's width
_TEXT_ASPECT = 2.5
_TEXT_EDGES = 0.25  # share of a line's pixels that are edges of strokes
_TEXT_STROKES = 10  # changes between stroke and ground along a line
_TEXT_ALONE = 0.35  # edges above and below a line, relative to those in it


@dataclass(frozen=True)
class Motion:
    """How much moves in a window.

    Attributes:
        flow: mean length of the optical flow, heights/s.
        camera: mean motion of the background, heights/s.
    """

    flow: float
    camera: float


def measure_motion(frames: np.ndarray, times: np.ndarray, people: np.ndarray | None = None) -> Motion:
    """Optical flow and the camera's motion, on pairs of neighbouring frames spread over the window.

    The camera's motion is that of corners outside of the people: none, if enough of them keep still; else the
    similarity that most of them follow (RANSAC); else, where they follow none, the median of the flow out there.

    Args:
        frames: uint8 (T, h, w, 3) RGB, T >= 2.
        times: (T,) display times, s.
        people: (N, 4) boxes in which somebody was seen: left, top, right, bottom in [0, 1] of the picture; None: nobody.

    Returns:
        The motion.
    """
    height, width = frames.shape[1:3]
    background = np.full((height, width), 255, np.uint8)
    for left, top, right, bottom in () if people is None else people * np.array([width, height, width, height]):
        background[max(0, int(top)) : int(bottom) + 1, max(0, int(left)) : int(right) + 1] = 0
    flows, cameras = [], []
    dense = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    for first in sampled(len(frames) - 1, _PAIRS):
        before, after = (cv2.cvtColor(frames[k], cv2.COLOR_RGB2GRAY) for k in (first, first + 1))
        flow = np.linalg.norm(dense.calc(before, after, None), axis=2)
        rate = 1 / (height * max(float(times[first + 1] - times[first]), 1e-3))
        flows.append(float(flow.mean()) * rate)
        camera = _camera_step(before, after, background)
        if camera is None:
            outside = flow[background > 0]
            camera = float(np.median(outside)) if len(outside) else 0.0
        cameras.append(camera * rate)
    return Motion(flow=float(np.mean(flows)), camera=float(np.mean(cameras)))


def _camera_step(before: np.ndarray, after: np.ndarray, background: np.ndarray) -> float | None:
    """Mean motion of the background between two grey frames in px; None where its corners do not move as one."""
    corners = cv2.goodFeaturesToTrack(before, _FEATURES, 0.01, 5, mask=background)
    if corners is None or len(corners) < _FEWEST:
        return None
    moved, status, _ = cv2.calcOpticalFlowPyrLK(before, after, corners, None)
    tracked = status[:, 0] == 1
    if tracked.sum() < _FEWEST:
        return None
    start, end = corners[tracked, 0], moved[tracked, 0]
    if (np.linalg.norm(end - start, axis=1) < _STILL).mean() >= _STILL_SHARE:
        return 0.0
    matrix, inliers = cv2.estimateAffinePartial2D(start, end, method=cv2.RANSAC, ransacReprojThreshold=_OUTLIER)
    if matrix is None or inliers.mean() < 0.5:
        return None
    height, width = before.shape
    corner = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1], [width / 2, height / 2, 1]])
    return float(np.linalg.norm(corner @ matrix.T - corner[:, :2], axis=1).mean())


def measure_text(frames: np.ndarray) -> float:
    """Share of frames with a line of text in the upper or lower third.

    A line is a wide, low block full of strokes that stand out from what they are written on, with little above and
    below: subtitles, captions, names of channels. Small logos without letters are not found.

    Args:
        frames: uint8 (T, h, w, 3) RGB.

    Returns:
        Share in [0, 1] of the frames looked at.
    """
    return float(np.mean([bool(text_lines(frames[k])) for k in sampled(len(frames), _TEXT_FRAMES)]))


def text_lines(frame: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Boxes (left, top, width, height in px) of lines of text in the upper and lower third of a frame.

    Args:
        frame: uint8 (h, w, 3) RGB, small.

    Returns:
        The boxes; empty for most pictures.
    """
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    range_ = cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    edges = (range_ >= _TEXT_CONTRAST).astype(np.uint8)
    joined = cv2.morphologyEx(edges, cv2.MORPH_CLOSE, np.ones((1, max(3, round(0.03 * width))), np.uint8))
    count, _, boxes, _ = cv2.connectedComponentsWithStats(joined, connectivity=8)
    found = []
    for left, top, across, down, _ in boxes[1:count]:
        middle = (top + down / 2) / height
        if 1 / 3 < middle < 2 / 3 or not _TEXT_HEIGHT[0] * height <= down <= max(_TEXT_HEIGHT[1] * height, 8):
            continue
        if across < _TEXT_WIDTH * width or across < _TEXT_ASPECT * down or across > 0.97 * width:
            continue
        if _is_line(grey, edges, (int(left), int(top), int(across), int(down))):
            found.append((int(left), int(top), int(across), int(down)))
    return found


def _is_line(grey: np.ndarray, edges: np.ndarray, box: tuple[int, int, int, int]) -> bool:
    """Whether a block looks like text inside and is alone above and below."""
    left, top, across, down = box
    inside = edges[top : top + down, left : left + across]
    density = float(inside.mean())
    if density < _TEXT_EDGES:
        return False
    part = grey[top : top + down, left : left + across].astype(np.int16)
    middle = (int(np.percentile(part, 5)) + int(np.percentile(part, 95))) / 2
    changes = (np.diff((part > middle).astype(np.int8), axis=1) != 0).sum(axis=1)
    if float(np.median(changes)) < max(_TEXT_STROKES, 0.5 * across / down):
        return False
    above = edges[max(0, top - down) : top, left : left + across]
    below = edges[top + down : top + 2 * down, left : left + across]
    return all(float(part.mean()) <= _TEXT_ALONE * density for part in (above, below) if part.size)


def perceptual_hash(frame: np.ndarray) -> str:
    """64-bit pHash: signs of the low frequencies of the grey picture relative to their mean.

    Nearly equal pictures (scaled, compressed again, brighter) differ in few bits, others in about half of them.

    Args:
        frame: uint8 (h, w, 3) RGB.

    Returns:
        16 hexadecimal digits.

    Source: Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010; as in OpenCV's img_hash.
    """
    grey = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
    low = cv2.dct(grey.astype(np.float32))[:8, :8]
    low[0, 0] = 0
    bits = (low > low.mean()).ravel()
    return np.packbits(bits).tobytes().hex()
