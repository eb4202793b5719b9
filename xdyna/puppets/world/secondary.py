"""What hangs on a puppet: hair, skirt, scarf and ribbons as chains of pendulums that its motion and the wind drive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from xdyna.puppets.world.identity import Identity
from xdyna.puppets.world.motion import Motion
from xdyna.puppets.world.physics import GRAVITY, acceleration, swing
from xdyna.puppets.world.skeleton import HEAD_WIDTH, Skeleton

SEGMENTS = 3
_WIDEST = 1.25  # rad; wide swings stop softly
_EAGER = 1.15  # cartoon hair swings a little more than real hair
WAIST = 0.26
"""Place of a skirt's waist above the hips, in torso lengths."""

Hanging = Mapping[str, np.ndarray]
"""Name of a part -> (T, C, SEGMENTS + 1, 2) points of its C chains, figure heights."""


@dataclass(frozen=True)
class Chain:
    """A chain of pendulums.

    Attributes:
        part: what it belongs to.
        anchor: head, neck or pelvis.
        place: (x, y) on the anchor, figure heights, turned with it.
        rest: angle at rest, rad from straight down, positive to the right.
        length: figure heights.
        follow: share of the anchor's angle that the rest angle takes up.
        lift: rad outwards per g of downward acceleration.
        damping: ratio.
        legs: share of the thighs' angles that the rest angle takes up, from the right (-1) to the left (+1) one.
    """

    part: str
    anchor: str
    place: tuple[float, float]
    rest: float
    length: float
    follow: float = 0.0
    lift: float = 0.0
    damping: float = 0.24
    legs: float | None = None


def hang(identity: Identity, motion: Motion, skeleton: Skeleton, *, wind: np.ndarray, step: float) -> Hanging:
    """Simulate all chains from the first time on.

    Args:
        identity: who wears them.
        motion: T times, `step` apart.
        skeleton: the same times.
        wind: (T,) rad by which the wind turns what hangs freely.
        step: s.

    Returns:
        The points of all parts at all T times.
    """
    chains = _chains(identity)
    if not chains:
        return {}
    anchors = {
        "head": (skeleton.head, skeleton.head_angle),
        "neck": (skeleton.neck, skeleton.spine),
        "pelvis": (skeleton.pelvis, skeleton.spine),
    }
    roots, targets = [], []
    for chain in chains:
        centre, angle = anchors[chain.anchor]
        c, s = np.cos(angle), np.sin(angle)
        x, y = chain.place
        root = centre + np.stack([c * x - s * y, s * x + c * y], 1)
        pull = acceleration(root, step)
        target = chain.rest + chain.follow * angle - _EAGER * np.arctan2(pull[:, 0], GRAVITY)
        target = target + np.sign(chain.rest + 1e-9) * chain.lift * np.clip(pull[:, 1] / GRAVITY, -0.3, 0.8)
        if chain.legs is not None:
            left, right = motion.thigh[:, 0], -motion.thigh[:, 1]
            target = target + 0.8 * (right + (left - right) * (chain.legs + 1) / 2)
        roots.append(root)
        targets.append(target + wind * min(1.0, 4.0 * chain.length))
    root_tc, target_tc = np.stack(roots, 1), np.stack(targets, 1)
    lengths = np.array([chain.length for chain in chains])
    # A uniform rod of length L swings like a pendulum of length 2 L / 3; lower segments are lighter and quicker.
    slow = np.minimum(np.sqrt(1.5 * GRAVITY / lengths), 16.0)
    frequency = slow[:, None] * np.array([1.0, 1.7, 2.0])
    damping = np.array([chain.damping for chain in chains])[:, None] * np.array([1.0, 1.6, 1.8])
    free = swing(target_tc, frequency=frequency, damping=damping, step=step)
    angles = _WIDEST * np.tanh(free / _WIDEST)
    links = np.stack([np.sin(angles), np.cos(angles)], -1) * (lengths / SEGMENTS)[:, None, None]
    points = np.concatenate([root_tc[:, :, None], root_tc[:, :, None] + links.cumsum(2)], 2)
    parts = [chain.part for chain in chains]
    return {part: points[:, [k for k, name in enumerate(parts) if name == part]] for part in dict.fromkeys(parts)}


def _chains(identity: Identity) -> list[Chain]:
    body, outfit = identity.body, identity.outfit
    chains = _hair_chains(identity)
    if outfit.bottom in ("skirt", "dress"):
        length = outfit.bottom_length * (body.thigh + body.shin) + WAIST * body.torso
        for w in np.linspace(-1, 1, 7).tolist():
            place = (w * (body.waist + 0.012), -WAIST * body.torso)
            rest = w * (0.16 + 2.2 * outfit.flare)
            chains.append(Chain("skirt", "pelvis", place, rest, length, follow=-0.3, lift=0.5, damping=0.36, legs=w))
    if outfit.belt is not None and outfit.bottom != "shorts":
        for rest in (0.1, 0.3):
            place = (0.75 * body.waist, -(WAIST - 0.02) * body.torso)
            chains.append(Chain("belt", "pelvis", place, rest, 0.16, lift=0.5, damping=0.16))
    if outfit.scarf is not None:
        chains.append(Chain("scarf", "neck", (-0.03, 0.0), -0.15, 0.19, lift=0.4, damping=0.18))
    return chains


def _hair_chains(identity: Identity) -> list[Chain]:
    hair, height = identity.hair, identity.body.head / 2
    width = HEAD_WIDTH * height

    def chain(part: str, u: float, v: float, rest: float, length: float, **more: float) -> Chain:
        return Chain(part, "head", (u * width, v * height), rest, length, **more)

    chains = []
    if hair.style in ("long", "bob"):
        for u in np.linspace(-1, 1, 5).tolist():
            chains.append(chain("back", 1.04 * u, 0.0, 0.12 * u, hair.length, follow=0.35, lift=0.35, damping=0.22))
    elif hair.style == "ponytail":
        chains.append(chain("tail", 0.72 * hair.side, -0.80, 0.62 * hair.side, hair.length, follow=0.4, lift=0.7))
    elif hair.style == "pigtails":
        for side in (1.0, -1.0):
            chains.append(chain("tail", 1.0 * side, -0.30, 0.42 * side, hair.length, follow=0.4, lift=0.7))
    else:
        chains.append(chain("top", 0.0, -0.75, 0.0, 0.06, follow=-1.0, damping=0.18))
    if hair.ribbon is not None:
        u, v = {
            "ponytail": (0.78 * hair.side, -0.80), "pigtails": (1.04 * hair.side, -0.30), "bun": (0.2 * hair.side, -1.1)
        }.get(hair.style, (0.70 * hair.side, -0.86))  # fmt: skip
        for turn in (0.25, 0.6):
            chains.append(chain("ribbon", u, v, turn * hair.side, 0.10, follow=0.3, lift=0.6, damping=0.16))
    return chains
