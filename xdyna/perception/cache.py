"""Detections kept on disk, so that a video is looked at once.

One file per video content and backend version holds everything found in the frames looked at so far; who is followed,
gaps and filters are decided afterwards. A damaged file is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from pathlib import Path

import numpy as np

from xdyna.core.atomic import atomic_output
from xdyna.core.errors import FileError
from xdyna.perception.errors import PerceptionError, PerceptionWarning
from xdyna.perception.types import Person, read_npz

_FORMAT = "xdyna-detections-1"
_SHAPES = {"body": (18, 3), "hands": (2, 21, 3), "face": (68, 3), "box": (4,), "score": ()}


def default_cache_dir() -> Path:
    """The folder of cached keypoints: `$XDYNA_CACHE/keypoints`, or `~/.cache/xdyna/keypoints`."""
    base = os.environ.get("XDYNA_CACHE")
    return (Path(base) if base else Path.home() / ".cache" / "xdyna") / "keypoints"


class DetectionCache:
    """The people found in the frames of one video by one backend.

    Args:
        folder: where cache files lie; made when something is saved.
        video_sha256: of the video file.
        backend: name of the backend.
        version: version of the backend.
        size: (H, W) of the frames, px; a file for another size is not used.

    Attributes:
        path: the cache file.
        frames: frame number -> people, largest first.
    """

    def __init__(self, folder: Path, *, video_sha256: str, backend: str, version: str, size: tuple[int, int]) -> None:
        self._key = f"{video_sha256} {backend} {version} {size[0]}x{size[1]}"
        digest = hashlib.sha256(self._key.encode()).hexdigest()[:12]
        self.path = Path(folder) / f"{video_sha256[:20]}-{backend}-{digest}.npz"
        self.frames: dict[int, list[Person]] = {}
        if self.path.exists():
            try:
                self.frames = self._read()
            except PerceptionError as error:
                warnings.warn(
                    f"cached keypoints '{self.path}' are damaged and will be detected again ({error})",
                    PerceptionWarning,
                    stacklevel=2,
                )

    def save(self) -> bool:
        """Write the file; a folder that cannot be written to costs a warning, not the run.

        Frames that another process saved meanwhile are kept.

        Returns:
            Whether it was written.
        """
        if self.path.exists():
            with contextlib.suppress(PerceptionError):  # a damaged file is replaced; it was reported when it was read
                self.frames = {**self._read(), **self.frames}
        rows = sorted(self.frames)
        people = [person for row in rows for person in self.frames[row]]
        arrays = {
            name: np.array([getattr(person, name) for person in people], dtype=np.float32).reshape(-1, *shape)
            for name, shape in _SHAPES.items()
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_output(self.path, overwrite=True) as temporary, temporary.open("wb") as handle:
                np.savez_compressed(
                    handle,
                    format=np.array(_FORMAT),
                    key=np.array(self._key),
                    frame_index=np.array(rows, dtype=np.int64),
                    counts=np.array([len(self.frames[row]) for row in rows], dtype=np.int64),
                    **arrays,
                )
        except (OSError, FileError) as error:
            warnings.warn(
                f"keypoints cannot be cached ({error}); they will be detected again next time. "
                f"Set XDYNA_CACHE to a folder that you may write to",
                PerceptionWarning,
                stacklevel=2,
            )
            return False
        return True

    def _read(self) -> dict[int, list[Person]]:
        """The content of the file, or an error."""
        return self._people(read_npz(self.path, keys=("format", "key", "frame_index", "counts", *_SHAPES)))

    def _people(self, arrays: dict[str, np.ndarray]) -> dict[int, list[Person]]:
        """The people of each frame from the arrays of a file."""
        if str(arrays["format"]) != _FORMAT or str(arrays["key"]) != self._key:
            raise PerceptionError("it belongs to another video, backend or version")
        rows, counts = arrays["frame_index"], arrays["counts"]
        if rows.dtype.kind != "i" or counts.dtype.kind != "i" or rows.ndim != 1 or rows.shape != counts.shape:
            raise PerceptionError("frame numbers and counts do not fit")
        total = int(counts.sum())
        for name, shape in _SHAPES.items():
            array = arrays[name]
            if array.dtype != np.float32 or array.shape != (total, *shape) or not np.isfinite(array).all():
                raise PerceptionError(f"'{name}' has shape {array.shape}; expected {(total, *shape)}, finite")
        if (counts < 0).any():
            raise PerceptionError("negative counts")
        ends = np.cumsum(counts)
        return {
            int(row): [
                Person(
                    body=arrays["body"][k],
                    hands=arrays["hands"][k],
                    face=arrays["face"][k],
                    box=arrays["box"][k],
                    score=float(arrays["score"][k]),
                )
                for k in range(end - count, end)
            ]
            for row, count, end in zip(rows.tolist(), counts.tolist(), ends.tolist(), strict=True)
        }
