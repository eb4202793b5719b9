"""Faces: 68 landmarks from an expression, and the drawing over them.

Coordinates of a head: u to the right in half widths, v down in half heights, (0, 0) in its middle; a turn of the head
moves the features as on a ball.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xdyna.puppets.world.canvas import INK, Canvas, mix, outline_of, spline
from xdyna.puppets.world.identity import Face
from xdyna.puppets.world.motion import EXPRESSIONS

_TALL_IRIS = 1.25  # height over width
_RIGHT_EYE, _LEFT_EYE = slice(36, 42), slice(42, 48)


@dataclass(frozen=True)
class Head:
    """A head's place in figure heights: middle (2,), half width and height, angle in rad clockwise."""

    centre: np.ndarray
    width: float
    height: float
    angle: float

    def at(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) head coordinates (u, v) to figure heights."""
        points = np.asarray(points, dtype=np.float64)
        u, v = points[..., 0] * self.width, points[..., 1] * self.height
        c, s = np.cos(self.angle), np.sin(self.angle)
        return np.stack([self.centre[0] + c * u - s * v, self.centre[1] + s * u + c * v], -1)


def face_ring(face: Face, mouth_open: float = 0.0) -> np.ndarray:
    """(N, 2) outline of a face in head coordinates, from the right ear over the chin and the crown; the jaw drops a
    little with the mouth."""
    w, j, c = face.width, face.jaw, face.chin
    half = [(-w, -0.12), (-0.97 * w, 0.3), (-0.5 - 0.35 * j, 0.66), (-0.62 * j, 0.9), (0, c)]
    ring = np.array([*half, *[(-u, v) for u, v in half[-2::-1]], (0.8, -0.74), (0.0, -1.02), (-0.8, -0.74)])
    ring[:, 1] += 0.06 * mouth_open * np.clip(ring[:, 1], 0, 1)
    return spline(ring)


def face_landmarks(face: Face, expression: np.ndarray, yaw: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """iBUG-68 landmarks in head coordinates.

    Args:
        face: whose.
        expression: (T, E), see `EXPRESSIONS`.
        yaw: (T,) rad.
        pitch: (T,) rad.

    Returns:
        (T, 68, 2) u, v.
    """
    values = dict(zip(EXPRESSIONS, expression.T, strict=True))
    points = np.zeros((len(expression), 68, 2))
    steps = (np.arange(17) * 48 / 16).astype(int)  # nine outline points, six spline steps each, are the jaw
    points[:, :17] = np.stack([face_ring(face, m)[steps] for m in values["mouth_open"]])
    shares = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
    for side, start, order in ((-1, 17, shares), (1, 22, shares[::-1])):  # order: 0 outer end, 1 inner end
        lift = 0.13 * values["brow_raise"][:, None] + 0.09 * values["brow_tilt"][:, None] * (2 * order - 1)
        arch = 0.10 * np.sin(np.pi * order * 0.8 + 0.3) + face.brow_tilt * (1 - 2 * order)
        points[:, start : start + 5, 0] = side * (face.eye_u + face.eye_width * 1.15 * (1 - 2 * order))
        points[:, start : start + 5, 1] = face.eye_v - face.eye_height - 0.13 - arch - lift
    points[:, 27:31, 1] = face.eye_v + np.linspace(-0.1, 0.32, 4)
    points[:, 31:36, 0] = np.linspace(-1, 1, 5) * (0.06 + face.nose)
    points[:, 31:36, 1] = face.eye_v + 0.36 + np.array([0, 0.02, 0.035, 0.02, 0])
    _eyes(points, face, values)
    _mouth(points, face, values)
    return np.concatenate([points[:, :17], _turned(points[:, 17:], yaw, pitch)], 1)


def _eyes(points: np.ndarray, face: Face, values: dict[str, np.ndarray]) -> None:
    for side, start, name in ((-1, 36, "eye_open_right"), (1, 42, "eye_open_left")):
        opening = values[name][:, None]
        upper, lower = face.eye_height * (0.3 - 1.3 * opening), face.eye_height * (0.3 + 0.7 * opening)
        middle, half = face.eye_v + (upper + lower) / 2, (lower - upper) / 2
        turn = np.radians([180, 240, 300, 0, 60, 120])  # from the left of the screen over the upper lid
        points[:, start : start + 6, 0] = side * face.eye_u + face.eye_width * np.cos(turn)
        points[:, start : start + 6, 1] = middle + half * np.sin(turn)


def _mouth(points: np.ndarray, face: Face, values: dict[str, np.ndarray]) -> None:
    gap, smile = values["mouth_open"][:, None], values["smile"][:, None]
    wide = face.mouth_width * (1 + 0.22 * smile - 0.22 * gap)
    lip = 0.045

    def row(places: np.ndarray, drop: np.ndarray | float) -> np.ndarray:
        u = wide * places
        curve = face.mouth_v + 0.07 * smile - 0.19 * smile * places**2
        return np.stack([u, curve + drop * (1 - np.abs(places) ** 2.2)], -1)

    outer, inner = np.linspace(-1, 1, 7), np.linspace(-1, 1, 5)
    up, down = -0.10 * gap, 0.33 * gap
    points[:, 48:55] = row(1.12 * outer, 0.0)
    points[:, 48:55, 1] += (up - lip) * (1 - outer**2)
    lower = row(1.12 * outer[-2:0:-1], 0.0)
    lower[..., 1] += (down + lip) * (1 - outer[-2:0:-1] ** 2)
    points[:, 55:60] = lower
    points[:, 60:65] = row(0.95 * inner, up)
    points[:, 65:68] = row(0.95 * inner[-2:0:-1], down)


def _turned(points: np.ndarray, yaw: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """Points on the face of a turning head."""
    u, v = points[..., 0], points[..., 1]
    depth = np.sqrt(np.maximum(0.06, 1 - 0.8 * u * u - 0.5 * v * v))
    yaw, pitch = yaw[:, None], pitch[:, None]
    return np.stack([u * np.cos(yaw) + depth * np.sin(yaw), v * np.cos(pitch) + 0.8 * depth * np.sin(pitch)], -1)


def draw_face(canvas: Canvas, head: Head, face: Face, landmarks: np.ndarray, expression: np.ndarray) -> None:
    """Draw a face over its landmarks.

    Args:
        canvas: in figure heights.
        head: its place.
        face: whose.
        landmarks: (68, 2) in head coordinates.
        expression: (E,).
    """
    values = dict(zip(EXPRESSIONS, expression, strict=True))
    shift = landmarks[27:31].mean(0)[0]
    skin = face.skin
    for side in (-1.0, 1.0):
        ear = head.at(np.array([0.99 * side * face.width - 0.1 * shift, 0.1]))
        canvas.ellipse(ear, (0.16 * head.width, 0.19 * head.width), mix(skin, (160, 70, 60), 0.12), outlined=True)
    canvas.fill(head.at(face_ring(face, values["mouth_open"])), skin)
    cheek = mix(skin, (238, 92, 92), face.blush)
    for side in (-1.0, 1.0):
        spot = head.at(np.array([0.60 * side + 0.75 * shift, face.eye_v + 0.40]))
        canvas.ellipse(spot, (0.15 * head.width, 0.095 * head.width), cheek, angle=head.angle)
        if face.freckles:
            for du, dv in ((-0.07, -0.05), (0.0, 0.03), (0.08, -0.03)):
                dot = head.at(np.array([0.52 * side + 0.8 * shift + du, face.eye_v + 0.36 + dv]))
                canvas.ellipse(dot, (0.02 * head.width,) * 2, mix(skin, (140, 70, 40), 0.6))
    _draw_mouth(canvas, head, face, landmarks, values["mouth_open"])
    for part, name in ((_RIGHT_EYE, "eye_open_right"), (_LEFT_EYE, "eye_open_left")):
        _draw_eye(canvas, head, face, landmarks[part], values[name], (values["gaze_x"], values["gaze_y"]))
    for start in (17, 22):
        canvas.stroke(head.at(landmarks[start : start + 5]), face.brow_width * head.height, face.brow)
    nose = landmarks[31:36]
    canvas.stroke(head.at(nose), 0.06 * head.height, mix(skin, (150, 60, 50), 0.45))
    if face.glasses is not None:
        _draw_glasses(canvas, head, face, landmarks)


def _draw_eye(
    canvas: Canvas, head: Head, face: Face, eye: np.ndarray, opening: float, gaze: tuple[float, float]
) -> None:
    corner, middle = (eye[3] - eye[0]) / 2, eye.mean(0)
    wide, tall = float(corner[0]), float(eye[[4, 5], 1].mean() - eye[[1, 2], 1].mean()) / 2 / 0.866
    turn = np.linspace(0, 2 * np.pi, 20, False)
    lash = mix(face.brow, INK, 0.6)
    arc = np.stack([wide * np.cos(turn), tall * np.sin(turn)], 1) + middle
    if opening > 0.12:
        canvas.fill(head.at(arc), (254, 252, 250), edge=lash, outlined=opening > 0.4)
        size = 0.70 * wide
        centre = middle + [0.34 * wide * gaze[0], 0.22 * tall * gaze[1]]
        for share, color in ((1.0, face.iris), (0.58, (24, 18, 26))):
            disc = (
                np.stack(
                    [share * size * np.cos(turn), share * size * _TALL_IRIS * head.width / head.height * np.sin(turn)],
                    1,
                )
                + centre
            )
            # Lids cover the iris: what would lie beyond them is moved onto them.
            reach = np.sqrt(np.clip(1 - ((disc[:, 0] - middle[0]) / wide) ** 2, 0, 1)) * tall
            disc[:, 1] = np.clip(disc[:, 1], middle[1] - reach, middle[1] + reach)
            canvas.fill(head.at(disc), color, outlined=False)
        if opening > 0.35:
            spark = head.at(centre + [0.34 * size, -0.42 * min(1.2 * size, tall)])
            canvas.ellipse(spark, (0.34 * size * head.width,) * 2, (255, 255, 255))
    upper = np.linspace(np.pi * 1.02, np.pi * 1.98, 9)
    bow = max(tall, 0.0)
    line = np.stack([1.08 * wide * np.cos(upper), bow * np.sin(upper)], 1) + middle
    if opening <= 0.12:
        line[:, 1] += 0.10 * np.sin(np.linspace(0, np.pi, 9))
    canvas.stroke(head.at(line), face.lashes * head.height * 1.15, lash)


def _draw_mouth(canvas: Canvas, head: Head, face: Face, landmarks: np.ndarray, opening: float) -> None:
    inner = landmarks[60:68]
    lips = mix(face.lips, face.skin, 0.15)
    if opening < 0.08:
        line = spline(inner[:5], steps=3, closed=False)
        canvas.stroke(head.at(line), 0.085 * head.height, mix(lips, INK, 0.3))
        return
    ring = spline(inner, steps=4)
    canvas.fill(head.at(ring), (96, 22, 36), edge=lips)
    middle, low = inner[[2, 6]].mean(0), inner[6]
    tall = float(inner[6, 1] - inner[2, 1])
    if opening > 0.3:
        tongue = middle * 0.3 + low * 0.7
        half = (inner[4, 0] - inner[0, 0]) * 0.24
        canvas.ellipse(head.at(tongue), (half * head.width, 0.26 * tall * head.height), (232, 104, 112))
        edge = spline(middle + (inner[:5] - middle) * [0.84, 0.97], steps=3, closed=False)
        top = np.concatenate([edge, edge[-3:1:-1] + [0.0, 0.22 * tall]])
        canvas.fill(head.at(top), (255, 252, 246), outlined=False)


def _draw_glasses(canvas: Canvas, head: Head, face: Face, landmarks: np.ndarray) -> None:
    color = face.glasses or outline_of(face.skin)
    turn = np.linspace(0, 2 * np.pi, 21)
    centres = [landmarks[part].mean(0) for part in (_RIGHT_EYE, _LEFT_EYE)]
    rim = face.eye_width * 1.42
    for centre in centres:
        middle = np.array([centre[0], face.eye_v + 0.0 + landmarks[27, 1] - (face.eye_v - 0.1)])
        ring = np.stack([rim * np.cos(turn), rim * 1.02 * np.sin(turn)], 1) + middle
        canvas.stroke(head.at(ring), 0.055 * head.height, color)
    bridge = np.stack([centres[0] + [rim, 0.0], centres[1] - [rim, 0.0]])
    bridge[:, 1] = landmarks[27, 1] + 0.08
    canvas.stroke(head.at(bridge), 0.05 * head.height, color)
