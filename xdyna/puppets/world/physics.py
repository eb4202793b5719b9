"""Damped springs, stepped exactly: what hair, skirts and ribbons swing on.

A pendulum of length L in a frame that accelerates by a, with damping ratio d and w^2 = g / L, for small angles:
    theta'' = -w^2 (theta - target) - 2 d w theta',   target = rest - a / g
"""

from __future__ import annotations

import numpy as np

GRAVITY = 6.2
"""Of a figure 1.58 m tall, in figure heights per s^2."""


def step_matrix(frequency: np.ndarray, damping: np.ndarray, step: float) -> np.ndarray:
    """The exact solution of a damped oscillator over one step with a constant target.

    Args:
        frequency: (...) w, rad/s, above 0.
        damping: (...) damping ratio d, in [0, 1).
        step: s.

    Returns:
        (..., 2, 2): (theta - target, theta') after the step from the same before it.

    Raises:
        ValueError: a frequency or damping out of range.
    """
    frequency, damping = np.asarray(frequency, dtype=np.float64), np.asarray(damping, dtype=np.float64)
    if not (frequency > 0).all() or not ((damping >= 0) & (damping < 1)).all():
        raise ValueError(
            f"springs have frequencies from {frequency.min():g} rad/s and damping ratios from {damping.min():g} to "
            f"{damping.max():g}; expected frequencies above 0 and ratios in [0, 1)"
        )
    decay, ring = damping * frequency, frequency * np.sqrt(1 - damping**2)
    c, s, fall = np.cos(ring * step), np.sin(ring * step), np.exp(-decay * step)
    first = np.stack([c + decay / ring * s, s / ring], -1)
    second = np.stack([-(frequency**2) / ring * s, c - decay / ring * s], -1)
    return np.stack([first, second], -2) * fall[..., None, None]


def swing(targets: np.ndarray, *, frequency: np.ndarray, damping: np.ndarray, step: float) -> np.ndarray:
    """Angles of chains of pendulums: the first segment of a chain goes for its target, each other one for the segment
    above it.

    They start at rest at their first target.

    Args:
        targets: (T, C) rad, of C chains at times k * step.
        frequency: (C, S) rad/s, of S segments.
        damping: (C, S) damping ratios.
        step: s.

    Returns:
        (T, C, S) rad.

    Raises:
        ValueError: as in `step_matrix`.
    """
    matrix = step_matrix(frequency, damping, step)
    steps, (chains, segments) = len(targets), matrix.shape[:2]
    angles = np.empty((steps, chains, segments))
    angle = np.repeat(targets[0][:, None], segments, 1)
    speed = np.zeros_like(angle)
    target = np.empty_like(angle)
    angles[0] = angle
    a, b, c, d = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 0], matrix[..., 1, 1]
    for k in range(1, steps):
        target[:, 0] = targets[k - 1]
        target[:, 1:] = angle[:, :-1]
        away = angle - target
        angle, speed = target + a * away + b * speed, c * away + d * speed
        angles[k] = angle
    return angles


def acceleration(positions: np.ndarray, step: float) -> np.ndarray:
    """Second central difference along the first axis; 0 at both ends.

    Args:
        positions: (T, ...).
        step: s between them.

    Returns:
        (T, ...) positions' unit per s^2.
    """
    result = np.zeros_like(positions)
    result[1:-1] = (positions[2:] - 2 * positions[1:-1] + positions[:-2]) / step**2
    return result
