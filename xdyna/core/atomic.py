"""Files appear under their final name complete or not at all, and survive a crash.

`atomic_output` never replaces a file unasked; `write_file` replaces, for files that a program owns.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from xdyna.core.errors import FileError, writing_error

_SPECIAL = (
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)
_DEVICES = ("/dev", "/dev/fd")  # but not /dev/shm, which is a folder like others
PART = ".part"  # how temporary names end
_LONGEST_NAME = 255  # bytes; of ext4, xfs, btrfs, apfs and ntfs alike
# What file systems without hard links (FAT, some network and user-space ones) answer to a link.
_NO_HARD_LINKS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK}


def unique_path(path: str | os.PathLike[str]) -> Path:
    """The first of `out.mp4`, `out_2.mp4`, `out_3.mp4`, ... that does not exist yet.

    Args:
        path: the wished name.

    Returns:
        A path in the same folder that names nothing at the time of the call. Where the number would make the name
        longer than 255 bytes, the end of the stem gives way.

    Raises:
        FileError: the name is empty, only points to a folder ("." or ".."), or is longer than 255 bytes.
    """
    path = _check_name(path)
    candidate, number = path, 2
    while os.path.lexists(candidate):
        ending = f"_{number}{path.suffix}"
        room = _LONGEST_NAME - len(os.fsencode(ending))
        # A suffix of nearly the full length leaves no room for a stem: then the number goes to the end.
        name = _shortened(path.stem, room) + ending if room > 0 else f"{_shortened(path.name, 240)}_{number}"
        candidate = path.with_name(name)
        number += 1
    return candidate


def _check_name(path: str | os.PathLike[str]) -> Path:
    """The path, or an error where no file can have that name."""
    given, path = os.fspath(path), Path(path)
    if path.name in ("", ".."):
        raise FileError(f"output '{given}' names no file; give a file name, for example '{path / 'out.mp4'}'")
    if "\0" in given:
        raise FileError(f"output {given!r} holds a zero character; leave it out")
    for part in path.parts:
        if (length := len(os.fsencode(part))) > _LONGEST_NAME:
            raise FileError(
                f"output '{part[:40]}...' has a name of {length} bytes; at most {_LONGEST_NAME} are possible: "
                f"choose a shorter name"
            )
    return path


def check_output(path: str | os.PathLike[str]) -> None:
    """See whether something may be written under a name, or in it: a new name, a plain file or a folder.

    Args:
        path: as it was given, before any ending is added.

    Raises:
        FileError: it is a device, a pipe or a socket (or a link to one), or would lie among the devices or in a file.
    """
    advice = "give the name of a file or folder, for example 'outputs/out'"
    try:
        kind = os.stat(path).st_mode
    except (OSError, ValueError):  # it is not there, or is no possible name: other checks tell
        kind = stat.S_IFREG
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        what = next((word for test, word in _SPECIAL if test(kind)), "no plain file")
        raise FileError(f"output '{path}' is {what}, which would be replaced or left unused; {advice}")
    if os.path.dirname(os.path.abspath(path)) in _DEVICES:
        raise FileError(f"output '{path}' would lie among the devices of this machine; {advice}")
    parents = Path(path).parents
    blocking = next((folder for folder in parents if os.path.lexists(folder)), None)
    if blocking is not None and not os.path.isdir(blocking):
        what = "a file" if os.path.exists(blocking) else "a broken link"
        raise FileError(f"output '{path}' cannot be written: '{blocking}' is {what}, not a folder; choose a folder")


def output_path(text: str) -> Path:
    """`type=` of flags that name an output.

    Args:
        text: as it was given.

    Returns:
        The path.

    Raises:
        argparse.ArgumentTypeError: see `check_output`; the program ends with wrong usage.
    """
    try:
        check_output(text)
    except FileError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(text)


def _shortened(name: str, length: int) -> str:
    """As many whole characters of `name` as fit into `length` bytes."""
    while len(os.fsencode(name)) > length:
        name = name[:-1]
    return name


def prepare_output(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Check that `path` may be written, make its folder, and return a hidden temporary name in the same folder.

    Args:
        path: the final name.
        overwrite: whether an existing file may be replaced.

    Returns:
        The temporary path: same folder (so that the final rename is atomic) and same suffix.

    Raises:
        FileError: the name is empty or longer than 255 bytes; the target exists and `overwrite` is false, is a folder
            or a broken link, or may not be one (`check_output`); or its folder cannot be made or written to.
    """
    path = _check_name(path)
    check_output(path)
    if os.path.isdir(path):
        raise FileError(f"output '{path}' is a folder; give a file name, for example '{path / 'out.mp4'}'")
    if os.path.islink(path) and not os.path.exists(path):
        raise FileError(
            f"output '{path}' is a broken link; it points to '{os.readlink(path)}', which does not exist: "
            f"remove the link or choose another name"
        )
    if os.path.lexists(path) and not overwrite:
        raise FileError(f"output '{path}' exists already; choose another name or allow overwriting (--overwrite)")
    ending = f".{os.getpid()}-{secrets.token_hex(4)}.part"
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= 80 else ""
    temporary = path.with_name(f".{_shortened(path.stem, 80)}{ending}{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Opening now makes an unwritable folder an error before hours of work, not after.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise writing_error(error, path) from error
    return temporary


def publish(temporary: Path, path: Path, *, overwrite: bool) -> None:
    """Flush `temporary` to the disk and give it its final name.

    Args:
        temporary: the complete file, in the folder of `path`.
        path: the final name.
        overwrite: whether a file of that name may be replaced. If not, one that appeared since `prepare_output` stays,
            and the work is kept under the next free name (see `unique_path`).

    Raises:
        FileError: `path` appeared meanwhile (the message says where the work is kept); or the disk is full or the
            folder went away, and the temporary file is removed.
    """
    try:
        descriptor = os.open(temporary, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if overwrite:
            os.replace(temporary, path)
            return
        kept = path
        while not _renamed(temporary, kept):
            kept = unique_path(path)
    except OSError as error:
        discard(temporary)
        raise writing_error(error, path) from error
    if kept != path:
        raise FileError(
            f"output '{path}' exists already: it appeared while the result was being made, and was left as it is. "
            f"The result is complete and was kept as '{kept}'; rename it if you like"
        )


def _renamed(temporary: Path, path: Path) -> bool:
    """Rename unless `path` exists; says whether it was done."""
    try:
        os.link(temporary, path)  # unlike a rename, never replaces
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        if os.path.lexists(path):
            return False
        os.replace(temporary, path)
        return True
    discard(temporary)
    return True


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
        FileError: `path` may not be written, an `OSError` arose inside the block (a full disk, for instance), or
            `path` appeared meanwhile and `overwrite` is false (see `publish`).
    """
    path = Path(path)
    temporary = prepare_output(path, overwrite=overwrite)
    try:
        yield temporary
    except FileError:
        discard(temporary)
        raise
    except OSError as error:
        discard(temporary)
        raise writing_error(error, path) from error
    except BaseException:  # Ctrl-C too: no half file stays behind
        discard(temporary)
        raise
    publish(temporary, path, overwrite=overwrite)


def temporary_name(path: Path) -> Path:
    """A hidden name in the same folder that no other process uses; it ends in `PART`."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PART}")


def flush(path: Path) -> None:
    """Wait until a file's or folder's contents are on the disk.

    Raises:
        OSError: the disk is full or gone.
    """
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders, and needs no flush of them
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes) -> None:
    """Write a file, complete or not at all; an existing one is replaced, its folder is made.

    Raises:
        OSError: the folder cannot be written to, the disk is full, or what is there is no plain file; it stays.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no plain file, and nothing is put in its place", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        temporary.write_bytes(data)
        flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)
