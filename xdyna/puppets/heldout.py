"""The held-out puppet clips that small models are measured on: the fixed list, and what it says rendered.

Self-driven: reference, driving video and truth are one video. Cross-driven: the reference shows another identity in the
same scene, the driving video stays, and the truth is the driving motion rendered on that other identity.
"""

import functools
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import yaml

from xdyna.config.contract import PoseStyle
from xdyna.core.resources import resource
from xdyna.data.conditions import face_images, pose_images
from xdyna.perception.align import AlignmentReport, align_track
from xdyna.perception.types import Person, PoseTrack
from xdyna.puppets.expression import READINGS
from xdyna.puppets.world import EXPRESSIONS, SPLITS, PuppetClip, render_clip

HELD_OUT = resource("configs", "puppets", "heldout.yaml")
VIDEO_FRAMES = 48  # length of the videos, as in training
_SMALL = (64, 64)  # px, where only the pose is looked at
PUBLISHED = PoseStyle()
DISTANCE = 12  # world frames between a clip and its reference, at least


@dataclass(frozen=True)
class HeldOut:
    """One entry of the list.

    Attributes:
        identity: seed of the person in the driving video.
        motion: seed of its motion.
        scene: seed of the scene.
        other: seed of the person in the reference of cross-driving.
        start: first world frame of the clip.
    """

    identity: int
    motion: int
    scene: int
    other: int
    start: int

    def clip(self, *, frames: int, size: tuple[int, int], other: bool = False, face: int | None = None) -> PuppetClip:
        """Render the clip, of the other identity where asked for, with another identity's face where given."""
        identity = self.other if other else self.identity
        return render_clip(
            identity, self.motion, self.scene, frames=frames, start=self.start, size=size, face_identity=face
        )

    def reference(self, *, frames: int, size: tuple[int, int], other: bool = False) -> PuppetClip:
        """Render the reference, a clip of one frame; which frame of the video it is follows from `furthest_pose`."""
        start = _reference_frame(self, frames)
        identity = self.other if other else self.identity
        return render_clip(identity, self.motion, self.scene, frames=1, start=start, size=size)


@functools.lru_cache(maxsize=1024)
def _reference_frame(entry: HeldOut, frames: int) -> int:
    video = render_clip(entry.identity, entry.motion, entry.scene, frames=VIDEO_FRAMES, size=_SMALL)
    return furthest_pose(video.body, start=entry.start, frames=frames)


@dataclass(frozen=True)
class Task:
    """One generation and its truth.

    Attributes:
        reference: uint8 (H, W, 3).
        pose: uint8 (T, H, W, 3).
        face: uint8 (T, H, W, 6), local and global patches of the driving faces.
        truth: what should come out.
        alignment: how the driving person was fitted to the reference; None where nothing was moved.
        distance: mean distance in px between the driving joints and the truth's.
    """

    reference: np.ndarray
    pose: np.ndarray
    face: np.ndarray
    truth: PuppetClip
    alignment: AlignmentReport | None = None
    distance: float = 0.0


def load_held_out(path: Path = HELD_OUT) -> list[HeldOut]:
    """Read the list.

    Args:
        path: YAML with `clips`, a list of mappings with the fields of `HeldOut`.

    Returns:
        The entries.

    Raises:
        ValueError: unreadable, an entry of another form, or a seed outside the test split.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as a list of held-out clips: {error}") from error
    names = [entry.name for entry in fields(HeldOut)]
    rows = content.get("clips") if isinstance(content, dict) else None
    if not rows or any(not isinstance(row, dict) or sorted(row) != sorted(names) for row in rows):
        raise ValueError(f"{path} has another form; expected `clips:`, a list of mappings with exactly {names}")
    for number, row in enumerate(rows):
        wrong = [name for name in ("identity", "motion", "scene", "other") if row[name] not in SPLITS["test"]]
        if wrong or any(not isinstance(value, int) or value < 0 for value in row.values()):
            raise ValueError(
                f"{path}, clip {number}: {wrong or 'a value'} is no seed of the test split {SPLITS['test']}; a clip "
                "that could have been trained on measures nothing"
            )
    return [HeldOut(**row) for row in rows]


def furthest_pose(body: np.ndarray, *, start: int, frames: int) -> int:
    """The rule for references: the frame at least `DISTANCE` away from the clip whose pose differs most from it.

    Args:
        body: (N, 18, 3) keypoints of the whole video.
        start: first frame of the clip.
        frames: its length.

    Returns:
        Frame number: of the largest mean distance in px between its joints and those of the clip's frames, where both
        are seen.

    Raises:
        ValueError: no frame is that far away.
    """
    numbers = np.arange(len(body))
    away = np.maximum(start - numbers, numbers - (start + frames - 1))
    if away.max() < DISTANCE:
        raise ValueError(f"no frame of {len(body)} is {DISTANCE} away from frames {start} to {start + frames - 1}")
    pairs = np.linalg.norm(body[:, None, :, :2] - body[None, start : start + frames, :, :2], axis=-1)
    both = (body[:, None, :, 2] > 0) & (body[None, start : start + frames, :, 2] > 0)
    distance = (pairs * both).sum(axis=(1, 2)) / both.sum(axis=(1, 2)).clip(1)
    return int(np.argmax(np.where(away >= DISTANCE, distance, -1)))


def self_driven(entry: HeldOut, *, frames: int, size: tuple[int, int], style: PoseStyle = PUBLISHED) -> Task:
    """The person's own video drives it. Args: as of `cross_driven`."""
    clip = entry.clip(frames=frames, size=size)
    reference = entry.reference(frames=frames, size=size).frames[0]
    return Task(reference, *_conditions(clip.frames, clip.track(), style), truth=clip)


def cross_driven(
    entry: HeldOut, *, frames: int, size: tuple[int, int], aligned: bool, style: PoseStyle = PUBLISHED
) -> Task:
    """Another identity's image is driven.

    Args:
        entry: of the list.
        frames: T.
        size: (H, W), px.
        aligned: True takes the driving person's keypoints and images, fitted to the reference by
            `xdyna.perception.align_track`, as `scripts/infer.py --align` does; False takes the exact keypoints of the
            truth, and the driving person's face on the other identity.
        style: of the pose maps: that of the model's contract.

    Returns:
        Task: its truth is the motion on the other identity.
    """
    still = entry.reference(frames=frames, size=size, other=True)
    truth = entry.clip(frames=frames, size=size, other=True)
    if not aligned:
        driving = entry.clip(frames=frames, size=size, other=True, face=entry.identity)
        # The body's keypoints are the truth's; the landmarks are those of the face that is seen.
        return Task(still.frames[0], *_conditions(driving.frames, driving.track(), style), truth=truth)
    driving = entry.clip(frames=frames, size=size)
    track, report = align_track(driving.track(), _person(still), size=size)
    moved = np.stack([report.image(frame) for frame in driving.frames])
    both = (track.body[..., 2] > 0) & (truth.body[..., 2] > 0)
    distance = float(np.linalg.norm(track.body[both, :2] - truth.body[both, :2], axis=-1).mean())
    return Task(still.frames[0], *_conditions(moved, track, style), truth=truth, alignment=report, distance=distance)


def true_readings(clip: PuppetClip) -> np.ndarray:
    """What an expression reader should read: float64 (T, 3) in the order of `READINGS`."""
    return clip.expression[:, [EXPRESSIONS.index(name) for name in READINGS]].astype(np.float64)


def _conditions(frames: np.ndarray, track: PoseTrack, style: PoseStyle) -> tuple[np.ndarray, np.ndarray]:
    """Pose maps and face patches, drawn by the functions that draw them in training."""
    return pose_images(track, style), face_images(frames, track.face)


def _person(still: PuppetClip) -> Person:
    rows, columns = np.nonzero(still.mask[0])
    box = np.array([columns.min(), rows.min(), columns.max(), rows.max()], np.float32)
    return Person(body=still.body[0], hands=still.hands[0], face=still.face[0], box=box, score=1.0)
