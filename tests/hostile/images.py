"""Hostile images, as references of infer.py."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from tests.hostile.case import SECRET, Case, Place, damaged
from tests.hostile.common import infer

Content = Callable[[Place], bytes]


def case(name: str, content: Content | bytes, *, ending: str = "png", works: bool = False) -> Case:
    """One image."""

    def make(place: Place) -> Sequence[str]:
        made = content if isinstance(content, bytes) else content(place)
        return infer(place, ref=place.put(f"picture.{ending}", made), points=False)

    return Case("image", name, make, works=works, names="picture")


def chunk(kind: bytes, data: bytes, *, length: int | None = None) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(data) if length is None else length) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # fmt: skip


def png(width: int, height: int, *more: bytes, bits: int = 8, colours: int = 2, data: bytes = b"\0" * 1000) -> bytes:
    """A PNG that declares this size, with little behind it."""
    head = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    body = (chunk(b"IHDR", head), *more, chunk(b"IDAT", zlib.compress(data, 9)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def saved(mode: str, kind: str, size: tuple[int, int] = (64, 96), **options: Any) -> bytes:
    """A sound image, by Pillow."""
    memory = io.BytesIO()
    Image.new(mode, size).save(memory, kind, **options)
    return memory.getvalue()


def exif(orientation: Any) -> bytes:
    """A JPEG with an orientation that there is not."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    return saved("RGB", "JPEG", exif=tags)


def animated(kind: str) -> bytes:
    """Thirty frames; the first is the image."""
    memory = io.BytesIO()
    frames = [Image.new("RGB", (64, 96), (8 * k, 0, 0)) for k in range(30)]
    frames[0].save(memory, kind, save_all=True, append_images=frames[1:], duration=10)
    return memory.getvalue()


def bmp(width: int, height: int) -> bytes:
    """A BMP that declares this size."""
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 100, 0, 0, 54) + head + b"\0" * 100


def tiff(width: int, height: int) -> bytes:
    """A TIFF that declares this size and 2^31 strips."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(273, 4, 2**31 - 1, 8), (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, 2**31 - 1, 8)]
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + directory + b"\0\0\0\0"


def svg(place: Place) -> bytes:
    """A drawing that asks for a file."""
    return f'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file://{place.secret}/word.txt">]><svg>&e;</svg>'.encode()


def gif(width: int, height: int) -> bytes:
    """A GIF whose first frame is larger than its canvas."""
    sound = saved("P", "GIF")
    return sound[:6] + struct.pack("<HH", width, height) + sound[10:]


def noise(kind: str, **options: Any) -> bytes:
    """Something that is not uniform, to be damaged."""
    memory = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 256, (96, 64, 3), np.uint8)
    Image.fromarray(values).save(memory, kind, **options)
    return memory.getvalue()


SIZES = [(100_000, 100_000), (2**31 - 1, 2**31 - 1), (20_000, 20_000), (19_999, 32), (0, 0), (1, 1), (31, 5000), (2**31 - 1, 32)]  # fmt: skip
SOUND: dict[str, tuple[bytes, str]] = {
    "CMYK": (saved("CMYK", "JPEG"), "jpg"),
    "16 bit": (saved("I;16", "PNG"), "png"),
    "16 bit TIFF": (saved("I;16", "TIFF"), "tif"),
    "grey and alpha": (saved("LA", "PNG"), "png"),
    "palette": (saved("P", "PNG"), "png"),
    "one bit": (saved("1", "PNG"), "png"),
    "YCbCr": (saved("YCbCr", "JPEG"), "jpg"),
    "animated GIF": (animated("GIF"), "gif"),
    "animated PNG": (animated("PNG"), "png"),
    "animated WebP": (animated("WEBP"), "webp"),
    "EXIF 0": (exif(0), "jpg"),
    "EXIF 99": (exif(99), "jpg"),
    "EXIF 5": (exif(5), "jpg"),
    "profile is noise": (saved("RGB", "PNG", icc_profile=b"\xff" * 4000), "png"),
    "EXIF is noise": (saved("RGB", "JPEG", exif=b"Exif\0\0" + b"\xff" * 500), "jpg"),
    "named as another kind": (saved("RGB", "PNG"), "jpg"),
    "GIF with a canvas of 65535": (gif(65535, 65535), "gif"),
    "GIF with a canvas of 40": (gif(40, 40), "gif"),
}
BAD: dict[str, tuple[Content | bytes, str]] = {
    "32 bit floats": (saved("F", "TIFF"), "tif"),
    "SVG": (svg, "svg"),
    "SVG named png": (svg, "png"),
    "HTML": (b"<!doctype html><html></html>", "jpg"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n(/etc/passwd) (r) file\n%%EOF\n", "eps"),
    "PDF": (b"%PDF-1.4\n%%EOF", "pdf"),
    "PNG without data": (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 96, 8, 2, 0, 0, 0)), "png"),
    "PNG with a chunk of 2 GB": (png(64, 96, chunk(b"tEXt", b"a", length=2**31 - 1)), "png"),
    "PNG with a text bomb": (
        lambda _: png(64, 96, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 200_000_000, 9))),
        "png",
    ),
    "PNG with a profile bomb": (
        lambda _: png(64, 96, chunk(b"iCCP", b"a\0\0" + zlib.compress(b"\0" * 200_000_000, 9))),
        "png",
    ),
    "PNG with text to leak": (png(64, 96, chunk(b"tEXt", b"Comment\0" + SECRET.encode())), "png"),
    "PNG of 3 bits": (png(64, 96, bits=3), "png"),
    "PNG of unknown colours": (png(64, 96, colours=5), "png"),
    "PNG whose data goes on": (lambda _: png(64, 96, data=b"\0" * 300_000_000), "png"),
    "BMP of 2^31 px": (bmp(2**31 - 1, 2**31 - 1), "bmp"),
    "BMP of negative width": (bmp(-64, 96), "bmp"),
    "BMP of 100,000 px": (bmp(100_000, -100_000), "bmp"),
    "TIFF of 2^31 strips": (tiff(64, 96), "tif"),
    "TIFF of 100,000 px": (tiff(100_000, 100_000), "tif"),
    "a zip bomb": (lambda place: b"PK\x03\x04" + b"\0" * 5000, "png"),
    "a video": (lambda place: (place.shared / "poses.mp4").read_bytes(), "png"),
    "keypoints": (lambda place: (place.shared / "drive.npz").read_bytes(), "png"),
    "zeros": (b"\0" * 100_000, "png"),
    "empty": (b"", "png"),
    "one byte": (b"\x89", "png"),
}
WORKING = {"PNG with text to leak", "BMP of negative width", "PNG whose data goes on"}


def cases() -> Iterator[Case]:
    """All of them; those that are damaged at random are numbered."""
    for width, height in SIZES:
        yield case(f"PNG of {width} x {height}", png(width, height))
    for bits, colours in ((16, 6), (8, 6), (1, 0), (8, 3)):
        yield case(f"PNG of 14,000 x 14,000 of {bits} bits, colours {colours}", png(14_000, 14_000, bits=bits, colours=colours))  # fmt: skip
    yield case("a large white PNG", lambda place: saved("RGBA", "PNG", (13_000, 13_000)), works=True)
    yield case("a large white JPEG", lambda place: saved("RGB", "JPEG", (12_000, 12_000)), ending="jpg", works=True)
    yield case("a long strip", lambda place: saved("RGB", "PNG", (19_000, 33)), works=True)
    for name, (content, ending) in SOUND.items():
        yield case(name, content, ending=ending, works=True)
    for name, (hostile, ending) in BAD.items():
        yield case(name, hostile, ending=ending, works=name in WORKING)
    for kind, ending in (("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("TIFF", "tif"), ("GIF", "gif"), ("AVIF", "avif")):  # fmt: skip
        for number in range(8):
            yield case(
                f"{kind} damaged {number}",
                lambda place, kind=kind: damaged(noise(kind), place.random()),
                ending=ending,
                works=True,
            )
