"""A driving video to one person's keypoints: detect (or read from the cache), follow one person, fill short gaps.

A detector looks at a frame briefly, or for everybody (`CrowdBackend`), which takes several times as long; `crowd` says
which frames are worth it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from xdyna.config.infer import CROWDS
from xdyna.core.files import path_sha256
from xdyna.media import frame_times, probe, read_frames
from xdyna.perception.base import CrowdBackend, PoseBackend, everybody, get_backend
from xdyna.perception.cache import DetectionCache, default_cache_dir
from xdyna.perception.crowd import torso_colors
from xdyna.perception.draw import CONFIDENCE
from xdyna.perception.errors import PerceptionError
from xdyna.perception.follow import follow
from xdyna.perception.smooth import OneEuro, fill_gaps, one_euro
from xdyna.perception.topology import LEFT_WRIST, RIGHT_WRIST
from xdyna.perception.types import PerceptionSummary, Person, PoseTrack, missing_points

Progress = Callable[[int, int], None]
"""Called with (frames looked at, frames to look at) while frames are detected."""

_SAVE_EVERY = 200  # frames; an interrupted run of a long video loses no more


def track_person(
    path: str | os.PathLike[str],
    *,
    frame_indices: Sequence[int] | np.ndarray | None = None,
    backend: str | PoseBackend = "mediapipe",
    person: int = 0,
    crowd: str = "auto",
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    smooth: OneEuro | None = None,
    max_gap: int = 5,
    fps: float | None = None,
) -> PoseTrack:
    """Read one person's keypoints from a video.

    The person is the N-th largest of the first frame that has so many, and is followed by place, size and, where two
    meet, colours, so that passers-by do not take over. Gaps of up to `max_gap` of the given frames are filled (see
    `fill_gaps`).

    Args:
        path: the video.
        frame_indices: (T,) frame numbers, ascending, may repeat; None: all frames.
        backend: name (see `get_backend`), or a backend.
        person: 0 for the largest person, 1 for the next, ...
        crowd: where everybody is searched for: "auto" in the first frame, where the person is lost, and while others
            are there; "all" in every frame; "off" nowhere.
        cache_dir: folder of cached detections; None: `default_cache_dir()`.
        progress: called as frames are detected; frames from the cache are not counted.
        smooth: filter for body, hands and face; None: no filter.
        max_gap: longest gap to fill, frames; gaps of more than a second are never filled.
        fps: rate of the frames, where `path` is a folder of images.

    Returns:
        The track of T frames in px of the video's frames, with `summary`.

    Raises:
        PerceptionError: nobody in any frame, fewer people than `person` asks for, frame numbers that do not fit,
            another `crowd`, or an unusable backend.
        xdyna.media.MediaError: the video cannot be read.

    Warns:
        PerceptionWarning: the cache is damaged or cannot be written.
    """
    path = Path(path)
    if person < 0 or max_gap < 0:
        raise PerceptionError(f"person is {person} and max_gap {max_gap}; both must be 0 or more")
    if crowd not in CROWDS:
        raise PerceptionError(f"crowd is '{crowd}'; expected one of {', '.join(CROWDS)}")
    info = probe(path, fps=fps)
    times = frame_times(path, fps=fps)
    asked = _check_indices(frame_indices, count=len(times))
    rows, expand = np.unique(asked, return_inverse=True)
    if isinstance(backend, str):
        backend = get_backend(backend)

    frames = _Frames(path, rows, backend, size=(info.height, info.width), cache_dir=cache_dir)
    people = _one_person(frames, person=person, crowd=crowd, progress=progress)
    if all(entry is None for entry in people):
        raise PerceptionError(_nobody(path, frames=len(rows), backend=backend.name, person=person, most=frames.most()))
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
    search: bool = False,
) -> list[list[Person]]:
    """The people of some frames of a video, from the cache where they were detected before.

    Args:
        path: the video.
        rows: (N,) frame numbers, ascending without repeats.
        backend: finds people.
        size: (H, W) of the frames, px.
        cache_dir: folder of cached detections; None: `default_cache_dir()`.
        progress: called with (done, total) of the frames that are not in the cache.
        search: look for everybody, however long it takes.

    Returns:
        For each of the N frames its people, largest first.

    Raises:
        xdyna.media.MediaError: the video cannot be read.
    """
    frames = _Frames(path, rows, backend, size=size, cache_dir=cache_dir)
    return frames.detect(progress=progress, search=search)


class _Frames:
    """Some frames of a video: the people in them, kept in the cache, and their pixels. Rows count from 0 to N - 1.

    Args:
        path: the video.
        rows: (N,) frame numbers, ascending without repeats.
        backend: finds people.
        size: (H, W) of the frames, px.
        cache_dir: folder of cached detections; None: `default_cache_dir()`.
    """

    def __init__(
        self,
        path: Path,
        rows: np.ndarray,
        backend: PoseBackend,
        *,
        size: tuple[int, int],
        cache_dir: str | os.PathLike[str] | None,
    ) -> None:
        self.rows, self._path, self._backend, self._size = rows, path, backend, size
        self._folder = default_cache_dir() if cache_dir is None else Path(cache_dir)
        self._open: Iterator[np.ndarray] = iter(())
        self._next = len(rows)  # the row that `_open` gives next
        self._last: tuple[int, np.ndarray] | None = None
        self._colors: dict[tuple[int, bytes], np.ndarray | None] = {}
        self._caches: dict[bool, DetectionCache] = {}
        self._unsaved = 0
        self.looked: Callable[[], None] = lambda: None

    def _cache(self, *, search: bool) -> DetectionCache:
        """What was found briefly, or by a search for everybody; the same where the backend has no such search."""
        search = search and isinstance(self._backend, CrowdBackend)
        if search not in self._caches:
            self._caches[search] = DetectionCache(
                self._folder,
                video_sha256=path_sha256(self._path),
                backend=self._backend.name,
                version=f"{self._backend.version}-everybody" if search else self._backend.version,
                size=self._size,
            )
        return self._caches[search]

    def detect(self, *, progress: Progress | None, search: bool) -> list[list[Person]]:
        """The people of all frames; see `detect_frames`."""
        cache = self._cache(search=search)
        wanted = [int(row) for row in self.rows if int(row) not in cache.frames]
        saved, writable = 0, True
        try:
            for done, (row, frame) in enumerate(
                zip(wanted, read_frames(self._path, wanted) if wanted else (), strict=True), start=1
            ):
                cache.frames[row] = everybody(self._backend, frame) if search else self._backend.detect(frame)
                if progress is not None:
                    progress(done, len(wanted))
                if writable and done - saved >= _SAVE_EVERY:
                    writable, saved = cache.save(), done
        finally:  # Ctrl-C too: what was detected is kept
            if writable and wanted and wanted[saved:] and any(row in cache.frames for row in wanted[saved:]):
                cache.save()
        return [cache.frames[int(row)] for row in self.rows]

    def everybody(self, row: int) -> list[Person]:
        """All people of one frame, however long it takes."""
        cache, number = self._cache(search=True), int(self.rows[row])
        if number not in cache.frames:
            cache.frames[number] = everybody(self._backend, self.pixels(row))
            self._unsaved += 1
            self.looked()
            if self._unsaved >= _SAVE_EVERY:
                self.save()
        return cache.frames[number]

    def save(self) -> None:
        """Keep what `everybody` found."""
        if self._unsaved:
            self._cache(search=True).save()
        self._unsaved = 0

    def most(self) -> int:
        """People in the fullest of the frames that were looked at."""
        rows = {int(row) for row in self.rows}
        return max(len(people) for cache in self._caches.values() for n, people in cache.frames.items() if n in rows)

    def pixels(self, row: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB of one frame; rows that ascend are read in one go."""
        if self._last is not None and self._last[0] == row:
            return self._last[1]
        if row < self._next:
            self._open, self._next = read_frames(self._path, self.rows[row:].tolist()), row
        for frame in self._open:
            self._next += 1
            if self._next > row:
                self._last = row, frame
                return frame
        raise AssertionError("fewer frames than were asked for")

    def colors(self, row: int, person: Person) -> np.ndarray | None:
        """What somebody in a frame wears, as `torso_colors`."""
        key = row, person.body.tobytes()
        if key not in self._colors:
            self._colors[key] = torso_colors(self.pixels(row), person)
        return self._colors[key]


def _one_person(frames: _Frames, *, person: int, crowd: str, progress: Progress | None) -> list[Person | None]:
    """The person in each frame, or None."""
    found = frames.detect(progress=progress, search=crowd == "all")
    if crowd == "off":
        return follow(found, person=person)
    if progress is not None:  # a sign of life: nobody knows how many frames will be looked at again
        frames.looked = lambda: progress(len(found), len(found))
    try:
        return follow(found, person=person, witness=frames)
    finally:
        frames.save()


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
