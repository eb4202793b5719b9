"""What a file holds, by its hash; and the order of numbered files."""

from __future__ import annotations

import hashlib
import os
import re

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


def natural_order(name: str) -> tuple[tuple[str, int], ...]:
    """A key that sorts names by the numbers in them: frame2 before frame10, whether padded or not.

    Args:
        name: of a file.
    """
    parts = re.findall(r"(\D*)(\d*)", name)
    return (*((text, int(digits) if digits else -1) for text, digits in parts), (name, 0))
