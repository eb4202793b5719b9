"""Known damage of puppet clips, at four levels each: what `xdyna.puppets.sensitivity` measures.

Shape legend: T frames, H W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from xdyna.evaluation.metric import Case, Video
from xdyna.puppets.extractor_clips import shuffle_order
from xdyna.puppets.heldout import HeldOut
from xdyna.puppets.world import FPS, render_clip

FRAMES, SIZE = 16, (128, 128)
LEVELS = 4


@dataclass(frozen=True)
class Puppet:
    """A clip and what its damage is made of.

    Attributes:
        number: in the list of held-out clips.
        frames: uint8 (T, H, W, 3).
        masks: bool (T, H, W), the figure.
        scene: uint8 (T, H, W, 3), the scene alone.
        other: uint8 (T, H, W, 3), another identity in the same pose and scene.
        other_masks: bool (T, H, W).
        face: (T, 68, 3), where the face is.
    """

    number: int
    frames: np.ndarray
    masks: np.ndarray
    scene: np.ndarray
    other: np.ndarray
    other_masks: np.ndarray
    face: np.ndarray


Damaged = tuple[np.ndarray, np.ndarray]
"""Frames and figure masks."""


@dataclass(frozen=True)
class Damage:
    """A kind of damage.

    Attributes:
        label: for people.
        unit: what the levels are.
        levels: from slight to strong.
        make: (clip, level) -> frames and masks.
    """

    label: str
    unit: str
    levels: tuple[float, ...]
    make: Callable[[Puppet, float], Damaged]


def blurred(clip: Puppet, sigma: float) -> Damaged:
    """Gaussian blur; sigma in px."""
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in clip.frames]), clip.masks


def noisy(clip: Puppet, sigma: float) -> Damaged:
    """White noise; sigma in grey levels."""
    noise = np.random.default_rng([1, clip.number]).standard_normal(clip.frames.shape)
    return (clip.frames + sigma * noise).round().clip(0, 255).astype(np.uint8), clip.masks


def frozen_scene(clip: Puppet, share: float) -> Damaged:
    """In the last `share` of the frames the scene stands still behind the figure."""
    onset = FRAMES - round(share * FRAMES)
    change = clip.scene[onset].astype(np.int16) - clip.scene[onset:]
    change[clip.masks[onset:]] = 0
    frames = clip.frames.copy()
    frames[onset:] = (frames[onset:] + change).clip(0, 255)
    return frames, clip.masks


def other_identity(clip: Puppet, share: float) -> Damaged:
    """In the last `share` of the frames another puppet has the figure's place and pose."""
    onset = FRAMES - round(share * FRAMES)
    frames, masks = clip.frames.copy(), clip.masks.copy()
    frames[onset:], masks[onset:] = clip.other[onset:], clip.other_masks[onset:]
    return frames, masks


def shuffled(clip: Puppet, window: float) -> Damaged:
    """Frames change places inside windows of so many frames."""
    order = shuffle_order(int(window), np.random.default_rng([2, clip.number]))
    return clip.frames[order], clip.masks[order]


def moved_figure(clip: Puppet, offset: float) -> Damaged:
    """The figure stands so many px to the right, the scene stays."""
    step = int(offset)
    masks = np.zeros_like(clip.masks)
    masks[:, :, step:] = clip.masks[:, :, :-step]
    figure = np.zeros_like(clip.frames)
    figure[:, :, step:] = clip.frames[:, :, :-step]
    return np.where(masks[..., None], figure, clip.scene), masks


DAMAGES: dict[str, Damage] = {
    "blur": Damage("blur", "sigma, px", (0.5, 1, 2, 4), blurred),
    "noise": Damage("noise", "sigma, grey levels", (5, 10, 20, 40), noisy),
    "frozen": Damage("frozen background", "share of the frames", (0.25, 0.5, 0.75, 1), frozen_scene),
    "identity": Damage("swapped identity", "share of the frames", (0.25, 0.5, 0.75, 1), other_identity),
    "shuffle": Damage("shuffled frames", "frames in a window", (2, 4, 8, 16), shuffled),
    "offset": Damage("pose offset", "px of 128", (2, 4, 8, 16), moved_figure),
}


def render(number: int, entry: HeldOut) -> Puppet:
    """A clip of the list with everything that its damage needs."""
    seeds, options = (entry.identity, entry.motion, entry.scene), {"frames": FRAMES, "start": entry.start, "size": SIZE}
    clip = render_clip(*seeds, **options)  # type: ignore[arg-type]
    other = render_clip(*seeds, face_identity=entry.other, **options)  # type: ignore[arg-type]
    scene = render_clip(*seeds, kind="scene", **options)  # type: ignore[arg-type]
    return Puppet(number, clip.frames, clip.mask, scene.frames, other.frames, other.mask, clip.face)


def case_of(clip: Puppet, damaged: Damaged) -> Case:
    """The truth against its damaged copy."""
    frames, masks = damaged
    return Case(f"{clip.number:02d}", _video(frames), _video(clip.frames), masks=(clip.masks, masks))


def _video(frames: np.ndarray) -> Video:
    frames = np.ascontiguousarray(frames)
    return Video("puppet", frames, FPS, hashlib.sha256(frames.tobytes()).hexdigest())
