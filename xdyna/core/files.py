"""What a file holds, by its hash; and the order of numbered files."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

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


def natural_order(name: str) -> tuple[tuple[str, int], ...]:
    """A key that sorts names by the numbers in them: frame2 before frame10, whether padded or not.

    Args:
        name: of a file.
    """
    parts = re.findall(r"(\D*)(\d*)", name)
    return (*((text, int(digits) if digits else -1) for text, digits in parts), (name, 0))
