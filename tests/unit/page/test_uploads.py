"""What visitors send: by content, size, duration; from the folder of uploads alone."""

import errno
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from xdyna.config.page import PageConfig
from xdyna.core.errors import FileError
from xdyna.core.resources import resource
from xdyna.media.image import write_png
from xdyna.media.video import VideoWriter
from xdyna.page.uploads import image_kind, take_image, take_video, video_kind

DEMO = resource("assets", "demo")
Take = Callable[..., object]


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    folder = tmp_path / "uploads"
    (folder / "a1b2").mkdir(parents=True)
    return folder


def put(uploads: Path, content: bytes | Path, name: str = "sent") -> str:
    path = uploads / "a1b2" / name
    if isinstance(content, Path):
        shutil.copy(content, path)
    else:
        path.write_bytes(content)
    return str(path)


def test_the_image_is_copied_under_our_name(uploads: Path, tmp_path: Path) -> None:
    sent = put(uploads, DEMO / "reference.png", "x.jpg")
    found = take_image(sent, uploads, tmp_path / "job", PageConfig())
    assert found.path == tmp_path / "job" / "image.png"  # by what it is, not by what it is called
    assert found.path.read_bytes() == (DEMO / "reference.png").read_bytes()
    assert found.note == "image of 256 x 256 px"


def test_the_video_is_copied_under_our_name(uploads: Path, tmp_path: Path) -> None:
    found = take_video(put(uploads, DEMO / "driving.mp4"), uploads, tmp_path / "job", PageConfig())
    assert found.path == tmp_path / "job" / "video.mp4"
    assert found.note == "video of 256 x 256 px, 4.0 s, 12 frames per second"


def test_a_moving_gif_is_a_video(uploads: Path, tmp_path: Path) -> None:
    from PIL import Image

    frames = [Image.fromarray(np.full((48, 64, 3), 20 * k, np.uint8)) for k in range(6)]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    assert take_video(put(uploads, path), uploads, tmp_path / "job", PageConfig()).path.name == "video.gif"


def bomb() -> bytes:
    """A PNG that declares 19,000 x 19,000 px."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 19_000, 19_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("take", "content", "says"),
    [
        (take_image, b"", "empty file"),
        (take_video, b"", "empty file"),
        (take_image, b"hello, I am a text\n" * 50, "no image that can be read here"),
        (take_video, b"hello, I am a text\n" * 50, "no video that can be read here"),
        (take_video, b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "no video that can be read here"),
        (take_video, b"ffconcat version 1.0\nfile '/etc/passwd'\n", "no video that can be read here"),
        (take_image, b'<svg xmlns="http://www.w3.org/2000/svg"/>', "no image that can be read here"),
        (take_image, DEMO / "driving.mp4", "no image that can be read here"),
        (take_video, DEMO / "reference.png", "no video that can be read here"),
        (take_image, bomb(), "at most 50 million px"),
        (take_image, (DEMO / "reference.png").read_bytes()[:9000], "damaged or truncated"),
        (take_video, (DEMO / "driving.mp4").read_bytes()[:9000], "video"),
        (take_image, b"PK\x03\x04" + b"\0" * 500, "no image that can be read here"),
    ],
)  # fmt: skip
def test_refused_with_a_sentence(take: Take, content: bytes | Path, says: str, uploads: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as refused:
        take(put(uploads, content), uploads, tmp_path / "job", PageConfig())
    assert says in str(refused.value)


def test_limits(uploads: Path, tmp_path: Path) -> None:
    video = put(uploads, DEMO / "driving.mp4")
    with pytest.raises(ValueError, match=r"lasts 4\.0 s; at most 3 s"):
        take_video(video, uploads, tmp_path / "a", PageConfig(max_seconds=3))
    take_video(video, uploads, tmp_path / "b", PageConfig(max_seconds=4))
    with pytest.raises(ValueError, match=r"256 x 256 px; at most 0\.05 million px"):
        take_video(video, uploads, tmp_path / "c", PageConfig(max_megapixels=0.05))
    image = tmp_path / "large.png"
    write_png(image, np.random.default_rng(0).integers(0, 255, (800, 800, 3), np.uint8))
    with pytest.raises(ValueError, match=r"has 1\.9 MB; at most 1 MB"):
        take_image(put(uploads, image), uploads, tmp_path / "d", PageConfig(max_upload_mb=1))


def test_long_videos_of_few_frames(uploads: Path, tmp_path: Path) -> None:
    path = tmp_path / "slow.mp4"
    with VideoWriter(path, fps=1, size=(32, 32)) as writer:
        for _ in range(40):
            writer.write(np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="lasts 40"):
        take_video(put(uploads, path), uploads, tmp_path / "job", PageConfig())


def grey_video(path: Path, frames: int, fps: Fraction) -> Path:
    with VideoWriter(path, fps=fps, size=(32, 32)) as writer:
        for _ in range(frames):
            writer.write(np.zeros((32, 32, 3), np.uint8))
    return path


def test_two_seconds_of_a_television_rate_are_two_seconds(uploads: Path, tmp_path: Path) -> None:
    """60 frames of 29.97 a second last 2.002 s; 61 are too many."""
    for frames, taken in ((60, True), (61, False)):
        video = put(uploads, grey_video(tmp_path / f"{frames}.mp4", frames, Fraction(30000, 1001)), str(frames))
        if taken:
            take_video(video, uploads, tmp_path / "a", PageConfig(max_seconds=2))
        else:
            with pytest.raises(ValueError, match=r"lasts 2\.0 s; at most 2 s"):
                take_video(video, uploads, tmp_path / "b", PageConfig(max_seconds=2))


def test_short_videos_of_many_frames(uploads: Path, tmp_path: Path) -> None:
    video = put(uploads, grey_video(tmp_path / "quick.mp4", 300, Fraction(300)))
    with pytest.raises(ValueError, match="has 300 frames; more than 240 a second are not taken"):
        take_video(video, uploads, tmp_path / "job", PageConfig(max_seconds=1))


def test_a_full_disk_is_a_sentence(uploads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    sent = uploads / "a1b2" / "sent.png"
    sent.write_bytes((DEMO / "reference.png").read_bytes())
    with pytest.raises(FileError, match="there is no room for this file here just now; try again later"):
        take_image(str(sent), uploads, tmp_path / "job", PageConfig())


@pytest.mark.parametrize("way", ["outside", "dots", "link", "folder link", "folder", "pipe", "gone", "relative", "nul"])
def test_no_other_file_is_opened(way: str, uploads: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    shutil.copy(DEMO / "reference.png", secret)
    link = uploads / "a1b2" / "link"
    if way == "link":
        link.symlink_to(secret)
    elif way == "folder link":
        link.symlink_to(tmp_path)
    elif way == "pipe":
        os.mkfifo(link)  # opening it must not wait for a writer
    sent = {
        "outside": str(secret),
        "dots": str(uploads / "a1b2" / ".." / ".." / "secret.png"),
        "link": str(link),
        "folder link": str(link / "secret.png"),
        "folder": str(uploads / "a1b2"),
        "pipe": str(link),
        "gone": str(uploads / "a1b2" / "gone.png"),
        "relative": "secret.png",
        "nul": str(uploads / "a1b2" / "a\0b"),
    }[way]
    with pytest.raises(ValueError, match="not here any more; give it again"):
        take_image(sent, uploads, tmp_path / "job", PageConfig())
    assert not (tmp_path / "job").exists()


def test_nothing_was_sent(uploads: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no image yet"):
        take_image(None, uploads, tmp_path, PageConfig())
    with pytest.raises(ValueError, match="no video yet"):
        take_video(None, uploads, tmp_path, PageConfig())


@pytest.mark.parametrize(
    ("head", "image", "video"),
    [
        (b"\0\0\0\x18ftypheic", ".heic", None),
        (b"\0\0\0\x18ftypavif", ".avif", None),
        (b"\0\0\0\x18ftypisom", None, ".mp4"),
        (b"\0\0\0\x18ftypqt  ", None, ".mov"),
        (b"\x1aE\xdf\xa3....webm", None, ".webm"),
        (b"\x1aE\xdf\xa3....matroska", None, ".mkv"),
        (b"RIFF1234AVI LIST", None, ".avi"),
        (b"RIFF1234WEBPVP8 ", ".webp", None),
        (b"RIFF1234WAVEfmt ", None, None),
        (b"GIF89a", ".gif", ".gif"),
        (b"\xff\xd8\xff\xe0", ".jpg", None),
        (b"BM ordinary text that begins with two letters", None, None),
    ],
)
def test_kinds(head: bytes, image: str | None, video: str | None) -> None:
    assert (image_kind(head), video_kind(head)) == (image, video)
