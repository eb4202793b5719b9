"""A driving video to one person's keypoints: detect (or read from the cache), follow one person, fill short gaps."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from xdyna.core.files import path_sha256
from xdyna.media import frame_times, probe, read_frames
from xdyna.perception.base import PoseBackend, get_backend
from xdyna.perception.cache import DetectionCache, default_cache_dir
from xdyna.perception.draw import CONFIDENCE
from xdyna.perception.errors import PerceptionError
from xdyna.perception.smooth import OneEuro, fill_gaps, one_euro
from xdyna.perception.topology import LEFT_WRIST, RIGHT_WRIST
from xdyna.perception.types import PerceptionSummary, Person, PoseTrack, missing_points

Progress = Callable[[int, int], None]
"""Called with (frames looked at, frames to look at) while frames are detected."""

_SAVE_EVERY = 200  # frames; an interrupted run of a long video loses no more
_REACH = 0.6  # farthest a person may move between two frames, in diagonals of the box
_GROWTH = 2.0  # largest change of the box's diagonal between two frames
_MOTION = 4  # boxes that somebody's motion is taken from
_SAME = 0.5  # overlap from which on two boxes are one person found twice
_PATIENCE = 8  # frames without the person after which whoever is N-th largest is followed (the scene was cut)


def track_person(
    path: str | os.PathLike[str],
    *,
    frame_indices: Sequence[int] | np.ndarray | None = None,
    backend: str | PoseBackend = "mediapipe",
    person: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    smooth: OneEuro | None = None,
    max_gap: int = 5,
    fps: float | None = None,
) -> PoseTrack:
    """Read one person's keypoints from a video.

    The person is the N-th largest of the first frame that has so many, and is followed by place and size, so that
    passers-by do not take over. Gaps of up to `max_gap` of the given frames are filled (see `fill_gaps`).

    Args:
        path: the video.
        frame_indices: (T,) frame numbers, ascending, may repeat; None: all frames.
        backend: name (see `get_backend`), or a backend.
        person: 0 for the largest person, 1 for the next, ...
        cache_dir: folder of cached detections; None: `default_cache_dir()`.
        progress: called as frames are detected; frames from the cache are not counted.
        smooth: filter for body, hands and face; None: no filter.
        max_gap: longest gap to fill, frames; gaps of more than a second are never filled.
        fps: rate of the frames, where `path` is a folder of images.

    Returns:
        The track of T frames in px of the video's frames, with `summary`.

    Raises:
        PerceptionError: nobody in any frame, fewer people than `person` asks for, frame numbers that do not fit, or an
            unusable backend.
        xdyna.media.MediaError: the video cannot be read.

    Warns:
        PerceptionWarning: the cache is damaged or cannot be written.
    """
    path = Path(path)
    if person < 0 or max_gap < 0:
        raise PerceptionError(f"person is {person} and max_gap {max_gap}; both must be 0 or more")
    info = probe(path, fps=fps)
    times = frame_times(path, fps=fps)
    asked = _check_indices(frame_indices, count=len(times))
    rows, expand = np.unique(asked, return_inverse=True)
    if isinstance(backend, str):
        backend = get_backend(backend)

    found = detect_frames(
        path, rows=rows, backend=backend, size=(info.height, info.width), cache_dir=cache_dir, progress=progress
    )
    people = follow(found, person=person)
    if all(entry is None for entry in people):
        most = max(len(entry) for entry in found)
        raise PerceptionError(_nobody(path, frames=len(rows), backend=backend.name, person=person, most=most))
    track = PoseTrack(
        body=_stacked(people, "body", (18,)),
        hands=_stacked(people, "hands", (2, 21)),
        face=_stacked(people, "face", (68,)),
        size=(info.height, info.width),
        times=times[rows],
        frame_index=rows,
        source=path.name,
    )
    detected = np.array([entry is not None for entry in people])
    track, joints_filled = _filled(track, detected=detected, max_gap=max_gap)
    if smooth is not None:
        track = smooth_track(track, smooth)
    seen = track.found
    summary = PerceptionSummary(
        frames=len(asked),
        found=int(detected[expand].sum()),
        filled=int((seen & ~detected)[expand].sum()),
        missing=int((~seen)[expand].sum()),
        joints_filled=int(joints_filled[expand].sum()),
    )
    return replace(track.select(expand), summary=summary)


def detect_frames(
    path: Path,
    *,
    rows: np.ndarray,
    backend: PoseBackend,
    size: tuple[int, int],
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> list[list[Person]]:
    """The people of some frames of a video, from the cache where they were detected before.

    Args:
        path: the video.
        rows: (N,) frame numbers, ascending without repeats.
        backend: finds people.
        size: (H, W) of the frames, px.
        cache_dir: folder of cached detections; None: `default_cache_dir()`.
        progress: called with (done, total) of the frames that are not in the cache.

    Returns:
        For each of the N frames its people, largest first.

    Raises:
        xdyna.media.MediaError: the video cannot be read.
    """
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir)
    cache = DetectionCache(
        folder, video_sha256=path_sha256(path), backend=backend.name, version=backend.version, size=size
    )
    wanted = [int(row) for row in rows if int(row) not in cache.frames]
    saved, writable = 0, True
    try:
        for done, (row, frame) in enumerate(
            zip(wanted, read_frames(path, wanted) if wanted else (), strict=True), start=1
        ):
            cache.frames[row] = backend.detect(frame)
            if progress is not None:
                progress(done, len(wanted))
            if writable and done - saved >= _SAVE_EVERY:
                writable, saved = cache.save(), done
    finally:  # Ctrl-C too: what was detected is kept
        if writable and wanted and wanted[saved:] and any(row in cache.frames for row in wanted[saved:]):
            cache.save()
    return [cache.frames[int(row)] for row in rows]


def follow(found: Sequence[Sequence[Person]], *, person: int = 0) -> list[Person | None]:
    """Pick the same person in every frame.

    Starts with the N-th largest of the first frame with so many people and goes from there to both ends. In each frame
    the one whose box overlaps most with where the last frames' motion leads is taken, else the nearest within reach;
    nobody if all are too far, of another size, or go on along the way of somebody else.

    Args:
        found: people of each frame, largest first.
        person: N, 0 for the largest.

    Returns:
        For each frame the person or None; all None if no frame has so many people.
    """
    result: list[Person | None] = [None] * len(found)
    start = next((row for row, people in enumerate(found) if len(people) > person), None)
    if start is None:
        return result
    result[start] = found[start][person]
    for rows in (range(start + 1, len(found)), range(start - 1, -1, -1)):
        _follow_from(found, result, rows=rows, last=found[start][person], person=person)
    return result


def smooth_track(track: PoseTrack, settings: OneEuro) -> PoseTrack:
    """Filter body, hands and face of a track.

    Args:
        track: the track.
        settings: of the filter.

    Returns:
        A new track; confidences are unchanged.
    """

    def filtered(points: np.ndarray) -> np.ndarray:
        flat = points.reshape(len(points), -1, 3)
        return one_euro(flat, times=track.times, height=track.size[0], settings=settings).reshape(points.shape)

    return replace(track, body=filtered(track.body), hands=filtered(track.hands), face=filtered(track.face))


@dataclass
class _Path:
    """Where somebody was: the last boxes and their rows, the latest at the end."""

    boxes: list[np.ndarray]
    rows: list[int]

    def expected(self, row: int) -> np.ndarray:
        """The box in a row, if the motion of the last frames goes on; two who cross are told apart by it."""
        span = self.rows[-1] - self.rows[0]
        if not span:
            return self.boxes[-1]
        motion = (_center(self.boxes[-1]) - _center(self.boxes[0])) / span * (row - self.rows[-1])
        return self.boxes[-1] + np.tile(motion, 2)

    def goes_on(self, person: Person, row: int) -> None:
        self.boxes, self.rows = [*self.boxes[1 - _MOTION :], person.box], [*self.rows[1 - _MOTION :], row]


def _follow_from(
    found: Sequence[Sequence[Person]], result: list[Person | None], *, rows: range, last: Person, person: int
) -> None:
    """Follow `last` through `rows`, writing to `result`; others are followed as well, so that nobody takes over."""
    misses = 0
    before = rows.start - rows.step
    path = _Path([last.box], [before])
    others = [_Path([other.box], [before]) for other in found[before] if other is not last]
    for row in rows:
        known = [other for other in others if len(other.rows) == _MOTION]
        candidates = [one for one in found[row] if not _belongs_to_others(one, path, known, row)]
        chosen = _continuation(candidates, path, row)
        if chosen is None and misses >= _PATIENCE and len(found[row]) > person:
            chosen = found[row][person]
            path = _Path([chosen.box], [row])
        elif chosen is not None:
            path.goes_on(chosen, row)
        misses = 0 if chosen is not None else misses + 1
        result[row] = chosen
        others = _followed(others, [one for one in found[row] if one is not chosen], path, row)


def _belongs_to_others(one: Person, path: _Path, others: Sequence[_Path], row: int) -> bool:
    ours = _overlap(one.box, path.expected(row))
    return any(_overlap(one.box, other.expected(row)) > ours for other in others)


def _followed(others: list[_Path], people: Sequence[Person], path: _Path, row: int) -> list[_Path]:
    """The paths of the others after a row; who was not seen for long is forgotten."""
    kept = [other for other in others if abs(row - other.rows[-1]) <= _PATIENCE]
    for one in people:
        near = max(kept, key=lambda other: _overlap(one.box, other.expected(row)), default=None)
        if near is not None and near.rows[-1] != row and _overlap(one.box, near.expected(row)) > 0:
            near.goes_on(one, row)
        elif _overlap(one.box, path.boxes[-1]) < _SAME:  # else the same person, found twice
            kept.append(_Path([one.box], [row]))
    return kept


def _continuation(people: Sequence[Person], path: _Path, row: int) -> Person | None:
    """The one who goes on along a path, or None."""
    best, best_rank = None, (-1.0, 0.0)
    last, expected = path.boxes[-1], path.expected(row)
    for candidate in people:
        diagonals = sorted([_diagonal(candidate.box), _diagonal(last)])
        if diagonals[1] > _GROWTH * diagonals[0]:
            continue
        if (_overlap(candidate.box, last), -_distance(candidate.box, last) / diagonals[1]) <= (0.0, -_REACH):
            continue
        rank = (_overlap(candidate.box, expected), -_distance(candidate.box, expected))
        if rank > best_rank:
            best, best_rank = candidate, rank
    return best


def _distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.linalg.norm(_center(first) - _center(second)))


def _center(box: np.ndarray) -> np.ndarray:
    return (box[:2] + box[2:]) / 2


def _diagonal(box: np.ndarray) -> float:
    return max(float(np.linalg.norm(box[2:] - box[:2])), 1.0)


def _overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    common = float(np.prod(sides.clip(0)))
    union = float(np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2])) - common
    return common / union if union > 0 else 0.0


def _stacked(people: Sequence[Person | None], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """(T, *shape, 3) of one kind of points; zeros where nobody is."""
    return np.stack([missing_points(*shape) if entry is None else getattr(entry, name) for entry in people])


def _filled(track: PoseTrack, *, detected: np.ndarray, max_gap: int) -> tuple[PoseTrack, np.ndarray]:
    """The track without short gaps, and (T,) the body joints filled in frames with a detection."""

    def filled(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return fill_gaps(points, times=track.times, max_gap=max_gap, threshold=CONFIDENCE)

    body, changed = filled(track.body)
    face, _ = filled(track.face)
    hands = track.hands.copy()
    for side, wrist in enumerate((LEFT_WRIST, RIGHT_WRIST)):
        # A hand goes with its wrist, so its place relative to the wrist is what is interpolated.
        anchor = body[:, wrist]
        seen = anchor[:, 2] > 0
        relative = hands[:, side] - np.array([1, 1, 0]) * anchor[:, None]
        relative, new = filled(np.where(seen[:, None, None], relative, 0))
        new &= seen[:, None]
        relative[..., :2] += anchor[:, None, :2]
        hands[:, side] = np.where(new[..., None], relative, hands[:, side])
    return replace(track, body=body, hands=hands, face=face), np.where(detected, changed.sum(axis=1), 0)


def _check_indices(frame_indices: Sequence[int] | np.ndarray | None, *, count: int) -> np.ndarray:
    """Frame numbers as (T,) int64, or an error."""
    if frame_indices is None:
        return np.arange(count)
    indices = np.asarray(frame_indices)
    if indices.ndim != 1 or not indices.size or indices.dtype.kind not in "iu":
        raise PerceptionError(f"frame numbers have shape {indices.shape}; expected (T,) whole numbers, T at least 1")
    if indices.min() < 0 or indices.max() >= count or (np.diff(indices) < 0).any():
        raise PerceptionError(
            f"frame numbers run from {indices.min()} to {indices.max()}; "
            f"expected ascending numbers from 0 to {count - 1}"
        )
    return indices.astype(np.int64)


def _nobody(path: Path, *, frames: int, backend: str, person: int, most: int) -> str:
    """The message when the person asked for is in no frame."""
    if person and most:
        return (
            f"person {person} was asked for, but at most {most} people were found in one frame of '{path}' "
            f"({frames} frames, backend '{backend}'); choose --person 0 to {most - 1}"
        )
    return (
        f"no person was found in any of {frames} frames of '{path}' (backend '{backend}'); "
        f"choose a video, or a part of it, that shows one person large and well lit, "
        f"or give keypoints (.npz) or a pose video (--drive-kind pose)"
    )
