"""Hostile keypoint files, as driving files of infer.py."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tests.hostile.case import Case, Place, damaged
from tests.hostile.checkpoints import _Runs
from tests.hostile.common import infer

Arrays = dict[str, Any]


def arrays(place: Place) -> Arrays:
    """Those of the sound file."""
    with np.load(place.shared / "drive.npz") as file:
        return dict(file)


def packed(content: Arrays, **options: Any) -> bytes:
    """As np.savez writes it."""
    memory = io.BytesIO()
    np.savez_compressed(memory, **content, **options)
    return memory.getvalue()


def case(name: str, content: Callable[[Place], bytes], *, works: bool = False, more: Sequence[str] = ()) -> Case:
    """One file."""

    def make(place: Place) -> Sequence[str]:
        return infer(place, *more, drive=place.put("points.npz", content(place)))

    return Case(
        "keypoints", name, make, works=works, names="" if works else "points"
    )  # what does not suit names no file


def reference_case(name: str, content: Callable[[Place], bytes]) -> Case:
    """One file, as keypoints of the reference."""

    def make(place: Place) -> Sequence[str]:
        return infer(place, "--ref-keypoints", place.put("points.npz", content(place)), "align=global")

    return Case("keypoints", f"reference, {name}", make, works=True)


def changed(**values: Any) -> Callable[[Place], bytes]:
    """The sound file with other arrays; a callable gets the old one."""

    def work(place: Place) -> bytes:
        old = arrays(place)
        for key, value in values.items():
            old[key] = value(old[key].copy()) if callable(value) else value
        return packed(old)

    return work


def without(key: str) -> Callable[[Place], bytes]:
    """The sound file without an array."""
    return lambda place: packed({k: v for k, v in arrays(place).items() if k != key})


def setting(value: Any, *place: int) -> Callable[[np.ndarray], np.ndarray]:
    """Sets one number."""

    def work(array: np.ndarray) -> np.ndarray:
        array[place] = value
        return array

    return work


def evil(place: Place) -> np.ndarray:
    """An array of one object that would make the canary."""
    array = np.empty(1, object)
    array[0] = _Runs(exec, f"open({str(place.canary)!r}, 'w')")
    return array


def header(shape: str, *, kind: str = "<f4", data: bytes = b"", length: int | None = None) -> bytes:
    """A .npy with this shape, as text."""
    text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text) if length is None else length) + text + data


def replaced(key: str, content: bytes) -> Callable[[Place], bytes]:
    """The sound file with one member replaced by these bytes."""

    def work(place: Place) -> bytes:
        memory = io.BytesIO()
        with (
            zipfile.ZipFile(place.shared / "drive.npz") as old,
            zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as new,
        ):
            for name in old.namelist():
                new.writestr(name, content if name == f"{key}.npy" else old.read(name))
        return memory.getvalue()

    return work


def bomb(place: Place) -> bytes:
    """3 GB of zeros in 3 MB, honestly declared."""
    memory = io.BytesIO()
    with zipfile.ZipFile(place.shared / "drive.npz") as old, zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            if name != "body.npy":
                new.writestr(name, old.read(name))
        rows = 3_000_000_000 // (18 * 3 * 4)
        with new.open("body.npy", "w", force_zip64=True) as member:
            member.write(header(f"({rows}, 18, 3)"))
            block = bytes(1 << 20)
            for _ in range(rows * 216 // len(block)):
                member.write(block)
    return memory.getvalue()


def lying(place: Place) -> bytes:
    """A member whose directory entry says that it is small."""
    content = bytearray(replaced("body", header("(900000000,)", data=bytes(50_000_000)))(place))
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(b"body.npy"))
    content[at + 24 : at + 28] = struct.pack("<I", 1000)
    return bytes(content)


SHAPES = ["(10**12,)", "(1000000000000, 18, 3)", "(-1, 18, 3)", "(2**63, 2)", "()", "(0, 18, 3)", "(9999999999999999999999,)",
          "(5, 18, 3, __import__('os').system('true'))", "[5, 18, 3]", "(True,)", "'5'", "(5, 18, 3"]  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    "NaN": {"body": setting(np.nan, 0, 0, 0)},
    "infinity": {"body": setting(np.inf, 1, 2, 1)},
    "1e30": {"body": setting(1e30, 0, 0, 0)},
    "-1e30": {"hands": setting(-1e30, 0, 0, 0, 0)},
    "confidence 1e30": {"body": setting(1e30, 0, 0, 2)},
    "confidence -1": {"face": setting(-1, 0, 0, 2)},
    "one axis less": {"body": lambda a: a[0]},
    "wrong count": {"body": lambda a: a[:2]},
    "17 joints": {"body": lambda a: a[:, :17]},
    "no frames": {
        "body": lambda a: a[:0],
        "hands": lambda a: a[:0],
        "face": lambda a: a[:0],
        "times": lambda a: a[:0],
        "frame_index": lambda a: a[:0],
    },
    "text for points": {"body": np.array("hello")},
    "complex points": {"body": lambda a: a.astype(complex)},
    "bool points": {"body": lambda a: a.astype(bool)},
    "structured points": {"body": np.zeros(5, [("x", "f4"), ("y", "f4")])},
    "dates for times": {"times": np.array(["2020-01-01"] * 5, "datetime64[s]")},
    "times backwards": {"times": lambda a: a[::-1]},
    "times NaN": {"times": setting(np.nan, 3)},
    "times infinite": {"times": setting(np.inf, 4)},
    "size 0": {"size": np.array([0, 64])},
    "size negative": {"size": np.array([-96, 64])},
    "size NaN": {"size": np.array([np.nan, 64])},
    "size infinite": {"size": np.array([np.inf, 64])},
    "size of one": {"size": np.array([96])},
    "size of a scalar": {"size": np.array(96)},
    "size of text": {"size": np.array(["a", "b"])},
    "frame numbers backwards": {"frame_index": lambda a: a[::-1]},
    "frame numbers of another count": {"frame_index": lambda a: a[:2]},
    "format of another": {"format": np.array("evil-1")},
    "format of 10^6 letters": {"format": np.array("x" * 1_000_000)},
    "format of numbers": {"format": np.arange(5)},
    "nobody": {"body": lambda a: a * 0, "hands": lambda a: a * 0, "face": lambda a: a * 0},
}
ODD: dict[str, dict[str, Any]] = {
    "float64": {"body": lambda a: a.astype(np.float64)},
    "times 1e15 apart": {"times": setting(1e15, 4)},
    "times 1e300 apart": {"times": setting(1e300, 4)},
    "times 1e8 apart": {"times": setting(1e8, 4)},
    "all times equal": {"times": lambda a: a * 0},
    "times 1e-300 apart": {"times": lambda a: a * 1e-300},
    "times 1e-9 apart": {"times": lambda a: a * 1e-9},
    "times 1e7 apart": {"times": lambda a: a * 1e8},
    "size 10^9": {"size": np.array([10**9, 10**9])},
    "size 1e30": {"size": np.array([1e30, 1e30])},
    "size 1": {"size": np.array([1, 1])},
    "size 2^62": {"size": np.array([2**62, 2**62])},
    "frame numbers 2^62": {"frame_index": setting(2**62, 4)},
    "all at one point": {"body": lambda a: np.ones_like(a)},
    "points at 9e5": {"body": lambda a: np.where(np.arange(3) < 2, 9e5, a)},
    "confidence tiny": {"body": lambda a: a * np.array([1, 1, 1e-30])},
    "source of 10^6 letters": {"source": np.array("x" * 1_000_000)},
    "source with control letters": {"source": np.array("a\n\x1b[31mred\0b")},
}


def cases() -> Iterator[Case]:
    """All of them; those that are damaged at random are numbered."""
    for name, values in CHANGES.items():
        yield case(name, changed(**values))
    for name, values in ODD.items():
        yield case(name, changed(**values), works=True)
        yield case(f"{name}, all frames", changed(**values), works=True, more=("frames=null",))
        yield reference_case(name, changed(**values))
    for key in ("body", "hands", "face", "size", "times", "frame_index", "format", "source"):
        yield case(f"without {key}", without(key))
        yield case(f"{key} of objects", lambda place, key=key: packed({**arrays(place), key: evil(place)}, allow_pickle=True))  # fmt: skip
    for shape in SHAPES:
        yield case(f"body declares {shape[:20]}", replaced("body", header(shape, data=bytes(1080))))
    yield case("dtype O without pickle", replaced("body", header("(1,)", kind="|O", data=b"\x80\x02]q\x00.")))
    yield case("dtype unknown", replaced("body", header("(1,)", kind="evil")))
    yield case("dtype of 10^9 letters", replaced("times", header("(1,)", kind="<U1000000000")))
    yield case("dtype of 10^9 bytes", replaced("source", header("()", kind="|V2000000000")))
    yield case("header of 65,535", replaced("body", header("(5, 18, 3)", length=65535)))
    yield case("header nested", replaced("body", header("(" * 9000)))
    yield case("member empty", replaced("body", b""))
    yield case("member is text", replaced("body", b"hello"))
    yield case("member of a pickle", lambda place: replaced("body", pickle.dumps(evil(place)[0]))(place))
    yield case("zip bomb", bomb)
    yield case("directory that lies", lying)
    yield case("a bare npy", lambda place: header("(5, 18, 3)", data=bytes(1080)))
    yield case("a pickle", lambda place: pickle.dumps(evil(place)[0]))
    yield case("JSON", lambda place: b'{"body": []}')
    yield case("empty", lambda place: b"")
    yield case("empty zip", lambda place: b"PK\x05\x06" + b"\0" * 18)
    yield case("a video", lambda place: (place.shared / "poses.mp4").read_bytes())
    for number in range(15):
        yield case(f"damaged {number}", lambda place: damaged((place.shared / "drive.npz").read_bytes(), place.random()),
                   works=True)  # fmt: skip
