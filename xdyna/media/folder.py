"""A video as a folder of PNG images, one per frame: read in the order of the numbers, written whole or not at
all.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from xdyna.core.atomic import PART
from xdyna.core.errors import writing_error
from xdyna.core.files import natural_order
from xdyna.media.errors import MediaError
from xdyna.media.image import image_size, read_image, write_png

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def frame_files(folder: Path) -> list[Path]:
    """The images of a folder in the order of the numbers in their names (2 before 10); hidden files are left out."""
    files = (p for p in folder.iterdir() if p.suffix.lower() in IMAGES and not p.name.startswith("."))
    return sorted(files, key=lambda path: natural_order(path.name))


def frames_of(folder: Path) -> list[Path]:
    """As `frame_files`, of a folder that must hold some.

    Raises:
        MediaError: no image in it, or it cannot be read.
    """
    try:
        files = frame_files(folder)
        others = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise MediaError(f"folder '{folder}' cannot be read: {error.strerror}; check its permissions") from error
    if not files:
        held = f"what it holds is '{others[0]}' and the like" if others else "it is empty"
        raise MediaError(f"folder '{folder}' holds no frames: {held}; expected images ({', '.join(IMAGES)})")
    return files


def check_frames(folder: Path) -> tuple[int, tuple[int, int]]:
    """See whether a folder's images can be the frames of one video. Their headers are read, and the first image.

    Args:
        folder: of the images.

    Returns:
        How many there are, and their size (H, W) in px, as `read_image` gives them.

    Raises:
        MediaError: no image in it, an unreadable one, or images of several sizes.
    """
    files = frames_of(folder)
    first = image_size(files[0], upright=True)
    for file in files[1:]:
        if (size := image_size(file, upright=True)) != first:
            raise _other_size(folder, files[0], first, file, size)
    height, width = read_image(files[0]).shape[:2]
    return len(files), (height, width)


def read_images(files: list[Path]) -> Iterator[np.ndarray]:
    """Frames that are images of one folder, each read when it is asked for.

    Args:
        files: of the images.

    Yields:
        uint8 (H, W, 3) RGB.

    Raises:
        MediaError: an image that cannot be read, or one of another size than the first.
    """
    size: tuple[int, int] | None = None
    for file in files:
        image = read_image(file)
        found = (image.shape[1], image.shape[0])
        if size is not None and found != size:
            raise _other_size(file.parent, files[0], size, file, found)
        size = found
        yield image


def _other_size(folder: Path, first: Path, size: tuple[int, int], other: Path, found: tuple[int, int]) -> MediaError:
    return MediaError(
        f"the images of folder '{folder}' differ in size: '{first.name}' is {size[0]} x {size[1]} px, '{other.name}' "
        f"{found[0]} x {found[1]}; a video's frames have one size: take out what is no frame, or resize them"
    )


class FrameFolderWriter:
    """A context manager that writes frames to FOLDER/00000.png and on, without loss.

    The folder is made under a hidden name and renamed when the block ends well; on any exception it is removed.

    Args:
        path: the folder to write.
        size: (H, W) of the frames in px.
        overwrite: whether a folder of frames that is there may be replaced.

    Raises:
        MediaError: the name is taken, by something else than a folder of frames where that may be replaced; a frame of
            another form; no frame written.
        FileError: the disk is full, or the folder cannot be written to.
    """

    def __init__(self, path: Path, *, size: tuple[int, int], overwrite: bool = False) -> None:
        self.path, self.size, self.frame_count, self._overwrite = Path(path), size, 0, overwrite

    def __enter__(self) -> FrameFolderWriter:
        check_frame_folder(self.path, overwrite=self._overwrite)
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}-{secrets.token_hex(4)}{PART}")
        try:
            self._temporary.mkdir(parents=True)
        except OSError as error:
            raise writing_error(error, self.path) from error
        return self

    def write(self, frame: np.ndarray) -> None:
        """Append one frame. Args: frame: uint8 (H, W, 3) RGB of the writer's size."""
        if frame.dtype != np.uint8 or frame.shape != (*self.size, 3):
            raise MediaError(
                f"frame {self.frame_count} of '{self.path}' is {frame.dtype} {frame.shape}; "
                f"expected uint8 {(*self.size, 3)}"
            )
        write_png(self._temporary / f"{self.frame_count:05d}.png", frame)
        self.frame_count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if not self.frame_count:
                    raise MediaError(f"no frame was written to '{self.path}'; a video needs at least one")
                check_frame_folder(self.path, overwrite=self._overwrite)
                if self.path.exists():
                    shutil.rmtree(self.path)
                os.replace(self._temporary, self.path)
        except OSError as problem:
            raise writing_error(problem, self.path) from problem
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)


def check_frame_folder(path: Path, *, overwrite: bool) -> None:
    """See that a folder of frames may be written.

    Args:
        path: of the folder.
        overwrite: whether one that is there may be replaced: one that holds images alone.

    Raises:
        MediaError: it may not.
    """
    if not os.path.lexists(path):
        return
    frames_alone = path.is_dir() and len(frame_files(path)) == len(list(path.iterdir()))
    if not overwrite or not frames_alone:
        why = "exists already" if frames_alone else "holds something else than the frames of a video"
        raise MediaError(f"the folder of frames '{path}' {why}; choose another name, or remove it")
