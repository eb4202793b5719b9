"""The one hash of files."""

import hashlib
from pathlib import Path

import pytest

from xdyna.core.files import file_sha256, parse_json


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(b"abc")
    assert file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    path.write_bytes(bytes(3_000_001))
    assert file_sha256(path) == hashlib.sha256(bytes(3_000_001)).hexdigest()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": NaN}', "it holds NaN"),
        ("[-Infinity]", "it holds -Infinity"),
        ("9" * 100_000, "too many digits"),
        (b"\xff\xfe\xfa", "not UTF-8|no JSON"),
        ("", "no JSON from line 1, column 1 on"),
        ('{"a": 1,}', "no JSON from line 1"),
    ],
)
def test_json_that_cannot_be_read_is_said_in_plain_words(text, said):
    with pytest.raises(ValueError, match=said):
        parse_json(text)
    assert parse_json('{"a": [1, null, 2.5]}') == {"a": [1, None, 2.5]}
