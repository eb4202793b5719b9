"""Decoding frames by position, with decord where that is exact and with PyAV everywhere else."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from xdyna.media.colour import to_rgb
from xdyna.media.containers import decode_frames, open_container
from xdyna.media.errors import MediaError, MediaWarning
from xdyna.media.index import VideoIndex

BATCH_BYTES = 128 * 2**20  # decoded frames held at a time


def read_positions(index: VideoIndex, wanted: list[int]) -> Iterator[np.ndarray]:
    """Frames at the given positions.

    Args:
        index: of the video.
        wanted: strictly ascending positions inside the video.

    Yields:
        uint8 (H, W, 3) RGB, upright, square pixels.

    Raises:
        MediaError: none of the wanted frames can be decoded.

    Warns:
        MediaWarning: some frames could not be decoded and repeat their neighbour.
    """
    done = 0
    if wanted and decord_is_exact(index):
        for frame in read_decord(index, wanted):
            done += 1
            yield frame
    if done < len(wanted):
        yield from read_pyav(index, wanted[done:])


def decord_is_exact(index: VideoIndex) -> bool:
    """Whether decord gives the right pixels at the right positions of this file.

    Found by comparison with sequential decoding: decord misplaces frames in open groups of images, with intra refresh
    and in containers without time stamps, fails at the end of transport streams, knows no pixel aspect, no HDR and no
    transparency and differs in 10-bit images.
    """
    return (
        index.closed
        and not index.counted
        and index.lost == 0
        and index.keyframes[0] == 0
        and index.rotation == 0
        and not index.mirrored
        and index.pixel_aspect == 1
        and index.colours.plain
        and index.pixel_format in ("yuv420p", "yuvj420p")
        and index.codec in ("h264", "vp9")
        and any(name in index.container.split(",") for name in ("mp4", "matroska"))
    )


def read_decord(index: VideoIndex, wanted: list[int]) -> Iterator[np.ndarray]:
    """Frames by decord; ends early (without an error) where decord cannot go on."""
    try:
        import decord
    except (ImportError, OSError):  # no wheel for this platform
        return
    decord.logging.set_level(decord.logging.QUIET)
    height, width = index.size
    count = max(8, min(64, BATCH_BYTES // (height * width * 3)))
    try:
        for start in range(0, len(wanted), count):
            # An open reader decodes ahead without bound while its frames are being used, so none stays open meanwhile.
            reader = decord.VideoReader(os.path.abspath(index.path), ctx=decord.cpu(0), num_threads=2)
            if len(reader) != len(index.pts):
                return
            batch = reader.get_batch(wanted[start : start + count]).asnumpy()
            del reader
            if batch.shape[1:] != (*index.size, 3):
                return
            for frame in batch:
                yield frame.copy()
    except (decord.DECORDError, RuntimeError, IndexError, OSError):
        return


def read_pyav(index: VideoIndex, wanted: list[int]) -> Iterator[np.ndarray]:
    """Frames by PyAV: seek to the keyframe before, decode, match time stamps. See `read_positions`."""
    previous: np.ndarray | None = None
    missing: list[int] = []
    with _Decoder(index) as decoder:
        for position in wanted:
            frame = decoder.frame_at(position)
            if frame is None:
                missing.append(position)
                if previous is not None:
                    yield previous.copy()
                continue
            shown = _displayed(frame, index)
            if previous is None:  # nothing good came before: the first good frame stands in for what is missing
                yield from (shown.copy() for _ in missing)
            previous = shown.copy()
            yield shown
    if previous is None:
        raise MediaError(
            f"video '{index.path}': none of the {len(wanted)} wanted frames can be decoded; the file is damaged"
        )
    if missing:
        warnings.warn(
            f"video '{index.path}' is damaged: {len(missing)} frames (the first is frame {missing[0]}) cannot be "
            f"decoded; each repeats its neighbour",
            MediaWarning,
            stacklevel=2,
        )


def _displayed(frame: av.VideoFrame, index: VideoIndex) -> np.ndarray:
    """RGB, square pixels, upright."""
    turned = index.rotation in (90, 270)
    rgb = to_rgb(frame, index.colours, size=index.size[::-1] if turned else index.size)
    rgb = rgb[:, ::-1] if index.mirrored else rgb
    return np.ascontiguousarray(np.rot90(rgb, k=-index.rotation // 90))


class _Decoder:
    """Walks forward through a video and stops at wanted positions; seeks when that saves decoding."""

    def __init__(self, index: VideoIndex) -> None:
        self.index = index
        self._container: InputContainer | None = None
        self._frames: Iterator[tuple[int, av.VideoFrame]] = iter(())
        self._next: tuple[int, av.VideoFrame] | None = None
        self._may_seek = not index.counted
        self._origin = 0

    def __enter__(self) -> _Decoder:
        self._open(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def frame_at(self, position: int) -> av.VideoFrame | None:
        """The frame at `position` (ascending from call to call), None where it cannot be decoded."""
        index = self.index
        key = int(np.searchsorted(index.keyframes, position, side="right")) - 1
        here = self._next[0] if self._next else len(index.pts)
        if self._may_seek and key > 0 and index.keyframes[key] > here:
            self._open(key)
        frame = self._walk_to(position)
        if frame is None and self._origin > 0:  # the keyframe did not lead there (intra refresh): decode from the start
            self._may_seek = False
            self._open(0)
            frame = self._walk_to(position)
        return frame

    def _walk_to(self, position: int) -> av.VideoFrame | None:
        while self._next is not None and self._next[0] < position:
            self._next = next(self._frames, None)
        return self._next[1] if self._next is not None and self._next[0] == position else None

    def _open(self, key: int) -> None:
        self._close()
        self._container = open_container(self.index.path)
        stream = self._container.streams[self.index.stream]
        assert isinstance(stream, VideoStream)
        stream.thread_type = "AUTO"
        self._origin = key
        if key > 0:
            try:
                self._container.seek(int(self.index.seek_stamps[key]), stream=stream, backward=True)
            except av.error.FFmpegError:  # a container without a seekable index
                self._may_seek = False
                self._open(0)
                return
        self._frames = self._numbered(self._container, stream, first=int(self.index.keyframes[key]) if key > 0 else 0)
        self._next = next(self._frames, None)

    def _numbered(
        self, container: InputContainer, stream: VideoStream, *, first: int
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decoded frames with their positions, from position `first` on."""
        pts = self.index.pts
        for count, frame in enumerate(decode_frames(container, stream)):
            if self.index.counted:
                position = count
            elif frame.pts is None:
                continue
            else:
                position = int(np.searchsorted(pts, frame.pts))
                if position == len(pts) or pts[position] != frame.pts:
                    continue
            if position >= first:
                yield position, frame

    def _close(self) -> None:
        if self._container is not None:
            self._frames.close()  # type: ignore[attr-defined]
            self._container.close()
            self._container = None
