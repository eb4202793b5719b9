"""One video through all steps: probe, letterbox, shots, kind, people, quality. Clips are written, the rest is told."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from PIL import Image

from xdyna.config.data import DataError
from xdyna.config.preprocess import PreprocessOptions
from xdyna.core.errors import FileError
from xdyna.core.files import file_sha256
from xdyna.data.records import ClipArrays, ClipRecord, Skip, VideoOutcome, VideoSource, place
from xdyna.data.store import write_arrays, write_if_changed
from xdyna.media import MediaError, VideoInfo, frame_times, probe
from xdyna.media.errors import check_input_file
from xdyna.perception import PerceptionError, PoseTrack
from xdyna.preprocess import filters, people
from xdyna.preprocess.filters import Refusal
from xdyna.preprocess.frames import Box, find_crop, sampled, small_frames
from xdyna.preprocess.measure import Motion, measure_motion, measure_text, perceptual_hash
from xdyna.preprocess.people import Look, PersonNumbers
from xdyna.preprocess.shots import Window, find_windows

THUMBNAIL_SIDE = 160
"""Longer side of the thumbnails, px."""

# What readers and detectors raise on damaged videos. Anything else is a mistake of this program and ends it.
_BAD_VIDEO = (MediaError, PerceptionError, av.error.FFmpegError, cv2.error, UnicodeDecodeError)


def process_video(source: VideoSource, local: Path, options: PreprocessOptions, folder: Path) -> VideoOutcome:
    """Make clips of a video.

    Below `folder` are written: `clips/ab/CLIP_ID.npz`, and a thumbnail for each clip and each skip. The same video and
    options give the same bytes. Clips have no split yet, and duplicates among them are found later.

    Args:
        source: the video as it was asked for.
        local: the file to read.
        options: what is kept.
        folder: of the data set.

    Returns:
        Clips and skips; a video that cannot be used is a skip, never an exception.

    Raises:
        DataError: `folder` cannot be written (a full disk, for instance), or a package is missing.
        PerceptionError: the backend cannot be made.
    """
    people.pose_backend(options.backend)  # a missing model is no fault of the video
    try:
        sha256 = file_sha256(check_input_file(local, what="video"))
    except FileError as error:
        return _failed(source, "", "read", "unreadable", error)
    try:
        info, times = probe(local), frame_times(local)
    except _BAD_VIDEO as error:
        return _failed(source, sha256, "probe", "unreadable", error)
    writer = _Writer(source, folder, sha256=sha256, fps=info.fps)
    try:
        _Video(source, local, options, writer, info=info, times=times).process()
    except _BAD_VIDEO as error:
        writer.skip(Refusal("error", "error", _sentence(error)))
    return VideoOutcome(source.id, sha256, info.duration, tuple(writer.clips), tuple(writer.skips))


def _failed(source: VideoSource, sha256: str, stage: str, reason: str, error: Exception) -> VideoOutcome:
    skip = Skip(source.id, source.path, stage, reason, _sentence(error))
    return VideoOutcome(source.id, sha256, 0.0, skips=(skip,))


def _sentence(error: Exception) -> str:
    """The first line of an error, as a sentence."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


@dataclass(frozen=True)
class _Numbers:
    """What a record says about a clip."""

    kind: str
    motion: Motion
    person: PersonNumbers | None


class _Writer:
    """Writes clips and thumbnails of one video and keeps their records."""

    def __init__(self, source: VideoSource, folder: Path, *, sha256: str, fps: float) -> None:
        self.clips: list[ClipRecord] = []
        self.skips: list[Skip] = []
        self._source, self._folder, self._sha256, self._fps = source, folder, sha256, fps

    def skip(self, refusal: Refusal, window: Window | None = None) -> None:
        """Note that a window (None: the video) is not kept."""
        thumbnail = ""
        if window is not None:
            thumbnail = place("thumbnails", f"{self._source.id}-skip-{window.start:06d}", ".jpg")
            self._write_thumbnail(thumbnail, window)
        source = self._source
        start, count = (-1, 0) if window is None else (window.start, len(window.frames))
        self.skips.append(Skip(source.id, source.path, *refusal, start=start, frames=count, thumbnail=thumbnail))

    def clip(self, number: int, window: Window, crop: Box, arrays: ClipArrays, numbers: _Numbers) -> None:
        """Write a clip and note it."""
        source, person = self._source, numbers.person
        clip_id = f"{source.id}-{number:04d}"
        where = place("clips", clip_id, ".npz")
        self._write_thumbnail(place("thumbnails", clip_id, ".jpg"), window)
        try:
            write_arrays(self._folder / where, arrays)
        except FileError as error:
            raise DataError(str(error)) from error
        self.clips.append(
            ClipRecord(
                clip_id=clip_id, source_id=source.id, path=source.path, sha256=self._sha256, kind=numbers.kind,
                caption=source.caption, license=source.license, group=source.group or source.id, split="",
                start=window.start, frames=len(window.frames), fps=self._fps, crop_left=crop[0], crop_top=crop[1],
                width=crop[2], height=crop[3], arrays=where,
                person_height=_rounded(person.height) if person else 0.0,
                confidence=_rounded(person.confidence) if person else 0.0,
                motion=_rounded(numbers.motion.flow), camera=_rounded(numbers.motion.camera),
                phash=perceptual_hash(window.frames[len(window.frames) // 2]),
            )
        )  # fmt: skip

    def _write_thumbnail(self, where: str, window: Window) -> None:
        image = Image.fromarray(window.frames[len(window.frames) // 2])
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=80)
        try:
            write_if_changed(self._folder / where, buffer.getvalue())
        except FileError as error:
            raise DataError(str(error)) from error


def _rounded(number: float) -> float:
    """Six digits: what is left of a difference between two machines' arithmetic is rarely seen."""
    return round(number, 6)


class _Video:
    """The steps of one readable video."""

    def __init__(
        self,
        source: VideoSource,
        local: Path,
        options: PreprocessOptions,
        writer: _Writer,
        *,
        info: VideoInfo,
        times: np.ndarray,
    ) -> None:
        self._source, self._local, self._options, self._writer = source, local, options, writer
        self._info, self._times = info, times

    def process(self) -> None:
        """All windows in turn, until there are enough clips."""
        options, writer = self._options, self._writer
        if self._info.frame_count < options.min_frames:
            refusal = filters.too_short(self._info.frame_count, self._info.frame_count, options)
            assert refusal is not None
            writer.skip(refusal._replace(detail=refusal.detail.replace("The shot", "The video")))
            return
        crop = find_crop(self._local, count=self._info.frame_count, letterbox=options.letterbox)
        small = filters.too_small((crop[3], crop[2]), options)
        if small is not None:
            writer.skip(small)
            return
        for number, window in enumerate(find_windows(small_frames(self._local, crop), options)):
            with tempfile.TemporaryDirectory(prefix="xdyna-") as detections:
                refusal = self._window(number, window, crop, Path(detections))
            if refusal is not None:
                writer.skip(refusal, window)
            if options.max_clips is not None and len(writer.clips) >= options.max_clips:
                return

    def _window(self, number: int, window: Window, crop: Box, detections: Path) -> Refusal | None:
        """Make a clip of a window, or say why not, cheapest first. `detections` holds who was found."""
        options = self._options
        rows = np.arange(window.start, window.start + len(window.frames))
        short = filters.too_short(len(rows), window.shot, options)
        if short is not None:
            return short
        text = filters.text_overlay(measure_text(window.frames), options)
        if text is not None:
            return text
        looks = [] if self._source.kind == "scene" else self._look(rows, crop, detections)
        kind = filters.decide_kind(looks, self._source.kind, options)
        if isinstance(kind, Refusal):
            return kind
        boxes = np.concatenate([look.boxes for look in looks]) if looks else None
        motion = measure_motion(window.frames, self._times[rows], boxes)
        for refusal in (filters.unwanted_kind(kind, options), *(f(motion, options) for f in filters.MOTION_FILTERS)):
            if refusal is not None:
                return refusal
        if kind == "scene":
            arrays = people.scene_arrays(rows, self._times[rows], (crop[3], crop[2]))
            self._writer.clip(number, window, crop, arrays, _Numbers(kind, motion, None))
            return None
        track, others = self._track(rows, crop, detections)
        return self._human(number, window, crop, track, _Numbers(kind, motion, people.person_numbers(track, others)))

    def _look(self, rows: np.ndarray, crop: Box, detections: Path) -> list[Look]:
        return people.look_at(
            self._local,
            rows[sampled(len(rows), self._options.looks)],
            backend=people.pose_backend(self._options.backend),
            size=(self._info.height, self._info.width),
            crop=crop,
            cache=detections,
        )

    def _track(self, rows: np.ndarray, crop: Box, detections: Path) -> tuple[PoseTrack, float]:
        return people.person_track(
            self._local,
            rows,
            backend=people.pose_backend(self._options.backend),
            size=(self._info.height, self._info.width),
            crop=crop,
            cache=detections,
        )

    def _human(self, number: int, window: Window, crop: Box, track: PoseTrack, numbers: _Numbers) -> Refusal | None:
        """The person in every frame."""
        assert numbers.person is not None
        for person_filter in filters.PERSON_FILTERS:
            refusal = person_filter(numbers.person, self._options)
            if refusal is not None:
                return refusal
        self._writer.clip(number, window, crop, self._arrays(track, crop), numbers)
        return None

    def _arrays(self, track: PoseTrack, crop: Box) -> ClipArrays:
        rows = track.frame_index
        boxes = people.person_boxes(track)
        there = (boxes > 0).any(axis=1)
        segmenter = people.mask_backend(self._options.backend)
        return ClipArrays(
            body=track.body,
            hands=track.hands,
            face=track.face,
            boxes=boxes,
            mask=people.person_masks(self._local, rows, backend=segmenter, crop=crop, there=there),
            times=self._times[rows].astype(np.float64),
            frame_index=rows,
        )
