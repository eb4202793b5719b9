"""Flat drawing of the sample figure and its two scenes, with OpenCV's anti-aliased primitives.

All coordinates are px of the final picture; drawing happens at twice that size and is averaged down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

OVERSAMPLE = 2
HEAD = np.array([0.064, 0.078])
"""Half width and half height of the face in body heights."""

_SHIFT = 4  # OpenCV takes coordinates in 1/16 px
Color = Sequence[float]


@dataclass(frozen=True)
class Outfit:
    """Colours (RGB) and cut of clothes and hair: a skirt with short sleeves, or trousers with long ones."""

    skin: Color
    hair: Color
    top: Color
    bottom: Color
    shoes: Color
    skirt: bool
    long_hair: bool


def mix(first: Color, second: Color, share: float) -> tuple[float, ...]:
    """`first` with a share of `second`."""
    return tuple((1 - share) * a + share * b for a, b in zip(first, second, strict=True))


def spline(points: np.ndarray, steps: int = 10) -> np.ndarray:
    """A closed smooth curve through (N, 2) points (uniform Catmull-Rom)."""
    before, after, beyond = np.roll(points, 1, 0), np.roll(points, -1, 0), np.roll(points, -2, 0)
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    p0, p1, p2, p3 = (p[:, None] for p in (before, points, after, beyond))
    curve = p1 + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
    return curve.reshape(-1, 2)


class Canvas:
    """A picture being drawn.

    Args:
        pixels: (2 H, 2 W, 3) uint8 background; drawn over.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def picture(self) -> np.ndarray:
        """The finished picture, uint8 (H, W, 3)."""
        height, width = self.pixels.shape[:2]
        size = (width // OVERSAMPLE, height // OVERSAMPLE)
        return np.asarray(cv2.resize(self.pixels, size, interpolation=cv2.INTER_AREA))

    def polygon(self, points: np.ndarray, color: Color) -> None:
        """Fill a polygon."""
        cv2.fillPoly(self.pixels, [_fixed(points)], tuple(color), cv2.LINE_AA, _SHIFT)

    def blob(self, points: np.ndarray, color: Color) -> None:
        """Fill the smooth closed curve through points."""
        self.polygon(spline(np.asarray(points, dtype=float)), color)

    def line(self, points: np.ndarray, color: Color, width: float) -> None:
        """A polyline with round ends."""
        thickness = max(1, round(width * OVERSAMPLE))
        cv2.polylines(self.pixels, [_fixed(points)], False, tuple(color), thickness, cv2.LINE_AA, _SHIFT)

    def ellipse(self, centre: np.ndarray, axes: Sequence[float], color: Color, angle: float = 0.0) -> None:
        """Fill an ellipse of half axes `axes`, turned by `angle` degrees."""
        arc = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        ring = np.stack([axes[0] * np.cos(arc), axes[1] * np.sin(arc)], 1) @ np.array([[c, s], [-s, c]])
        self.polygon(np.asarray(centre) + ring, color)

    def limb(self, start: np.ndarray, end: np.ndarray, widths: tuple[float, float], color: Color) -> None:
        """A tapered limb with round ends; `widths` are the radii."""
        along = (end - start) / max(1e-6, float(np.hypot(*(end - start))))
        across = np.array([-along[1], along[0]])
        first, last = widths[0] * across, widths[1] * across
        self.polygon(np.stack([start + first, end + last, end - last, start - first]), color)
        self.ellipse(start, (widths[0], widths[0]), color)
        self.ellipse(end, (widths[1], widths[1]), color)

    def glow(self, centre: np.ndarray, radii: Sequence[float], color: Color, strength: float) -> None:
        """Blend a soft spot of colour in (Gaussian of standard deviations `radii`)."""
        (x0, y0), (x1, y1) = ((np.asarray(centre) + sign * 3 * np.asarray(radii)) * OVERSAMPLE for sign in (-1, 1))
        height, width = self.pixels.shape[:2]
        left, right, top, bottom = max(0, int(x0)), min(width, int(x1)), max(0, int(y0)), min(height, int(y1))
        if left >= right or top >= bottom:
            return
        x = (np.arange(left, right) / OVERSAMPLE - centre[0]) / radii[0]
        y = (np.arange(top, bottom) / OVERSAMPLE - centre[1]) / radii[1]
        weight = (strength * np.exp(-0.5 * (y[:, None] ** 2 + x[None] ** 2)))[..., None]
        part = self.pixels[top:bottom, left:right]
        part[:] = np.rint(part * (1 - weight) + np.asarray(color) * weight).astype(np.uint8)


def _fixed(points: np.ndarray) -> np.ndarray:
    # OpenCV's pixel centres are whole numbers; the +0.5 keeps them so across the oversampling.
    shifted = (np.asarray(points, dtype=float) + 0.5) * OVERSAMPLE - 0.5
    return np.rint(shifted * (1 << _SHIFT)).astype(np.int32)


# ---- scenes


def _gradient(size: tuple[int, int], stops: Sequence[tuple[float, Color]]) -> np.ndarray:
    """Vertical colour gradient, uint8 (2 H, 2 W, 3), with a hair of ordered noise against banding."""
    rows = np.linspace(0, 1, size[0] * OVERSAMPLE)
    places = [place for place, _ in stops]
    channels = [np.interp(rows, places, [color[c] for _, color in stops]) for c in range(3)]
    picture = np.repeat(np.stack(channels, -1)[:, None], size[1] * OVERSAMPLE, axis=1)
    picture[::2, 1::2] += 0.5
    picture[1::2, ::2] += 0.75
    picture[1::2, 1::2] += 0.25
    return picture.clip(0, 255).astype(np.uint8)


def landscape(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Evening light over hills, a lake and a meadow: uint8 (2 H, 2 W, 3)."""
    height, width = size
    sky = ((0.0, (88, 142, 206)), (0.3, (158, 196, 226)), (0.5, (252, 222, 186)), (0.62, (255, 196, 150)))
    canvas = Canvas(_gradient(size, sky))
    sun, side = np.array([0.76 * width, 0.30 * height]), min(width, height)
    canvas.glow(sun, (0.34 * side, 0.34 * side), (255, 236, 190), 0.8)
    canvas.ellipse(sun, (0.085 * side, 0.085 * side), (255, 246, 220))
    for _ in range(6):
        spot = np.array([rng.uniform(0, width), rng.uniform(0.04, 0.30) * height])
        for offset in np.linspace(-0.11, 0.11, 9):
            puff = rng.uniform(0.016, 0.026) * side * (1.5 - abs(offset) / 0.11)
            canvas.glow(spot + [offset * side, -0.7 * puff], (0.9 * puff, 0.7 * puff), (255, 250, 246), 0.6)
    x = np.linspace(-0.02 * width, 1.02 * width, 80)

    def hills(level: float, rough: float, color: Color) -> None:
        phases, waves = rng.uniform(0, 6.3, 5), np.array([1.1, 2.3, 3.7, 6.1, 9.7])
        ridge = (np.sin(waves[:, None] * x / width * 3 + phases[:, None]) / waves[:, None]).sum(0)
        y = level * height - rough * height * ridge
        canvas.polygon(np.stack([np.r_[x, x[-1], x[0]], np.r_[y, height + 9, height + 9]], 1), color)

    hills(0.47, 0.055, (158, 160, 190))
    hills(0.53, 0.042, (122, 146, 164))
    hills(0.575, 0.026, (92, 140, 128))
    lake = np.array([[-0.1, 0.625], [1.1, 0.605], [1.1, 0.72], [-0.1, 0.72]]) * [width, height]
    canvas.polygon(lake, (168, 204, 214))
    for _ in range(26):
        y = rng.uniform(0.62, 0.70)
        start = rng.uniform(0.0, 1.0)
        line = np.array([[start, y], [start + rng.uniform(0.04, 0.14), y]]) * [width, height]
        canvas.line(line, mix((168, 204, 214), (255, 240, 214), rng.uniform(0.2, 0.8)), 0.0016 * height)
    for base, scale in ((0.06, 1.0), (0.17, 0.75), (0.93, 1.15), (0.84, 0.7)):
        foot = np.array([base * width, 0.715 * height])
        tall = 0.17 * scale * height
        canvas.limb(foot, foot - [0, 0.6 * tall], (0.05 * tall, 0.03 * tall), (112, 84, 70))
        for dx, dy, r, tone in (
            (0, 0.75, 0.30, 0),
            (-0.2, 0.58, 0.22, 0),
            (0.21, 0.6, 0.23, 0),
            (0.07, 0.82, 0.2, 0.25),
        ):
            leaves = mix((66, 122, 94), (176, 196, 116), tone)
            canvas.ellipse(foot + [dx * tall, -dy * tall], (r * tall, r * tall), leaves)
    hills(0.70, 0.012, (124, 170, 96))
    hills(0.80, 0.014, (106, 156, 84))
    for _ in range(150):
        y = rng.uniform(0.74, 1.0)
        spot = np.array([rng.uniform(0, width), y * height])
        size_px = (0.0015 + 0.006 * (y - 0.72)) * height
        blade = np.stack([spot, spot + [rng.uniform(-2, 2) * size_px, -4.5 * size_px]])
        canvas.line(blade, mix((84, 138, 70), (160, 196, 104), rng.uniform(0, 1)), max(1.0, 0.6 * size_px))
        if rng.uniform() < 0.35:
            color = ((255, 252, 240), (250, 206, 84), (238, 128, 140), (176, 142, 220))[rng.integers(4)]
            canvas.ellipse(blade[1], (size_px, size_px), color)
    return canvas.pixels


def room(size: tuple[int, int]) -> np.ndarray:
    """A bright dance room with a window and a wooden floor: uint8 (2 H, 2 W, 3)."""
    height, width = size
    wall, horizon = (232, 224, 216), 0.76
    canvas = Canvas(_gradient(size, ((0.0, mix(wall, (255, 255, 255), 0.4)), (horizon, wall), (1.0, wall))))
    canvas.polygon(np.array([[0, horizon], [1, horizon], [1, 1.01], [0, 1.01]]) * [width, height], (206, 164, 124))
    for k in np.linspace(-1.6, 2.6, 22):
        boards = np.array([[0.5 + (k - 0.5) * 0.55, horizon], [k, 1.0]]) * [width, height]
        canvas.line(boards, (186, 144, 106), 0.0016 * height)
    canvas.line(np.array([[0, horizon], [1, horizon]]) * [width, height], (250, 246, 240), 0.016 * height)
    for left, right in ((0.07, 0.33), (0.67, 0.93)):
        for share, color in ((0.0, (250, 248, 244)), (1.0, (176, 210, 230))):
            inset = 0.015 * share
            box = np.array([[left + inset, 0.12], [right - inset, 0.12], [right - inset, 0.46], [left + inset, 0.46]])
            box[:2, 1] += 0.6 * inset
            box[2:, 1] -= 0.6 * inset
            canvas.polygon(box * [width, height], color)
        middle = (left + right) / 2
        canvas.line(np.array([[middle, 0.125], [middle, 0.455]]) * [width, height], (250, 248, 244), 0.01 * width)
        canvas.glow(np.array([middle * width, 0.2 * height]), (0.08 * width, 0.05 * height), (255, 255, 255), 0.5)
    pot = np.array([0.9 * width, 0.80 * height])
    for angle in np.linspace(-1.1, 1.1, 9):
        tip = pot + np.array([np.sin(angle), -np.cos(angle) * 1.3]) * 0.11 * height
        leaf = mix((70, 128, 92), (140, 182, 110), abs(angle))
        canvas.limb(pot - [0, 0.02 * height], tip, (0.002 * height, 0.009 * height), leaf)
    corners = np.array([[-0.03, -0.03], [0.03, -0.03], [0.022, 0.03], [-0.022, 0.03]])
    canvas.polygon(pot + corners * height, (204, 112, 84))
    canvas.glow(np.array([0.5 * width, 0.9 * height]), (0.3 * width, 0.05 * height), (255, 236, 210), 0.35)
    return canvas.pixels


# ---- figure


def draw_figure(
    canvas: Canvas, body: np.ndarray, hands: np.ndarray, face: np.ndarray, *, unit: float, outfit: Outfit
) -> None:
    """Draw the figure over its key points.

    Args:
        canvas: what to draw on.
        body: (18, 2) px, OpenPose order.
        hands: (2, 21, 2) px, left then right.
        face: (68, 2) px, iBUG order.
        unit: body height in px.
        outfit: colours and cut.
    """
    head = _Head(face)
    feet = body[[10, 13]].mean(0)
    canvas.glow(feet + [0, 0.045 * unit], (0.11 * unit, 0.016 * unit), (40, 46, 48), 0.55)
    _hair_behind(canvas, head, body, unit, outfit)
    shade = _shaded(outfit.skin)
    leg_color = outfit.skin if outfit.skirt else outfit.bottom
    for hip, sign in ((8, -1.0), (11, 1.0)):
        width = 0.040 if outfit.skirt else 0.050
        tone = mix(leg_color, (40, 30, 50), 0.08 if hip == 8 else 0.0)
        _, knee, ankle = body[hip : hip + 3]
        toe = ankle + np.array([0.03 * sign, 0.030]) * unit
        canvas.limb(ankle, ankle + [0, 0.02 * unit], (0.021 * unit, 0.021 * unit), tone)
        canvas.limb(ankle + np.array([-0.006 * sign, 0.026]) * unit, toe, (0.023 * unit, 0.019 * unit), outfit.shoes)
        canvas.limb(body[hip], knee, (width * 1.12 * unit, width * 0.82 * unit), tone)
        canvas.limb(knee, ankle, (width * 0.80 * unit, (0.021 if outfit.skirt else 0.033) * unit), tone)
    _clothes(canvas, body, unit, outfit)
    canvas.limb(body[1] + [0, 0.005 * unit], head.at(0, 0.75), (0.030 * unit, 0.026 * unit), shade)
    for side, shoulder in ((0, 5), (1, 2)):
        _arm(canvas, body[shoulder : shoulder + 3], hands[side], unit, outfit)
    _draw_head(canvas, head, face, outfit, shade)


class _Head:
    """Coordinates of the head: u to the right and v down, the face being the ellipse of half axes 1."""

    def __init__(self, face: np.ndarray) -> None:
        self.u = (face[16] - face[0]) / (2 * 0.97)
        self.v = np.array([-self.u[1], self.u[0]]) * HEAD[1] / HEAD[0]
        self.centre = (face[0] + face[16]) / 2 + 0.08 * self.v
        self.width = float(np.hypot(*self.u))

    def at(self, u: float, v: float) -> np.ndarray:
        return self.centre + u * self.u + v * self.v

    def ring(self, points: Sequence[tuple[float, float]]) -> np.ndarray:
        return np.stack([self.at(u, v) for u, v in points])


def _hair_behind(canvas: Canvas, head: _Head, body: np.ndarray, unit: float, outfit: Outfit) -> None:
    dark = mix(outfit.hair, (20, 10, 20), 0.25)
    if outfit.long_hair:
        sway = 0.35 * (head.at(0, 0) - body[1])[0] * np.array([1.0, 0.0])
        tips = np.array([[0.085, 0.10], [0.03, 0.135], [-0.03, 0.135], [-0.085, 0.10]])
        crown = head.ring([(-1.2, -0.1), (-0.8, -1.0), (0, -1.28), (0.8, -1.0), (1.2, -0.1)])
        canvas.blob(np.concatenate([crown, body[1] - sway + tips * unit]), dark)
    else:
        crown = head.ring([(-1.12, -0.4), (-0.75, -1.08), (0, -1.3), (0.75, -1.08), (1.12, -0.4)])
        canvas.blob(np.stack([head.at(-1.08, 0.25), *crown, head.at(1.08, 0.25)]), dark)


def _clothes(canvas: Canvas, body: np.ndarray, unit: float, outfit: Outfit) -> None:
    right, left, hip_r, hip_l, neck = body[2], body[5], body[8], body[11], body[1]
    down = (hip_r + hip_l) / 2 - neck
    waist = neck + 0.62 * down
    down = down / np.hypot(*down) * unit
    out = np.array([-down[1], down[0]])  # towards the figure's right, left on the screen
    if outfit.skirt:
        hem = [waist + 0.066 * out, waist - 0.066 * out]
        thigh_r, thigh_l = body[8] + 0.78 * (body[9] - body[8]), body[11] + 0.78 * (body[12] - body[11])
        flare, sag = np.array([0.075 * unit, 0.0]), np.array([0.0, 0.022 * unit])
        skirt = [hem[0], hem[1], hip_l - 0.045 * out, thigh_l + flare, (thigh_r + thigh_l) / 2 + sag, thigh_r - flare]
        canvas.blob(np.stack([*skirt, hip_r + 0.045 * out]), outfit.bottom)
        for share in (0.25, 0.5, 0.75):
            top, bottom = hem[0] + share * (hem[1] - hem[0]), skirt[5] + share * (skirt[3] - skirt[5])
            fold = np.stack([top + 0.25 * (bottom - top), bottom])
            canvas.line(fold, mix(outfit.bottom, (150, 80, 20), 0.25), 0.004 * unit)
    else:
        hem = [hip_r + 0.034 * out + 0.03 * down, hip_l - 0.034 * out + 0.03 * down]
        hips = [hip_r + 0.04 * out, hip_l - 0.04 * out, hip_l + 0.06 * down, hip_r + 0.06 * down]
        canvas.blob(np.stack(hips), outfit.bottom)
    torso = [
        neck + 0.035 * out - 0.018 * down, neck - 0.035 * out - 0.018 * down,
        left - 0.026 * out - 0.006 * down, left - 0.012 * out + 0.06 * down,
        waist - 0.066 * out, hem[1], hem[0], waist + 0.066 * out,
        right + 0.012 * out + 0.06 * down, right + 0.026 * out - 0.006 * down,
    ]  # fmt: skip
    canvas.blob(np.stack(torso), outfit.top)
    collar = [neck + 0.032 * out - 0.022 * down, neck - 0.032 * out - 0.022 * down, neck + 0.032 * down]
    canvas.blob(np.stack(collar), _shaded(outfit.skin))
    if outfit.skirt:
        canvas.line(np.stack(hem), mix(outfit.shoes, (20, 10, 10), 0.1), 0.016 * unit)
    else:
        spots = ((0.04, 0.03), (0.02, 0.05), (-0.02, 0.05), (-0.04, 0.03))
        pocket = np.stack([waist + a * out + b * down for a, b in spots])
        canvas.line(pocket, mix(outfit.top, (90, 20, 20), 0.3), 0.005 * unit)


def _shaded(skin: Color) -> tuple[float, ...]:
    return mix(skin, (150, 70, 50), 0.22)


def _arm(canvas: Canvas, joints: np.ndarray, hand: np.ndarray, unit: float, outfit: Outfit) -> None:
    shoulder, elbow, wrist = joints
    edge = mix(outfit.top, (30, 20, 40), 0.12)
    canvas.limb(elbow, wrist, (0.024 * unit, 0.017 * unit), outfit.skin)
    canvas.limb(shoulder, elbow, (0.028 * unit, 0.025 * unit), outfit.skin)
    palm = np.concatenate([hand[[0, 1]], hand[[5, 9, 13, 17]]])
    canvas.limb(wrist, hand[[5, 9, 13, 17]].mean(0), (0.015 * unit, 0.019 * unit), outfit.skin)
    canvas.polygon(palm, outfit.skin)
    for finger in range(5):
        chain = hand[4 * finger + 1 : 4 * finger + 5]
        canvas.line(chain, outfit.skin, (0.017 if finger == 0 else 0.0145) * unit)
    if outfit.skirt:
        canvas.limb(shoulder, shoulder + 0.55 * (elbow - shoulder), (0.033 * unit, 0.035 * unit), edge)
    else:
        canvas.limb(shoulder, elbow, (0.036 * unit, 0.034 * unit), edge)
        canvas.limb(elbow, elbow + 0.9 * (wrist - elbow), (0.034 * unit, 0.027 * unit), edge)
        along = (wrist - elbow) / np.hypot(*(wrist - elbow))
        cuff = elbow + 0.97 * (wrist - elbow)
        across = 0.022 * unit * np.array([-along[1], along[0]])
        canvas.line(np.stack([cuff - across, cuff + across]), mix(outfit.top, (255, 255, 255), 0.35), 0.013 * unit)


def _draw_head(canvas: Canvas, head: _Head, face: np.ndarray, outfit: Outfit, shade: Color) -> None:
    for side in (-1.0, 1.0):
        canvas.ellipse(head.at(0.99 * side, 0.02), (0.16 * head.width, 0.2 * head.width), shade)
    jaw = [(u, v) for u, v in ((-1, -0.2), (-0.93, 0.3), (-0.62, 0.76), (0, 1.0), (0.62, 0.76), (0.93, 0.3), (1, -0.2))]
    canvas.blob(head.ring([*jaw, (0.8, -0.75), (0, -1.05), (-0.8, -0.75)]), outfit.skin)
    for side in (-1, 1):
        canvas.glow(head.at(0.56 * side, 0.26), (0.13 * head.width, 0.09 * head.width), (240, 110, 100), 0.5)
    iris = (58, 96, 92) if outfit.long_hair else (88, 58, 40)
    for start in (36, 42):
        eye = face[start : start + 6]
        centre, tall = eye.mean(0), float(np.hypot(*(eye[1] - eye[5]))) + float(np.hypot(*(eye[2] - eye[4])))
        canvas.polygon(spline(eye, 6), (255, 255, 255))
        size = min(0.13 * head.width, 0.30 * tall)
        canvas.ellipse(centre, (min(size, 0.105 * head.width), size), iris)
        canvas.ellipse(centre, (0.6 * size, 0.6 * size), (28, 22, 26))
        if tall > 0.2 * head.width:
            spark = 0.035 * head.width
            canvas.ellipse(centre + [spark, -spark], (spark, spark), (255, 255, 255))
        canvas.line(spline(eye, 6)[: 3 * 6 + 1], mix(outfit.hair, (10, 5, 10), 0.6), 0.055 * head.width)
    for start in (17, 22):
        canvas.line(face[start : start + 5], mix(outfit.hair, (20, 10, 10), 0.3), 0.075 * head.width)
    canvas.line(face[[31, 32, 33, 34, 35]], mix(outfit.skin, (150, 60, 40), 0.45), 0.04 * head.width)
    canvas.polygon(face[48:60], (206, 84, 88))
    canvas.polygon(face[60:68], (110, 34, 44))
    upper, lower = face[60:65], face[[60, 67, 66, 65, 64]]
    canvas.polygon(np.concatenate([upper, (0.6 * upper + 0.4 * lower)[::-1]]), (255, 252, 248))
    _hair_front(canvas, head, outfit)


def _hair_front(canvas: Canvas, head: _Head, outfit: Outfit) -> None:
    canvas.blob(head.ring(_LONG_FRINGE if outfit.long_hair else _SHORT_FRINGE), outfit.hair)
    light = head.ring([(-0.62, -0.86), (-0.3, -1.02), (0.05, -1.07), (0.3, -1.04)])
    canvas.line(light, mix(outfit.hair, (255, 230, 200), 0.28), 0.07 * head.width)


_LONG_FRINGE = (
    (-1.1, 0.25), (-1.16, -0.4), (-0.8, -1.05), (0, -1.3), (0.8, -1.05), (1.16, -0.4), (1.1, 0.25),
    (0.98, -0.25), (0.7, -0.66), (0.15, -0.78), (-0.35, -0.62), (-0.75, -0.42), (-0.98, -0.15),
)  # fmt: skip
_SHORT_FRINGE = (
    (-1.02, -0.05), (-1.13, -0.5), (-0.75, -1.12), (-0.1, -1.36), (0.65, -1.2), (1.12, -0.6), (1.02, -0.1),
    (0.92, -0.42), (0.6, -0.62), (0.3, -0.52), (0.0, -0.7), (-0.3, -0.55), (-0.6, -0.68), (-0.9, -0.45),
)  # fmt: skip
