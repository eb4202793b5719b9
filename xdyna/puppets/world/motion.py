"""How a puppet moves: joint angles and expressions as smooth functions of time, all from one seed.

Angles are in rad. Limb angles are in the image plane and absolute: 0 hangs straight down, positive points away from
the body. `short` is the apparent length of a limb over its true length (it points towards the viewer). Side 0 is the
puppet's left (right on the screen), side 1 its right. Nothing here depends on who moves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MOTION_KINDS = ("dance", "wave", "walk", "across", "circles", "bounce", "sway")
EXPRESSIONS = (
    "brow_raise", "brow_tilt", "eye_open_left", "eye_open_right", "gaze_x", "gaze_y", "mouth_open", "smile",
)  # fmt: skip
"""Entries of an expression vector. Openings are in [0, 1], the others in [-1, 1] (gaze: right and down on the screen;
brow_tilt: inner ends up; smile: corners up)."""

_TAU = 2 * np.pi
_KEYS = 48  # key poses before a dance repeats

# Upper arm and elbow bend in degrees; a positive bend turns the forearm further outwards and up.
_ARM_POSES = np.radians(
    [
        (14, 12), (24, -40), (52, -108), (88, 6), (92, 84), (70, 96), (138, 18), (158, -8), (120, 60), (105, -60),
        (40, 30), (150, -70), (62, 40), (110, 20),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Motion:
    """Curves over T times; see the head of this file for the conventions.

    Attributes:
        place: (T,) sideways place of the feet, figure heights.
        lean: (T,) torso, clockwise on the screen.
        shrug: (T,) shoulder line against the torso, clockwise.
        twist: (T,) turn of the torso about its axis.
        tilt: (T,) head against the torso, clockwise.
        yaw: (T,) turn of the head, positive to the right on the screen.
        pitch: (T,) nod, positive down.
        upper_arm: (T, 2).
        forearm: (T, 2).
        arm_short: (T, 2).
        thigh: (T, 2).
        shin: (T, 2).
        thigh_short: (T, 2).
        wrist: (T, 2) hand against the forearm.
        spread: (T, 2) how far the fingers are open, 0 to 1.
        expression: (T, E).
    """

    place: np.ndarray
    lean: np.ndarray
    shrug: np.ndarray
    twist: np.ndarray
    tilt: np.ndarray
    yaw: np.ndarray
    pitch: np.ndarray
    upper_arm: np.ndarray
    forearm: np.ndarray
    arm_short: np.ndarray
    thigh: np.ndarray
    shin: np.ndarray
    thigh_short: np.ndarray
    wrist: np.ndarray
    spread: np.ndarray
    expression: np.ndarray


def kind_of_motion(seed: int) -> str:
    """The kind of motion that a seed stands for."""
    return MOTION_KINDS[int(np.random.default_rng([202, 0, seed]).integers(len(MOTION_KINDS)))]


def make_motion(seed: int, kind: str, times: np.ndarray) -> Motion:
    """The motion of a seed at given times.

    Args:
        seed: at least 0.
        kind: one of `MOTION_KINDS`.
        times: (T,) s, from 0.

    Returns:
        The curves at these times; each row depends on its own time alone.
    """
    rng = np.random.default_rng([202, 1, MOTION_KINDS.index(kind), seed])
    tempo = rng.uniform(0.55, 0.95)
    beat = _TAU * tempo * times + rng.uniform(0, _TAU)
    calm = 1.0 if kind in ("dance", "sway", "bounce") else 0.6
    legs, place, lean = _legs(kind, beat, rng)
    upper, bend, short = _arms(kind, beat, times, rng)
    lean = lean + calm * rng.uniform(0.02, 0.07) * np.sin(beat + rng.uniform(0, _TAU))
    return Motion(
        place=place,
        lean=lean,
        shrug=calm * rng.uniform(0.03, 0.12) * np.sin(beat + rng.uniform(0, _TAU)),
        twist=calm * rng.uniform(0.1, 0.5) * np.sin(0.5 * beat + rng.uniform(0, _TAU)),
        tilt=_waves(rng, times, tempo, rng.uniform(0.04, 0.13)),
        yaw=_waves(rng, times, 0.5 * tempo, rng.uniform(0.08, 0.24)) + rng.uniform(-0.07, 0.07),
        pitch=_waves(rng, times, tempo, rng.uniform(0.03, 0.13)),
        upper_arm=upper,
        forearm=upper + bend,
        arm_short=short,
        thigh=legs[0],
        shin=legs[1],
        thigh_short=legs[2],
        wrist=np.stack([_waves(rng, times, tempo, 0.35) for _ in range(2)], 1),
        spread=np.stack([0.6 + _waves(rng, times, 0.7 * tempo, 0.4) for _ in range(2)], 1).clip(0, 1),
        expression=_expression(np.random.default_rng([202, 2, seed]), times),
    )


def _waves(rng: np.random.Generator, times: np.ndarray, tempo: float, size: float) -> np.ndarray:
    """Three sinusoids about `tempo` Hz whose amplitudes add up to `size`."""
    rates, shares, phases = rng.uniform(0.5, 1.6, 3), rng.uniform(0.3, 1.0, 3), rng.uniform(0, _TAU, 3)
    waves = (share * np.sin(_TAU * tempo * r * times + p) for r, share, p in zip(rates, shares, phases, strict=True))
    return size / shares.sum() * sum(waves)


def _minimum_jerk(share: np.ndarray) -> np.ndarray:
    """From 0 to 1 with speed and acceleration 0 at both ends; Flash and Hogan 1985."""
    share = np.clip(share, 0, 1)
    return share**3 * (10 - 15 * share + 6 * share**2)


def _key_poses(keys: np.ndarray, times: np.ndarray, period: float, move: float) -> np.ndarray:
    """Minimum-jerk moves from key to key, cyclic: (K, ...) -> (T, ...); a move takes `move` of the period."""
    place = times / period
    index = np.floor(place).astype(int)
    ease = _minimum_jerk((place - index) / move).reshape(-1, *[1] * (keys.ndim - 1))
    start, end = keys[index % len(keys)], keys[(index + 1) % len(keys)]
    return start + ease * (end - start)


def _both(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.stack(np.broadcast_arrays(left, right), 1)


def _arms(
    kind: str, beat: np.ndarray, times: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Upper arm angle, elbow bend and apparent length, each (T, 2)."""
    full = np.ones((len(beat), 2))
    flip = slice(None, None, -1 if rng.uniform() < 0.5 else 1)
    if kind == "dance":
        left = rng.integers(len(_ARM_POSES), size=_KEYS)
        mirror = rng.uniform(size=_KEYS) < 0.45
        right = np.where(mirror, left, rng.integers(len(_ARM_POSES), size=_KEYS))
        keys = np.stack([_ARM_POSES[left], _ARM_POSES[right]], 1)  # (K, side, angle)
        poses = _key_poses(keys, times, rng.uniform(0.42, 0.7), rng.uniform(0.7, 1.0))
        pulse = rng.uniform(0.05, 0.15) * np.sin(2 * beat)
        return poses[..., 0] + pulse[:, None], poses[..., 1] - pulse[:, None], full
    if kind == "wave":
        swing = np.sin(rng.uniform(1.8, 2.6) * beat)
        high = rng.uniform(1.5, 2.2) + 0.18 * swing
        bend = rng.uniform(0.5, 0.95) + rng.uniform(0.5, 0.75) * swing
        rest = _ARM_POSES[int(rng.choice((0, 2, 10)))]
        other = rest[0] + rng.uniform(0.05, 0.2) * np.sin(beat)
        return _both(high, other)[:, flip], _both(bend, rest[1] + 0 * beat)[:, flip], full
    if kind in ("walk", "across"):
        swing, lift = np.sin(beat), rng.uniform(0.25, 0.5)
        upper = 0.32 + lift * _both(swing, -swing)
        return upper, 0.35 + 0.45 * _both(swing, -swing), 0.93 + 0.07 * _both(swing, -swing)
    if kind == "circles":
        lag = rng.choice((0.0, 0.5 * np.pi, np.pi))
        turn = _both(beat, beat + lag)
        wide = rng.uniform(0.8, 1.25)
        return 1.45 + wide * np.sin(turn), 0.15 + 0.3 * np.cos(turn), 0.86 + 0.14 * np.cos(turn)
    if kind == "bounce":
        rise = 0.5 - 0.5 * np.cos(beat)
        low, high = rng.uniform(0.2, 0.6), rng.uniform(1.3, 2.5)
        upper = low + (high - low) * rise
        lag = 0.5 - 0.5 * np.cos(beat + rng.choice((0.0, 0.9)))
        return _both(upper, low + (high - low) * lag), _both(0.2 + 0.5 * (1 - rise), 0.2 + 0.5 * (1 - lag)), full
    overhead = rng.uniform() < 0.45
    middle, size = (2.3, 0.45) if overhead else (0.75, 0.5)
    wave = size * np.sin(beat)
    return _both(middle + wave, middle - wave), _both(0.15 + 0.5 * wave, 0.15 - 0.5 * wave), full


def _legs(
    kind: str, beat: np.ndarray, rng: np.random.Generator
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
    """(Thigh, shin, apparent length of the thigh), each (T, 2), place of the feet (T,) and lean (T,)."""
    stance = rng.uniform(0.05, 0.16)
    sway, squat, step, travel, lean = {
        "dance": (0.12, 0.35, 0.55, 0.03, 0.05),
        "wave": (0.06, 0.12, 0.0, 0.01, 0.03),
        "walk": (0.03, 0.0, 1.0, 0.01, 0.02),
        "across": (0.03, 0.0, 1.0, 0.10, 0.05),
        "circles": (0.06, 0.2, 0.0, 0.02, 0.03),
        "bounce": (0.04, 0.75, 0.0, 0.02, 0.02),
        "sway": (0.18, 0.1, 0.0, 0.04, 0.10),
    }[kind]
    size = rng.uniform(0.75, 1.15)
    phase = rng.uniform(0, _TAU)
    bend = size * squat * (0.5 - 0.5 * np.cos((1 if kind == "bounce" else 2) * beat))
    shift = size * sway * np.sin(beat)
    stepping = np.sin(beat if kind != "dance" else beat + 0.5 * np.pi)
    lift = np.stack([np.maximum(0, stepping), np.maximum(0, -stepping)], 1) ** 2 * min(1.0, size * step)
    outward = stance + bend[:, None] + 0.2 * lift
    across = np.stack([shift, -shift], 1)
    thigh = outward + across
    shin = stance - 0.85 * bend[:, None] + across - 0.22 * lift
    place = travel * np.sin(0.5 * beat + phase)
    return (thigh, shin, 1 - 0.42 * lift), place, size * lean * np.sin(beat + 0.3)


def _expression(rng: np.random.Generator, times: np.ndarray) -> np.ndarray:
    """(T, E) expression vectors."""
    talk = 0.5 + 0.5 * np.sin(
        _TAU * rng.uniform(1.1, 2.2) * times + rng.uniform(0, _TAU) + _waves(rng, times, 0.6, 2.0)
    )
    mood = _waves(rng, times, rng.uniform(0.25, 0.5), 1.3)
    gate = (0.62 + _waves(rng, times, rng.uniform(0.3, 0.6), 1.3)).clip(0, 1)
    mouth = np.clip(1.15 * talk * gate - 0.05, 0, 1)
    lids = (0.84 + _waves(rng, times, 0.35, 0.3)).clip(0.5, 1.0)
    shut, wink = _blinks(rng, times)
    side = int(rng.integers(2))
    eyes = np.stack([lids * (1 - np.maximum(shut, wink * (side == s))) for s in range(2)], 1)
    brow = (_waves(rng, times, 0.5, 0.9) + 0.5 * mouth - 0.1).clip(-1, 1)
    gaze = [_waves(rng, times, 0.45, 1.25).clip(-1, 1) for _ in range(2)]
    tilt = (_waves(rng, times, 0.4, 0.9) + 0.2).clip(-1, 1)
    smile = (mood + rng.uniform(0.15, 0.7)).clip(-1, 1)
    return np.stack([brow, tilt, eyes[:, 0], eyes[:, 1], *gaze, mouth, smile], 1)


def _blinks(rng: np.random.Generator, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far both eyes are shut, and how far one winks: (T,), 0 to 1."""
    period, moments, longs = rng.uniform(1.2, 2.4), rng.uniform(0.2, 0.8, 32), rng.uniform(0.12, 0.24, 32)
    index = np.floor(times / period).astype(int) % 32
    away = np.abs(times - (np.floor(times / period) + moments[index]) * period)
    shut = 1 - _minimum_jerk(away / longs[index] - 0.25)
    every = rng.uniform(3.0, 7.0)
    late = np.abs(np.mod(times + rng.uniform(0, every), every) - 0.5 * every)
    return shut, 1 - _minimum_jerk(late / 0.3 - 0.3)
