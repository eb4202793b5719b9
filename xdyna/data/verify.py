"""That videos are the ones a data set was made of: bytes once, before training; size and time whenever one is read.

Which bytes a file has is remembered in `$XDYNA_CACHE/verified` (`~/.cache/xdyna/verified`) under its path, size and
time, so that a run that is started again, and the other processes of this machine, read no video for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from xdyna.core.atomic import atomic_output
from xdyna.core.errors import FileError
from xdyna.core.files import file_sha256

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

State = tuple[int, int, str]
"""Size in bytes, time of change in ns, SHA-256."""
_READERS = 8  # files read at a time
_read: dict[str, State] = {}  # by this process: where nothing can be written, it reads no file twice


def memory_file(folder: Path) -> Path:
    """Where the states of the videos of a data set folder are remembered."""
    base = os.environ.get("XDYNA_CACHE")
    cache = Path(base) if base else Path.home() / ".cache" / "xdyna"
    return cache / "verified" / f"{hashlib.sha256(os.path.abspath(folder).encode()).hexdigest()[:20]}.json"


def states_of(paths: Iterable[str], memory: Path) -> dict[str, State]:
    """The states of files; those whose size and time are remembered are not read.

    Args:
        paths: absolute.
        memory: see `memory_file`; where it cannot be written, this process alone remembers.

    Returns:
        By path; a file that is missing or cannot be read is left out.
    """
    with _alone(memory):
        known = _read | _remembered(memory)
        found = {path: state for path in dict.fromkeys(paths) if (state := _look(path)) is not None}
        new = [path for path, state in found.items() if tuple(known.get(path, ())[:2]) != state]
        with ThreadPoolExecutor(_READERS) as readers:
            hashes = tqdm(
                readers.map(_hash, new), total=len(new), desc="checking videos", unit="video", delay=5, disable=None
            )
            fresh = {path: (*found[path], sha256) for path, sha256 in zip(new, hashes, strict=True) if sha256}
        if fresh:
            try:
                with atomic_output(memory, overwrite=True) as temporary:
                    temporary.write_text(json.dumps({**known, **fresh}), encoding="utf-8")
            except (FileError, OSError):
                _read.update(fresh)
    return {path: fresh.get(path) or known[path] for path in found if path in fresh or path not in new}


def unchanged(path: str, sha256: str, states: Mapping[str, State]) -> bool:
    """Whether a file has the bytes it should have, by its size and time alone.

    Args:
        path: absolute.
        sha256: of its bytes when the data set was made.
        states: from `states_of`.
    """
    return path in states and _look(path) == states[path][:2] and states[path][2] == sha256


def _look(path: str) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        status = os.stat(path)
        return status.st_size, status.st_mtime_ns
    return None


def _hash(path: str) -> str | None:
    with contextlib.suppress(OSError):
        return file_sha256(path)
    return None


def _remembered(memory: Path) -> dict[str, State]:
    try:
        stored = json.loads(memory.read_text(encoding="utf-8"))
        return {str(path): (int(size), int(changed), str(sha)) for path, (size, changed, sha) in stored.items()}
    except (OSError, ValueError, TypeError, AttributeError):  # none yet, or damaged: everything is read again
        return {}


@contextlib.contextmanager
def _alone(memory: Path) -> Iterator[None]:
    """The processes of a machine come one after the other: the first reads the videos, the others what it wrote."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            memory.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(memory.with_suffix(".lock").open("a"))
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
