"""Writing videos (H.264 mp4, or lossless FFV1): complete or not at all, the same bytes for the same input, with the
source's sound.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import cast

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from xdyna.core.atomic import discard, prepare_output, publish
from xdyna.core.errors import FileError, writing_error
from xdyna.media.audio import AudioTrack, open_audio
from xdyna.media.errors import MediaError

# A fixed number of encoder threads: x264's bytes depend on it, and must not depend on the machine.
_THREADS = 4
# mbtree off: on images narrower than about 128 px its vector code reads memory that was never written, and the bytes
# change from run to run (x264 165, seen with one thread as well, gone with asm=0).
_OPTIONS = {"crf": "17", "preset": "medium", "threads": str(_THREADS), "x264-params": "mbtree=0"}
_LOSSLESS = {"level": "3", "g": "1", "slices": "4", "slicecrc": "1", "threads": str(_THREADS)}
_BT709 = 1


class VideoWriter:
    """A context manager that encodes frames to H.264 (yuv420p, BT.709, index at the front).

    The file is written under a hidden name in the target's folder and renamed when the block ends well; on any
    exception, Ctrl-C included, it is removed. H.264 with yuv420p needs even sides: an odd side is padded by repeating
    its last row or column, so the file is up to 1 px larger than `size` (see `encoded_size`). Lossless: FFV1 in
    Matroska, RGB of 8 bits, every frame by itself; what is read is what was written.

    Args:
        path: the mp4 (lossless: mkv) to write; missing folders are made.
        fps: frames per second, > 0; taken as a fraction with a denominator up to 1001.
        size: (H, W) of the frames in px.
        audio_from: file whose sound is kept: copied where mp4 players know the codec, otherwise encoded as AAC. A file
            without sound gives a silent video; unusable sound gives one with a warning.
        duration: s after which the sound is cut; default the length of the video.
        overwrite: whether an existing file may be replaced.
        lossless: FFV1 instead of H.264.

    Raises:
        MediaError: bad size or rate, existing target, unwritable folder, full disk, no frame written, wrong frame. A
            target that appears while frames are written is not replaced: the video is kept under the next free name.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fps: float | Fraction,
        size: tuple[int, int],
        audio_from: Path | None = None,
        duration: float | None = None,
        overwrite: bool = False,
        lossless: bool = False,
    ) -> None:
        height, width = (int(side) for side in size)
        if not (fps > 0 and float(fps) < 1000):
            raise MediaError(f"fps must be between 0 and 1000; given {fps}")
        if min(height, width) < 2 or max(height, width) > 16384:
            raise MediaError(f"video size (H, W) must be between 2 and 16384 px a side; given {height} x {width}")
        self.path = Path(path)
        self.size = (height, width)
        self.encoded_size = (height, width) if lossless else (height + height % 2, width + width % 2)
        self.fps = Fraction(fps).limit_denominator(1001)
        self.frame_count = 0
        self._audio_from = Path(audio_from) if audio_from is not None else None
        self._duration = duration
        self._overwrite = overwrite
        self._lossless = lossless
        self._temporary: Path | None = None
        self._container: av.container.OutputContainer | None = None
        self._audio: AudioTrack | None = None

    def __enter__(self) -> VideoWriter:
        self._temporary = prepare_output(self.path, overwrite=self._overwrite)
        try:
            self._start()
        except BaseException:
            self._abandon()
            raise
        return self

    def _start(self) -> None:
        assert self._temporary is not None
        # bitexact: no encoder version or creation time in the container
        options = {"fflags": "+bitexact"} | ({} if self._lossless else {"movflags": "+faststart"})
        target, form = "file:" + os.path.abspath(self._temporary), "matroska" if self._lossless else "mp4"
        self._container = av.open(target, "w", format=form, options=options)
        codec, settings = ("ffv1", _LOSSLESS) if self._lossless else ("libx264", _OPTIONS)
        stream = cast(VideoStream, self._container.add_stream(codec, rate=self.fps, options=dict(settings)))
        stream.height, stream.width = self.encoded_size
        stream.pix_fmt = "bgr0" if self._lossless else "yuv420p"
        context = stream.codec_context
        context.thread_count = _THREADS
        context.time_base = 1 / self.fps
        if not self._lossless:
            context.colorspace = context.color_primaries = context.color_trc = _BT709
            context.color_range = ColorRange.MPEG
        self._stream = stream
        if self._audio_from is not None:
            self._audio = open_audio(self._audio_from, self._container)

    def write(self, frame: np.ndarray) -> None:
        """Append one frame.

        Args:
            frame: uint8 (H, W, 3) RGB of the writer's size.

        Raises:
            MediaError: another shape or type, writer not open, full disk.
        """
        if self._container is None:
            raise MediaError(f"the writer of '{self.path}' is not open; use it in a with block")
        frame = np.asarray(frame)
        if frame.dtype != np.uint8 or frame.shape != (*self.size, 3):
            raise MediaError(
                f"frame {self.frame_count} of '{self.path}' is {frame.dtype} {frame.shape}; "
                f"expected uint8 {(*self.size, 3)}"
            )
        image = av.VideoFrame.from_ndarray(self._padded(frame), format="rgb24")
        if self._lossless:
            image = image.reformat(format="bgr0")
        else:
            image = image.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
        image.pts = self.frame_count
        image.time_base = 1 / self.fps
        with self._disk_errors():
            self._container.mux(self._stream.encode(image))
            self.frame_count += 1
            if self._audio is not None:
                # One frame behind the video, so that the cut at the end is still to be decided.
                self._audio.write_until(min(self._sound_end(), float((self.frame_count - 1) / self.fps)))

    def _padded(self, frame: np.ndarray) -> np.ndarray:
        if self.encoded_size == self.size:
            return np.ascontiguousarray(frame)
        pad = [(0, full - side) for full, side in zip(self.encoded_size, self.size, strict=True)]
        return np.pad(frame, [*pad, (0, 0)], mode="edge")

    def _sound_end(self) -> float:
        return self._duration if self._duration is not None else float(self.frame_count / self.fps)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._abandon()
            return
        try:
            if self.frame_count == 0:
                raise MediaError(f"no frame was written to '{self.path}'; a video needs at least one")
            with self._disk_errors():
                self._finish()
        except BaseException:
            self._abandon()
            raise
        assert self._temporary is not None
        publish(self._temporary, self.path, overwrite=self._overwrite)

    def _finish(self) -> None:
        assert self._container is not None
        self._container.mux(self._stream.encode(None))
        if self._audio is not None:
            self._audio.write_until(self._sound_end())
            self._audio.close()
            self._audio = None
        container, self._container = self._container, None
        container.close()

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except FileError:
            raise
        except (av.error.FFmpegError, OSError) as error:
            raise writing_error(_as_os_error(error), self.path) from error

    def _abandon(self) -> None:
        """Close everything quietly and remove the temporary file."""
        if self._audio is not None:
            with contextlib.suppress(av.error.FFmpegError, OSError, ValueError):
                self._audio.close()
            self._audio = None
        if self._container is not None:
            container, self._container = self._container, None
            with contextlib.suppress(av.error.FFmpegError, OSError, ValueError):
                container.close()
        if self._temporary is not None:
            discard(self._temporary)


def _as_os_error(error: Exception) -> OSError:
    number = getattr(error, "errno", None) or 0
    return OSError(number, getattr(error, "strerror", None) or str(error))
