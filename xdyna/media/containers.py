"""Opening media files safely, and stepping through what is in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import av
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from xdyna.media.errors import MediaError

# Playlists (hls, concat, ...), drawings from text and single images are left out on purpose: they are no videos, and
# playlists could open other files.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpegtsraw,mpeg,mpegvideo,m4v,h264,hevc,flv,live_flv,ogg,asf,gif,apng,"
    "ivf,mxf,nut,dv,rm,wtv,yuv4mpegpipe,mp3,wav,flac,aac,w64,aiff"
)
EXPECTED = "expected a video file (mp4, mov, mkv, webm, avi, ...)"


# Tags that are no UTF-8 are no reason to refuse a video. PyAV 19 never raises for them, and has no such option.
_METADATA: dict[str, Any] = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}


def open_container(path: Path) -> InputContainer:
    """Open a local media file with the demuxers of `CONTAINERS` only.

    Raises:
        MediaError: the file is none of these, or its header is damaged or cut off.
    """
    try:
        return av.open(
            "file:" + os.path.abspath(path),
            mode="r",
            **_METADATA,
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
    images = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")
    if head.startswith(images) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return f"'{path}' is an image, not a video; {EXPECTED}"
    reason = str(getattr(error, "strerror", "") or error)
    return f"'{path}' is not a video that can be read ({reason}); {EXPECTED}"


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The stream that shows moving images (cover art is none).

    Raises:
        MediaError: there is none.
    """
    streams = [s for s in container.streams.video if not s.disposition & type(s.disposition).attached_pic]
    if not streams:
        if container.streams.audio:
            raise MediaError(f"'{path}' holds sound only, no video stream; {EXPECTED}")
        reason = "" if len(container.streams) else " (its data is missing, it may be cut off)"
        raise MediaError(f"'{path}' holds no video stream{reason}; {EXPECTED}")
    best = container.streams.best("video")
    stream = best if best in streams else streams[0]
    if stream.codec_context is None:
        raise MediaError(
            f"video '{path}' cannot be decoded: its codec is unknown here or its index is truncated; copy it again or "
            f"convert it to H.264"
        )
    return stream


def _alpha_decoder(stream: VideoStream) -> VideoCodecContext | None:
    """A decoder of VP8 and VP9 with transparency, which FFmpeg's own decoders leave out; None for other streams."""
    name = {"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(stream.codec_context.codec.canonical_name)
    if name is None or {k.lower(): v for k, v in stream.metadata.items()}.get("alpha_mode") != "1":
        return None
    try:
        return cast(VideoCodecContext, av.CodecContext.create(name, "r"))
    except (av.error.FFmpegError, ValueError) as error:
        raise MediaError(
            f"a video with transparency in {stream.codec_context.name} needs a PyAV that was built with libvpx, as its "
            f"wheels are; install one, or convert the video to ProRes 4444"
        ) from error


def decode_frames(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """Decode a stream in display order, stepping over packets that cannot be decoded."""
    packets = container.demux(stream)
    decoder = _alpha_decoder(stream) or stream.codec_context
    while True:
        try:
            packet = next(packets)
        except (StopIteration, av.error.FFmpegError):
            break
        if packet.is_corrupt:
            continue
        try:
            yield from decoder.decode(packet)
        except av.error.FFmpegError:  # one damaged packet; the next keyframe mends it
            continue
    try:
        yield from decoder.decode(None)
    except (av.error.FFmpegError, EOFError):
        return
