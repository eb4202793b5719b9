"""Hair, hats and hair ribbons, behind and in front of the face."""

from __future__ import annotations

import numpy as np

from xdyna.puppets.world.canvas import Canvas, mix, outline_of, ribbon, spline
from xdyna.puppets.world.face import Head
from xdyna.puppets.world.identity import Hair

# Lower edges of the hair on the forehead, from left to right, head coordinates.
_FRINGES = {
    "straight": ((-0.97, -0.1), (-0.74, -0.42), (-0.36, -0.50), (0, -0.47), (0.36, -0.50), (0.74, -0.42), (0.97, -0.1)),
    "swept": ((-0.99, -0.02), (-0.86, -0.34), (-0.5, -0.66), (-0.1, -0.64), (0.4, -0.50), (0.76, -0.34), (0.99, -0.04)),
    "parted": ((-1.0, 0.06), (-0.86, -0.34), (-0.46, -0.62), (-0.04, -0.82), (0.42, -0.62), (0.84, -0.36), (1.0, 0.06)),
}  # fmt: skip
_CHOPPY = ((-0.99, -0.06), (-0.80, -0.52), (-0.62, -0.30), (-0.34, -0.60), (-0.08, -0.40), (0.22, -0.62), (0.50, -0.42),
           (0.78, -0.58), (0.99, -0.06))  # fmt: skip
_SPIKES = ((-1.28, -0.28), (-1.16, -0.92), (-0.72, -1.40), (-0.12, -1.56), (0.5, -1.48), (1.06, -1.06), (1.30, -0.40))


def draw_back(canvas: Canvas, head: Head, hair: Hair, hanging: dict[str, np.ndarray]) -> None:
    """What lies behind head and body.

    Args:
        canvas: in figure heights.
        head: its place.
        hair: what to draw.
        hanging: part -> (C, S + 1, 2) points.
    """
    dark, volume = mix(hair.color, (16, 8, 24), 0.22), hair.volume
    if hair.style in ("long", "bob"):
        chains = hanging["back"]
        crown = head.at(np.array([(1.16, -0.1), (0.86, -0.92), (0, -1.24), (-0.86, -0.92), (-1.16, -0.1)]) * volume)
        shape = np.concatenate([chains[0, 1:], chains[1:4, -1] + [0, 0.012], chains[4, :0:-1], crown])
        canvas.fill(spline(shape, steps=4), dark, secondary=True)
    elif hair.style in ("ponytail", "pigtails"):
        for chain in hanging["tail"]:
            _tail(canvas, chain, hair, 0.046 * volume)
    elif hair.style == "afro":
        nudge = hanging["top"][0, -1] - hanging["top"][0, 0] - [0, 0.06]
        centre = head.at(np.array([0.0, -0.34])) - 0.25 * nudge
        turn = np.linspace(0, 2 * np.pi, 15, False)
        wave = np.repeat(np.stack([np.cos(turn), np.sin(turn)], 1), 2, 0) * np.tile([1.0, 1.06], 15)[:, None]
        ball = centre + wave * [1.38 * volume * head.width, 1.20 * volume * head.height]
        canvas.fill(spline(ball, steps=3), hair.color, secondary=True)
    elif hair.style == "bun":
        nudge = hanging["top"][0, -1] - hanging["top"][0, 0] - [0, 0.06]
        centre = head.at(np.array([0.0, -1.24])) - 0.5 * nudge
        canvas.ellipse(centre, (0.46 * head.width, 0.42 * head.height), hair.color, outlined=True, secondary=True)
        curl = (
            centre
            + np.stack([np.cos(np.linspace(2.6, 5.6, 7)), np.sin(np.linspace(2.6, 5.6, 7))], 1) * 0.26 * head.width
        )
        canvas.stroke(curl, 0.012, mix(hair.color, (255, 230, 200), 0.25), secondary=True)
    if hair.style in ("short", "spiky", "bun", "ponytail", "pigtails"):
        low = 0.32 if hair.style == "short" else 0.12
        cap = [(-1.06, low), (-1.10, -0.4), (-0.78, -1.0), (0, -1.22), (0.78, -1.0), (1.10, -0.4), (1.06, low)]
        canvas.fill(spline(head.at(np.array(cap) * [volume, 1.0])), dark, secondary=True)


def _tail(canvas: Canvas, chain: np.ndarray, hair: Hair, width: float) -> None:
    line = spline(chain, steps=4, closed=False)
    shares = np.linspace(0, 1, len(line))
    canvas.fill(ribbon(line, width * (0.55 + 1.9 * shares - 2.25 * shares**2.2)), hair.color, secondary=True)
    canvas.stroke(line[2:-3] + [0.006, 0], 0.010, mix(hair.color, (255, 230, 200), 0.22), secondary=True)


def draw_front(canvas: Canvas, head: Head, hair: Hair, hanging: dict[str, np.ndarray], *, shift: float) -> None:
    """What lies over the face, and the hat; arguments as in `draw_back`.

    `shift` is how far the features have turned (head coordinates): the fringe follows by half.
    """
    volume = hair.volume
    low = np.array(_CHOPPY if hair.style == "short" else _FRINGES[hair.fringe]) * [hair.side, 1.0]
    low = low if low[0, 0] < 0 else low[::-1]
    low[1:-1, 0] += 0.45 * shift * (1 - np.abs(low[1:-1, 0]))
    if hair.style == "spiky":
        lean = _lean(hanging)
        tips = np.array(_SPIKES[::-1]) * [volume, 1.0]
        gaps = 0.5 * (tips[1:] + tips[:-1]) * 0.80
        crown = np.empty((13, 2))
        crown[::2], crown[1::2] = tips, gaps
        crown[::2, 0] += lean * np.clip(-crown[::2, 1], 0, 2)
        inner = np.array([(-0.98, -0.12), (-0.66, -0.30), (-0.52, -0.60), (-0.16, -0.40), (0.06, -0.64), (0.46, -0.36),
                          (0.62, -0.60), (0.98, -0.12)])  # fmt: skip
        canvas.fill(head.at(np.concatenate([inner, crown])), hair.color, secondary=True)
    else:
        top = np.array([(1.10, -0.32), (0.82, -0.96), (0, -1.24), (-0.82, -0.96), (-1.10, -0.32)]) * volume
        if hair.style == "short":
            top[2] += [0.14 * hair.side + _lean(hanging), -0.10]
        sides = _side_locks(hair)
        shape = np.concatenate([sides[0], low, sides[1], top])
        canvas.fill(spline(head.at(shape), steps=5), hair.color, secondary=True)
        light = np.array([(-0.62, -0.80), (-0.28, -0.97), (0.10, -1.02), (0.36, -0.98)]) * [hair.side, 1.0]
        light = light * volume + [0.3 * shift, 0]
        canvas.stroke(spline(head.at(light), steps=4, closed=False), 0.10 * head.height,
                      mix(hair.color, (255, 236, 206), 0.30), secondary=True)  # fmt: skip
    if hair.hat != "none":
        _hat(canvas, head, hair, shift)
    if hair.ribbon is not None:
        _bow(canvas, hanging["ribbon"], hair.ribbon, 0.34 * head.height)


def _lean(hanging: dict[str, np.ndarray]) -> float:
    """Sideways swing of what stands on the head, head coordinates."""
    chain = hanging["top"][0]
    return float(-4.0 * (chain[-1, 0] - chain[0, 0]))


def _side_locks(hair: Hair) -> tuple[np.ndarray, np.ndarray]:
    """Hair in front of the ears, at the left and the right of the screen; empty where there is none."""
    reach = {"long": 0.62, "bob": 0.58, "pigtails": 0.22}.get(hair.style)
    if reach is None:
        return np.empty((0, 2)), np.empty((0, 2))
    left = np.array([(-1.16, 0.1), (-1.12, reach), (-0.98, reach - 0.06)])
    return left, left[::-1] * [-1, 1]


def _hat(canvas: Canvas, head: Head, hair: Hair, shift: float) -> None:
    color, v = hair.hat_color, hair.volume
    dome = np.array([(-1.16, -0.42), (-1.10, -0.86), (-0.66, -1.30), (0, -1.42), (0.66, -1.30), (1.10, -0.86),
                     (1.16, -0.42), (0.6, -0.54), (0, -0.58), (-0.6, -0.54)]) * [v, 1.0]  # fmt: skip
    canvas.fill(spline(head.at(dome), steps=4), color)
    if hair.hat == "beanie":
        band = np.array([(-1.17, -0.44), (-0.6, -0.58), (0, -0.62), (0.6, -0.58), (1.17, -0.44)]) * [v, 1.0]
        canvas.stroke(
            spline(head.at(band), closed=False), 0.24 * head.height, mix(color, (255, 255, 255), 0.3), outlined=True
        )
        canvas.ellipse(
            head.at(np.array([0.0, -1.46])), (0.24 * head.width,) * 2, mix(color, (255, 255, 255), 0.6), outlined=True
        )
    else:
        place = 0.25 * hair.side + shift
        brim = np.array([(-0.75, -0.56), (0, -0.68), (0.75, -0.56), (0.60, -0.34), (0, -0.30), (-0.60, -0.34)]) + [
            place,
            0,
        ]
        canvas.fill(spline(head.at(brim), steps=4), mix(color, (20, 10, 30), 0.25))
        canvas.ellipse(head.at(np.array([0.0, -1.42])), (0.08 * head.width,) * 2, outline_of(color))


def _bow(canvas: Canvas, tails: np.ndarray, color: tuple[float, float, float], size: float) -> None:
    middle = tails[0, 0]
    for tail in tails:
        line = spline(tail, steps=3, closed=False)
        canvas.fill(ribbon(line, np.linspace(0.15, 0.42, len(line)) * size), color, secondary=True)
    for side in (-1.0, 1.0):
        wing = np.array([(0.0, -0.12), (0.7 * side, -0.62), (1.05 * side, -0.1), (0.7 * side, 0.42), (0.0, 0.12)])
        canvas.fill(spline(middle + wing * size, steps=4), color, secondary=True)
    canvas.ellipse(middle, (0.22 * size,) * 2, mix(color, (255, 255, 255), 0.35), secondary=True)
