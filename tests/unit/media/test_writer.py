import os
import signal
import subprocess
import sys
import textwrap
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.audio.resampler import AudioResampler

from tests.tiers import long
from xdyna.core.errors import FileError
from xdyna.media import MediaError, MediaWarning, VideoWriter, probe, read_frames, unique_path

ROOT = Path(__file__).resolve().parents[3]


def write(path, frames, **kwargs):
    with VideoWriter(path, **{"fps": 25, "size": frames[0].shape[:2], **kwargs}) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def smooth(count=12, size=(64, 96)):
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    return [
        np.stack([127 + 90 * np.sin(x / 17 + k / 5), 127 + 90 * np.cos(y / 13), 60 + x + 0 * y], -1).astype(np.uint8)
        for k in range(count)
    ]


def sound_of(path):
    """(samples of the first channel, rate, time of the first sample)."""
    parts, start = [], None
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        to_float = AudioResampler(format="fltp", layout="stereo", rate=stream.rate)
        for frame in container.decode(stream):
            start = float(frame.pts * frame.time_base) if start is None else start
            parts.extend(part.to_ndarray()[0] for part in to_float.resample(frame))
        return np.concatenate(parts), stream.rate, start


def click_time(path):
    wave, rate, start = sound_of(path)
    return start + int(np.argmax(np.abs(wave) > 0.3 * np.abs(wave).max())) / rate


def stray_files(folder):
    return sorted(p.name for p in folder.iterdir())


# ---- images


def test_round_trip(tmp_path):
    frames = smooth()
    info = probe(write(tmp_path / "out.mp4", frames))
    assert (info.width, info.height, info.fps, info.frame_count, info.codec) == (96, 64, 25.0, 12, "h264")
    assert (info.has_audio, info.variable_rate, info.lost_frames) == (False, False, 0)
    back = list(read_frames(tmp_path / "out.mp4"))
    error = np.mean([(a.astype(float) - b) ** 2 for a, b in zip(frames, back, strict=True)])
    assert 10 * np.log10(255**2 / error) > 38
    assert stray_files(tmp_path) == ["out.mp4"]


def test_index_at_the_front_and_pixel_format(tmp_path):
    path = write(tmp_path / "out.mp4", smooth())
    data = path.read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 120, 40)])
def test_colours_are_bt709_by_the_formula(tmp_path, colour):
    """Stored Y, Cb, Cr against ITU-R BT.709-6, items 3.2-3.4, in narrow range; and the tags that say so."""
    frame = np.broadcast_to(np.array(colour, np.uint8), (32, 32, 3))
    path = write(tmp_path / "flat.mp4", [frame] * 3)
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0))
        planes = stored.to_ndarray()
        assert (int(stored.colorspace), int(stored.color_range)) == (1, 1)
        assert (int(stored.color_primaries), int(stored.color_trc)) == (1, 1)
    red, green, blue = np.array(colour) / 255
    luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    expected = (16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748)
    measured = (planes[:32].mean(), planes[32:40].mean(), planes[40:].mean())
    assert measured == pytest.approx(expected, abs=1.5)
    assert next(read_frames(path))[16, 16].astype(int) == pytest.approx(np.array(colour), abs=4)


@pytest.mark.parametrize("fps", [8, 12.5, 15, 24000 / 1001, 29.97002997, Fraction(25, 3), 60, 0.5])
def test_rates(tmp_path, fps):
    info = probe(write(tmp_path / "out.mp4", smooth(10), fps=fps))
    assert info.fps == pytest.approx(float(fps), rel=1e-6)
    assert info.duration == pytest.approx(10 / float(fps), rel=1e-6)


@pytest.mark.long
def test_same_input_same_bytes(tmp_path, make_sound):
    source = make_sound("source.mkv", codec="pcm_s16le")
    first = write(tmp_path / "first.mp4", smooth(30), audio_from=source).read_bytes()
    time.sleep(1.1)  # a time stamp of 1 s resolution would show
    second = write(tmp_path / "second.mp4", smooth(30), audio_from=source).read_bytes()
    assert first == second
    assert write(tmp_path / "third.mp4", smooth(31)[1:], audio_from=source).read_bytes() != first
    # Encoders with hidden state (threads, memory never written) differ only now and then.
    again = {write(tmp_path / f"{k}.mp4", smooth(30), audio_from=source).read_bytes() for k in range(12)}
    assert again == {first}


def test_odd_sizes_are_padded_by_repetition(tmp_path):
    frame = smooth(1, (33, 47))[0]
    writer = VideoWriter(tmp_path / "odd.mp4", fps=8, size=(33, 47))
    assert writer.encoded_size == (34, 48)
    with writer:
        writer.write(frame)
    back = next(read_frames(tmp_path / "odd.mp4")).astype(int)
    assert back.shape == (34, 48, 3)
    assert np.abs(back[33] - back[32]).max() <= 12
    assert np.abs(back[:33, :47] - frame).mean() < 4


def test_one_frame(tmp_path):
    assert probe(write(tmp_path / "one.mp4", smooth(1))).frame_count == 1


# ---- sound


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("in.mp4", "aac"),
        ("in.mkv", "aac"),
        ("in.ts", "aac"),
        ("in.mkv", "libmp3lame"),
        ("in.mkv", "pcm_s16le"),
        ("in.mkv", "libopus"),
        ("in.mkv", "flac"),
    ],
)
def test_sound_is_kept_in_time(tmp_path, make_sound, name, codec):
    rate = 48000 if codec == "libopus" else 44100
    source = make_sound(name, codec=codec, rate=rate, seconds=2.0, click=1.0)
    path = write(tmp_path / "out.mp4", smooth(50), audio_from=source)
    info = probe(path)
    assert info.has_audio
    assert info.duration == pytest.approx(2.0)
    one_frame = 1024 / rate
    wave, _, start = sound_of(path)
    assert start + len(wave) / rate == pytest.approx(2.0, abs=one_frame)
    assert click_time(path) == pytest.approx(click_time(source) - _video_start(source), abs=one_frame / 2)
    with av.open(str(path)) as container:
        kept = container.streams.audio[0].codec_context.name
    assert kept == ("mp3float" if codec == "libmp3lame" else "aac")


def _video_start(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return float((stream.start_time or 0) * stream.time_base)


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
@pytest.mark.parametrize(("frames", "duration", "expected"), [(25, None, 1.0), (25, 0.5, 0.5), (100, None, 2.0)])
def test_sound_is_cut_at_the_end(tmp_path, make_sound, codec, frames, duration, expected):
    source = make_sound("in.mkv", codec=codec, seconds=2.0, click=0.25)
    path = write(tmp_path / "out.mp4", smooth(frames), audio_from=source, duration=duration)
    with av.open(str(path)) as container:
        end = max(
            float((p.pts + p.duration) * p.time_base) for p in container.demux(audio=0) if p.pts is not None and p.size
        )
    assert end == pytest.approx(expected, abs=1024 / 44100 + 1e-3)
    assert probe(path).duration == pytest.approx(frames / 25)


def test_copied_sound_is_bit_exact(tmp_path, make_sound):
    source = make_sound("in.mp4")
    path = write(tmp_path / "out.mp4", smooth(50), audio_from=source)

    def packets(file):
        with av.open(str(file)) as container:
            return [bytes(p) for p in container.demux(audio=0) if p.size]

    kept = packets(path)
    assert len(kept) > 80
    assert kept == packets(source)[: len(kept)]


def test_silent_source_and_broken_sound(tmp_path, make_video, make_sound):
    with pytest.warns(MediaWarning, match="no sound"):
        path = write(tmp_path / "a.mp4", smooth(), audio_from=make_video())
    assert not probe(path).has_audio
    (tmp_path / "text.wav").write_text("nothing to hear")
    with pytest.warns(MediaWarning, match="no sound is kept"):
        path = write(tmp_path / "b.mp4", smooth(), audio_from=tmp_path / "text.wav")
    assert probe(path).frame_count == 12


def test_sound_alone_may_be_the_source(tmp_path, make_sound):
    source = make_sound("song.wav", codec="pcm_s16le", video=False, click=1.0)
    path = write(tmp_path / "out.mp4", smooth(50), audio_from=source)
    assert click_time(path) == pytest.approx(1.0, abs=0.012)


# ---- nothing half-written


def test_existing_file_is_refused_before_any_work(tmp_path):
    path = tmp_path / "out.mp4"
    path.write_bytes(b"precious")
    with pytest.raises(FileError, match=r"exists already.*overwrit"):
        VideoWriter(path, fps=8, size=(32, 32)).__enter__()
    assert path.read_bytes() == b"precious"
    write(path, smooth(), overwrite=True)
    assert probe(path).frame_count == 12
    assert stray_files(tmp_path) == ["out.mp4"]


def test_a_video_that_appears_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "out.mp4"
    message = r"kept as .*out_2\.mp4"
    with pytest.raises(FileError, match=message), VideoWriter(path, fps=8, size=(64, 96)) as writer:  # noqa: PT012
        for frame in smooth():
            writer.write(frame)
        path.write_bytes(b"precious")
    assert path.read_bytes() == b"precious"
    assert probe(tmp_path / "out_2.mp4").frame_count == 12
    assert stray_files(tmp_path) == ["out.mp4", "out_2.mp4"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MediaError])
def test_any_exception_leaves_nothing(tmp_path, error, make_sound):
    source = make_sound("in.mp4")
    folder = tmp_path / "new" / "folder"
    with (  # noqa: PT012
        pytest.raises(error),
        VideoWriter(folder / "out.mp4", fps=25, size=(64, 96), audio_from=source) as writer,
    ):
        for frame in smooth(8):
            writer.write(frame)
        assert len(stray_files(folder)) == 1
        raise error("stop")
    assert stray_files(folder) == []


def test_an_existing_file_survives_a_failed_overwrite(tmp_path):
    path = write(tmp_path / "out.mp4", smooth())
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, fps=8, size=(64, 96), overwrite=True) as writer:  # noqa: PT012
        writer.write(smooth()[0])
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert stray_files(tmp_path) == ["out.mp4"]


def test_no_frames_wrong_frames_wrong_arguments(tmp_path):
    path = tmp_path / "out.mp4"
    with pytest.raises(FileError, match="no frame was written"), VideoWriter(path, fps=8, size=(32, 32)):
        pass
    for frame in (np.zeros((32, 33, 3), np.uint8), np.zeros((32, 32, 3), np.float32), np.zeros((32, 32), np.uint8)):
        with pytest.raises(FileError, match="expected uint8"), VideoWriter(path, fps=8, size=(32, 32)) as writer:
            writer.write(frame)
    for kwargs in ({"fps": 0}, {"fps": float("nan")}, {"fps": -3}, {"size": (0, 32)}, {"size": (32, 20000)}):
        with pytest.raises(FileError):
            VideoWriter(path, **{"fps": 8, "size": (32, 32), **kwargs})
    with pytest.raises(FileError, match="not open"):
        VideoWriter(path, fps=8, size=(32, 32)).write(np.zeros((32, 32, 3), np.uint8))
    assert stray_files(tmp_path) == []


@pytest.mark.parametrize(
    ("target", "pattern"),
    [("file.txt/out.mp4", "is a file, not a folder"), ("/proc/xdyna/out.mp4", "No such file|not permitted|denied")],
)
def test_folder_that_cannot_be_written(tmp_path, target, pattern):
    (tmp_path / "file.txt").write_text("a file, no folder")
    with pytest.raises(FileError, match=f"cannot be written: .*({pattern}).*choose a folder"):
        write(tmp_path / target, smooth())


def test_target_is_a_folder(tmp_path):
    with pytest.raises(FileError, match="is a folder"):
        write(tmp_path, smooth())


def _run(code, folder, **kwargs):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell ignores Ctrl-C in its background jobs, and what they start inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **kwargs,
    )


NOISE = """
    import resource, signal, sys, pathlib
    import numpy as np
    from xdyna.core.errors import FileError
    from xdyna.media import VideoWriter
    rng = np.random.default_rng(0)
    def write(name, count):
        with VideoWriter(pathlib.Path(sys.argv[1]) / name, fps=8, size=(256, 256)) as writer:
            for k in range(count):
                writer.write(rng.integers(0, 255, (256, 256, 3), dtype=np.uint8))
                print("frame", k, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are a POSIX feature")
@pytest.mark.parametrize("share", [0.002, 0.9, *long(0.1, 0.5, 0.99, 0.999)])
def test_full_disk(tmp_path, share):
    """Writing fails at many points (header, frames, trailer, moving the index): never a file, always a message."""
    code = (
        NOISE
        + f"""
    write("size.mp4", 12)
    size = pathlib.Path(sys.argv[1], "size.mp4")
    limit = int(size.stat().st_size * {share})
    size.unlink()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    rng = np.random.default_rng(0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        write("out.mp4", 12)
    except FileError as error:
        print("MESSAGE", error)
    """
    )
    process = _run(code, tmp_path)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    assert "MESSAGE" in output, output
    assert "full" in output
    assert "out.mp4" in output
    assert "Free some space" in output
    assert stray_files(tmp_path) == []


def test_interrupt_key_leaves_nothing(tmp_path):
    code = (
        NOISE
        + """
    try:
        write("out.mp4", 100000)
    except KeyboardInterrupt:
        print("INTERRUPTED")
    """
    )
    process = _run(code, tmp_path)
    for line in process.stdout:
        if line.startswith("frame 6"):
            assert len(stray_files(tmp_path)) == 1
            process.send_signal(signal.SIGINT)
            break
    assert "INTERRUPTED" in process.communicate(timeout=60)[0]
    assert stray_files(tmp_path) == []


def test_unique_path(tmp_path):
    wished = tmp_path / "out.mp4"
    assert unique_path(wished) == wished
    wished.touch()
    assert unique_path(wished) == tmp_path / "out_2.mp4"
    (tmp_path / "out_2.mp4").symlink_to(tmp_path / "nowhere")
    assert unique_path(wished) == tmp_path / "out_3.mp4"
    (tmp_path / "folder").mkdir()
    assert unique_path(tmp_path / "folder") == tmp_path / "folder_2"
