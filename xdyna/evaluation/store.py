"""What was measured, on disk: an interrupted evaluation goes on, and several processes share one folder.

A record is one file, written under another name and renamed: whoever reads it finds it whole or not at all. Its name
is a hash of everything it depends on, so that nothing outdated is ever found.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Protocol

import numpy as np

from xdyna.core.atomic import write_file
from xdyna.evaluation.metric import Case, Metric, Record

FORMAT = "xdyna-record-1"
_VALUES = "values.json"


class ArrayCache(Protocol):
    """Arrays by key, such as the features of a video."""

    def get(self, key: str) -> np.ndarray | None:
        """The array, or None."""
        ...

    def put(self, key: str, array: np.ndarray) -> None:
        """Keep an array."""
        ...


class MemoryCache(dict[str, np.ndarray]):  # get is dict.get
    """An `ArrayCache` in memory."""

    def put(self, key: str, array: np.ndarray) -> None:
        """See `ArrayCache.put`."""
        self[key] = array


def record_key(metric: Metric, case: Case) -> str:
    """Name under which a record is stored: depends on the metric, its version and the content of the case."""
    return hashlib.sha256(f"{metric.name}|{metric.version}|{case.digest}".encode()).hexdigest()


class Store:
    """Records and arrays in a folder.

    Args:
        folder: made when it does not exist.

    Raises:
        ValueError: it cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ValueError(f"cache folder {folder} cannot be written to ({error}); choose another") from error

    def load(self, key: str) -> Record | None:
        """A stored record; None where there is none, or where it is damaged (with a warning)."""
        arrays = self._read(key)
        if arrays is None:
            return None
        values = arrays.pop(_VALUES, None)
        try:
            if values is None:
                raise ValueError("no values")
            stored = json.loads(bytes(values).decode())
            if stored.get("format") != FORMAT:
                raise ValueError("another format")
            return Record({str(k): float(v) for k, v in stored["values"].items()}, arrays)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            self._damaged(key, error)
            return None

    def save(self, key: str, record: Record) -> None:
        """Keep a record."""
        text = json.dumps({"format": FORMAT, "values": record.values}).encode()
        self._write(key, {_VALUES: np.frombuffer(text, np.uint8), **record.arrays})

    def get(self, key: str) -> np.ndarray | None:
        """See `ArrayCache.get`."""
        arrays = self._read(_hashed(key))
        return None if arrays is None else arrays.get("array")

    def put(self, key: str, array: np.ndarray) -> None:
        """See `ArrayCache.put`."""
        self._write(_hashed(key), {"array": array})

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npz"

    def _read(self, key: str) -> dict[str, np.ndarray] | None:
        path = self._path(key)
        try:
            with np.load(path, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            self._damaged(key, error)
            return None

    def _write(self, key: str, arrays: dict[str, np.ndarray]) -> None:
        path = self._path(key)
        path.parent.mkdir(exist_ok=True)
        data = io.BytesIO()
        np.savez(data, allow_pickle=False, **arrays)
        write_file(path, data.getvalue())

    def _damaged(self, key: str, error: Exception) -> None:
        warnings.warn(f"{self._path(key)} is damaged ({error}); it is measured again", stacklevel=3)


def _hashed(key: str) -> str:
    return hashlib.sha256(f"array|{key}".encode()).hexdigest()
