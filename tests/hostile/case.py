"""One hostile input: how it is made, which program gets it, and what must come of it."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SECRET = "the-word-that-must-not-leak"


@dataclass(frozen=True)
class Place:
    """Folders of one case.

    Attributes:
        root: holds them all.
        shared: sound files, made once: see `prepare.make_shared`. Never changed.
        seed: of the damage.
    """

    root: Path
    shared: Path
    seed: int

    @property
    def given(self) -> Path:
        """What the case is made of; a program may read it, and not change it."""
        return self.root / "given"

    @property
    def out(self) -> Path:
        """The working folder: the one place where a program may write."""
        return self.root / "out"

    @property
    def secret(self) -> Path:
        """Neither read nor changed: `word.txt` holds `SECRET`."""
        return self.root / "secret"

    @property
    def canary(self) -> Path:
        """Code in an input would make this file."""
        return self.secret / "hacked"

    def random(self) -> random.Random:
        """Numbers of this case alone."""
        return random.Random(self.seed)

    def put(self, name: str, content: bytes | str) -> str:
        """Write a given file. Returns: its path."""
        path = self.given / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        kind: "checkpoint", "image", "video", "keypoints", "config", "path", "list" or "page".
        name: unique among its kind.
        make: writes the input into `Place.given`, returns the arguments of the program.
        program: dotted module whose `main` takes them.
        works: whether it may also end well, with a right result.
        names: text that the message must hold: what was given.
        fetches: whether an address is given, which the program may ask.
    """

    kind: str
    name: str
    make: Callable[[Place], Sequence[str]]
    program: str = "xdyna.cli.infer"
    works: bool = False
    names: str = ""
    fetches: bool = False

    @property
    def id(self) -> str:
        """Unique."""
        return f"{self.kind}:{self.name}"

    def seed(self, base: int) -> int:
        """Of its damage: the same in every process."""
        return zlib.crc32(f"{base} {self.id}".encode())


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Content with one kind of damage: cut off, bytes changed, a piece zeroed, doubled, taken out or put in."""
    data, at = bytearray(content), rng.randrange(max(len(content), 1))
    length = rng.choice((1, 4, 64, 1024))
    match rng.randrange(7):
        case 0:
            return bytes(data[:at])
        case 1:
            for _ in range(rng.choice((1, 3, 30))):
                data[rng.randrange(len(data))] = rng.randrange(256)
        case 2:
            data[at : at + length] = bytes(len(data[at : at + length]))
        case 3:
            data[at:at] = data[at : at + length]
        case 4:
            del data[at : at + length]
        case 5:
            data[at:at] = rng.randbytes(length)
        case _:  # headers: where sizes are declared
            for _ in range(rng.choice((1, 4))):
                data[rng.randrange(min(len(data), 200))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
    return bytes(data)


def link(path: Path, target: str | Path) -> str:
    """Make a symbolic link. Returns: its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(target, path)
    return str(path)
