"""Where the frames of a live animation go: a file, a folder, raw bytes for another program, a callback."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from xdyna.media.folder import FrameFolderWriter, check_frame_folder
from xdyna.media.writer import VideoWriter

FrameCallback = Callable[[np.ndarray, float], None]
"""Called with each frame, uint8 (H, W, 3), and its time in the input, s."""
_PIPE = 4096  # bytes that a pipe takes at once when it takes any (POSIX's PIPE_BUF on Linux)


class Sink(Protocol):
    """Takes frames, as a context manager. A reader that is gone is a BrokenPipeError."""

    def __enter__(self) -> Sink:
        """Begin."""

    def write(self, frame: np.ndarray, at: float, repeats: int) -> None:
        """Take a frame, uint8 (H, W, 3): its time in the input, and how often it stands to keep the rate."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End; files appear now."""


class FileSink:
    """A video, or a folder of frames, that is written as frames come. It begins with the first one.

    Args:
        path: the video or folder.
        save: "mp4", "ffv1" or "frames".
        fps: of the video.
        overwrite: whether it may be replaced.
    """

    def __init__(self, path: Path, *, save: str, fps: float, overwrite: bool) -> None:
        self.path, self.save, self.fps, self.overwrite = path, save, Fraction(fps).limit_denominator(1001), overwrite
        self._writer: VideoWriter | FrameFolderWriter | None = None
        if save == "frames":
            check_frame_folder(path, overwrite=overwrite)

    def __enter__(self) -> FileSink:
        """See `Sink`."""
        return self

    def write(self, frame: np.ndarray, at: float, repeats: int) -> None:
        """See `Sink`."""
        if self._writer is None:
            size, replace = (frame.shape[0], frame.shape[1]), self.overwrite
            if self.save == "frames":
                self._writer = FrameFolderWriter(self.path, size=size, overwrite=replace)
            else:
                lossless = self.save == "ffv1"
                self._writer = VideoWriter(self.path, fps=self.fps, size=size, overwrite=replace, lossless=lossless)
            self._writer.__enter__()
        for _ in range(repeats):
            self._writer.write(frame)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See `Sink`."""
        if self._writer is not None:
            self._writer.__exit__(kind, error, trace)


class RawSink:
    """Frames as bytes, RGB of 8 bits, one after the other: `ffplay -f rawvideo -pixel_format rgb24 -video_size WxH -`.

    Args:
        descriptor: of the open file or pipe.
        wait: s after which a reader that does not read counts as gone.
    """

    def __init__(self, descriptor: int, *, wait: float) -> None:
        self.descriptor, self.wait = descriptor, wait

    def __enter__(self) -> RawSink:
        """See `Sink`."""
        return self

    def write(self, frame: np.ndarray, at: float, repeats: int) -> None:
        """See `Sink`."""
        for _ in range(repeats):
            self._send(np.ascontiguousarray(frame).data.cast("B"))

    def _send(self, data: memoryview) -> None:
        until = time.monotonic() + self.wait
        while data:
            if select.select([], [self.descriptor], [], 0.1)[1]:
                data = data[os.write(self.descriptor, data[:_PIPE]) :]
                until = time.monotonic() + self.wait
            elif time.monotonic() > until:
                raise BrokenPipeError(f"nobody reads for {self.wait:g} s")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See `Sink`."""


class CallbackSink:
    """Hands each frame to a function, once. Args: call: it."""

    def __init__(self, call: FrameCallback) -> None:
        self.call = call

    def __enter__(self) -> CallbackSink:
        """See `Sink`."""
        return self

    def write(self, frame: np.ndarray, at: float, repeats: int) -> None:
        """See `Sink`."""
        self.call(frame, at)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See `Sink`."""
