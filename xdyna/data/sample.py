"""A small input without any file: a cartoon figure outdoors, the same figure dancing in a room, and its key points.

Everything is drawn from numbers, so the same arguments give the same pixels and the key points are exact. Lengths of
the figure are in body heights (1 = sole to crown), y points down, left and right are the figure's own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import numpy as np

from xdyna.data.cartoon import HEAD, Canvas, Outfit, draw_figure, landscape, room
from xdyna.media import VideoWriter, write_png
from xdyna.perception.types import PoseTrack

_SHOULDER, _HIP, _UPPER_ARM, _FOREARM, _THIGH, _HAND = 0.098, 0.058, 0.150, 0.135, 0.52, 0.075


class Motion(TypedDict):
    """Key points of T frames; the arguments of `PoseTrack`."""

    body: np.ndarray
    hands: np.ndarray
    face: np.ndarray
    size: tuple[int, int]
    times: np.ndarray
    frame_index: np.ndarray
    source: str


_WALKER = Outfit((244, 200, 168), (122, 62, 38), (36, 138, 142), (240, 178, 62), (150, 64, 52), True, True)
_DANCER = Outfit((224, 172, 136), (46, 38, 52), (232, 102, 74), (52, 68, 118), (246, 244, 238), False, False)


def sample_reference(size: tuple[int, int] = (896, 512), seed: int = 0) -> np.ndarray:
    """A friendly figure standing in a landscape.

    Args:
        size: (H, W) in px.
        seed: chooses clouds, hills and flowers.

    Returns:
        uint8 (H, W, 3) RGB.
    """
    canvas = Canvas(landscape(size, np.random.default_rng(seed)))
    return _drawn(canvas, sample_motion(1, 8.0, size, seed), 0, _WALKER)


def sample_driving(
    frames: int = 24, fps: float = 8.0, size: tuple[int, int] = (896, 512), seed: int = 0
) -> Iterator[np.ndarray]:
    """The figure in other clothes, dancing in a room by `sample_motion` of the same arguments.

    Args:
        frames: number of frames.
        fps: frames per second.
        size: (H, W) in px.
        seed: chooses the dance.

    Yields:
        uint8 (H, W, 3) RGB.
    """
    motion, background = sample_motion(frames, fps, size, seed), room(size)
    for k in range(frames):
        yield _drawn(Canvas(background.copy()), motion, k, _DANCER)


def _drawn(canvas: Canvas, motion: Motion, k: int, outfit: Outfit) -> np.ndarray:
    points = (motion[part][k][..., :2].astype(float) for part in ("body", "hands", "face"))
    draw_figure(canvas, *points, unit=_figure_height(motion["size"]), outfit=outfit)
    return canvas.picture()


def _figure_height(size: tuple[int, int]) -> float:
    return min(0.76 * size[0], 1.05 * size[1])


def sample_motion(frames: int = 24, fps: float = 8.0, size: tuple[int, int] = (896, 512), seed: int = 0) -> Motion:
    """Key points of a dance that begins in the reference picture's pose.

    Args:
        frames: number of frames, at least 1.
        fps: frames per second, > 0.
        size: (H, W) in px of the picture the points belong to.
        seed: chooses tempo and accents.

    Returns:
        The arguments of `PoseTrack`: body (T, 18, 3), hands (T, 2, 21, 3), face (T, 68, 3), float32, confidence 1.

    Raises:
        ValueError: frames below 1 or fps not positive.
    """
    if frames < 1 or not fps > 0:
        raise ValueError(f"a motion needs at least 1 frame and a positive rate; given {frames} frames at {fps} fps")
    times = np.arange(frames) / fps
    rng = np.random.default_rng(seed)
    tempo, accent = rng.uniform(0.42, 0.55), rng.uniform(0.85, 1.1)
    height = _figure_height(size)
    origin = np.array([0.5 * size[1], 0.945 * size[0] - height])
    poses = [_pose(float(t), tempo, accent) for t in times]

    def pixels(points: list[np.ndarray]) -> np.ndarray:
        xy = np.stack(points) * height + origin
        return np.concatenate([xy, np.ones_like(xy[..., :1])], axis=-1).astype(np.float32)

    body, hands, face = (pixels([pose[part] for pose in poses]) for part in range(3))
    return Motion(
        body=body, hands=hands, face=face, size=size, times=times, frame_index=np.arange(frames), source="sample"
    )


def write_sample(
    folder: str | os.PathLike[str],
    *,
    size: tuple[int, int] = (896, 512),
    frames: int = 24,
    fps: float = 8.0,
    seed: int = 0,
    overwrite: bool = False,
) -> tuple[Path, Path, Path]:
    """Write the sample as files.

    Args:
        folder: where to; made if missing.
        size: (H, W) in px of picture and video.
        frames: of the video.
        fps: of the video.
        seed: of scene and dance.
        overwrite: whether existing files may be replaced.

    Returns:
        Paths of `ref.png`, `driving.mp4` and `driving.npz` (a `PoseTrack`).

    Raises:
        MediaError: a file exists or cannot be written.
    """
    folder = Path(folder)
    picture, video, points = folder / "ref.png", folder / "driving.mp4", folder / "driving.npz"
    write_png(picture, sample_reference(size, seed), overwrite=overwrite)
    with VideoWriter(video, fps=fps, size=size, overwrite=overwrite) as writer:
        for frame in sample_driving(frames, fps, size, seed):
            writer.write(frame)
    PoseTrack(**sample_motion(frames, fps, size, seed)).save(points, overwrite=overwrite)
    return picture, video, points


# ---- motion


def _turn(vector: np.ndarray, angle: float) -> np.ndarray:
    """Rotate (..., 2) by `angle` (radians, clockwise on the screen)."""
    c, s = np.cos(angle), np.sin(angle)
    return vector @ np.array([[c, s], [-s, c]])


def _pose(time: float, tempo: float, accent: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Body (18, 2), hands (2, 21, 2) and face (68, 2) at a time; at 0 the figure stands still."""
    ease = min(1.0, time / 0.9)
    ease = ease * ease * (3 - 2 * ease) * accent
    beat = 2 * np.pi * tempo * time
    hip_centre = np.array([0.034 * ease * np.sin(beat), 0.505 + 0.016 * ease * (1 - np.cos(2 * beat)) / 2])
    lean = 0.09 * ease * np.sin(beat + 0.4)
    neck = hip_centre + _turn(np.array([0.0, -0.293]), lean)
    tilt = lean + 0.12 * ease * np.sin(2 * beat)
    face = neck + _turn(_face(ease, beat) * HEAD + np.array([0.0, -0.118]), tilt)

    body = np.zeros((18, 2))
    hands = np.zeros((2, 21, 2))
    body[1] = neck
    for side, (shoulder, hip, sign) in enumerate(
        ((5, 11, 1.0), (2, 8, -1.0))
    ):  # left (right on the screen), then right
        wave = (1 - sign * np.cos(beat + 0.3)) / 2
        raise_ = 0.17 + ease * (0.25 + 2.0 * wave)
        # The elbow bends early on the way up, so that the hand stays inside a narrow picture.
        bend = -0.1 + ease * (-0.3 + 2.3 * np.tanh(5 * wave) - 1.5 * wave**2)
        body[shoulder] = neck + _turn(np.array([sign * _SHOULDER, 0.012 - 0.012 * wave * ease]), lean)
        upper = np.array([sign * np.sin(raise_), np.cos(raise_)])
        lower = np.array([sign * np.sin(raise_ + bend), np.cos(raise_ + bend)])
        body[shoulder + 1] = body[shoulder] + _UPPER_ARM * upper
        body[shoulder + 2] = body[shoulder + 1] + _FOREARM * lower
        hands[side] = body[shoulder + 2] + _hand(lower, sign, spread=0.8 + 0.5 * ease * wave)
        step = max(0.0, sign * np.sin(beat)) ** 2 * ease
        body[hip] = hip_centre + _turn(np.array([sign * _HIP, 0.0]), 0.6 * lean)
        body[hip + 2] = [sign * (0.072 - 0.02 * ease + 0.045 * step), 0.952 - 0.03 * step]
        leg = body[hip + 2] - body[hip]
        slack = max(0.0, 1 - np.hypot(*leg) / 0.448)  # a bent knee comes forward and a little outward
        body[hip + 1] = body[hip] + _THIGH * leg + np.array([sign * (0.008 + 0.35 * slack), 0.0])
    body[0] = face[30]
    body[14], body[15] = face[36:42].mean(0), face[42:48].mean(0)
    ears = np.array([[-0.97, -0.1], [0.97, -0.1]]) * HEAD + np.array([0.0, -0.118])
    body[16:18] = neck + _turn(ears, tilt)
    return body, hands, face


def _hand(direction: np.ndarray, sign: float, *, spread: float) -> np.ndarray:
    """(21, 2) offsets from the wrist; fingers along `direction`, the thumb towards the body when the arm hangs."""
    across = -sign * np.array([direction[1], -direction[0]])
    points = [np.zeros(2)]
    fingers = ((0.18, 0.20, 0.85, 0.50), (0.48, 0.22, 0.22, 0.46), (0.50, 0.07, 0.06, 0.50), (0.48, -0.08, -0.1, 0.47))
    for along, beside, angle, length in (*fingers, (0.44, -0.21, -0.28, 0.38)):
        for joint in range(4):
            reach = along + np.cos(angle * spread) * length * joint / 3
            points.append(reach * direction + (beside + np.sin(angle * spread) * length * joint / 3) * across)
    return np.stack(points) * _HAND


def _face(ease: float, beat: float) -> np.ndarray:
    """68 iBUG landmarks; the face is the ellipse of half axes 1 around 0."""
    opened = 0.12 + 0.45 * ease * (1 - np.cos(2 * beat)) / 2
    blink = 1.0 - 0.85 * np.exp(-(((beat % 5.0) - 3.1) ** 2) / 0.02)
    arc = np.linspace(0, np.pi, 17)
    jaw = np.stack([-0.97 * np.cos(arc), -0.08 + 1.03 * np.sin(arc)], 1)
    x = np.linspace(-0.68, -0.22, 5)
    brow = np.stack([x, -0.43 - 0.05 * ease * np.sin(beat) - 0.09 * np.sin(np.linspace(0.4, 2.7, 5))], 1)
    nose = np.array([[0, -0.16], [0, -0.05], [0, 0.07], [0, 0.18], [-0.13, 0.24], [-0.07, 0.27], [0, 0.28]])
    nose = np.concatenate([nose, [[0.07, 0.27], [0.13, 0.24]]])
    angle = np.array([np.pi, 4 * np.pi / 3, 5 * np.pi / 3, 0, np.pi / 3, 2 * np.pi / 3])
    eye = np.stack([0.16 * np.cos(angle), 0.15 * blink * np.sin(angle)], 1)
    lips = []
    for count, width, inner in ((7, 0.34, 0.0), (5, 0.27, 0.045)):
        u = np.linspace(-1, 1, count)
        upper = np.stack([u * width, 0.50 - 0.06 * u**2 + inner - 0.02 * (1 - u**2)], 1)
        lower = np.stack([u[::-1] * width, 0.50 - 0.06 * u**2 - inner + (0.10 + 0.36 * opened) * (1 - u**2)], 1)
        lips.append(np.concatenate([upper, lower[1:-1]]))
    mirror = np.array([-1.0, 1.0])
    return np.concatenate([jaw, brow, brow[::-1] * mirror, nose, eye + [-0.4, -0.12], eye + [0.4, -0.12], *lips])
