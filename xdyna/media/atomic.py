"""Files appear under their final name complete or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from xdyna.media.errors import MediaError, writing_error


def unique_path(path: str | os.PathLike[str]) -> Path:
    """The first of `out.mp4`, `out_2.mp4`, `out_3.mp4`, ... that does not exist yet.

    Args:
        path: the wished name.

    Returns:
        A path in the same folder that names nothing at the time of the call.
    """
    path = Path(path)
    candidate, number = path, 2
    while os.path.lexists(candidate):
        candidate = path.with_name(f"{path.stem}_{number}{path.suffix}")
        number += 1
    return candidate


def prepare_output(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Check that `path` may be written, make its folder, and return a hidden temporary name in the same folder.

    Args:
        path: the final name.
        overwrite: whether an existing file may be replaced.

    Returns:
        The temporary path: same folder (so that the final rename is atomic) and same suffix.

    Raises:
        MediaError: the target exists and `overwrite` is false, is a folder, or its folder cannot be made or written to.
    """
    path = Path(path)
    if path.is_dir():
        raise MediaError(f"output '{path}' is a folder; give a file name, for example '{path / 'out.mp4'}'")
    if os.path.lexists(path) and not overwrite:
        raise MediaError(f"output '{path}' exists already; choose another name or allow overwriting (--overwrite)")
    blocking = next((folder for folder in path.parents if os.path.lexists(folder)), path.parent)
    if os.path.lexists(blocking) and not blocking.is_dir():
        raise MediaError(f"output '{path}' cannot be written: '{blocking}' is a file, not a folder; choose a folder")
    temporary = path.with_name(f".{path.stem[:80]}.{os.getpid()}-{secrets.token_hex(4)}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Opening now makes an unwritable folder an error before hours of work, not after.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise writing_error(error, path) from error
    return temporary


def publish(temporary: Path, path: Path) -> None:
    """Flush `temporary` to the disk and give it its final name.

    Raises:
        MediaError: the disk is full or the folder went away; the temporary file is removed.
    """
    try:
        descriptor = os.open(temporary, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError as error:
        discard(temporary)
        raise writing_error(error, path) from error


def discard(temporary: Path) -> None:
    """Remove a temporary file if it is there."""
    with contextlib.suppress(OSError):
        temporary.unlink()


@contextlib.contextmanager
def atomic_output(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary path to write to; it becomes `path` when the block ends well and is removed when it does not.

    Args:
        path: the final name.
        overwrite: whether an existing file may be replaced.

    Yields:
        The temporary path (exists, empty).

    Raises:
        MediaError: `path` may not be written, or an `OSError` arose inside the block (a full disk, for instance).
    """
    path = Path(path)
    temporary = prepare_output(path, overwrite=overwrite)
    try:
        yield temporary
    except MediaError:
        discard(temporary)
        raise
    except OSError as error:
        discard(temporary)
        raise writing_error(error, path) from error
    except BaseException:  # Ctrl-C too: no half file stays behind
        discard(temporary)
        raise
    publish(temporary, path)
