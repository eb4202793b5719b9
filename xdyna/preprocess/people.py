"""Who is in a window: nobody, one person or several; and that person in every frame, as inference would see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from xdyna.data.records import ClipArrays
from xdyna.media import CropResize, read_frames
from xdyna.perception import MaskBackend, Person, PoseBackend, PoseTrack, get_backend, track_person
from xdyna.perception.draw import CONFIDENCE
from xdyna.perception.track import detect_frames
from xdyna.preprocess.frames import Box

MASK_SIDE = 64
"""Longer side of the masks, px."""

_MASK_INPUT = 512  # longer side of the images that are segmented, px
_BODY = slice(0, 14)  # joints below eyes and ears
_MAX_GAP = 8  # frames; the default of inference
_OTHER = 0.3  # of the largest person's height: smaller ones are passers-by
_NARROWEST = 0.15  # of the image's width; what is left beside a person and narrower holds nobody
_SURE, _TALL = 0.6, 0.25  # score, and share of the image's height, of people who were only found beside another
_SAME = 0.5  # overlap of two boxes from which on both are one person found twice


class Look(NamedTuple):
    """One frame of a window that was looked at.

    Attributes:
        people: number of people that count.
        boxes: (people, 4) left, top, right, bottom in [0, 1] of the cropped image.
    """

    people: int
    boxes: np.ndarray


@dataclass(frozen=True)
class PersonNumbers:
    """What is known of the person of a clip.

    Attributes:
        share: of the frames that show the person.
        height: median height over that of the image.
        confidence: mean confidence of the joints that are seen.
        hidden: mean share of the 14 joints below eyes and ears that are not seen, over frames with the person.
        face: share of the frames with a face.
        others: share of the frames with other people beside the person.
    """

    share: float
    height: float
    confidence: float
    hidden: float
    face: float
    others: float = 0.0


@lru_cache(maxsize=2)
def pose_backend(name: str) -> PoseBackend:
    """The backend of a name; made once per process, since its models take a second to load. Raises as `get_backend`."""
    return get_backend(name)


@lru_cache(maxsize=2)
def mask_backend(name: str) -> MaskBackend:
    """What segments people beside a pose backend: itself if it can, else MediaPipe. Raises as `get_backend`."""
    backend = pose_backend(name)
    if isinstance(backend, MaskBackend):
        return backend
    other = pose_backend("mediapipe")
    assert isinstance(other, MaskBackend)
    return other


def look_at(
    video: Path, rows: np.ndarray, *, backend: PoseBackend, size: tuple[int, int], crop: Box, cache: Path
) -> list[Look]:
    """Count the people of some frames.

    Args:
        video: the file.
        rows: (N,) frame numbers, ascending.
        backend: finds people.
        size: (H, W) of the frames, px.
        crop: what is kept of the image.
        cache: folder in which detections are kept for `person_track`.

    Returns:
        One look a frame.

    Raises:
        MediaError: the video cannot be read.
    """
    found = [counted(p) for p in detect_frames(video, rows=rows, backend=backend, size=size, cache_dir=cache)]
    left, top, width, height = crop
    origin, sides = np.array([left, top, left, top]), np.array([width, height, width, height])
    boxes = [np.array([person.box for person in people]).reshape(-1, 4) for people in found]
    alone = [k for k, people in enumerate(found) if len(people) == 1]
    for k, frame in zip(alone, read_frames(video, rows[alone].tolist()) if alone else (), strict=True):
        boxes[k] = np.concatenate([boxes[k], _beside(frame, boxes[k][0], backend=backend, crop=crop)])
    return [Look(len(those), (those - origin) / sides) for those in boxes]


def _beside(frame: np.ndarray, box: np.ndarray, *, backend: PoseBackend, crop: Box) -> np.ndarray:
    """Boxes (N, 4) of people left and right of the one who was found.

    A detector that sees the whole frame small may miss the second of two people; what lies beside the first one is
    therefore looked at alone. Only sure and large finds count: furniture looks like people now and then.
    """
    margin = 0.15 * float(box[2] - box[0])
    left, top, width, height = crop
    found = []
    for start, end in ((left, int(box[0] - margin)), (int(box[2] + margin), left + width)):
        if end - start < max(_NARROWEST * width, 32):
            continue
        part = np.ascontiguousarray(frame[top : top + height, start:end])
        for person in counted(backend.detect(part)):
            if person.score >= _SURE and person.box[3] - person.box[1] >= max(
                _OTHER * (box[3] - box[1]), _TALL * height
            ):
                found.append(person.box + np.array([start, top, start, top]))
    return np.array(found, dtype=np.float32).reshape(-1, 4)


def counted(people: Sequence[Person]) -> list[Person]:
    """The people of a frame that count: not small ones beside a large one, and nobody twice.

    Args:
        people: largest first, as backends give them.

    Returns:
        Some of them, in their order.
    """
    kept: list[Person] = []
    for person in people:
        tall = float(person.box[3] - person.box[1])
        if kept and tall < _OTHER * float(kept[0].box[3] - kept[0].box[1]):
            continue
        if all(_common(person.box, other.box) < _SAME for other in kept):
            kept.append(person)
    return kept


def _common(first: np.ndarray, second: np.ndarray) -> float:
    """Area that two boxes share, over that of the smaller one."""
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    smaller = min(float(np.prod(first[2:] - first[:2])), float(np.prod(second[2:] - second[:2])))
    return float(np.prod(sides.clip(0))) / smaller if smaller > 0 else 0.0


def person_track(
    video: Path, rows: np.ndarray, *, backend: PoseBackend, size: tuple[int, int], crop: Box, cache: Path
) -> tuple[PoseTrack, float]:
    """The person of a window in px of the cropped image, by the function and settings of inference.

    Args:
        video: the file.
        rows: (T,) frame numbers, ascending.
        backend: finds people.
        size: (H, W) of the frames, px.
        crop: what is kept of the image.
        cache: folder of detections.

    Returns:
        The track of T frames, and the share of frames in which others were found beside the person.

    Raises:
        PerceptionError: nobody in any frame.
        MediaError: the video cannot be read.
    """
    track = track_person(video, frame_indices=rows, backend=backend, cache_dir=cache, max_gap=_MAX_GAP)
    found = detect_frames(video, rows=rows, backend=backend, size=size, cache_dir=cache)
    others = float(np.mean([len(counted(people)) > 1 for people in found]))
    return track.transform(CropResize(box=crop, size=(crop[3], crop[2]))), others


def person_boxes(track: PoseTrack) -> np.ndarray:
    """Boxes around what is seen of the person (joints and face), inside the image.

    Args:
        track: T frames.

    Returns:
        float32 (T, 4) left, top, right, bottom in px; zeros where nobody is seen.
    """
    points = np.concatenate([track.body, track.face], axis=1)
    seen = points[..., 2] >= CONFIDENCE
    low = np.where(seen[..., None], points[..., :2], np.inf).min(axis=1)
    high = np.where(seen[..., None], points[..., :2], -np.inf).max(axis=1)
    boxes = np.concatenate([low, high], axis=1)
    limit = np.array([track.size[1], track.size[0]] * 2) - 1
    boxes = np.where(seen.any(axis=1)[:, None], boxes, 0).clip(0, limit)
    return boxes.astype(np.float32)


def person_numbers(track: PoseTrack, others: float = 0.0) -> PersonNumbers:
    """Measure the person of a clip.

    Args:
        track: T frames in px of the cropped image.
        others: share of the frames with other people; handed on.

    Returns:
        The numbers; all 0 (hidden: 1) where nobody is seen.
    """
    boxes = person_boxes(track)
    there = (boxes > 0).any(axis=1)
    if not there.any():
        return PersonNumbers(share=0.0, height=0.0, confidence=0.0, hidden=1.0, face=0.0, others=others)
    body = track.body[there, _BODY, 2].astype(np.float64)
    seen = body >= CONFIDENCE
    return PersonNumbers(
        share=float(there.mean()),
        height=float(np.median(boxes[there, 3] - boxes[there, 1]) / track.size[0]),
        confidence=float(body[seen].mean()) if seen.any() else 0.0,
        hidden=float(1 - seen.mean()),
        face=float((track.face[..., 2].mean(axis=1) >= CONFIDENCE).mean()),
        others=others,
    )


def person_masks(video: Path, rows: np.ndarray, *, backend: MaskBackend, crop: Box, there: np.ndarray) -> np.ndarray:
    """Where the person is, at low resolution.

    Args:
        video: the file.
        rows: (T,) frame numbers, ascending.
        backend: segments people.
        crop: what is kept of the image.
        there: (T,) bool, frames that show the person; the masks of others are empty.

    Returns:
        bool (T, h, w) of `mask_size`.

    Raises:
        MediaError: the video cannot be read.
    """
    size = (crop[3], crop[2])
    masks = np.zeros((len(rows), *mask_size(size)), dtype=bool)
    scale = min(1.0, _MASK_INPUT / max(size))
    place = CropResize(box=crop, size=(max(8, round(size[0] * scale)), max(8, round(size[1] * scale))))
    wanted = np.flatnonzero(there)
    for k, frame in zip(wanted, read_frames(video, rows[wanted].tolist()), strict=True):
        mask = backend.segment(place.image(frame))
        masks[k] = cv2.resize(mask, masks.shape[:0:-1], interpolation=cv2.INTER_AREA) > 0.5
    return masks


def mask_size(size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of the masks of an image of `size` (H, W)."""
    scale = MASK_SIDE / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def scene_arrays(rows: np.ndarray, times: np.ndarray, size: tuple[int, int]) -> ClipArrays:
    """The numbers of a clip without a person.

    Args:
        rows: (T,) frame numbers.
        times: (T,) their display times, s.
        size: (H, W) of the cropped image, px.

    Returns:
        Zeros, and which frames they are.
    """
    count = len(rows)
    return ClipArrays(
        body=np.zeros((count, 18, 3), np.float32),
        hands=np.zeros((count, 2, 21, 3), np.float32),
        face=np.zeros((count, 68, 3), np.float32),
        boxes=np.zeros((count, 4), np.float32),
        mask=np.zeros((count, *mask_size(size)), dtype=bool),
        times=times.astype(np.float64),
        frame_index=rows.astype(np.int64),
    )
