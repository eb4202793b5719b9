"""Files and folders that survive a crash: flushed to the disk, and visible under their name complete or not at all."""

import os
import secrets
from pathlib import Path

PART = ".part"  # how temporary names end


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
        OSError: the folder cannot be written to, or the disk is full; the former file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        temporary.write_bytes(data)
        flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)
