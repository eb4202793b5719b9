"""Who a puppet is: proportions, face, hair and clothes, all from one seed. Lengths are in figure heights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RGB = tuple[float, float, float]

HAIR_STYLES = ("short", "bob", "long", "ponytail", "pigtails", "bun", "afro", "spiky")
FRINGES = ("straight", "swept", "parted")
BOTTOMS = ("trousers", "shorts", "skirt", "dress")
PATTERNS = ("plain", "stripes", "dots", "two-tone")
HATS = ("none", "cap", "beanie")

_SKINS: tuple[RGB, ...] = (
    (255, 222, 196), (248, 206, 172), (238, 188, 150), (222, 166, 124), (192, 134, 94), (158, 104, 72), (118, 76, 54),
)  # fmt: skip
_HAIRS: tuple[RGB, ...] = (
    (52, 40, 44), (84, 52, 40), (128, 78, 44), (176, 112, 56), (232, 184, 92), (196, 76, 48), (236, 128, 156),
    (96, 116, 196), (106, 178, 168), (200, 196, 208),
)  # fmt: skip
_CLOTHES: tuple[RGB, ...] = (
    (232, 84, 80), (244, 150, 62), (250, 206, 84), (118, 184, 92), (52, 156, 148), (78, 150, 220), (72, 88, 168),
    (148, 100, 190), (240, 132, 168), (246, 244, 238), (64, 66, 82), (176, 120, 84),
)  # fmt: skip
_EYES: tuple[RGB, ...] = ((84, 54, 36), (48, 104, 80), (52, 104, 176), (104, 78, 130), (58, 52, 58))


@dataclass(frozen=True)
class Body:
    """Lengths (figure heights; widths are half widths) and how much of the image the figure takes."""

    frame_share: float
    head: float
    neck: float
    torso: float
    shoulder: float
    waist: float
    hip: float
    upper_arm: float
    forearm: float
    hand: float
    arm_width: float
    thigh: float
    shin: float
    ankle: float
    leg_width: float


@dataclass(frozen=True)
class Face:
    """Colours and shapes; lengths in half widths (u) and half heights (v) of the head."""

    skin: RGB
    width: float
    jaw: float
    chin: float
    eye_u: float
    eye_v: float
    eye_width: float
    eye_height: float
    iris: RGB
    lashes: float
    brow: RGB
    brow_width: float
    brow_tilt: float
    nose: float
    mouth_v: float
    mouth_width: float
    lips: RGB
    blush: float
    freckles: bool
    glasses: RGB | None


@dataclass(frozen=True)
class Hair:
    """Style and colour; `length` in figure heights, `volume` a factor, `side` +1 or -1."""

    style: str
    fringe: str
    color: RGB
    length: float
    volume: float
    side: float
    hat: str
    hat_color: RGB
    ribbon: RGB | None


@dataclass(frozen=True)
class Outfit:
    """Clothes."""

    bottom: str
    top_color: RGB
    top_accent: RGB
    top_pattern: str
    sleeve: float
    bottom_color: RGB
    bottom_accent: RGB
    bottom_pattern: str
    bottom_length: float
    flare: float
    shoes: RGB
    socks: RGB | None
    scarf: RGB | None
    belt: RGB | None


@dataclass(frozen=True)
class Identity:
    """A puppet."""

    body: Body
    face: Face
    hair: Hair
    outfit: Outfit


def make_identity(seed: int) -> Identity:
    """The puppet of a seed.

    Args:
        seed: at least 0.

    Returns:
        Equal for equal seeds. Parts are drawn from separate streams, so that they are independent.
    """
    body, face, hair, outfit = (np.random.default_rng([101, part, seed]) for part in range(4))
    hair_color = _pick(hair, _HAIRS)
    return Identity(
        body=_body(body), face=_face(face, hair_color), hair=_hair(hair, hair_color), outfit=_outfit(outfit)
    )


def _pick(rng: np.random.Generator, colors: tuple[RGB, ...], jitter: float = 10.0) -> RGB:
    base, shift = colors[int(rng.integers(len(colors)))], rng.uniform(-jitter, jitter, 3)
    r, g, b = (float(np.clip(c + d, 12, 252)) for c, d in zip(base, shift, strict=True))
    return r, g, b


def _body(rng: np.random.Generator) -> Body:
    head = rng.uniform(0.215, 0.27)
    neck, ankle = rng.uniform(0.012, 0.026), 0.036
    torso = (1 - head) * rng.uniform(0.325, 0.37)
    legs = 1 - head - neck - torso - ankle
    arm, build = rng.uniform(0.265, 0.30), rng.uniform(0.9, 1.18)
    return Body(
        frame_share=rng.uniform(0.78, 0.885),
        head=head,
        neck=neck,
        torso=torso,
        shoulder=0.092 * build * rng.uniform(0.92, 1.08),
        waist=0.066 * build * rng.uniform(0.88, 1.1),
        hip=0.048 * build,
        upper_arm=0.51 * arm,
        forearm=0.49 * arm,
        hand=rng.uniform(0.054, 0.064),
        arm_width=0.029 * rng.uniform(0.92, 1.15),
        thigh=0.51 * legs,
        shin=0.49 * legs,
        ankle=ankle,
        leg_width=0.037 * rng.uniform(0.92, 1.2),
    )


def _face(rng: np.random.Generator, hair: RGB) -> Face:
    skin = _pick(rng, _SKINS, 6)
    dark = sum(skin) < 480
    lips = np.array((196, 74, 82)) * (0.8 if dark else 1.0) + rng.uniform(-14, 22, 3)
    iris = _pick(rng, _EYES[:1] + _EYES[3:] if dark else _EYES, 8)
    brow: RGB = (0.55 * hair[0] + 12, 0.5 * hair[1] + 10, 0.5 * hair[2] + 14)
    return Face(
        skin=skin,
        width=rng.uniform(0.94, 1.03),
        jaw=rng.uniform(0.56, 0.80),
        chin=rng.uniform(0.96, 1.06),
        eye_u=rng.uniform(0.38, 0.45),
        eye_v=rng.uniform(0.0, 0.10),
        eye_width=rng.uniform(0.19, 0.25),
        eye_height=rng.uniform(0.21, 0.29),
        iris=iris,
        lashes=rng.uniform(0.05, 0.10),
        brow=brow,
        brow_width=rng.uniform(0.05, 0.085),
        brow_tilt=rng.uniform(-0.06, 0.08),
        nose=rng.uniform(0.05, 0.10),
        mouth_v=rng.uniform(0.54, 0.60),
        mouth_width=rng.uniform(0.25, 0.33),
        lips=(float(lips[0]), float(lips[1]), float(lips[2])),
        blush=rng.uniform(0.25, 0.6),
        freckles=bool(rng.uniform() < 0.2 and not dark),
        glasses=_pick(rng, ((50, 44, 56), (176, 52, 52), (52, 84, 150))) if rng.uniform() < 0.13 else None,
    )


def _hair(rng: np.random.Generator, color: RGB) -> Hair:
    style = HAIR_STYLES[int(rng.integers(len(HAIR_STYLES)))]
    lengths = {"bob": (0.12, 0.16), "long": (0.24, 0.38), "ponytail": (0.20, 0.32), "pigtails": (0.16, 0.30)}
    low, high = lengths.get(style, (0.05, 0.08))
    hat = HATS[int(rng.integers(1, 3))] if rng.uniform() < 0.22 and style not in ("bun", "afro", "spiky") else "none"
    return Hair(
        style=style,
        fringe=FRINGES[int(rng.integers(len(FRINGES)))],
        color=color,
        length=rng.uniform(low, high),
        volume=rng.uniform(0.94, 1.08),
        side=1.0 if rng.uniform() < 0.5 else -1.0,
        hat=hat,
        hat_color=_pick(rng, _CLOTHES),
        ribbon=_pick(rng, _CLOTHES[:9]) if rng.uniform() < 0.55 else None,
    )


def _outfit(rng: np.random.Generator) -> Outfit:
    bottom = BOTTOMS[int(rng.choice(4, p=(0.34, 0.16, 0.28, 0.22)))]
    top, lower = rng.permutation(len(_CLOTHES))[:2]
    top_color, bottom_color = _pick(rng, (_CLOTHES[top],)), _pick(rng, (_CLOTHES[lower],))
    accents: tuple[RGB, RGB] = ((250, 246, 236), (58, 56, 76))
    top_accent, bottom_accent = (accents[int(sum(color) > 480)] for color in (top_color, bottom_color))
    patterns = rng.choice(4, size=2, p=(0.34, 0.26, 0.18, 0.22))
    lengths = {"trousers": (0.93, 0.97), "shorts": (0.32, 0.46), "skirt": (0.34, 0.62), "dress": (0.40, 0.74)}
    dress = bottom == "dress"
    return Outfit(
        bottom=bottom,
        top_color=top_color,
        top_accent=top_accent if rng.uniform() < 0.5 else bottom_color,
        top_pattern=PATTERNS[int(patterns[0])],
        sleeve=float(rng.choice((0.0, 0.5, 0.95, 1.9), p=(0.12, 0.34, 0.1, 0.44))),
        bottom_color=top_color if dress else bottom_color,
        bottom_accent=top_accent if dress else bottom_accent,
        bottom_pattern=PATTERNS[int(patterns[0] if dress else patterns[1])],
        bottom_length=rng.uniform(*lengths[bottom]),
        flare=rng.uniform(0.02, 0.07),
        shoes=_pick(rng, _CLOTHES),
        socks=_pick(rng, _CLOTHES) if rng.uniform() < 0.4 else None,
        scarf=_pick(rng, _CLOTHES[:9]) if rng.uniform() < 0.2 else None,
        belt=_pick(rng, _CLOTHES[:9]) if rng.uniform() < 0.4 else None,
    )
