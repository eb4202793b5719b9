"""A motion on a body: where joints and hands are. Coordinates are figure heights, y down, (0, 0) on the ground."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xdyna.puppets.world.identity import Body
from xdyna.puppets.world.motion import Motion

_SOFT = 200.0  # per figure height
_SIDES = np.array([1.0, -1.0])  # the puppet's left is right on the screen
HEAD_WIDTH = 0.96
"""Width of a head over its height."""


@dataclass(frozen=True)
class Skeleton:
    """Places at T times, figure heights; sides: 0 left, 1 right.

    Attributes:
        pelvis, neck, head: (T, 2) middle of the hips, middle of the shoulders, middle of the head.
        spine: (T,) torso's angle, rad clockwise.
        head_angle: (T,) rad clockwise.
        hip, knee, ankle, shoulder, elbow, wrist: (T, 2, 2) side, xy.
        hands: (T, 2, 21, 2).
    """

    pelvis: np.ndarray
    neck: np.ndarray
    head: np.ndarray
    spine: np.ndarray
    head_angle: np.ndarray
    hip: np.ndarray
    knee: np.ndarray
    ankle: np.ndarray
    shoulder: np.ndarray
    elbow: np.ndarray
    wrist: np.ndarray
    hands: np.ndarray


def make_skeleton(body: Body, motion: Motion) -> Skeleton:
    """Forward kinematics, the lower foot on the ground.

    Args:
        body: lengths.
        motion: T times.

    Returns:
        T skeletons.
    """
    hip = body.hip * _SIDES[:, None] * [1.0, 0.0] + np.zeros((len(motion.lean), 1, 1))
    knee = hip + _limb(motion.thigh, body.thigh * motion.thigh_short)
    ankle = knee + _limb(motion.shin, body.shin * (0.5 + 0.5 * motion.thigh_short))
    low = ankle[..., 1]
    # A smooth maximum: the weight passes from foot to foot without a jerk.
    down = -body.ankle - low.max(1) - np.log1p(np.exp(-_SOFT * np.abs(low[:, 0] - low[:, 1]))) / _SOFT
    shift = np.stack([motion.place - ankle[..., 0].mean(1), down], 1)
    hip, knee, ankle, pelvis = hip + shift[:, None], knee + shift[:, None], ankle + shift[:, None], shift
    up = np.stack([np.sin(motion.lean), -np.cos(motion.lean)], 1)
    neck = pelvis + body.torso * up
    line = motion.lean + motion.shrug
    across = np.stack([np.cos(line), np.sin(line)], 1) * (body.shoulder * np.cos(motion.twist))[:, None]
    shoulder = neck[:, None] + _SIDES[:, None] * across[:, None]
    elbow = shoulder + _limb(motion.upper_arm, body.upper_arm * motion.arm_short)
    wrist = elbow + _limb(motion.forearm, body.forearm * motion.arm_short)
    head_angle = 0.6 * motion.lean + motion.tilt
    rise = body.neck + 0.5 * body.head
    head = neck + rise * np.stack([np.sin(head_angle), -np.cos(head_angle)], 1)
    hands = wrist[:, :, None] + _hands(motion) * body.hand
    return Skeleton(pelvis, neck, head, motion.lean, head_angle, hip, knee, ankle, shoulder, elbow, wrist, hands)


def _limb(angle: np.ndarray, length: np.ndarray) -> np.ndarray:
    """(T, 2) angles and lengths of both sides to (T, 2, 2) vectors."""
    return np.stack([_SIDES * np.sin(angle), np.cos(angle)], -1) * np.asarray(length)[..., None]


def _hands(motion: Motion) -> np.ndarray:
    """(T, 2, 21, 2) hands in hand lengths from the wrist, palms to the viewer."""
    fan = np.array([0.95, 0.34, 0.08, -0.16, -0.42])  # towards the thumb
    base = np.array([0.24, 0.44, 0.46, 0.44, 0.40])
    reach = np.array([0.82, 1.08, 1.14, 1.08, 0.94])
    spread = motion.spread[..., None]
    turn = fan * (0.55 + 0.6 * spread)
    reach_now = reach * (0.72 + 0.28 * spread)
    lengths = base[:, None] + (reach_now - base)[..., None] * (np.arange(4) / 3.0)
    # A hanging arm shows the back of its hand, the thumb towards the body.
    angle = (motion.forearm + motion.wrist)[..., None, None] - turn[..., None] * np.ones(4)
    points = np.stack([np.sin(angle), np.cos(angle)], -1) * lengths[..., None]
    points = points.reshape(*points.shape[:2], 20, 2)
    points = np.concatenate([np.zeros_like(points[:, :, :1]), points], 2)
    return points * np.stack([_SIDES, np.ones(2)], 1)[:, None]
