"""Errors and warnings that every part of xdyna may raise: what was given, what was expected and how to mend it."""

from __future__ import annotations

import errno
from pathlib import Path


class UsageError(ValueError):
    """The command itself is wrong (exit code 2), as opposed to something that failed while it ran (exit code 1)."""


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class FileError(ValueError):
    """A file cannot be read or written."""


class WeightsError(ValueError):
    """Weights are missing, damaged, unsafe or do not fit."""


class DownloadError(WeightsError):
    """A file could not be fetched, or is not what was expected; says how to get it by hand."""


class XDynaWarning(UserWarning):
    """Something was usable only in part, or not quite as asked; the message says what differs."""


_FULL_DISK = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


def writing_error(error: OSError, path: Path) -> FileError:
    """The message for an operating-system error met while writing `path`.

    Args:
        error: the error; its errno decides the advice.
        path: the final name of the file that was being written.

    Returns:
        The exception to raise; nothing is raised here.
    """
    where = f"'{path}' cannot be written"
    if error.errno in _FULL_DISK:
        return FileError(
            f"{where}: the disk (or the quota) of '{path.parent}' is full; nothing was kept under that name. "
            f"Free some space there or choose another folder"
        )
    reason = error.strerror or str(error)
    return FileError(f"{where}: {reason}; choose a folder that you may write to")
