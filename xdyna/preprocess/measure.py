"""Numbers of a window of small images: motion, the camera's motion, lines of text, a perceptual hash.

Lengths are in heights of the image, times in s. Legend: T frames of h x w px.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from xdyna.preprocess.frames import sampled

_PAIRS = 32  # pairs of frames that are compared per window
_TEXT_FRAMES = 8
_TEXT_STEP = 3  # frames: what moves is elsewhere then, text is not
_AROUND = 0.1  # of a person's box on each side: joints do not reach to hair, hands and clothes
_FEATURES = 200
_FEWEST = 12  # features that say something about the camera
_STILL = 0.3  # px a frame: what tracking makes of a still point
_STILL_SHARE = 0.3  # so many still points, and the camera is: things that move by themselves do not keep still
_OUTLIER = 1.0  # px

_TEXT_CONTRASTS = (60, 110, 160)  # differences of brightness of strokes and what they are written on
_TEXT_HEIGHT = (0.012, 0.15)  # of a line, shares of the image's height
_TEXT_WIDTH = 0.1  # shares of the image's width
_TEXT_ASPECT = 2.5
_TEXT_EDGES = 0.25  # share of a line's pixels that are edges of strokes
_TEXT_STROKES = 10  # changes between stroke and ground along a line
_TEXT_GAP = 2.0  # widest gap between words, in their height
_TEXT_ALONE = 0.5  # edges above and below a line, relative to those in it


class Rectangle(NamedTuple):
    """A box in px of an image."""

    left: int
    top: int
    width: int
    height: int

    @property
    def right(self) -> int:
        """First column behind it."""
        return self.left + self.width

    @property
    def bottom(self) -> int:
        """First row below it."""
        return self.top + self.height

    def of(self, image: np.ndarray) -> np.ndarray:
        """What lies inside of a (h, w) image."""
        return image[max(0, self.top) : max(0, self.bottom), max(0, self.left) : max(0, self.right)]

    def joined(self, other: Rectangle) -> Rectangle:
        """The smallest one around both."""
        left, top = min(self.left, other.left), min(self.top, other.top)
        return Rectangle(left, top, max(self.right, other.right) - left, max(self.bottom, other.bottom) - top)


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
        people: (N, 4) boxes of people: left, top, right, bottom in [0, 1] of the image; None: nobody.

    Returns:
        The motion.
    """
    height, width = frames.shape[1:3]
    background = np.full((height, width), 255, np.uint8)
    for left, top, right, bottom in () if people is None else people * np.array([width, height, width, height]):
        across, down = _AROUND * (right - left), _AROUND * (bottom - top)
        rows = slice(max(0, int(top - down)), max(0, int(bottom + down)) + 1)
        background[rows, max(0, int(left - across)) : max(0, int(right + across)) + 1] = 0
    flows, cameras = [], []
    dense = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
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

    A line is a wide, low block full of strokes that stand out from what they are written on and keep still, with little
    above and below: subtitles, captions, names of channels. Faint text and small logos without letters are not found.

    Args:
        frames: uint8 (T, h, w, 3) RGB.

    Returns:
        Share in [0, 1] of the frames looked at.
    """
    found = []
    for k in sampled(len(frames), _TEXT_FRAMES):
        around = np.unique(np.clip([k, k + _TEXT_STEP, k - _TEXT_STEP], 0, len(frames) - 1))
        found.append(bool(text_lines(frames[k], frames[around])))
    return float(np.mean(found))


def text_lines(frame: np.ndarray, around: np.ndarray | None = None) -> list[Rectangle]:
    """Lines of text in the upper and lower third of a frame.

    Strokes close to each other are words; words of one height beside each other are lines. Several contrasts are tried:
    a high one parts bright text from a busy image.

    Args:
        frame: uint8 (h, w, 3) RGB, small.
        around: uint8 (N, h, w, 3), frames a moment before and after, in which the text must be as well.

    Returns:
        The lines; empty for most images.
    """
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    gradient = _gradient(grey)
    for other in () if around is None else around:
        gradient = np.minimum(gradient, _gradient(cv2.cvtColor(other, cv2.COLOR_RGB2GRAY)))
    lines = []
    for contrast in _TEXT_CONTRASTS:
        edges = gradient >= contrast
        lines += [line for line in _joined_words(_words(edges)) if _is_line(line, grey, edges)]
    return lines


def _gradient(grey: np.ndarray) -> np.ndarray:
    """Largest difference of brightness within 3 x 3 px."""
    return np.asarray(cv2.morphologyEx(grey, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)))


def _words(edges: np.ndarray) -> list[Rectangle]:
    """Blocks of strokes of a letter's height, from left to right."""
    height, width = edges.shape
    joined = cv2.morphologyEx(edges.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((1, max(3, round(0.025 * width)))))
    count, _, boxes, _ = cv2.connectedComponentsWithStats(joined, connectivity=4)
    lowest, highest = max(5, _TEXT_HEIGHT[0] * height), max(9, _TEXT_HEIGHT[1] * height)
    words = []
    for box in boxes[1:count]:
        word = Rectangle(*(int(side) for side in box[:4]))
        middle = (word.top + word.height / 2) / height
        fits = lowest <= word.height <= highest and word.width >= word.height / 2 and not 1 / 3 < middle < 2 / 3
        if fits and word.of(edges).mean() >= _TEXT_EDGES:
            words.append(word)
    return sorted(words)


def _joined_words(words: Sequence[Rectangle]) -> list[Rectangle]:
    """Words, from left to right, as lines."""
    lines: list[Rectangle] = []
    for word in words:
        for k, line in enumerate(lines):
            tall = max(word.height, line.height)
            same = tall < 2 * min(word.height, line.height) and abs(word.bottom - line.bottom) < 0.6 * tall
            if same and word.left - line.right < _TEXT_GAP * tall:
                lines[k] = line.joined(word)
                break
        else:
            lines.append(word)
    return lines


def _is_line(line: Rectangle, grey: np.ndarray, edges: np.ndarray) -> bool:
    """Whether a block looks like text inside and is alone above and below."""
    if line.width < max(_TEXT_WIDTH * grey.shape[1], _TEXT_ASPECT * line.height) or line.width > 0.98 * grey.shape[1]:
        return False
    part = line.of(grey).astype(np.int16)
    middle = (int(np.percentile(part, 5)) + int(np.percentile(part, 95))) / 2
    changes = (np.diff((part > middle).astype(np.int8), axis=1) != 0).sum(axis=1)
    if float(np.percentile(changes, 75)) < max(_TEXT_STROKES, 0.8 * line.width / line.height):
        return False
    density, gap = float(line.of(edges).mean()), max(3, line.height // 2)
    around = (Rectangle(line.left, line.top - gap - 1, line.width, gap),
              Rectangle(line.left, line.bottom + 1, line.width, gap))  # fmt: skip
    return all(float(r.of(edges).mean()) <= _TEXT_ALONE * density for r in around if r.of(edges).size)


def perceptual_hash(frame: np.ndarray) -> str:
    """64-bit pHash: signs of the low frequencies of the grey image relative to their mean.

    Nearly equal images (scaled, compressed again, brighter) differ in few bits, others in about half of them.

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
