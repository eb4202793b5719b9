"""Lists of videos on disk (CSV, TSV, JSONL, JSON, Parquet, plain text) as rows with the columns this project knows."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from xdyna.config.data import DataError
from xdyna.core.install import install_xdyna

COLUMNS = ("id", "path", "kind", "caption", "license", "group")
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv",
    ".3gp", ".gif",
)  # fmt: skip
"""Files with these endings are taken from folders."""
LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".txt")

_OTHER_NAMES = {
    "video_path": "path", "video": "path", "file": "path", "filename": "path", "url": "path", "video_url": "path",
    "licence": "license", "text": "caption",
}  # fmt: skip
"""What other data sets call these columns; HumanVid's JSON says `video_path`."""

Row = tuple[int, dict[str, str]]


def read_rows(path: Path) -> tuple[list[Row], list[str]]:
    """Read a list.

    Args:
        path: the list; its suffix says what it is.

    Returns:
        For each row its number (from 1, as in an editor without the header) and its known, non-empty columns as text;
        and the names of columns that are not used.

    Raises:
        DataError: unreadable, damaged, not what its suffix says, or no column holds paths.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        rows: list[dict[str, Any]] = _read_parquet(path)
    else:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"list '{path}' cannot be read as UTF-8 text ({error}); save it as UTF-8") from error
        if suffix in (".csv", ".tsv"):
            rows = _parse_csv(text, path, delimiter="," if suffix == ".csv" else "\t")
        elif suffix in (".jsonl", ".ndjson"):
            rows = _parse_jsonl(text, path)
        elif suffix == ".json":
            rows = _parse_json(text, path)
        else:
            lines = (line.strip() for line in text.splitlines())
            rows = [{"path": line} for line in lines if line and not line.startswith("#")]
    return _known(rows, path)


def _known(rows: list[dict[str, Any]], path: Path) -> tuple[list[Row], list[str]]:
    """Rows with known columns, and the names of the others."""
    names = list(dict.fromkeys(str(name) for row in rows for name in row if name is not None))
    chosen: dict[str, str] = {}
    for name in names:
        plain = name.strip().lower()
        column = plain if plain in COLUMNS else _OTHER_NAMES.get(plain)
        if column is not None and (column not in chosen.values() or plain in COLUMNS):
            chosen = {other: c for other, c in chosen.items() if c != column} | {name: column}
    if rows and "path" not in chosen.values():
        raise DataError(
            f"list '{path}' has no column of paths; found {', '.join(names) or 'no columns'}, expected 'path' (and, if "
            f"you like, {', '.join(c for c in COLUMNS if c != 'path')})"
        )
    unused = [name for name in names if name not in chosen]
    known = [
        (number, {column: text for name, column in chosen.items() if (text := _text(row.get(name)))})
        for number, row in enumerate(rows, start=1)
    ]
    return known, unused


def _text(value: Any) -> str:
    """A cell as text; nothing for an empty one."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value).strip()


def _parse_csv(text: str, path: Path, *, delimiter: str) -> list[dict[str, Any]]:
    """Rows of a CSV. One whose first line names a file has no header: its first column holds the paths."""
    try:
        lines = [line for line in csv.reader(io.StringIO(text), delimiter=delimiter, strict=True) if line]
    except csv.Error as error:
        raise DataError(f"list '{path}' is no valid CSV ({error}); save it again") from error
    if not lines:
        return []
    first = lines[0][0].strip().lower()
    if PurePosixPath(first).suffix in VIDEO_SUFFIXES:
        return [{"path": line[0]} for line in lines]
    header = lines[0]
    for number, line in enumerate(lines[1:], start=1):
        if len(line) > len(header):
            raise DataError(
                f"list '{path}', row {number} has {len(line)} cells, its header {len(header)}; put texts with "
                f"'{delimiter}' in quotation marks"
            )
    return [dict(zip(header, line, strict=False)) for line in lines[1:]]


def _parse_jsonl(text: str, path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"list '{path}', line {number} is no JSON ({error}); expected one object a line") from error
    return _objects(rows, path)


def _parse_json(text: str, path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise DataError(f"list '{path}' is no JSON ({error}); save it again") from error
    if not isinstance(rows, list):
        raise DataError(f"list '{path}' holds a JSON {type(rows).__name__}; expected a list of objects or of paths")
    return _objects(rows, path)


def _objects(rows: Iterable[Any], path: Path) -> list[dict[str, Any]]:
    """JSON values as rows: objects, or plain texts, which are paths."""
    found = []
    for number, row in enumerate(rows, start=1):
        if isinstance(row, str):
            row = {"path": row}
        if not isinstance(row, dict):
            raise DataError(f"list '{path}', row {number} is a JSON {type(row).__name__}; expected an object or a path")
        found.append(row)
    return found


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"list '{path}' needs pyarrow ({error}); run: {install_xdyna('data')}") from error
    try:
        return pyarrow.parquet.ParquetFile(path).read().to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"list '{path}' is damaged or no Parquet file ({reason}); write it again") from error
