"""What perception returns: people of one frame (`Person`), one person through time (`PoseTrack`).

Keypoints are rows (x, y, confidence): x, y in px with pixel centres at whole numbers, confidence in [0, 1]. Confidence
0 means missing; x, y are then 0. A joint of body or hand that lies outside the image was not seen and is missing; a
face is there or missing as a whole, with single landmarks outside if need be. After `PoseTrack.transform` joints may
lie outside the new image and keep their confidence: they were seen, and a limb that leaves the crop is drawn up to
its edge.
"""

from __future__ import annotations

import os
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from xdyna.core.atomic import atomic_output
from xdyna.media import CropResize
from xdyna.perception.errors import PerceptionError

FORMAT = "xdyna-pose-1"
_POINTS = {"body": (18, 3), "hands": (2, 21, 3), "face": (68, 3)}
_KEYS = ("format", "body", "hands", "face", "size", "times", "frame_index", "source")
_MAX_BYTES = 1 << 30  # an archive that unpacks to more is refused; an hour at 30 fps takes 0.2 GB


@dataclass(frozen=True)
class Person:
    """One person in one frame.

    Attributes:
        body: (18, 3) float32, OpenPose-18.
        hands: (2, 21, 3) float32; 0 is the person's left hand, 1 the right.
        face: (68, 3) float32, iBUG-68.
        box: (4,) float32, left, top, right, bottom in px.
        score: how sure the backend is that this is a person, in [0, 1].
    """

    body: np.ndarray
    hands: np.ndarray
    face: np.ndarray
    box: np.ndarray
    score: float

    @property
    def area(self) -> float:
        """Area of the box in px^2; people are ordered by it."""
        return float(max(self.box[2] - self.box[0], 0) * max(self.box[3] - self.box[1], 0))


@dataclass(frozen=True)
class PerceptionSummary:
    """How much of a clip was seen.

    Attributes:
        frames: number of frames asked for.
        found: frames in which the person was detected.
        filled: frames without a detection that were filled from their neighbours.
        missing: frames that stay empty.
        joints_filled: body joints filled in frames where the rest of the body was found.
    """

    frames: int
    found: int
    filled: int
    missing: int
    joints_filled: int

    def __str__(self) -> str:
        """One line for the user."""
        text = f"person found in {self.found} of {self.frames} frames"
        if self.filled:
            text += f", {self.filled} filled from their neighbours"
        if self.missing:
            text += f", {self.missing} left empty"
        return text


@dataclass(frozen=True)
class PoseTrack:
    """One person through T frames.

    Attributes:
        body: (T, 18, 3) float32, OpenPose-18: x px, y px, confidence.
        hands: (T, 2, 21, 3) float32; 0 is the person's left hand, 1 the right.
        face: (T, 68, 3) float32, iBUG-68.
        size: (H, W) of the image the coordinates belong to, px.
        times: (T,) float64, display time of each frame, s.
        frame_index: (T,) int64, number of each frame in the source.
        source: name of the source file, for people to read.
        summary: how much was found; not stored in files.

    Raises:
        PerceptionError: wrong shape, NaN, confidence outside [0, 1], times or frame numbers that go back.
    """

    body: np.ndarray
    hands: np.ndarray
    face: np.ndarray
    size: tuple[int, int]
    times: np.ndarray
    frame_index: np.ndarray
    source: str = ""
    summary: PerceptionSummary | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        count = len(np.atleast_1d(self.times))
        for name, shape in _POINTS.items():
            object.__setattr__(self, name, _check_points(getattr(self, name), name=name, shape=(count, *shape)))
        object.__setattr__(self, "times", _check_ascending(self.times, name="times", dtype=np.float64))
        object.__setattr__(self, "frame_index", _check_ascending(self.frame_index, name="frame_index", dtype=np.int64))
        if len(self.frame_index) != count:
            raise PerceptionError(
                f"frame_index has {len(self.frame_index)} entries for {count} times; expected as many"
            )
        size = tuple(int(side) for side in np.asarray(self.size).reshape(-1))
        if len(size) != 2 or min(size) < 1:
            raise PerceptionError(f"size is {self.size}; expected (H, W) in px, both at least 1")
        object.__setattr__(self, "size", size)

    def __len__(self) -> int:
        return len(self.times)

    @property
    def found(self) -> np.ndarray:
        """(T,) bool: any body joint or face landmark is there (detected or filled)."""
        return (self.body[..., 2] > 0).any(axis=1) | (self.face[..., 2] > 0).any(axis=1)

    def share(self, rows: np.ndarray, counts: np.ndarray | None = None) -> str:
        """How many frames some are, and when they are shown: "40% of the driving frames (2 of 5: at 0.00 - 0.10 s)".

        Args:
            rows: (T,) bool, at least one.
            counts: (T,) how often each frame is shown; None: once.
        """
        counts = np.ones(len(self), np.int64) if counts is None else counts
        those = np.flatnonzero(rows)
        spans = [self.times[span[[0, -1]]] for span in np.split(those, np.flatnonzero(np.diff(those) > 1) + 1)]
        when = [f"{a:.2f} s" if a == b else f"{a:.2f} - {b:.2f} s" for a, b in spans]
        more = f" and {len(when) - 5} more times" if len(when) > 5 else ""
        number, total = int(counts[those].sum()), int(counts.sum())
        return f"{number / total:.0%} of the driving frames ({number} of {total}: at {', '.join(when[:5])}{more})"

    def transform(self, crop: CropResize) -> PoseTrack:
        """The same track in the coordinates of a cropped and resized image.

        Args:
            crop: the crop that is applied to the frames as well.

        Returns:
            A new track of size `crop.size`; confidences are unchanged, missing points stay at (0, 0).
        """

        def moved(points: np.ndarray) -> np.ndarray:
            seen = points[..., 2:] > 0
            return np.concatenate([np.where(seen, crop.points(points[..., :2]), 0), points[..., 2:]], axis=-1)

        return replace(self, body=moved(self.body), hands=moved(self.hands), face=moved(self.face), size=crop.size)

    def select(self, rows: Sequence[int] | np.ndarray | slice) -> PoseTrack:
        """Some of the frames.

        Args:
            rows: row numbers (ascending, may repeat), a bool mask or a slice.

        Returns:
            A new track without summary.

        Raises:
            PerceptionError: a row outside 0..T-1, or no row at all.
        """
        try:
            chosen = np.arange(len(self))[rows if isinstance(rows, slice) else np.asarray(rows)]
        except IndexError as error:
            raise PerceptionError(f"rows {rows!r} do not fit a track of {len(self)} frames: {error}") from error
        return replace(
            self,
            body=self.body[chosen],
            hands=self.hands[chosen],
            face=self.face[chosen],
            times=self.times[chosen],
            frame_index=self.frame_index[chosen],
            summary=None,
        )

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the track as a compressed .npz; a half-written file never appears under `path`.

        Args:
            path: the file.
            overwrite: whether an existing file may be replaced.

        Raises:
            xdyna.media.MediaError: the file exists, or cannot be written.
        """
        with atomic_output(path, overwrite=overwrite) as temporary, temporary.open("wb") as handle:
            np.savez_compressed(
                handle,
                format=np.array(FORMAT),
                body=self.body,
                hands=self.hands,
                face=self.face,
                size=np.array(self.size, dtype=np.int64),
                times=self.times,
                frame_index=self.frame_index,
                source=np.array(self.source),
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PoseTrack:
        """Read a track written by `save`.

        Args:
            path: the .npz file.

        Returns:
            The track.

        Raises:
            PerceptionError: missing, damaged or truncated file, missing keys, pickled objects, or refused values.
        """
        arrays = read_npz(path, keys=_KEYS)
        if str(arrays["format"]) != FORMAT:
            raise PerceptionError(
                f"keypoints '{path}' have format '{arrays['format']}', expected '{FORMAT}'; detect them again"
            )
        try:
            return cls(
                body=arrays["body"],
                hands=arrays["hands"],
                face=arrays["face"],
                size=tuple(arrays["size"].reshape(-1).tolist()),
                times=arrays["times"],
                frame_index=arrays["frame_index"],
                source=str(arrays["source"]),
            )
        except (PerceptionError, TypeError, OverflowError, ValueError) as error:
            raise PerceptionError(f"keypoints '{path}' cannot be used: {error}") from error


def read_npz(path: str | os.PathLike[str], *, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Read named arrays of an .npz without ever unpickling anything.

    Args:
        path: the file.
        keys: names that must be there; others are ignored.

    Returns:
        The arrays by name.

    Raises:
        PerceptionError: the file is missing, no .npz, damaged, too large, or lacks a key.
    """
    path = Path(path)
    if not path.is_file():
        raise PerceptionError(f"keypoints '{path}' are not a file; give an .npz written by this project")
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > _MAX_BYTES:
                raise PerceptionError(f"keypoints '{path}' unpack to {unpacked / 2**30:.1f} GiB; expected below 1 GiB")
        with np.load(path, allow_pickle=False) as arrays:
            missing = [key for key in keys if key not in arrays.files]
            if missing:
                raise PerceptionError(
                    f"keypoints '{path}' lack {missing}; found {sorted(arrays.files)[:10]}; "
                    f"detect them again from the video"
                )
            return {key: arrays[key] for key in keys}
    except PerceptionError:
        raise
    except (OSError, EOFError, KeyError, ValueError, TypeError, SyntaxError, MemoryError, OverflowError,
            RuntimeError, tokenize.TokenError, zipfile.BadZipFile,
            zlib.error) as error:  # fmt: skip
        # The zip and npy parsers raise all of these on damaged bytes.
        reason = str(error).splitlines()[0] if str(error) else "it does not fit into memory"
        if isinstance(error, tokenize.TokenError | SyntaxError) or " object at 0x" in reason:
            reason = "the header of an array cannot be read"
        raise PerceptionError(
            f"keypoints '{path}' are damaged or no .npz ({reason}); detect them again from the video"
        ) from error


def missing_points(*shape: int) -> np.ndarray:
    """Keypoints that are all missing.

    Args:
        shape: leading sizes, e.g. (18,).

    Returns:
        (*shape, 3) float32 zeros.
    """
    return np.zeros((*shape, 3), dtype=np.float32)


def mark_outside(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Set points outside the image, and points that are not finite, to missing.

    Args:
        points: (..., 3) x px, y px, confidence.
        size: (H, W) of the image, px.

    Returns:
        (..., 3) float32, confidence clipped to [0, 1].
    """
    height, width = size
    points = np.array(points, dtype=np.float32)
    finite = np.isfinite(points).all(axis=-1)
    x, y = points[..., 0], points[..., 1]
    # A pixel covers half a unit on each side of its centre.
    inside = finite & (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5) & (points[..., 2] > 0)
    points = np.where(inside[..., None], points, 0)
    points[..., 2] = points[..., 2].clip(0, 1)
    return points


def mark_face(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A face counts as a whole: all landmarks missing where its centre lies outside the image or a value is not
    finite.

    Args:
        points: (68, 3) x px, y px, confidence.
        size: (H, W) of the image, px.

    Returns:
        (68, 3) float32, confidence clipped to [0, 1]; single landmarks may lie outside the image.
    """
    points = np.array(points, dtype=np.float32)
    if not np.isfinite(points).all() or not mark_outside(points.mean(axis=0), size)[2]:
        return missing_points(68)
    points[:, 2] = points[:, 2].clip(0, 1)
    return points


def _check_points(array: np.ndarray, *, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Points as float32 of the given shape with sane values, or an error."""
    array = np.asarray(array)
    if array.dtype.kind not in "fiu":
        raise PerceptionError(f"{name} has type {array.dtype}; expected float32")
    if array.shape != shape or not shape[0]:
        raise PerceptionError(f"{name} has shape {array.shape}; expected {shape} with at least one frame")
    if not np.isfinite(array).all():
        raise PerceptionError(f"{name} holds NaN or infinite values; mark missing points with confidence 0 instead")
    if array[..., 2].min() < 0 or array[..., 2].max() > 1:
        raise PerceptionError(
            f"{name} holds confidences from {array[..., 2].min():.3g} to {array[..., 2].max():.3g}; expected 0 to 1"
        )
    if np.abs(array[..., :2]).max() > 1e6:
        raise PerceptionError(
            f"{name} holds coordinates up to {np.abs(array[..., :2]).max():.3g} px; expected below 1e6"
        )
    return np.ascontiguousarray(array, dtype=np.float32)


def _check_ascending(array: np.ndarray, *, name: str, dtype: type) -> np.ndarray:
    """A row of numbers that never goes back, from 0 upwards, or an error."""
    array = np.asarray(array)
    if array.dtype.kind not in "fiu" or array.ndim != 1 or not array.size:
        raise PerceptionError(
            f"{name} has type {array.dtype} and shape {array.shape}; expected (T,) numbers, T at least 1"
        )
    if not np.isfinite(array).all() or array[0] < 0 or (np.diff(array.astype(np.float64)) < 0).any():
        raise PerceptionError(f"{name} must be finite, not negative and ascending; found {array[:5].tolist()}...")
    return np.ascontiguousarray(array, dtype=dtype)
