"""Pose maps in the style the published weights were trained with.

Measured on official pose maps of 512 x 896 px: limbs are filled ellipses of half-width 4 px in the colours of
`BODY_COLORS` at 60 % brightness; joints are discs of radius 4 px at full brightness; hands are lines 2 px wide with one
hue per bone and blue discs of radius 4 px on top; nothing is smoothed. Eyes and ears are not drawn.
"""

from __future__ import annotations

import colorsys
import math

import cv2
import numpy as np

from xdyna.config.contract import PoseStyle
from xdyna.perception.errors import PerceptionError
from xdyna.perception.topology import BODY_COLORS, BODY_LIMBS, HAND_BONES, HEAD_JOINTS
from xdyna.perception.types import PoseTrack

_OFFICIAL_SIDE = 512  # shorter side of the official images, px: widths scale with it
_STICK, _DOT, _HAND_LINE = 4, 4, 2  # px at that size
_LIMB_BRIGHTNESS = 0.6
_HAND_DOT = (0, 0, 255)
_LANDMARK_DOT = (255, 255, 255)
_LANDMARK_RADIUS = 3  # px at the official size
_HAND_COLORS = tuple(
    tuple(int(255 * value) for value in colorsys.hsv_to_rgb(bone / len(HAND_BONES), 1.0, 1.0))
    for bone in range(len(HAND_BONES))
)
CONFIDENCE = 0.3
"""Points below this confidence are not drawn (official)."""


def draw_pose(
    body: np.ndarray,
    hands: np.ndarray | None = None,
    face: np.ndarray | None = None,
    *,
    size: tuple[int, int],
    head: bool = False,
    threshold: float = CONFIDENCE,
    width: float = 1.0,
) -> np.ndarray:
    """Draw one person on black.

    Widths scale with the shorter side (512 px: as official). Points outside the image are clipped by it.

    Args:
        body: (18, 3) x px, y px, confidence, OpenPose-18.
        hands: (2, 21, 3), or None for no hands.
        face: (68, 3) landmarks, or None for none (as published; the paper's w/lmk draws them): white dots whose radius
            scales with the shorter side of the image (512 px: 3 px; below 171 px they are single pixels).
        size: (H, W) of the image, px.
        head: whether eyes and ears are drawn too.
        threshold: points of lower confidence are not drawn, nor the limbs that end there; in (0, 1].
        width: factor of all widths and radii, above 0; 1 as official.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        PerceptionError: wrong shapes, size, threshold or width.

    Source: X-Dyna's pose maps (DWPose drawing of OpenPose bodies; OpenPose's drawing of faces).
    """
    body = _checked(body, shape=(18, 3), name="body")
    rows, columns = int(size[0]), int(size[1])
    if min(rows, columns) < 1:
        raise PerceptionError(f"size of the pose map is {size}; expected (H, W) in px, both at least 1")
    if not 0 < threshold <= 1:
        raise PerceptionError(f"confidence threshold is {threshold}; expected a number above 0, up to 1")
    if not 0 < width < math.inf:
        raise PerceptionError(f"width of the drawing is {width}; expected a factor above 0, 1 as official")
    scale = min(rows, columns) / _OFFICIAL_SIDE * width
    canvas = np.zeros((rows, columns, 3), dtype=np.uint8)
    seen = body[:, 2] >= threshold
    if not head:
        seen[list(HEAD_JOINTS)] = False

    for (start, end), color in zip(BODY_LIMBS, BODY_COLORS, strict=False):
        if seen[start] and seen[end]:
            _draw_limb(canvas, body[start, :2], body[end, :2], color=color.tolist(), width=_px(_STICK, scale))
    canvas = (canvas * _LIMB_BRIGHTNESS).astype(np.uint8)
    for joint in np.flatnonzero(seen):
        _draw_dot(canvas, body[joint, :2], color=BODY_COLORS[joint].tolist(), radius=_px(_DOT, scale))

    for hand in () if hands is None else _checked(hands, shape=(2, 21, 3), name="hands"):
        seen = hand[:, 2] >= threshold
        for (start, end), color in zip(HAND_BONES, _HAND_COLORS, strict=True):
            if seen[start] and seen[end]:
                cv2.line(canvas, _pixel(hand[start]), _pixel(hand[end]), color, thickness=_px(_HAND_LINE, scale))
        for joint in np.flatnonzero(seen):
            _draw_dot(canvas, hand[joint, :2], color=_HAND_DOT, radius=_px(_DOT, scale))
    for x, y, confidence in () if face is None else _checked(face, shape=(68, 3), name="face").tolist():
        if confidence >= threshold:
            radius = int(_LANDMARK_RADIUS * min(rows, columns) / _OFFICIAL_SIDE)
            _draw_dot(canvas, np.array([x, y]), color=_LANDMARK_DOT, radius=radius)
    return canvas


def draw_styled(
    body: np.ndarray, hands: np.ndarray, face: np.ndarray, *, size: tuple[int, int], style: PoseStyle
) -> np.ndarray:
    """Draw one person in a model's style, as `draw_pose` does.

    Args:
        body: (18, 3) x px, y px, confidence.
        hands: (2, 21, 3).
        face: (68, 3).
        size: (H, W) of the image, px.
        style: what is drawn, and how wide.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    shown = hands if style.hands else None, face if style.landmarks else None
    return draw_pose(body, *shown, size=size, head=style.head, width=style.width)


def draw_track(track: PoseTrack, *, head: bool = False, threshold: float = CONFIDENCE) -> np.ndarray:
    """Draw every frame of a track at the track's size.

    Args:
        track: T frames; use `PoseTrack.transform` first to draw at the size of the result.
        head: whether eyes and ears are drawn too.
        threshold: as in `draw_pose`.

    Returns:
        (T, H, W, 3) uint8 RGB; frames without the person are black.

    Raises:
        PerceptionError: as in `draw_pose`.
    """
    return np.stack(
        [
            draw_pose(body, hands, size=track.size, head=head, threshold=threshold)
            for body, hands in zip(track.body, track.hands, strict=True)
        ]
    )


def _draw_limb(canvas: np.ndarray, start: np.ndarray, end: np.ndarray, *, color: list[int], width: int) -> None:
    """Fill an ellipse from joint to joint; centre, half-length and angle are cut to whole numbers, as official."""
    middle = (start + end) / 2
    length = float(np.linalg.norm(start - end))
    angle = int(math.degrees(math.atan2(start[1] - end[1], start[0] - end[0])))
    polygon = cv2.ellipse2Poly(_pixel(middle), (int(length / 2), width), angle, 0, 360, 1)
    cv2.fillConvexPoly(canvas, polygon, color)


def _draw_dot(canvas: np.ndarray, point: np.ndarray, *, color: list[int] | tuple[int, ...], radius: int) -> None:
    """Fill a disc."""
    cv2.circle(canvas, _pixel(point), radius, color, thickness=-1)


def _pixel(point: np.ndarray) -> tuple[int, int]:
    """Coordinates cut to whole pixels, as official; kept within what OpenCV can clip."""
    x, y = np.clip(point[:2], -30_000, 30_000)
    return int(x), int(y)


def _px(value: int, scale: float) -> int:
    """A width at another scale, at least 1 px."""
    return max(round(value * scale), 1)


def _checked(points: np.ndarray, *, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Points of the given shape without NaN, or an error."""
    points = np.asarray(points, dtype=np.float64)
    if points.shape != shape or not np.isfinite(points).all():
        raise PerceptionError(f"{name} has shape {points.shape}; expected finite values of shape {shape}")
    return points
