"""What a video file holds, found by reading its packets (no decoding but for the first frame).

A frame is named by its position in display order. Its presentation time stamp (pts, an integer in units of the stream's
time base) is what the reader looks for, so that B-frames, edit lists and odd starts cannot shift the count.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import warnings
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from xdyna.media.colour import Colours
from xdyna.media.containers import EXPECTED, decode_frames, open_container, video_stream
from xdyna.media.errors import MediaError, MediaWarning, check_input_file


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
        closed: closed groups of images: every keyframe is one that nothing after it reaches behind, so that any
            reader can start there.
        counted: time stamps are missing or doubled, so positions are counted while decoding from the start.
        width: of the stored image, px.
        height: of the stored image, px.
        pixel_aspect: width of a pixel divided by its height.
        rotation: degrees clockwise (0, 90, 180, 270) by which the stored image is turned for display.
        mirrored: whether its left and right are exchanged before that.
        pixel_format: of the stored image, for example "yuv420p".
        colours: what its numbers mean.
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
    mirrored: bool
    pixel_format: str
    colours: Colours
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


def read_index(path: str | os.PathLike[str]) -> VideoIndex:
    """Index a video; the result is remembered for as long as the file does not change.

    Warns:
        MediaWarning: the file's end is cut off or packets are damaged (names how many frames are lost), or it is HDR.
            Once per process for a file that does not change.

    Raises:
        MediaError: missing, folder, empty, not a video, no video stream, no frame that can be decoded.
    """
    path = check_input_file(path, what="video")
    state = path.stat()
    key = (os.path.abspath(path), state.st_size, state.st_mtime_ns)
    index = _cached_index(*key)
    told = []
    if index.lost:
        told.append(
            f"is cut off or damaged: {index.lost} of {index.lost + len(index.pts)} frames cannot be read; the first "
            f"{len(index.pts)} are used"
        )
    if index.colours.hdr:
        told.append(f"is HDR ({index.colours.hdr}): its frames are tone-mapped to SDR (BT.709)")
    if told and key not in _WARNED:
        warnings.warn(f"video '{path}' {', and '.join(told)}", MediaWarning, stacklevel=3)
        _WARNED.add(key)  # after the warning: where warnings are made errors, each call fails alike
    return index


_WARNED: set[tuple[str, int, int]] = set()
"""Files (path, size, time of change) whose loss or HDR was told: one run reads a video's index many times."""


@functools.lru_cache(maxsize=16)
def _cached_index(path: str, size: int, changed: int) -> VideoIndex:
    return _scan(Path(path))


def _scan(path: Path) -> VideoIndex:
    with open_container(path) as container:
        stream = video_stream(container, path)
        packets, damaged, hidden = _read_packets(container, stream)
        announced = stream.frames or 0
        codec, name = stream.codec_context.name, container.format.name
        has_audio = bool(container.streams.audio)
        time_base = stream.time_base or Fraction(1, 1000)
        guessed = stream.average_rate or stream.guessed_rate or stream.base_rate or Fraction(25)
        position = stream.index
        promised = _promised_end(container, stream)
    if not packets and not announced and not damaged:
        raise MediaError(f"video '{path}' has zero frames (or its data is cut off); {EXPECTED}")
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
            # The recording starts inside a group of images: frames before the first decodable one are not shown.
            order = order.starting_at(int(np.searchsorted(order.pts, first.pts)))
    duration = float((order.pts[-1] - order.pts[0] + order.last) * order.time_base)
    shown = len(order.pts) if counted else len(packets)
    if announced and not counted:
        announced -= hidden
    missing = promised - float((order.pts[-1] + order.last) * order.time_base)
    if missing > 1.5 * duration / shown:
        announced = shown + round(missing * shown / duration)
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
        mirrored=first.mirrored,
        pixel_format=first.pixel_format,
        colours=first.colours,
        codec=codec,
        container=name,
        duration=duration,
        has_audio=has_audio,
        lost=max(damaged, announced - shown),
    )


def _promised_end(container: InputContainer, stream: VideoStream) -> float:
    """When a Matroska file says its video ends, in s; 0 where it does not say. (mp4 and avi count their frames.)"""
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
    clean: bool  # nothing after this keyframe reaches behind it
    duration: int


def _read_packets(container: InputContainer, stream: VideoStream) -> tuple[list[_Packet], int, int]:
    """The shown packets in storage order, the number of damaged ones and of those hidden by an edit list."""
    found: list[_Packet] = []
    damaged = hidden = 0
    h264 = stream.codec_context.name == "h264"
    extradata = stream.codec_context.extradata or b""
    nal_size = (extradata[4] & 3) + 1 if len(extradata) > 4 and extradata[0] == 1 else 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except av.error.FFmpegError:  # the rest of the file is not there
            damaged += 1
            break
        if packet.size == 0:
            continue
        if packet.is_discard:
            hidden += 1
            continue
        if packet.is_corrupt:
            damaged += 1
            continue
        clean = packet.is_keyframe and (not h264 or _holds_idr(bytes(packet), nal_size))
        found.append(_Packet(packet.pts, packet.dts, packet.is_keyframe, clean, packet.duration or 0))
    return found, damaged, hidden


def _holds_idr(data: bytes, nal_size: int) -> bool:
    """Whether an H.264 packet holds an IDR slice (NAL unit type 5); other keyframes are only points of recovery.

    Args:
        data: the packet.
        nal_size: bytes of the length before each NAL unit; 0 where units are parted by start codes (Annex B).
    """
    if nal_size == 0:
        return any(part and part[0] & 31 == 5 for part in data.split(b"\0\0\1")[1:])
    at = 0
    while at + nal_size < len(data):
        if data[at + nal_size] & 31 == 5:
            return True
        at += nal_size + int.from_bytes(data[at : at + nal_size], "big")
    return False


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
    # A frame stored behind a keyframe but shown before it leans on the group before (open group of images).
    latest_key = np.maximum.accumulate(np.where(is_key, stored, np.iinfo(np.int64).min))
    closed = bool(is_key[0] and np.all(stored >= latest_key) and all(p.clean for p in packets if p.key))
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
    mirrored: bool
    pixel_format: str
    colours: Colours
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
                rotation, mirrored = _orientation(frame)
                first = _First(
                    width=frame.width,
                    height=frame.height,
                    rotation=rotation,
                    mirrored=mirrored,
                    pixel_format=frame.format.name,
                    colours=_colours(frame, stream),
                    pts=frame.pts,
                    aspect=stream.sample_aspect_ratio,
                )
            if not everything:
                break
    if first is not None and first.colours.unknown:
        raise MediaError(
            f"video '{path}' has colours of a kind that is not read ({first.colours.unknown}); convert it to SDR "
            f"(BT.709) with the program that made it, or export it again as HDR10 or HLG"
        )
    if first is None:
        raise MediaError(f"video '{path}' holds no frame that can be decoded; it is damaged, copy or download it again")
    return first, stamps


def _orientation(frame: av.VideoFrame) -> tuple[int, bool]:
    """Degrees clockwise, and whether the image is mirrored before it is turned, by the file's display matrix."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")  # type: ignore[call-overload]
    if data is None:
        return 0, False
    (a, b), (c, d) = np.frombuffer(data, "<i4").reshape(3, 3)[:2, :2].astype(float).tolist()
    mirrored = a * d < b * c
    angle = math.degrees(math.atan2(-b, -a) if mirrored else math.atan2(b, a))
    return round(angle / 90) * 90 % 360, mirrored


def _colours(frame: av.VideoFrame, stream: VideoStream) -> Colours:
    context = stream.codec_context
    matrix, transfer, primaries = (int(x) for x in (frame.colorspace, context.color_trc, context.color_primaries))
    dolby = context.codec_tag in ("dvh1", "dvhe") and (matrix, transfer) == (2, 2)
    return Colours(matrix, transfer, primaries, dolby)


def _counted_frames(stamps: list[int | None], time_base: Fraction, guessed: Fraction) -> _Order:
    """A stream whose packets do not tell: the decoder's time stamps where they ascend, else the announced rate."""
    start = np.zeros(1, dtype=np.int64)
    known = [s for s in stamps if s is not None]
    if len(known) == len(stamps) and all(a < b for a, b in itertools.pairwise(known)):
        pts = np.array(known, dtype=np.int64)
        last = int(np.median(np.diff(pts))) if len(pts) > 1 else round(1 / (guessed * time_base))
        return _Order(pts, time_base, start, pts[:1], False, max(1, last))
    return _Order(np.arange(len(stamps), dtype=np.int64), 1 / Fraction(guessed), start, start, False, 1)
