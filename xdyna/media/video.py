"""Videos: what they are, their frames by position, and how to resample them by time.

Reading goes through decord where it is proven exact and through PyAV otherwise; both give the same pixels.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from xdyna.core.atomic import unique_path
from xdyna.media.errors import MediaError
from xdyna.media.folder import check_frames, frames_of, read_images
from xdyna.media.index import read_index
from xdyna.media.reading import read_positions
from xdyna.media.writer import VideoWriter

__all__ = [
    "VideoInfo",
    "VideoWriter",
    "frame_times",
    "natural_fps",
    "nominal_fps",
    "probe",
    "read_frames",
    "resample_indices",
    "unique_path",
]


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    Attributes:
        path: the file.
        width: px as displayed (rotation applied, square pixels).
        height: px as displayed.
        fps: nominal rate, see `nominal_fps`.
        frame_count: frames that can be read.
        duration: s of the video stream, the last frame included.
        rotation: degrees clockwise (0, 90, 180, 270) that the file asks for; the readers apply it.
        has_audio: whether there is sound.
        codec: for example "h264".
        variable_rate: whether the distances between frames differ.
        lost_frames: frames that the file announces but that are cut off or damaged.
    """

    path: Path
    width: int
    height: int
    fps: float
    frame_count: int
    duration: float
    rotation: int
    has_audio: bool
    codec: str
    variable_rate: bool
    lost_frames: int = 0


def probe(path: str | os.PathLike[str], *, fps: float | None = None) -> VideoInfo:
    """Describe a video. Its packets are read, one frame is decoded.

    Args:
        path: the video file; with `fps` also a folder of images, one per frame.
        fps: rate of a folder's frames, which have none of their own; a file keeps its own.

    Returns:
        The description.

    Raises:
        MediaError: missing, a folder (without `fps`, or not of the frames of one video), empty, not a video, an image,
            sound only, zero frames, or so damaged that no frame can be read (an mp4 cut off before its index).

    Warns:
        MediaWarning: the end is cut off; the frames before it are used.
    """
    if fps is not None and os.path.isdir(path):
        return _folder_info(Path(path), fps)
    index = read_index(path)
    steps = np.diff(index.times)
    # Containers round time stamps (Matroska to 1 ms): that alone is no variable rate.
    variable = bool(len(steps) > 1 and np.abs(steps - np.median(steps)).max() > max(1.5e-3, 0.05 * np.median(steps)))
    height, width = index.size
    return VideoInfo(
        path=Path(path),
        width=width,
        height=height,
        fps=nominal_fps(index.times) or len(index.pts) / index.duration,
        frame_count=len(index.pts),
        duration=index.duration,
        rotation=index.rotation,
        has_audio=index.has_audio,
        codec=index.codec,
        variable_rate=variable,
        lost_frames=index.lost,
    )


def _folder_info(folder: Path, fps: float) -> VideoInfo:
    count, (height, width) = check_frames(folder)
    return VideoInfo(
        path=folder,
        width=width,
        height=height,
        fps=fps,
        frame_count=count,
        duration=count / fps,
        rotation=0,
        has_audio=False,
        codec="images",
        variable_rate=False,
    )


def frame_times(path: str | os.PathLike[str], *, fps: float | None = None) -> np.ndarray:
    """When each frame is shown.

    Args:
        path: the video file; with `fps` also a folder of images.
        fps: as in `probe`.

    Returns:
        float64 (N,) s, ascending, the first 0. Taken from the packets, so variable rates come out as they are.

    Raises:
        MediaError: as `probe`.
    """
    if fps is not None and os.path.isdir(path):
        return np.arange(len(frames_of(Path(path))), dtype=np.float64) / fps
    return read_index(path).times


def read_frames(path: str | os.PathLike[str], indices: Iterable[int] | None = None) -> Iterator[np.ndarray]:
    """Read frames as they are displayed: upright, square pixels.

    Frames are found by their time stamps, so position k is always frame k of `frame_times`, however the file is
    compressed. decord reads the files on which it is exact (see `reading.decord_is_exact`), PyAV all others; when
    decord fails midway PyAV goes on from there. A frame that cannot be decoded is replaced by the one before it, with
    one warning.

    Args:
        path: the video file, or a folder of images in the order of the numbers in their names.
        indices: positions in display order, ascending, repeats allowed; all frames when None.

    Returns:
        Iterator over uint8 (H, W, 3) RGB. Each item is an array of its own.

    Raises:
        MediaError: as `probe`; or a position is out of range or not ascending. Raised at the call, before iteration.
    """
    images = frames_of(Path(path)) if os.path.isdir(path) else []
    index = None if images else read_index(path)
    count = len(images) if index is None else len(index.pts)
    wanted = list(range(count)) if indices is None else [int(i) for i in indices]
    for before, after in itertools.pairwise(wanted):
        if after < before:
            raise MediaError(f"frame positions of '{path}' must ascend; {after} follows {before}: sort them first")
    if wanted and not 0 <= wanted[0] <= wanted[-1] < count:
        bad = wanted[0] if wanted[0] < 0 else wanted[-1]
        raise MediaError(
            f"frame {bad} of '{path}' does not exist; the video has {count} frames, numbered 0 to {count - 1}"
        )
    distinct = sorted(set(wanted))
    if index is None:
        return _repeat(read_images([images[k] for k in distinct]), wanted)
    return _repeat(read_positions(index, distinct), wanted)


def _repeat(frames: Iterator[np.ndarray], wanted: list[int]) -> Iterator[np.ndarray]:
    """Hand out each read frame as often as it is wanted, each time as an array of its own."""
    previous, frame = -1, None
    for position in wanted:
        if frame is None or position != previous:
            frame, previous = next(frames), position
        else:
            frame = frame.copy()
        yield frame


_STANDARD_RATES = np.array(
    [5, 6, 8, 10, 12, 12.5, 15000 / 1001, 15, 16, 20, 24000 / 1001, 24, 25, 30000 / 1001, 30, 48, 50, 60000 / 1001, 60]
    + [90, 100, 120000 / 1001, 120, 240]
)


def nominal_fps(times: np.ndarray) -> float | None:
    """The rate a video was made for: from the usual distance of neighbouring frames, not from their average.

    A frame lost at a cut, or those that a phone drops, change nothing. Where the usual distances are uneven (containers
    round them to 1 ms, phones jitter) the nearest standard rate within 0.5 % is taken. Where no distance is usual, the
    average is.

    Args:
        times: float64 (N,) s, ascending.

    Returns:
        Frames per second; None for a single time.
    """
    steps = np.diff(np.asarray(times, dtype=np.float64))
    steps = steps[steps > 0]
    if not len(steps):
        return None
    median = float(np.median(steps))
    usual = steps[np.abs(steps - median) <= max(1.5e-3, 0.25 * median)]
    if 2 * len(usual) < len(steps):
        return float(len(steps) / steps.sum())
    spans = np.round(steps / usual.mean())  # 2 where a frame is missing: rounded times then still add up
    clear = (spans >= 1) & (spans <= 4) & (np.abs(steps / usual.mean() - spans) < 0.25)
    rate = float(spans[clear].sum() / steps[clear].sum())
    nearest = float(_STANDARD_RATES[np.argmin(np.abs(np.log(_STANDARD_RATES / rate)))])
    allowed = 5e-3 if np.ptp(usual) > 1e-5 else 1e-9  # even distances differ by the rounding of sums alone
    return nearest if abs(nearest / rate - 1) < allowed else rate


def resample_indices(times: np.ndarray, *, duration: float, fps: float, max_frames: int | None = None) -> np.ndarray:
    """Which source frame each output frame shows, so that the output lasts as long as the source.

    Output frame k is the source frame on display at time k / fps: the latest one whose time is <= k / fps (within 1 ms,
    since containers round time stamps).

    Args:
        times: float64 (N,) s, ascending, as from `frame_times`.
        duration: s of the source.
        fps: of the output, > 0.
        max_frames: keep at most so many output frames.

    Returns:
        int64 (T,), ascending, T = round(duration * fps), at least 1.

    Raises:
        MediaError: no times, or fps, duration or max_frames not positive.
    """
    times = np.asarray(times, dtype=np.float64)
    if times.ndim != 1 or len(times) == 0:
        raise MediaError(f"times must be a list of at least one time in s; given shape {times.shape}")
    fps, duration = float(fps), float(duration)
    if not (np.isfinite(fps) and fps > 0 and np.isfinite(duration) and duration > 0):
        raise MediaError(f"fps and duration must be positive numbers; given fps {fps:g}, duration {duration:g} s")
    if max_frames is not None and max_frames < 1:
        raise MediaError(f"max_frames must be at least 1; given {max_frames}")
    count = max(1, int(np.floor(duration * fps + 0.5)))
    if max_frames is not None:
        count = min(count, max_frames)
    shown = np.searchsorted(times, times[0] + np.arange(count) / fps + 1e-3, side="right") - 1
    return np.clip(shown, 0, len(times) - 1).astype(np.int64)


def natural_fps(source_fps: float | Fraction, limit: float = 15.0) -> Fraction:
    """The largest whole fraction source_fps / n that is at most `limit`: every n-th frame, no uneven steps.

    Args:
        source_fps: frames per second of the source, > 0.
        limit: frames per second, > 0.

    Returns:
        Exact rate, for example 30000/1001 -> 15000/1001, 25 -> 25/2, 8 -> 8.

    Raises:
        MediaError: a rate that is not positive.
    """
    if not (source_fps > 0 and limit > 0):
        raise MediaError(f"frame rates must be positive; given {float(source_fps):g} with the limit {limit:g}")
    exact = Fraction(source_fps).limit_denominator(1001)
    return exact / max(1, -(-exact // Fraction(limit)))
