"""Tiny generated media: every frame carries its own number as a row of black and white blocks."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

BITS = 8
HEIGHT, WIDTH = 64, 128


def numbered_frame(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A frame whose upper left 16 x 128 px spell `number` in binary; the rest is a moving gradient (uint8 RGB)."""
    y, x = np.mgrid[0:height, 0:width]
    frame = np.stack([(x * 2 + number * 3) % 256, (y * 4) % 256, (x + y + number) % 256], axis=-1).astype(np.uint8)
    for bit in range(BITS):
        frame[:16, bit * 16 : bit * 16 + 16] = 235 if number >> bit & 1 else 20
    return frame


def read_number(frame: np.ndarray) -> int:
    """The number that `numbered_frame` wrote, read from the middle of each block."""
    return sum(1 << bit for bit in range(BITS) if frame[4:12, bit * 16 + 4 : bit * 16 + 12].mean() > 128)


def encode_video(
    path: Path,
    *,
    count: int = 40,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    fps: Fraction | int = 25,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    pts: list[int] | None = None,
    rotation: int = 0,
    aspect: Fraction | None = None,
) -> Path:
    """Encode `count` numbered frames; `pts` in units of 1 / fps, `rotation` in degrees clockwise."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options={"threads": "1", **(options or {})})
        stream.height, stream.width, stream.pix_fmt = size[0], size[1], pixels
        stream.codec_context.time_base = 1 / Fraction(fps)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(-rotation)
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, *size), format="rgb24").reformat(format=pixels)
            frame.pts = number if pts is None else pts[number]
            frame.time_base = 1 / Fraction(fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def encode_sound(
    path: Path, *, seconds: float = 2.0, codec: str = "aac", rate: int = 44100, video: bool = True, click: float = 1.0
) -> Path:
    """A file with a click (10 ms of 1 kHz) at `click` s in silence, beside a 25 fps video that flashes."""
    with av.open(str(path), "w") as container:
        if video:
            stream = container.add_stream("libx264", rate=25, options={"threads": "1"})
            stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        sound = container.add_stream(codec, rate=rate, layout="stereo")
        if video:
            for number in range(round(seconds * 25)):
                frame = av.VideoFrame.from_ndarray(numbered_frame(number % 256), format="rgb24")
                frame.pts = number
                container.mux(stream.encode(frame.reformat(format="yuv420p")))
            container.mux(stream.encode(None))
        time = np.arange(round(seconds * rate)) / rate
        wave = np.where((time >= click) & (time < click + 0.01), np.sin(2 * np.pi * 1000 * time), 0.0)
        samples = np.stack([wave, wave]).astype(np.float32)
        for start in range(0, samples.shape[1], 1024):
            part = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples[:, start : start + 1024]), format="fltp", layout="stereo"
            )
            part.sample_rate, part.pts, part.time_base = rate, start, Fraction(1, rate)
            container.mux(sound.encode(part))
        container.mux(sound.encode(None))
    return path


@pytest.fixture
def make_video(tmp_path: Path) -> Callable[..., Path]:
    """`make_video("name.mp4", count=..., ...)`: see `encode_video`."""
    return lambda name="video.mp4", **kwargs: encode_video(tmp_path / name, **kwargs)


@pytest.fixture
def make_sound(tmp_path: Path) -> Callable[..., Path]:
    """`make_sound("name.mp4", codec=..., ...)`: see `encode_sound`."""
    return lambda name="sound.mp4", **kwargs: encode_sound(tmp_path / name, **kwargs)


@pytest.fixture
def number_of() -> Callable[[np.ndarray], int]:
    """Reads the number out of a frame."""
    return read_number


@pytest.fixture
def frame_of() -> Callable[..., np.ndarray]:
    """Draws the frame with a number."""
    return numbered_frame
