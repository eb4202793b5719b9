"""Drawing a puppet in one pose: body, clothes, hands; head and hair have files of their own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xdyna.puppets.world.canvas import Canvas, Color, mix, outline_of, ribbon, spline
from xdyna.puppets.world.face import Head, draw_face
from xdyna.puppets.world.hair import draw_back, draw_front
from xdyna.puppets.world.identity import Body, Face, Identity, Outfit
from xdyna.puppets.world.secondary import WAIST

_FINGER = 0.0165  # width, figure heights
_CLOTHED = (0.0, 0.02, 0.24, 0.70, 1.0, 1.12)  # levels of a torso from neck (0) to hips (1)


@dataclass(frozen=True)
class Pose:
    """One moment of a puppet, figure heights; sides: 0 left, 1 right.

    Attributes:
        pelvis, neck: (2,).
        line: angle of the shoulders, rad clockwise; `spine` the same of the torso.
        turn: cosine of the torso's turn.
        hip, knee, ankle, shoulder, elbow, wrist: (2, 2).
        hands: (2, 21, 2).
        head: place of the head.
        landmarks: (68, 2) in head coordinates.
        expression: (E,).
        hanging: part -> (C, S + 1, 2).
    """

    pelvis: np.ndarray
    neck: np.ndarray
    line: float
    spine: float
    turn: float
    hip: np.ndarray
    knee: np.ndarray
    ankle: np.ndarray
    shoulder: np.ndarray
    elbow: np.ndarray
    wrist: np.ndarray
    hands: np.ndarray
    head: Head
    landmarks: np.ndarray
    expression: np.ndarray
    hanging: dict[str, np.ndarray]


def draw_figure(canvas: Canvas, pose: Pose, identity: Identity, face: Face) -> None:
    """Draw a puppet.

    Args:
        canvas: in figure heights.
        pose: how it stands.
        identity: its body, hair and clothes.
        face: its face, by default that of the identity.
    """
    body, outfit, skin = identity.body, identity.outfit, identity.face.skin
    draw_back(canvas, pose.head, identity.hair, pose.hanging)
    for side in (1, 0):
        _leg(canvas, pose, side, body, outfit, skin)
    torso = _Torso(pose, body)
    if outfit.bottom in ("trousers", "shorts"):
        canvas.fill(torso.outline(0.80, 1.10), outfit.bottom_color)
    neck = np.stack([pose.neck + [0, 0.012], pose.head.at(np.array([0.0, 0.6]))])
    canvas.stroke(neck, 0.052, mix(skin, (150, 70, 60), 0.18), outlined=True)
    _top(canvas, torso, outfit)
    if "skirt" in pose.hanging:
        _skirt(canvas, pose.hanging["skirt"], outfit)
    _collar(canvas, pose, torso, outfit, skin)
    if outfit.belt is not None:
        left, right = torso.at(1 - WAIST, -1.06), torso.at(1 - WAIST, 1.06)
        canvas.stroke(np.stack([left, right]), 0.018, outfit.belt, secondary=True)
    for tail in pose.hanging.get("belt", ()):
        line = spline(tail, steps=3, closed=False)
        canvas.fill(ribbon(line, np.linspace(0.006, 0.014, len(line))), outfit.belt or outfit.top_color, secondary=True)
    for side in (1, 0):
        _arm(canvas, pose, side, body, outfit, skin)
    draw_face(canvas, pose.head, face, pose.landmarks, pose.expression)
    draw_front(canvas, pose.head, identity.hair, pose.hanging, shift=float(pose.landmarks[27:31, 0].mean()))


class _Torso:
    """Places on a torso: level 0 at the neck, 1 at the hips; share -1 and 1 at its edges on the screen."""

    def __init__(self, pose: Pose, body: Body) -> None:
        self._pose = pose
        hips = body.hip + body.leg_width
        self._half = np.array([0.5, 1.0, 0.86, 0.0, 0.0, 0.0]) * (body.shoulder + 0.010) * (0.35 + 0.65 * pose.turn)
        self._half += np.array([0, 0, 0, body.waist, hips + 0.006, hips + 0.010])
        self._angle = np.array(
            [pose.line, pose.line, 0.5 * (pose.line + pose.spine), pose.spine, pose.spine, pose.spine]
        )

    def at(self, level: float, share: float) -> np.ndarray:
        half, angle = np.interp(level, _CLOTHED, self._half), np.interp(level, _CLOTHED, self._angle)
        middle = self._pose.neck + level * (self._pose.pelvis - self._pose.neck)
        rise = 0.016 if level == 0.0 else 0.0
        return middle + share * half * np.array([np.cos(angle), np.sin(angle)]) - [0.0, rise]

    def outline(self, start: float, end: float) -> np.ndarray:
        """The part between two levels as a smooth polygon."""
        levels = [start, *[level for level in _CLOTHED if start < level < end], end]
        left, right = ([self.at(level, share) for level in levels] for share in (-1.0, 1.0))
        sides = [spline(np.stack(side), steps=4, closed=False) for side in (left, right[::-1])]
        return np.concatenate(sides)


def _top(canvas: Canvas, torso: _Torso, outfit: Outfit) -> None:
    end = 1.0 if outfit.bottom in ("trousers", "shorts") else 0.86
    color, accent = outfit.top_color, outfit.top_accent
    canvas.fill(torso.outline(0.0, end), color)
    if outfit.top_pattern == "stripes":
        for level in (0.22, 0.45, 0.68, 0.91):
            if level < end - 0.05:
                canvas.fill(torso.outline(level, level + 0.10), accent, outlined=False)
    elif outfit.top_pattern == "two-tone":
        canvas.fill(torso.outline(0.52, end), accent, outlined=False)
    elif outfit.top_pattern == "dots":
        for line, level in enumerate((0.24, 0.46, 0.68)):
            for share in (-0.66, -0.02, 0.62) if line % 2 else (-0.35, 0.30):
                canvas.ellipse(torso.at(level, share), (0.014, 0.014), accent)


def _collar(canvas: Canvas, pose: Pose, torso: _Torso, outfit: Outfit, skin: Color) -> None:
    if outfit.scarf is None:
        cut = np.stack([torso.at(0.0, -0.62), torso.at(0.0, 0.62), torso.at(0.13, 0.0)])
        canvas.fill(cut, mix(skin, (150, 70, 60), 0.12), outlined=False)
        return
    for tail in pose.hanging["scarf"]:
        line = spline(tail, steps=3, closed=False)
        canvas.fill(ribbon(line, np.linspace(0.014, 0.021, len(line))), outfit.scarf, secondary=True)
    band = np.stack([torso.at(0.03, -0.55), torso.at(0.09, 0.0), torso.at(0.03, 0.55)])
    canvas.stroke(spline(band, steps=4, closed=False), 0.036, outfit.scarf, outlined=True, secondary=True)


def _skirt(canvas: Canvas, chains: np.ndarray, outfit: Outfit) -> None:
    """Chains (7, S + 1, 2) from the left to the right of the screen."""
    color, accent = outfit.bottom_color, outfit.bottom_accent

    def row(depth: float) -> np.ndarray:
        place = depth * (chains.shape[1] - 1)
        k = min(int(place), chains.shape[1] - 2)
        points = chains[:, k] + (place - k) * (chains[:, k + 1] - chains[:, k])
        sag = 0.016 * depth * (1 - np.linspace(-1, 1, len(points)) ** 2)
        return points + sag[:, None] * [0.0, 1.0]

    def band(start: float, end: float) -> np.ndarray:
        down, up = np.linspace(start, end, 4)[:-1], np.linspace(end, start, 4)[1:]
        left, right = [row(d)[:1] for d in down], [row(d)[-1:] for d in up]
        return np.concatenate([*left, spline(row(end), steps=3, closed=False), *right, row(start)[::-1][1:-1]])

    canvas.fill(band(0.0, 1.0), color, secondary=True)
    if outfit.bottom_pattern == "stripes":
        for depth in (0.28, 0.56, 0.84):
            canvas.fill(band(depth, depth + 0.11), accent, outlined=False, secondary=True)
    elif outfit.bottom_pattern == "two-tone":
        canvas.fill(band(0.72, 1.0), accent, outlined=False, secondary=True)
    elif outfit.bottom_pattern == "dots":
        for depth, first in ((0.34, 1), (0.60, 2), (0.86, 1)):
            for point in row(depth)[first:6:2]:
                canvas.ellipse(point, (0.013, 0.013), accent, secondary=True)
    fold = mix(color, outline_of(color), 0.4)
    for k in (2, 4):
        canvas.stroke(np.stack([row(d)[k] for d in (0.35, 0.7, 0.97)]), 0.007, fold, secondary=True)


def _leg(canvas: Canvas, pose: Pose, side: int, body: Body, outfit: Outfit, skin: Color) -> None:
    sign = 1.0 if side == 0 else -1.0
    hip, knee, ankle = pose.hip[side], pose.knee[side], pose.ankle[side]
    wide = body.leg_width
    heel, toe = (ankle + [reach * sign, 0.5 * body.ankle] for reach in (-0.006, 0.028))
    canvas.limb((hip, knee, ankle), (wide, 0.84 * wide, 0.62 * wide), skin)
    if outfit.socks is not None and outfit.bottom != "trousers":
        canvas.limb((knee + 0.5 * (ankle - knee), ankle), (0.76 * wide, 0.66 * wide), outfit.socks)
    canvas.limb((heel, toe), (0.62 * body.ankle, 0.52 * body.ankle), outfit.shoes)
    if outfit.bottom == "trousers":
        hem = knee + (ankle - knee) * outfit.bottom_length
        canvas.limb((hip, knee, hem), (1.08 * wide, 0.96 * wide, 0.86 * wide), outfit.bottom_color)
    elif outfit.bottom == "shorts":
        end = hip + (knee - hip) * min(1.0, 2.0 * outfit.bottom_length)
        canvas.limb((hip, end), (1.08 * wide, 1.06 * wide), outfit.bottom_color)


def _arm(canvas: Canvas, pose: Pose, side: int, body: Body, outfit: Outfit, skin: Color) -> None:
    shoulder, elbow, wrist = pose.shoulder[side], pose.elbow[side], pose.wrist[side]
    wide = body.arm_width
    inset = shoulder + 0.06 * (pose.neck - shoulder) + [0.0, 0.012]
    _hand(canvas, pose.hands[side], wide, skin)
    canvas.limb((inset, elbow, wrist), (wide, 0.88 * wide, 0.72 * wide), skin)
    canvas.limb((wrist, pose.hands[side][[5, 9, 13, 17]].mean(0)), (0.68 * wide, 0.62 * wide), skin, outlined=False)
    cloth, sleeve = mix(outfit.top_color, (30, 20, 50), 0.08), outfit.sleeve
    if sleeve > 1.0:
        end = elbow + (wrist - elbow) * (sleeve - 1.0)
        canvas.limb((inset, elbow, end), (1.12 * wide, 1.04 * wide, 0.94 * wide), cloth)
    elif sleeve > 0.0:
        canvas.limb((inset, inset + (elbow - inset) * sleeve), (1.14 * wide, 1.16 * wide), cloth)


def _hand(canvas: Canvas, hand: np.ndarray, wide: float, skin: Color) -> None:
    """Palm and fingers as one shape: all outlines first."""
    palm = hand[[5, 9, 13, 17]].mean(0)
    fingers = [hand[[4 * finger + 1, 4 * finger + 4]] for finger in range(5)]
    for finger in fingers:
        canvas.stroke(finger, _FINGER, skin, outlined=True)
    canvas.limb((hand[0], palm), (0.66 * wide, 0.70 * wide), skin)
    for finger in fingers:
        canvas.stroke(finger, _FINGER, skin)
