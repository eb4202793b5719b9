"""Errors and warnings of the media package, and the checks every reader makes first."""

from __future__ import annotations

import os
from pathlib import Path

from xdyna.core.errors import FileError, XDynaWarning


class MediaError(FileError):
    """An image or video cannot be read or written: what was given, what was expected and how to mend it."""


class MediaWarning(XDynaWarning):
    """An image or video was usable only in part; the message says what was left out."""


def check_input_file(path: str | os.PathLike[str], *, what: str) -> Path:
    """Check that `path` names a readable, non-empty file.

    Args:
        path: the file.
        what: what it should hold, for the message ("video", "image").

    Returns:
        The path as a `Path`.

    Raises:
        MediaError: missing, a folder, a special file, empty, or not readable by this user.
    """
    path = Path(path)
    if not os.path.lexists(path):
        raise MediaError(f"{what} '{path}' does not exist; check the path (working folder: '{Path.cwd()}')")
    if path.is_dir():
        raise MediaError(f"{what} '{path}' is a folder; give one {what} file")
    if not path.exists():
        raise MediaError(f"{what} '{path}' is a broken link; it points to '{os.readlink(path)}', which does not exist")
    if not path.is_file():
        raise MediaError(f"{what} '{path}' is not a regular file; give one {what} file")
    try:
        with path.open("rb") as handle:
            first = handle.read(1)
    except OSError as error:
        raise MediaError(f"{what} '{path}' cannot be read: {error.strerror}; check its permissions") from error
    if not first:
        raise MediaError(f"{what} '{path}' is empty (0 bytes); copy or download it again")
    return path
