"""What a visitor sends: checked by content, size and duration, and copied under a name of our own.

A client names no file: what it sends lies in the folder of uploads, and is opened there alone, as a plain file. Only
files that begin like one of the formats below reach a decoder, so that playlists, which make decoders open other files
and addresses, never do.
"""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from xdyna.config.page import PageConfig
from xdyna.core.errors import FileError, UsageError
from xdyna.media.image import image_size, read_image
from xdyna.media.kinds import IMAGES, VIDEOS, image_kind, video_kind
from xdyna.media.video import probe

MEGA = 1_000_000
_HEAD = 4096  # bytes that tell what a file is
_MOST_FPS = 240  # frames per second beyond which a video is not taken


@dataclass(frozen=True)
class Upload:
    """A file that a visitor sent and that was found to be what it should be.

    Attributes:
        path: in the folder that it was copied to.
        note: what it is, for people.
    """

    path: Path
    note: str


def take_image(sent: str | None, uploads: Path, folder: Path, limits: PageConfig) -> Upload:
    """Take the image of a person.

    Args:
        sent: where the upload lies.
        uploads: folder that all uploads lie in.
        folder: where it is copied to.
        limits: what may be sent.

    Raises:
        UsageError: nothing was sent, or something else than a readable image within the limits.
    """
    if sent is None:
        raise UsageError(f"there is no image yet; drop {IMAGES} of a person, or take the sample")
    path = _copy(sent, uploads, folder / "image", image_kind, what="image", expected=IMAGES, limits=limits)
    _check_pixels(image_size(path), "image", limits)
    height, width = read_image(path).shape[:2]
    return Upload(path, f"image of {width} x {height} px")


def take_video(sent: str | None, uploads: Path, folder: Path, limits: PageConfig) -> Upload:
    """Take the driving video.

    Args:
        sent: where the upload lies.
        uploads: folder that all uploads lie in.
        folder: where it is copied to.
        limits: what may be sent.

    Raises:
        UsageError: nothing was sent, or something else than a readable video within the limits.
    """
    if sent is None:
        raise UsageError(f"there is no video yet; drop {VIDEOS} of a person who moves, or take the sample")
    path = _copy(sent, uploads, folder / "video", video_kind, what="video", expected=VIDEOS, limits=limits)
    info = probe(path)
    _check_pixels((info.width, info.height), "video", limits)
    if info.duration > limits.max_seconds + 0.5 / info.fps:
        raise UsageError(
            f"the video lasts {info.duration:.1f} s; at most {limits.max_seconds:g} s are taken here: cut it first"
        )
    if info.frame_count > max(limits.max_seconds, 1) * _MOST_FPS:
        raise UsageError(f"the video has {info.frame_count} frames; more than {_MOST_FPS} a second are not taken")
    return Upload(
        path, f"video of {info.width} x {info.height} px, {info.duration:.1f} s, {info.fps:.4g} frames per second"
    )


def _check_pixels(size: tuple[int, int], what: str, limits: PageConfig) -> None:
    if size[0] * size[1] > limits.max_megapixels * MEGA:
        raise UsageError(
            f"the {what} is {size[0]} x {size[1]} px; at most {limits.max_megapixels:g} million px are taken here: "
            "make it smaller first"
        )


def _copy(
    sent: str, uploads: Path, target: Path, kind: object, *, what: str, expected: str, limits: PageConfig
) -> Path:
    """The upload's content under `target` with the ending of what it is.

    It is opened without following a link, inside of the folder of uploads only.
    """
    missing = UsageError(f"the {what} is not here any more; give it again")
    if not isinstance(sent, str) or "\0" in sent:
        raise missing
    path = Path(os.path.abspath(sent))
    if not path.parent.resolve().is_relative_to(uploads.resolve()) or path.is_dir():
        raise missing
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise missing from error
    with os.fdopen(handle, "rb") as source:
        status = os.fstat(source.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise missing
        if status.st_size > limits.max_upload_mb * MEGA:
            raise UsageError(
                f"the {what} has {status.st_size / MEGA:.1f} MB; at most {limits.max_upload_mb} MB are taken here"
            )
        head = source.read(_HEAD)
        if not head:
            raise UsageError(f"the {what} is an empty file; give {expected}")
        assert callable(kind)
        ending = kind(head)
        if ending is None:
            raise UsageError(f"this file is no {what} that can be read here (by its content); give {expected}")
        source.seek(0)
        target = target.with_suffix(ending)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
        except OSError as error:
            raise FileError("there is no room for this file here just now; try again later") from error
    return target
