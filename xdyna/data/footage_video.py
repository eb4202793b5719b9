"""One clip of a data set of real videos: frames by random access, everything else from the numbers beside it."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from xdyna.config.data import DataError
from xdyna.core.errors import FileError
from xdyna.data.face_files import read_faces
from xdyna.data.records import ClipArrays, ClipRecord
from xdyna.data.sources import ClipError, ClipWindow, Faces
from xdyna.data.store import Dataset
from xdyna.data.transforms import crop_around
from xdyna.data.verify import State, unchanged
from xdyna.media import CropResize, MediaWarning, read_frames
from xdyna.media.errors import check_input_file
from xdyna.perception import PerceptionError, PoseTrack

_ROOM = 0.1  # boxes go from joint to joint; hair and hands reach farther by so many heights of the person


@dataclass(frozen=True, eq=False)
class FootageVideo:
    """A clip of a data set; see `sources.Video`. Nothing is open between two calls, so that it may cross processes.

    Attributes:
        dataset: where it is from.
        record: the clip.
        size: (H, W) of the images, px.
        crop_scale: [lowest, highest] share of the area that the crop keeps.
        draws: three random numbers in [0, 1) that its crop follows from.
        faces: whether `ClipWindow.faces` are asked for.
        verify: whether the video's bytes are looked at.
        states: of the videos' files when the run began, see `verify.states_of`; None for those of shards.
    """

    dataset: Dataset
    record: ClipRecord
    size: tuple[int, int]
    crop_scale: Sequence[float]
    draws: tuple[float, float, float]
    faces: bool
    verify: bool
    states: Mapping[str, State] | None = None

    @property
    def clip_id(self) -> str:
        """That of the record, below the name of the data set: two sets may have equal ids."""
        return f"{self.dataset.root.name}/{self.record.clip_id}"

    @property
    def kind(self) -> str:
        """That of the record."""
        return self.record.kind

    @property
    def length(self) -> int:
        """Number of frames."""
        return self.record.frames

    @property
    def fps(self) -> float:
        """Frames per second."""
        return self.record.fps

    @property
    def caption(self) -> str:
        """That of the record."""
        return self.record.caption

    @property
    def path(self) -> Path:
        """See `video_path`."""
        return video_path(self.dataset, self.record)

    @cached_property
    def arrays(self) -> ClipArrays:
        """The numbers of the whole clip.

        Raises:
            ClipError: they are missing or damaged.
        """
        try:
            return self.dataset.arrays(self.record)
        except DataError as error:
            raise ClipError(str(error)) from error

    @cached_property
    def crop(self) -> CropResize:
        """From the record's image (without its letterbox) to `size`; one for the whole clip, around the person."""
        boxes = self.arrays.boxes[(self.arrays.boxes[:, 2:] > self.arrays.boxes[:, :2]).all(axis=1)]
        person = None
        if self.kind == "human" and len(boxes):
            (left, top), (right, bottom) = boxes[:, :2].min(axis=0).tolist(), boxes[:, 2:].max(axis=0).tolist()
            room = _ROOM * (bottom - top)
            person = (left - room, top - room, right + room, bottom + room)
        return crop_around(self.draws, image=self._image, target=self.size, scale=self.crop_scale, person=person)

    @property
    def corner(self) -> tuple[int, int]:
        """Left and top of the record's image in the frames of the video, px."""
        return self.record.crop_left, self.record.crop_top

    def window(self, rows: np.ndarray, *, reference: int) -> ClipWindow:
        """Decode and crop; see `sources.Video`.

        Raises:
            ClipError: the clip cannot be read.
        """
        frames = self._frames(np.concatenate([[reference], rows]))
        return ClipWindow(frames[0], frames[1:], None, self.track(rows), self._other_faces(rows))

    def track(self, rows: np.ndarray) -> PoseTrack:
        """Keypoints of some frames, in px of the cropped images.

        Raises:
            ClipError: they are missing or damaged.
        """
        numbers = self.arrays
        try:
            whole = PoseTrack(
                numbers.body[rows],
                numbers.hands[rows],
                numbers.face[rows],
                self._image,
                times=numbers.times[rows],
                frame_index=numbers.frame_index[rows],
                source=self.path.name,
            )
        except PerceptionError as error:
            raise ClipError(f"keypoints of clip '{self.clip_id}' are damaged: {error}") from error
        return whole.transform(self.crop)

    def own_faces(self, rows: np.ndarray, shot: ClipWindow) -> Faces:
        """See `sources.Video`."""
        assert shot.frames is not None
        return Faces(shot.frames, shot.track.face)

    def mask(self, rows: np.ndarray) -> np.ndarray:
        """The stored masks, which are coarse, at the size of the images; see `sources.Video`."""
        height, width = self._image
        masks = [
            self.crop.image(cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR)) >= 0.5
            for mask in self.arrays.mask[rows].astype(np.float32)
        ]
        return np.stack(masks)

    @property
    def _image(self) -> tuple[int, int]:
        return self.record.height, self.record.width

    def _frames(self, rows: np.ndarray) -> np.ndarray:
        """Frames of the clip, in any order, cropped: uint8 (N, H, W, 3)."""
        left, top, width, height = self.crop.box
        crop = CropResize(box=(self.corner[0] + left, self.corner[1] + top, width, height), size=self.size)
        wanted, place = np.unique(rows, return_inverse=True)
        try:
            with warnings.catch_warnings():  # a repeated frame is no motion to learn from
                warnings.filterwarnings("error", ".*each repeats its neighbour", MediaWarning)
                frames = [crop.image(frame) for frame in self._read(wanted)]
        except (FileError, MediaWarning, OSError) as error:
            raise ClipError(f"video '{self.path}' cannot be read: {error}") from error
        return np.stack(frames)[place]

    def _read(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Frames of the clip, ascending, as they were recorded."""
        if self.verify:
            self._check_bytes()
        yield from read_frames(self.path, self.arrays.frame_index[rows].tolist())

    def _faces_file(self) -> AbstractContextManager[Path]:
        return contextlib.nullcontext(self.dataset.root / self.record.faces)

    def _check_bytes(self) -> None:
        path = os.path.abspath(check_input_file(self.path, what="video"))
        if self.states is None or not unchanged(path, self.record.sha256, self.states):
            raise ClipError(
                f"video '{self.path}' has other bytes than when the data set was made; preprocess it again, or set "
                f"data.verify=false if only its container changed"
            )

    def _other_faces(self, rows: np.ndarray) -> Faces | None:
        """Another identity's face over the same frames, cropped as these."""
        if not (self.faces and self.kind == "human" and self.record.faces):
            return None
        try:
            with self._faces_file() as path:
                whole = read_faces(path, rows)
        except (DataError, OSError) as error:
            raise ClipError(str(error)) from error
        if whole.frames.shape[1:3] != self._image:
            raise ClipError(
                f"faces '{self.record.faces}' have another size than clip '{self.clip_id}'; make them again"
            )
        frames = np.stack([self.crop.image(frame) for frame in whole.frames])
        landmarks = whole.landmarks.copy()
        landmarks[..., :2] = self.crop.points(landmarks[..., :2])
        return Faces(frames, landmarks)


def video_path(dataset: Dataset, record: ClipRecord) -> Path:
    """The video of a clip: as the manifest names it, or below the data set folder."""
    path = Path(record.path)
    return path if path.is_absolute() or path.exists() else dataset.root / path
