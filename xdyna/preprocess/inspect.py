"""A clip of a data set as people see it: image, skeleton, face patch and mask side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from xdyna.config.data import DataError
from xdyna.data.addresses import local_copy
from xdyna.data.records import ClipArrays, ClipRecord
from xdyna.data.store import read_dataset
from xdyna.media import VideoWriter, contact_sheet, grid_frame, read_frames, write_png
from xdyna.perception import draw_pose, face_boxes
from xdyna.perception.errors import NoFaceError
from xdyna.perception.face_patch import Box, global_patch

HEIGHT = 384
_COLUMNS = 8
_MASK_COLOR = np.array([46, 164, 79])
_BOX_COLOR = (255, 190, 60)


def clip_frames(record: ClipRecord, arrays: ClipArrays, local: Path) -> Iterator[np.ndarray]:
    """The frames of a clip without letterbox.

    Args:
        record: the clip.
        arrays: its numbers.
        local: the video.

    Yields:
        uint8 (height, width, 3) RGB.

    Raises:
        MediaError: the video cannot be read.
        DataError: its image is smaller than the clip's crop.
    """
    bottom, right = record.crop_top + record.height, record.crop_left + record.width
    for frame in read_frames(local, arrays.frame_index.tolist()):
        if frame.shape[0] < bottom or frame.shape[1] < right:
            raise DataError(
                f"video '{record.path}' has frames of {frame.shape[1]} x {frame.shape[0]} px, clip '{record.clip_id}' "
                f"needs {right} x {bottom}: it is another video than the one that was preprocessed"
            )
        yield frame[record.crop_top : bottom, record.crop_left : right]


def inspect_clip(folder: Path, clip_id: str, out: Path, *, overwrite: bool = False) -> Path:
    """Draw a clip.

    Args:
        folder: the data set.
        clip_id: of the clip.
        out: an .mp4 (all frames) or a .png (contact sheet of some).
        overwrite: whether an existing file may be replaced.

    Returns:
        The file.

    Raises:
        DataError: no such data set or clip, damaged arrays, another suffix.
        MediaError: the video cannot be read, or `out` not be written.
    """
    if out.suffix.lower() not in (".mp4", ".png"):
        raise DataError(f"'{out}': expected a name that ends in .mp4 or .png")
    dataset = read_dataset(folder)
    record = dataset.record(clip_id)
    arrays = dataset.arrays(record)
    with local_copy(record.path) as local:
        cells = _cells(record, arrays, local)
        if out.suffix.lower() == ".mp4":
            _write_video(out, cells, fps=record.fps, overwrite=overwrite)
        else:
            _write_sheet(out, cells, record, overwrite=overwrite)
    return out


def _cells(record: ClipRecord, arrays: ClipArrays, local: Path) -> Iterator[dict[str, np.ndarray]]:
    """What stands side by side in each frame; scenes have their image alone."""
    size = (record.height, record.width)
    boxes = _face_boxes(arrays.face, size)
    for row, frame in enumerate(clip_frames(record, arrays, local)):
        if record.kind == "scene":
            yield {"clip": frame}
            continue
        yield {
            "clip": _with_box(frame, arrays.boxes[row]),
            "skeleton": draw_pose(arrays.body[row], arrays.hands[row], size=size),
            "face patch": global_patch(frame, boxes[row]) if boxes else np.zeros_like(frame),
            "mask": _with_mask(frame, arrays.mask[row]),
        }


def _face_boxes(face: np.ndarray, size: tuple[int, int]) -> list[Box] | None:
    try:
        return face_boxes(face, size=size)
    except NoFaceError:
        return None


def _with_box(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    left, top, right, bottom = (int(side) for side in box.round())
    width = max(1, min(frame.shape[:2]) // 200)
    return cv2.rectangle(frame.copy(), (left, top), (right, bottom), _BOX_COLOR, width)


def _with_mask(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image with the person in colour and the rest darker."""
    full = cv2.resize(mask.astype(np.uint8), (frame.shape[1], frame.shape[0]), interpolation=cv2.INTER_NEAREST)
    inside = (frame * 0.6 + _MASK_COLOR * 0.4).astype(np.uint8)
    return np.where(full[..., None] > 0, inside, frame // 3)


def _write_video(out: Path, cells: Iterator[dict[str, np.ndarray]], *, fps: float, overwrite: bool) -> None:
    first = grid_frame(next(cells), height=HEIGHT)
    with VideoWriter(out, fps=fps, size=(first.shape[0], first.shape[1]), overwrite=overwrite) as writer:
        writer.write(first)
        for row in cells:
            writer.write(grid_frame(row, height=HEIGHT))


def _write_sheet(out: Path, cells: Iterator[dict[str, np.ndarray]], record: ClipRecord, *, overwrite: bool) -> None:
    chosen = np.unique(np.linspace(0, record.frames - 1, _COLUMNS).round().astype(int)).tolist()
    picked = [row for number, row in enumerate(cells) if number in chosen]
    rows = {name: [cell[name] for cell in picked] for name in picked[0]}
    title = f"{record.clip_id}: {record.kind}, {record.frames} frames at {record.fps:.4g} fps, {record.split}"
    captions = [f"frame {record.start + number}" for number in chosen]
    write_png(out, contact_sheet(rows, columns=_COLUMNS, title=title, captions=captions), overwrite=overwrite)
