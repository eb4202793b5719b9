"""Files of other identities' faces beside a data set's clips: written by preprocessing, read by training."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from xdyna.config.data import DataError
from xdyna.data.sources import Faces
from xdyna.data.store import write_if_changed
from xdyna.perception.errors import PerceptionError
from xdyna.perception.face_patch import face_box
from xdyna.perception.types import read_npz

FORMAT = "xdyna-faces-1"
SEEN = 0.3  # faces of lower mean confidence count as missing, as in the face patches
_SLACK = 2  # px that crops and rounding may move a box by
_KEYS = ("format", "recipe", "size", "landmarks", "boxes", "pictures", "ends")


def seen(landmarks: np.ndarray) -> np.ndarray:
    """Frames with a face. Args: landmarks: (T, 68, 3). Returns: bool (T,)."""
    confidence = landmarks[..., 2]
    return np.asarray((confidence > 0).all(axis=1) & (confidence.mean(axis=1) >= SEEN))


def patch_boxes(landmarks: np.ndarray, *, size: tuple[int, int]) -> np.ndarray:
    """What of each frame the face patch of any part of a clip can show.

    A face box that lies inside the box of the frame before keeps that one; so a frame shows its own box, or one of
    those that contain it.

    Args:
        landmarks: (T, 68, 3) px, confidence 0 where there is no face.
        size: (H, W) of the frames, px.

    Returns:
        int64 (T, 4), left, top, right, bottom in px; zeros in frames without a face.
    """
    found = np.flatnonzero(seen(landmarks))
    boxes = np.array([face_box(landmarks[row, :, :2], size=size) for row in found], dtype=np.int64).reshape(-1, 4)
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    contains = (boxes[None, :, :2] <= low + _SLACK).all(axis=2) & (boxes[None, :, 2:] >= high - _SLACK).all(axis=2)
    result = np.zeros((len(landmarks), 4), dtype=np.int64)
    for row, outer in zip(found, contains, strict=True):
        left, top = np.maximum(boxes[outer, :2].min(axis=0) - _SLACK, 0)
        right, bottom = np.minimum(boxes[outer, 2:].max(axis=0) + _SLACK, [size[1], size[0]])
        result[row] = left, top, right, bottom
    return result


def write_faces(path: Path, faces: Faces, *, recipe: dict[str, object]) -> None:
    """Write faces; the same faces give the same bytes. Images are kept where a face patch may show them.

    Args:
        path: the .npz; an existing one is replaced.
        faces: of a whole clip.
        recipe: what they were made from, as JSON values.

    Raises:
        MediaError: it cannot be written.
    """
    size = (faces.frames.shape[1], faces.frames.shape[2])
    boxes = patch_boxes(faces.landmarks, size=size)
    files = [
        cv2.imencode(".png", cv2.cvtColor(frame[top:bottom, left:right], cv2.COLOR_RGB2BGR))[1].reshape(-1)
        if left < right and top < bottom
        else np.zeros(0, dtype=np.uint8)
        for frame, (left, top, right, bottom) in zip(faces.frames, boxes, strict=True)
    ]
    buffer = io.BytesIO()
    np.savez(  # its entries carry a fixed date
        buffer,
        format=np.array(FORMAT),
        recipe=np.array(json.dumps(recipe, sort_keys=True)),
        size=np.array(size, dtype=np.int64),
        landmarks=faces.landmarks.astype(np.float32),
        boxes=boxes,
        pictures=np.concatenate(files),
        ends=np.cumsum([len(file) for file in files]).astype(np.int64),
    )
    write_if_changed(path, buffer.getvalue())


def read_faces(path: Path, rows: Sequence[int] | np.ndarray | None = None) -> Faces:
    """Read faces.

    Args:
        path: an .npz of `write_faces`.
        rows: frames that are wanted; None: all.

    Returns:
        The faces of these frames, in px of the clip's cropped image.

    Raises:
        DataError: missing, damaged or truncated file, another format, or no such rows.
    """
    arrays = read_arrays(path)
    count = len(arrays["ends"])
    chosen = np.arange(count) if rows is None else np.asarray(rows, dtype=np.int64)
    if chosen.ndim != 1 or not chosen.size or chosen.min() < 0 or chosen.max() >= count:
        raise DataError(f"faces '{path}': rows {chosen.tolist()[:8]} asked for, there are {count} from 0 on")
    height, width = arrays["size"].tolist()
    frames = np.zeros((len(chosen), height, width, 3), dtype=np.uint8)
    for frame, row in zip(frames, chosen, strict=True):
        left, top, right, bottom = arrays["boxes"][row].tolist()
        start, end = int(arrays["ends"][row - 1]) if row else 0, int(arrays["ends"][row])
        if start == end:
            continue
        picture = cv2.imdecode(arrays["pictures"][start:end], cv2.IMREAD_COLOR)
        if picture is None or picture.shape != (bottom - top, right - left, 3):
            raise damaged(path, f"picture {row} cannot be decoded")
        frame[top:bottom, left:right] = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    return Faces(frames, arrays["landmarks"][chosen])


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file, checked."""
    try:
        arrays = read_npz(path, keys=_KEYS)
    except PerceptionError as error:
        raise damaged(path, str(error)) from error
    if str(arrays["format"]) != FORMAT:
        raise DataError(f"faces '{path}' have format '{arrays['format']}', expected '{FORMAT}'; make them again")
    count = len(np.atleast_1d(arrays["ends"]))
    shapes = {"size": (2,), "landmarks": (count, 68, 3), "boxes": (count, 4), "ends": (count,)}
    kinds = {"size": np.int64, "landmarks": np.float32, "boxes": np.int64, "ends": np.int64, "pictures": np.uint8}
    for name, kind in kinds.items():
        if arrays[name].dtype != kind or arrays[name].shape != shapes.get(name, (arrays[name].size,)):
            raise damaged(path, f"{name} is {arrays[name].dtype} {arrays[name].shape}")
    boxes, ends, size = arrays["boxes"], arrays["ends"], arrays["size"]
    if not count or (np.diff(ends, prepend=0) < 0).any() or ends[-1] != arrays["pictures"].size:
        raise damaged(path, "the ends of its pictures do not fit")
    inside = (boxes >= 0).all() and (boxes[:, [2, 3]] <= size[::-1]).all() and (boxes[:, :2] <= boxes[:, 2:]).all()
    if size.min() < 1 or not inside or not np.isfinite(arrays["landmarks"]).all():
        raise damaged(path, "its boxes or landmarks do not fit its size")
    return arrays


def damaged(path: Path, reason: str) -> DataError:
    """The error of a file that cannot be used."""
    return DataError(f"faces '{path}' are damaged ({reason}); remove the file and make the faces again")
