"""Carrying the sound of one file into a video that is being written."""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path

import av
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.stream import VideoStream

from xdyna.core.errors import FileError
from xdyna.media.containers import open_container, video_stream
from xdyna.media.errors import MediaError, MediaWarning

# What players expect inside an mp4; everything else is encoded anew as AAC.
_COPIED = {"aac", "mp3", "mp3float", "ac3", "eac3", "alac"}
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)


class AudioTrack:
    """The sound of `source` as a stream of packets for `output`, in step with the video.

    Time 0 is the first video frame of the source. Sound before it is left out.

    Args:
        source: file with sound.
        output: container that is being written; a stream is added to it.

    Raises:
        MediaError: the source holds no sound that can be read.
    """

    def __init__(self, *, source: Path, output: OutputContainer) -> None:
        self._source = source
        self._output = output
        self._input = open_container(source)
        try:
            if not self._input.streams.audio:
                raise MediaError(f"'{source}' holds no sound")
            self._in: AudioStream = self._input.streams.audio[0]
            self._start = self._video_start()
            self._packets = self._copied() if self._in.codec_context.name in _COPIED else self._encoded()
            self._pending: av.Packet | None = next(self._packets, None)
        except (av.error.FFmpegError, OSError) as error:
            self._input.close()
            raise MediaError(f"the sound of '{source}' cannot be read ({error})") from error
        except FileError:
            self._input.close()
            raise

    def write_until(self, seconds: float) -> None:
        """Hand the packets that start before `seconds` (s of output time) to the container."""
        while self._pending is not None and self._time(self._pending) < seconds:
            packet = self._pending
            try:
                self._pending = next(self._packets, None)
            except av.error.FFmpegError as error:
                warnings.warn(f"the sound of '{self._source}' breaks off: {error}", MediaWarning, stacklevel=2)
                self._pending = None
            self._output.mux(packet)

    def close(self) -> None:
        """Close the source."""
        self._packets.close()
        self._input.close()

    def _video_start(self) -> Fraction:
        """When the first video frame of the source is shown, s on its own clock."""
        with open_container(self._source) as container:
            try:
                stream = video_stream(container, self._source)
            except FileError:  # sound alone: it starts with itself
                return (self._in.start_time or 0) * _clock(self._in)
            return (stream.start_time or 0) * _clock(stream)

    @staticmethod
    def _time(packet: av.Packet) -> float:
        return float((packet.pts or 0) * _clock(packet))

    def _copied(self) -> Generator[av.Packet, None, None]:
        stream = self._output.add_stream_from_template(self._in)
        return self._shifted(stream)

    def _shifted(self, stream: AudioStream) -> Generator[av.Packet, None, None]:
        offset = round(self._start / _clock(self._in))
        for packet in self._input.demux(self._in):
            if packet.size == 0 or packet.pts is None or packet.is_corrupt:
                continue
            packet.pts -= offset
            packet.dts = packet.pts if packet.dts is None else packet.dts - offset
            if packet.pts + (packet.duration or 0) <= 0 and not packet.is_discard:
                continue
            packet.stream = stream
            yield packet

    def _encoded(self) -> Generator[av.Packet, None, None]:
        context = self._in.codec_context
        rate = context.sample_rate if context.sample_rate in _AAC_RATES else 48000
        layout = "mono" if context.channels == 1 else "stereo"
        stream = self._output.add_stream("aac", rate=rate, layout=layout)
        stream.bit_rate = 96_000 if layout == "mono" else 160_000
        return self._reencoded(stream, AudioResampler(format="fltp", layout=layout, rate=rate), rate)

    def _reencoded(self, stream: AudioStream, resampler: AudioResampler, rate: int) -> Generator[av.Packet, None, None]:
        clock = Fraction(1, rate)
        for frame in self._decoded():
            for part in resampler.resample(frame):
                if part.pts is None:
                    continue
                part.pts = round((part.pts * _clock(part) - self._start) / clock)
                part.time_base = clock
                if part.pts >= 0:
                    yield from stream.encode(part)
        yield from stream.encode(None)

    def _decoded(self) -> Iterator[av.AudioFrame]:
        for packet in self._input.demux(self._in):
            try:
                yield from packet.decode()
            except av.error.InvalidDataError:  # one damaged packet
                continue


def _clock(timed: AudioStream | VideoStream | av.Packet | av.AudioFrame) -> Fraction:
    """Seconds per time stamp unit."""
    return timed.time_base or Fraction(1, 1_000_000)


def open_audio(source: str | os.PathLike[str], output: OutputContainer) -> AudioTrack | None:
    """The sound of `source`, or None with a warning where there is none that can be used."""
    try:
        return AudioTrack(source=Path(source), output=output)
    except FileError as error:
        warnings.warn(f"no sound is kept: {error}", MediaWarning, stacklevel=3)
        return None
