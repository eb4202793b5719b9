"""The one hash of files."""

import hashlib
from pathlib import Path

from xdyna.core.files import file_sha256


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(b"abc")
    assert file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    path.write_bytes(bytes(3_000_001))
    assert file_sha256(path) == hashlib.sha256(bytes(3_000_001)).hexdigest()
