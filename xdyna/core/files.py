"""What a file holds, by its hash; and the order of numbered files."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

CHUNK = 1 << 20  # bytes read at a time
SPARE_BYTES = 64 * 2**20  # left free on the disk by downloads


def is_address(given: object) -> bool:
    """Whether something is an address (https://..., s3://...) instead of a path."""
    return isinstance(given, str) and "://" in given


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes as 64 lower-case hexadecimal digits.

    Raises:
        OSError: the file is missing, a folder or not readable.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def path_sha256(path: Path) -> str:
    """`file_sha256`; of a folder, the hash of its files' names and hashes, hidden ones left out."""
    if not path.is_dir():
        return file_sha256(path)
    files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
    return hashlib.sha256("|".join(f"{p.name}:{file_sha256(p)}" for p in files).encode()).hexdigest()


def parse_json(text: str | bytes) -> Any:
    """`json.loads` for files that anybody may have written: whatever is wrong is a `ValueError` in plain words.

    Args:
        text: of the file.

    Raises:
        ValueError: no JSON, NaN or infinity (which JSON does not know), or nested or written so that nothing reads it.
    """

    def refused(word: str) -> Any:
        raise ValueError(f"it holds {word}, which is no number of JSON")

    try:
        return json.loads(text, parse_constant=refused)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text ({error.reason})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON from line {error.lineno}, column {error.colno} on") from error
    except ValueError as error:
        if "integer string" in str(error):  # Python reads no number of more than some thousand digits
            raise ValueError("it holds a number of too many digits") from error
        raise


def natural_order(name: str) -> tuple[tuple[str, int], ...]:
    """A key that sorts names by the numbers in them: frame2 before frame10, whether padded or not.

    Args:
        name: of a file.
    """
    parts = re.findall(r"(\D*)(\d*)", name)
    return (*((text, int(digits) if digits else -1) for text, digits in parts), (name, 0))
