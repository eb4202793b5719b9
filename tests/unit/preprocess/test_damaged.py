"""Damaged and unusual files: none of them ends the program, each has its outcome."""

import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.unit.preprocess.figures import BlockBackend, backdrop, put_person
from xdyna.config.preprocess import PreprocessOptions
from xdyna.data.records import REASONS, VideoOutcome, VideoSource
from xdyna.data.store import read_arrays
from xdyna.media import MediaWarning, read_frames
from xdyna.preprocess import people
from xdyna.preprocess.video import process_video
from xdyna.puppets.world.render import render_clip

pytest.importorskip("scenedetect", reason="needs the data extra")

OPTIONS = PreprocessOptions(min_frames=8, max_frames=8, max_clips=1, min_side=64, looks=2, min_motion=0, min_face=0)
Frames = list[np.ndarray]


def encode(
    path: Path,
    frames: Frames,
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    container: str | None = None,
    options: dict[str, str] | None = None,
    pts: list[int] | None = None,
    rotation: int = 0,
    aspect: Fraction | None = None,
) -> Path:
    """Encode frames at 12 fps; `pts` in frames."""
    with av.open(str(path), "w", format=container, options=options or {}) as file:
        stream = file.add_stream(codec, rate=12, options={"threads": "1"} if codec == "libx264" else {})
        stream.height, stream.width, stream.pix_fmt = frames[0].shape[0], frames[0].shape[1], pixels
        stream.codec_context.time_base = Fraction(1, 12)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(-rotation)
        for number, frame in enumerate(frames):
            image = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pixels)
            image.pts, image.time_base = number if pts is None else pts[number], Fraction(1, 12)
            file.mux(stream.encode(image))
        file.mux(stream.encode(None))
    return path


def sound(path: Path) -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 44100, 0
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def no_frames(path: Path) -> Path:
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=12)
        stream.height, stream.width, stream.pix_fmt = 128, 128, "yuv420p"
        file.start_encoding()
    return path


def changed(path: Path, base: Path, change: Callable[[bytearray], bytearray | bytes]) -> Path:
    path.write_bytes(change(bytearray(base.read_bytes())))
    return path


def flipped(seed: int, count: int, low: float, high: float) -> Callable[[bytearray], bytearray]:
    """Flip `count` bytes between two shares of the file."""

    def change(data: bytearray) -> bytearray:
        rng = np.random.default_rng(seed)
        for at in rng.integers(int(low * len(data)), max(int(high * len(data)), 1), count):
            data[at] ^= int(rng.integers(1, 256))
        return data

    return change


def zeroed(data: bytearray) -> bytearray:
    data[len(data) // 3 : 2 * len(data) // 3] = bytes(2 * len(data) // 3 - len(data) // 3)
    return data


Maker = Callable[[Path, Path, Frames], Path]  # (folder, sound mp4 of the frames, frames) -> the damaged file


def variants() -> dict[str, Maker]:
    """More than 50 kinds of damage and rarity by name."""
    made: dict[str, Maker] = {}
    for percent in (0.2, 1, 3, 8, 15, 25, 40, 55, 70, 85, 95, 99):
        made[f"cut off at {percent}%"] = lambda d, b, f, p=percent: changed(
            d / "cut.mp4", b, lambda x: x[: max(1, int(len(x) * p / 100))]
        )
    for percent in (30, 80, 99):
        made[f"index at the end, cut off at {percent}%"] = lambda d, b, f, p=percent: changed(
            d / "cut.mp4", encode(d / "plain.mp4", f), lambda x: x[: len(x) * p // 100]
        )
    for seed, (count, low, high) in enumerate(
        [(1, 0, 0.02), (5, 0, 0.02), (20, 0, 0.05), (3, 0, 0.1), (1, 0.1, 1), (20, 0.1, 1), (200, 0.1, 1), (50, 0, 1),
         (5, 0.9, 1), (400, 0, 1), (10, 0, 0.03), (40, 0, 0.03)]
    ):  # fmt: skip
        made[f"{count} bytes flipped in {low:.0%} to {high:.0%}"] = lambda d, b, f, s=seed, a=(count, low, high): (
            changed(d / "flip.mp4", b, flipped(s, *a))
        )
    for suffix in (".avi", ".mkv", ".gif", ".txt"):
        made[f"mp4 called {suffix}"] = lambda d, b, f, s=suffix: changed(d / f"named{s}", b, bytes)
    for turn in (90, 180, 270):
        made[f"turned by {turn}"] = lambda d, b, f, t=turn: encode(d / "turn.mp4", f, rotation=t)
    for pixels in ("yuv444p", "yuv422p", "yuv420p10le", "yuv422p10le", "gray"):
        made[pixels] = lambda d, b, f, p=pixels: encode(d / "pixels.mp4", f, pixels=p)
    made |= {
        "zeros in the middle": lambda d, b, f: changed(d / "zero.mp4", b, zeroed),
        "twice in a row": lambda d, b, f: changed(d / "twice.mp4", b, lambda x: x + x),
        "no frames": lambda d, b, f: no_frames(d / "none.mp4"),
        "1 frame": lambda d, b, f: encode(d / "one.mp4", f[:1]),
        "uneven times": lambda d, b, f: encode(d / "vfr.mp4", f, pts=np.cumsum([1, 2, 5] * len(f))[: len(f)].tolist()),
        "odd sides": lambda d, b, f: encode(d / "odd.mp4", [x[:127, :125].copy() for x in f], pixels="yuv444p"),
        "16 x 16 px": lambda d, b, f: encode(d / "tiny.mp4", [x[:16, :16].copy() for x in f]),
        "2 x 128 px": lambda d, b, f: encode(d / "thin.mp4", [x[:2].copy() for x in f]),
        "pixels that are not square": lambda d, b, f: encode(d / "wide.mp4", f, aspect=Fraction(4, 3)),
        "Matroska": lambda d, b, f: encode(d / "a.mkv", f),
        "VP9": lambda d, b, f: encode(d / "a.webm", f, codec="libvpx-vp9"),
        "MPEG-4 in AVI": lambda d, b, f: encode(d / "a.avi", f, codec="mpeg4"),
        "Motion JPEG": lambda d, b, f: encode(d / "a.mov", f, codec="mjpeg", pixels="yuvj420p"),
        "bare H.264": lambda d, b, f: encode(d / "a.h264", f, container="h264"),
        "transport stream": lambda d, b, f: encode(d / "a.ts", f),
        "sound alone": lambda d, b, f: sound(d / "sound.mp4"),
        "text": lambda d, b, f: changed(d / "text.mp4", b, lambda x: b"no video at all\n" * 100),
        "empty": lambda d, b, f: changed(d / "empty.mp4", b, lambda x: b""),
        "noise": lambda d, b, f: changed(d / "noise.mp4", b, lambda x: np.random.default_rng(0).bytes(5000)),
    }  # fmt: skip
    return made


def process(path: Path, folder: Path, *, kind: str | None = None) -> VideoOutcome:
    source = VideoSource("x", str(path), kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MediaWarning)
        return process_video(source, path, OPTIONS, folder)


def check(outcome: VideoOutcome, folder: Path) -> str:
    """Every outcome says something that is true; returns what it was."""
    assert outcome.clips or outcome.skips
    for clip in outcome.clips:
        arrays = read_arrays(folder / clip.arrays)
        assert len(arrays.times) == clip.frames == OPTIONS.max_frames
        assert clip.width % 2 == clip.height % 2 == 0
    for skip in outcome.skips:
        assert skip.reason in REASONS
        assert skip.detail.endswith(".")
        assert "\n" not in skip.detail
    return "a clip" if outcome.clips else outcome.skips[0].reason


def test_there_are_at_least_50_variants():
    assert len(variants()) >= 50


MUST = {
    "turned by 90": "a clip", "yuv444p": "a clip", "yuv420p10le": "a clip", "uneven times": "a clip",
    "odd sides": "a clip", "mp4 called .txt": "a clip", "Matroska": "a clip", "MPEG-4 in AVI": "a clip",
    "pixels that are not square": "a clip", "cut off at 99%": "a clip", "200 bytes flipped in 10% to 100%": None,
    "10 bytes flipped in 0% to 3%": None, "1 frame": "too_short", "16 x 16 px": "too_small", "no frames": "unreadable",
    "cut off at 1%": "unreadable", "index at the end, cut off at 80%": "unreadable", "sound alone": "unreadable",
    "text": "unreadable", "empty": "unreadable",
}  # fmt: skip
"""Some of them with what must come of them (None: anything)."""


@pytest.mark.parametrize("name", MUST)
def test_a_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    backend = BlockBackend()
    monkeypatch.setattr(people, "pose_backend", lambda _: backend)
    frames = [put_person(backdrop((128, 128)), (20 + k, 10, 60 + k, 100)) for k in range(12)]
    base = encode(tmp_path / "base.mp4", frames, options={"movflags": "+faststart"})
    path = variants()[name](tmp_path, base, frames)
    found = check(process(path, tmp_path / "set", kind="scene" if "turned" in name else None), tmp_path / "set")
    assert MUST[name] in (None, found)


@pytest.fixture(scope="module")
def puppet_frames() -> Frames:
    return list(render_clip(1, 2, 3, frames=20, size=(160, 128)).frames)


@pytest.mark.slow
@pytest.mark.parametrize("name", variants())
def test_all_with_the_real_detector(tmp_path: Path, puppet_frames: Frames, name: str):
    pytest.importorskip("mediapipe", reason="needs the perception extra")
    base = encode(tmp_path / "base.mp4", puppet_frames, options={"movflags": "+faststart"})
    path = variants()[name](tmp_path, base, puppet_frames)
    check(process(path, tmp_path / "set"), tmp_path / "set")


@pytest.fixture(scope="module")
def dance_frames(shared_dir: Path) -> Frames:
    return list(read_frames(shared_dir / "data" / "dance_1.mp4", range(100, 118)))


@pytest.mark.slow
@pytest.mark.parametrize("name", variants())
def test_all_on_a_real_video(tmp_path: Path, dance_frames: Frames, name: str):
    pytest.importorskip("mediapipe", reason="needs the perception extra")
    base = encode(tmp_path / "base.mp4", dance_frames, options={"movflags": "+faststart"})
    path = variants()[name](tmp_path, base, dance_frames)
    found = check(process(path, tmp_path / "set"), tmp_path / "set")
    print(f"{name}: {found}")
