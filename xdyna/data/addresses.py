"""Where videos are: local files, and whatever fsspec reads (`s3://...`, `gs://...`, `memory://...`)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec


def is_remote(path: str) -> bool:
    """Whether a path is an fsspec address (`s3://...`)."""
    return "://" in path


def file_size(path: str) -> int:
    """Bytes of a local or remote file; 0 where it cannot be looked up."""
    try:
        if is_remote(path):
            system, inner = fsspec.core.url_to_fs(path)
            return int(system.size(inner) or 0)
        return os.stat(path).st_size
    except (OSError, ImportError, ValueError):
        return 0


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[Path]:
    """A video as a local file: itself, or a temporary copy of a remote one, which is removed afterwards.

    Args:
        path: local path or fsspec address.

    Yields:
        Where it can be read.

    Raises:
        OSError: it cannot be fetched.
        ImportError: the address needs a package that is not installed.
        ValueError: an address of an unknown kind.
    """
    if not is_remote(path):
        yield Path(path)
        return
    system, inner = fsspec.core.url_to_fs(path)
    with tempfile.TemporaryDirectory(prefix="xdyna-") as folder:
        local = Path(folder, "video" + Path(inner).suffix)
        system.get_file(inner, str(local))
        yield local


def token_of(path: str) -> str | None:
    """What tells, without reading a file, that it is the same as before; None where it is not there."""
    try:
        if is_remote(path):
            system, inner = fsspec.core.url_to_fs(path)
            parts: tuple[object, ...] = (path, system.ukey(inner))
        else:
            status = os.stat(path)
            parts = (os.path.abspath(path), status.st_size, status.st_mtime_ns)
    except (OSError, ImportError, ValueError):
        return None
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
