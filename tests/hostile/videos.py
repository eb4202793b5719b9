"""Hostile videos, as driving pose videos of infer.py and as videos to judge of eval.py."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence

import av
import numpy as np

from tests.hostile.case import Case, Place, damaged
from tests.hostile.common import infer

Content = Callable[[Place], bytes]


def case(
    name: str, content: Content | bytes, *, ending: str = "mp4", works: bool = False, more: Sequence[str] = ()
) -> Case:
    """One driving video."""

    def make(place: Place) -> Sequence[str]:
        made = content if isinstance(content, bytes) else content(place)
        drive = place.put(f"clip.{ending}", made)
        return infer(place, "--drive-kind", "pose", *more, drive=drive)

    return Case("video", name, make, works=works, names="clip")


def eval_case(name: str, content: Content, *, ending: str = "mp4") -> Case:
    """The same, judged."""

    def make(place: Place) -> Sequence[str]:
        generated = place.put(f"generated/clip.{ending}", content(place))
        truth = place.put("truth/clip.mp4", (place.shared / "poses.mp4").read_bytes())
        words = ["--generated", generated.rpartition("/")[0], "--truth", truth.rpartition("/")[0]]
        return [*words, "--metrics", "psnr", "--out", "report"]

    return Case("video", f"eval, {name}", make, program="xdyna.cli.eval", works=True, names="clip")


def sound(place: Place, ending: str = "mp4") -> bytes:
    """The sound video."""
    return (place.shared / f"poses.{ending}").read_bytes()


def box(content: bytes, kind: bytes, at: int, value: int, size: int = 4) -> bytes:
    """An mp4 with a number overwritten, `at` bytes behind the name of a box (the first of that name)."""
    place = content.index(kind) + len(kind) + at
    return content[:place] + value.to_bytes(size, "big") + content[place + size :]


# Box, bytes behind its name, size of the number.
FIELDS = {
    "movie timescale": (b"mvhd", 12, 4),
    "movie duration": (b"mvhd", 16, 4),
    "track duration": (b"tkhd", 20, 4),
    "track width": (b"tkhd", 76, 4),
    "media timescale": (b"mdhd", 12, 4),
    "media duration": (b"mdhd", 16, 4),
    "count of durations": (b"stts", 4, 4),
    "samples of a duration": (b"stts", 8, 4),
    "duration of a sample": (b"stts", 12, 4),
    "size of all samples": (b"stsz", 4, 4),
    "count of samples": (b"stsz", 8, 4),
    "size of a sample": (b"stsz", 12, 4),
    "chunks": (b"stco", 4, 4),
    "place of a chunk": (b"stco", 8, 4),
    "coded width": (b"avc1", 24, 2),
    "coded height": (b"avc1", 26, 2),
    "descriptions": (b"stsd", 4, 4),
}
VALUES = {"0": 0, "1": 1, "2^31 - 1": 2**31 - 1, "2^32 - 1": 2**32 - 1}


def made(*, frames: int = 4, rate: int = 10, stamps: Sequence[int] | None = None, size: tuple[int, int] = (96, 64),
         kind: str = "mp4", base: int = 1000) -> Content:  # fmt: skip
    """A video with these time stamps, in 1 / base s."""

    def work(place: Place) -> bytes:
        from fractions import Fraction

        path = place.given / f"made.{kind}"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=rate)
            stream.width, stream.height, stream.pix_fmt = size[1], size[0], "yuv420p"
            stream.codec_context.time_base = stream.time_base = Fraction(1, base)
            for number in range(frames):
                frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 60 * number % 256, np.uint8), format="rgb24")
                frame.pts = stamps[number] if stamps else number * base // rate
                frame.time_base = stream.codec_context.time_base
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        content = path.read_bytes()
        path.unlink()
        return content

    return work


def changing(place: Place) -> bytes:
    """Raw H.264 whose size changes in the middle."""
    parts = [made(size=size, kind="h264")(place) for size in ((96, 64), (160, 128), (32, 480))]
    return b"".join(parts)


def y4m(width: int, height: int, rate: str = "10:1", frames: int = 2) -> bytes:
    """An uncompressed video that declares a size."""
    head = f"YUV4MPEG2 W{width} H{height} F{rate} Ip A1:1 C420jpeg\n".encode()
    size = width * height * 3 // 2 if 0 < width * height < 10**6 else 100
    return head + b"".join(b"FRAME\n" + bytes(size) for _ in range(frames))


def avi(**changes: int) -> Content:
    """The sound AVI with changed numbers of its main header."""
    at = {"interval": 0, "frames": 16, "streams": 24, "width": 32, "height": 36}

    def work(place: Place) -> bytes:
        content = bytearray(sound(place, "avi"))
        begin = content.index(b"avih") + 8
        for name, value in changes.items():
            content[begin + at[name] : begin + at[name] + 4] = struct.pack("<I", value)
        return bytes(content)

    return work


def playlist(text: str) -> Content:
    """A list that names the secret."""
    return lambda place: text.format(secret=place.secret / "word.txt").encode()


LISTS = {
    "HLS": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{secret}'\n",
    "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    "DASH": '<?xml version="1.0"?><MPD><Period><AdaptationSet><Representation><BaseURL>file://{secret}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
}


def cases() -> Iterator[Case]:
    """All of them; those that are damaged at random are numbered."""
    for field, (kind, at, size) in FIELDS.items():
        for name, value in VALUES.items():
            number = value % 2 ** (8 * size)
            yield case(
                f"{field} {name}",
                lambda place, kind=kind, at=at, number=number, size=size: box(sound(place), kind, at, number, size),
                works=True,
            )
    yield case("one frame", made(frames=1), works=True)
    yield case(
        "two frames ten days apart", made(frames=2, stamps=(0, 864_000_000), kind="mkv"), ending="mkv", works=True
    )
    yield case("all frames ten days apart", made(frames=3, stamps=(0, 1, 864_000_000), kind="mkv"), ending="mkv",
               works=True, more=("frames=null",))  # fmt: skip
    yield case("10^9 frames a second", made(frames=4, stamps=(0, 1, 2, 3), base=10**9), works=True)
    yield case("wide strip", made(size=(16, 8000)), works=True)
    yield case("sizes change", changing, ending="h264", works=True)
    yield case("sizes change, named mp4", changing, works=True)
    for width, height in ((0, 0), (-1, 96), (100_000, 100_000), (2**31 - 1, 2), (64, 96), (1, 1)):
        yield case(f"y4m of {width} x {height}", y4m(width, height), ending="y4m", works=width in (1, 64))
    for rate in ("0:1", "1:0", "0:0", "1000000000:1", "1:1000000000", "-5:1"):
        yield case(f"y4m at {rate}", y4m(64, 96, rate), ending="y4m", works=True)
        yield case(f"y4m at {rate}, all", y4m(64, 96, rate), ending="y4m", works=True, more=("frames=null",))
    yield case("AVI at rate 0", avi(interval=0), ending="avi", works=True)
    yield case("AVI at 10^6", avi(interval=1), ending="avi", works=True)
    yield case("AVI of 2^32 frames", avi(frames=2**32 - 1), ending="avi", works=True)
    yield case("AVI of 2^31 px", avi(width=2**31 - 1, height=2**31 - 1), ending="avi", works=True)
    yield case("AVI of 2^32 streams", avi(streams=2**32 - 1), ending="avi", works=True)
    yield case("sound alone", lambda place: (place.shared / "song.m4a").read_bytes(), ending="m4a")
    yield case("sound alone, named mp4", lambda place: (place.shared / "song.m4a").read_bytes())
    yield case("an image", lambda place: (place.shared / "ref.png").read_bytes())
    yield case("keypoints", lambda place: (place.shared / "drive.npz").read_bytes())
    yield case("empty", b"")
    yield case("zeros", b"\0" * 100_000)
    yield case("ftyp alone", b"\0\0\0\x20ftypisom" + b"\0" * 20)
    yield case("moov of 2^63", b"\0\0\0\x20ftypisom" + b"\0" * 20 + b"\0\0\0\x01moov" + b"\x7f" + b"\xff" * 7)
    yield case("boxes in boxes", b"\0\0\0\x08ftyp" + b"\0\0\x40\0moov" * 2000)
    for name, text in LISTS.items():
        yield case(f"list {name}", playlist(text))
        yield case(f"list {name}, by its name", playlist(text), ending={"HLS": "m3u8", "SDP": "sdp"}.get(name, "txt"))
    for ending in ("mp4", "mkv", "avi", "webm", "gif"):
        for number in range(7):
            yield case(
                f"{ending} damaged {number}",
                lambda place, ending=ending: damaged(sound(place, ending), place.random()),
                ending=ending,
                works=True,
            )
    for number in range(8):
        yield eval_case(f"mp4 damaged {number}", lambda place: damaged(sound(place), place.random()))
