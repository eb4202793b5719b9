"""What a file holds, by its hash."""

from __future__ import annotations

import hashlib
import os

CHUNK = 1 << 20  # bytes read at a time


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
