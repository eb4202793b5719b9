"""What a video file holds, found by reading its packets (no decoding but for the first frame).

A frame is named by its position in display order. Its presentation time stamp (pts, an integer in units of the stream's
time base) is what the reader looks for, so that B-frames, edit lists and odd starts cannot shift the count.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from xdyna.media.errors import MediaError, MediaWarning, check_input_file

# Playlists (hls, concat, ...), drawings from text and single pictures are left out on purpose: they are no videos, and
# playlists could open other files.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpegtsraw,mpeg,mpegvideo,m4v,h264,hevc,flv,live_flv,ogg,asf,gif,apng,"
    "ivf,mxf,nut,dv,rm,wtv,yuv4mpegpipe,mp3,wav,flac,aac,w64,aiff"
)
_EXPECTED = "expected a video file (mp4, mov, mkv, webm, avi, ...)"


@dataclass(frozen=True, eq=False)
class VideoIndex:
    """The frames of one video stream.

    Attributes:
        path: the file.
        stream: index of the stream inside the container.
        pts: int64 (N,) ascending display time stamps of the frames that can be read; empty is impossible.
        time_base: s per unit of `pts`.
        keyframes: int64, positions (display order) of the frames where decoding may start.
        seek_stamps: int64, for each keyframe the time stamp to seek to in order to land on it or before it.
        closed: no frame is stored after a keyframe and shown before it (closed groups of pictures), and no time stamp
            is missing: a position can be reached from the keyframe before it by any reader.
        counted: time stamps are missing or doubled, so positions are counted while decoding from the start.
        width: of the stored picture, px.
        height: of the stored picture, px.
        pixel_aspect: width of a pixel divided by its height.
        rotation: degrees clockwise (0, 90, 180, 270) by which the stored picture is turned for display.
        pixel_format: of the stored picture, for example "yuv420p".
        codec: for example "h264".
        container: the demuxer's name.
        duration: of the video stream in s, the last frame included.
        has_audio: whether there is an audio stream.
        lost: number of frames that the file announces and that are cut off or damaged.
    """

    path: Path
    stream: int
    pts: np.ndarray
    time_base: Fraction
    keyframes: np.ndarray
    seek_stamps: np.ndarray
    closed: bool
    counted: bool
    width: int
    height: int
    pixel_aspect: Fraction
    rotation: int
    pixel_format: str
    codec: str
    container: str
    duration: float
    has_audio: bool
    lost: int

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in px as displayed: square pixels, upright."""
        width = self.width if self.pixel_aspect == 1 else max(1, round(self.width * self.pixel_aspect))
        return (width, self.height) if self.rotation in (90, 270) else (self.height, width)

    @property
    def times(self) -> np.ndarray:
        """float64 (N,) display times in s; the first is 0."""
        return (self.pts - self.pts[0]) * float(self.time_base)


def open_container(path: Path) -> InputContainer:
    """Open a local media file with the demuxers of `CONTAINERS` only.

    Raises:
        MediaError: the file is none of these, or its header is damaged or cut off.
    """
    try:
        return av.open(
            "file:" + os.path.abspath(path),
            mode="r",
            metadata_errors="ignore",
            options={"format_whitelist": CONTAINERS, "protocol_whitelist": "file"},
        )
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise MediaError(_open_message(path, error)) from error


def _open_message(path: Path, error: Exception) -> str:
    with path.open("rb") as handle:
        head = handle.read(4096)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free") or head[:4] == b"\x1aE\xdf\xa3":
        return (
            f"video '{path}' is truncated or damaged: its index (moov atom or header) is missing or cut off, so no "
            f"frame can be read; copy or download it again"
        )
    pictures = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")
    if head.startswith(pictures) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return f"'{path}' is a picture, not a video; {_EXPECTED}"
    reason = str(getattr(error, "strerror", "") or error)
    return f"'{path}' is not a video that can be read ({reason}); {_EXPECTED}"


def read_index(path: str | os.PathLike[str]) -> VideoIndex:
    """Index a video; the result is remembered for as long as the file does not change.

    Warns:
        MediaWarning: the file's end is cut off or packets are damaged; names how many frames are lost.

    Raises:
        MediaError: missing, folder, empty, not a video, no video stream, no frame that can be decoded.
    """
    path = check_input_file(path, what="video")
    state = path.stat()
    index = _cached_index(os.path.abspath(path), state.st_size, state.st_mtime_ns)
    if index.lost:
        warnings.warn(
            f"video '{path}' is cut off or damaged: {index.lost} of {index.lost + len(index.pts)} frames cannot be "
            f"read; the first {len(index.pts)} are used",
            MediaWarning,
            stacklevel=3,
        )
    return index


@functools.lru_cache(maxsize=16)
def _cached_index(path: str, size: int, changed: int) -> VideoIndex:
    return _scan(Path(path))


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The stream that shows moving pictures (cover art is none).

    Raises:
        MediaError: there is none.
    """
    streams = [s for s in container.streams.video if not s.disposition & type(s.disposition).attached_pic]
    if not streams:
        if container.streams.audio:
            raise MediaError(f"'{path}' holds sound only, no video stream; {_EXPECTED}")
        reason = "" if len(container.streams) else " (its data is missing, it may be cut off)"
        raise MediaError(f"'{path}' holds no video stream{reason}; {_EXPECTED}")
    best = container.streams.best("video")
    return best if best in streams else streams[0]


def _scan(path: Path) -> VideoIndex:
    with open_container(path) as container:
        stream = video_stream(container, path)
        packets, damaged = _read_packets(container, stream)
        announced = stream.frames or 0
        codec, name = stream.codec_context.name, container.format.name
        has_audio = bool(container.streams.audio)
        time_base = stream.time_base or Fraction(1, 1000)
        guessed = stream.average_rate or stream.guessed_rate or stream.base_rate or Fraction(25)
        position = stream.index
        promised = _promised_duration(container, stream)
    if not packets and not announced and not damaged:
        raise MediaError(f"video '{path}' has zero frames (or its data is cut off); {_EXPECTED}")
    if not packets:
        raise MediaError(
            f"video '{path}' is truncated: it announces {announced or damaged} frames and none of them can be read; "
            f"copy or download it again"
        )
    stamps = [p.pts for p in packets]
    counted = None in stamps or len(set(stamps)) != len(stamps) or codec in _HIDDEN_FRAMES or name in _NO_DISPLAY_TIMES
    first, decoded = _decode_start(path, position, everything=counted)
    if counted:
        order = _counted_frames(decoded, time_base, guessed)
    else:
        order = _stamped_frames(packets, time_base, guessed)
        if not packets[0].key and first.pts is not None:
            # The recording starts inside a group of pictures: frames before the first decodable one are not shown.
            order = order.starting_at(int(np.searchsorted(order.pts, first.pts)))
    duration = float((order.pts[-1] - order.pts[0] + order.last) * order.time_base)
    shown = len(order.pts) if counted else len(packets)
    if not announced and promised - duration > 1.5 * duration / shown:
        announced = shown + round((promised - duration) * shown / duration)
    aspect = Fraction(first.aspect) if first.aspect else Fraction(1)
    return VideoIndex(
        path=path,
        stream=position,
        pts=order.pts,
        time_base=order.time_base,
        keyframes=order.keyframes,
        seek_stamps=order.seek_stamps,
        closed=order.closed,
        counted=counted,
        width=first.width,
        height=first.height,
        pixel_aspect=aspect,
        rotation=first.rotation,
        pixel_format=first.pixel_format,
        codec=codec,
        container=name,
        duration=duration,
        has_audio=has_audio,
        lost=max(damaged, announced - shown),
    )


def _promised_duration(container: InputContainer, stream: VideoStream) -> float:
    """How long a Matroska file says its video is, in s; 0 where it does not say. (mp4 and avi count their frames.)"""
    if "matroska" not in container.format.name:
        return 0.0
    clock = stream.metadata.get("DURATION", "").split(":")
    if len(clock) == 3:
        with contextlib.suppress(ValueError):
            return float(clock[0]) * 3600 + float(clock[1]) * 60 + float(clock[2])
    return (container.duration or 0) / av.time_base if not container.streams.audio else 0.0


# Codecs whose packets may hold frames that are never shown: their frames have to be counted by decoding.
_HIDDEN_FRAMES = {"vp8", "libvpx", "vp6f", "vp6"}
# Containers that store frames without display times; what the demuxer reports is the storage order.
_NO_DISPLAY_TIMES = {"avi", "h264", "hevc", "mpegvideo", "m4v"}


@dataclass(frozen=True)
class _Packet:
    pts: int | None
    dts: int | None
    key: bool
    duration: int


def _read_packets(container: InputContainer, stream: VideoStream) -> tuple[list[_Packet], int]:
    """The shown packets in storage order, and the number of damaged ones."""
    found: list[_Packet] = []
    damaged = 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except av.error.FFmpegError:  # the rest of the file is not there
            damaged += 1
            break
        if packet.size == 0 or packet.is_discard:
            continue
        if packet.is_corrupt:
            damaged += 1
            continue
        found.append(_Packet(packet.pts, packet.dts, packet.is_keyframe, packet.duration or 0))
    return found, damaged


@dataclass(frozen=True, eq=False)
class _Order:
    """Frames in display order; the fields are those of `VideoIndex`, `last` is how long the last frame is shown."""

    pts: np.ndarray
    time_base: Fraction
    keyframes: np.ndarray
    seek_stamps: np.ndarray
    closed: bool
    last: int

    def starting_at(self, start: int) -> _Order:
        kept = self.keyframes >= start
        return replace(
            self, pts=self.pts[start:], keyframes=self.keyframes[kept] - start, seek_stamps=self.seek_stamps[kept]
        )


def _stamped_frames(packets: list[_Packet], time_base: Fraction, guessed: Fraction) -> _Order:
    """Packets that all have a time stamp of their own."""
    stored = np.array([p.pts for p in packets], dtype=np.int64)
    order = np.argsort(stored, kind="stable")
    pts = stored[order]
    is_key = np.array([p.key for p in packets], dtype=bool)
    keyframes = np.flatnonzero(is_key[order])
    seek_stamps = np.array([_seek_stamp(packets[int(order[k])]) for k in keyframes], dtype=np.int64)
    # A frame stored behind a keyframe but shown before it leans on the group before (open group of pictures).
    latest_key = np.maximum.accumulate(np.where(is_key, stored, np.iinfo(np.int64).min))
    closed = bool(is_key[0] and np.all(stored >= latest_key))
    last = packets[int(order[-1])].duration
    if last <= 0:
        last = int(np.median(np.diff(pts))) if len(pts) > 1 else round(1 / (guessed * time_base))
    return _Order(pts, time_base, keyframes, seek_stamps, closed, max(1, last))


def _seek_stamp(packet: _Packet) -> int:
    """Some containers seek by storage time, others by display time: the smaller one never lands behind the packet."""
    assert packet.pts is not None
    return packet.pts if packet.dts is None else min(packet.pts, packet.dts)


@dataclass(frozen=True)
class _First:
    width: int
    height: int
    rotation: int
    pixel_format: str
    pts: int | None
    aspect: Fraction | None


def _decode_start(path: Path, position: int, *, everything: bool) -> tuple[_First, list[int | None]]:
    """Decode the first frame, or all of them, for what only the decoder knows."""
    first: _First | None = None
    stamps: list[int | None] = []
    with open_container(path) as container:
        stream = container.streams[position]
        assert isinstance(stream, VideoStream)
        stream.thread_type = "AUTO" if everything else "SLICE"
        for frame in decode_frames(container, stream):
            stamps.append(frame.pts)
            if first is None:
                first = _First(
                    width=frame.width,
                    height=frame.height,
                    rotation=(-round(frame.rotation / 90) * 90) % 360,
                    pixel_format=frame.format.name,
                    pts=frame.pts,
                    aspect=stream.sample_aspect_ratio,
                )
            if not everything:
                break
    if first is None:
        raise MediaError(f"video '{path}' holds no frame that can be decoded; it is damaged, copy or download it again")
    return first, stamps


def decode_frames(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """Decode a stream in display order, stepping over packets that cannot be decoded."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.FFmpegError):
            break
        if packet.is_corrupt:
            continue
        try:
            yield from packet.decode()
        except av.error.FFmpegError:  # one damaged packet; the next keyframe mends it
            continue
    try:
        yield from stream.codec_context.decode(None)
    except (av.error.FFmpegError, EOFError):
        return


def _counted_frames(stamps: list[int | None], time_base: Fraction, guessed: Fraction) -> _Order:
    """A stream whose packets do not tell: the decoder's time stamps where they ascend, else the announced rate."""
    start = np.zeros(1, dtype=np.int64)
    known = [s for s in stamps if s is not None]
    if len(known) == len(stamps) and all(a < b for a, b in itertools.pairwise(known)):
        pts = np.array(known, dtype=np.int64)
        last = int(np.median(np.diff(pts))) if len(pts) > 1 else round(1 / (guessed * time_base))
        return _Order(pts, time_base, start, pts[:1], False, max(1, last))
    return _Order(np.arange(len(stamps), dtype=np.int64), 1 / Fraction(guessed), start, start, False, 1)
