import itertools
import os
import struct
import warnings
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.tiers import long
from xdyna.media import (
    MediaError,
    MediaWarning,
    frame_times,
    natural_fps,
    probe,
    read_frames,
    resample_indices,
)
from xdyna.media.index import read_index
from xdyna.media.reading import decord_is_exact, read_decord, read_pyav

# Ways of storing the same 40 frames; every one has a trap for readers that count instead of looking at time stamps.
STORED = {
    "one keyframe": ("a.mp4", {}),
    "b-frames, short groups": ("b.mp4", {"options": {"g": "7", "bf": "3", "x264-params": "b-adapt=0"}}),
    "b-pyramid": ("c.mp4", {"options": {"g": "16", "bf": "4", "x264-params": "b-pyramid=normal:b-adapt=0"}}),
    "open groups": ("d.mp4", {"options": {"g": "8", "bf": "3", "x264-params": "open-gop=1:b-adapt=0"}}),
    "intra refresh": ("r.mp4", {"options": {"g": "10", "bf": "0", "x264-params": "intra-refresh=1"}}),
    "keyframes only": ("e.mp4", {"options": {"g": "1"}}),
    "matroska": ("f.mkv", {"options": {"g": "7", "bf": "2"}, "fps": 30}),
    "vp9 webm": ("g.webm", {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "lag-in-frames": "10", "g": "9"}}),
    "vp8 webm with hidden frames": (
        "h.webm",
        {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8", "b": "200k"}},
    ),
    "mpeg4 avi": ("i.avi", {"codec": "mpeg4", "options": {"bf": "2", "g": "9"}}),
    "h264 avi": ("j.avi", {"options": {"g": "9", "bf": "3"}}),
    "transport stream": ("k.ts", {"options": {"g": "9", "bf": "2"}}),
    "10 bit": ("l.mp4", {"pixels": "yuv420p10le"}),
    "4:4:4, odd size": ("m.mp4", {"pixels": "yuv444p", "size": (65, 129)}),
    "motion jpeg mov": ("n.mov", {"codec": "mjpeg", "pixels": "yuvj420p"}),
    "fragmented mp4": ("o.mp4", {"options": {"g": "9"}, "container_options": {"movflags": "frag_keyframe+empty_moov"}}),
}


@pytest.mark.parametrize("case", [*list(STORED)[::3], *long(*(case for k, case in enumerate(STORED) if k % 3))])
def test_every_frame_is_found_by_its_position(make_video, number_of, case):
    name, kwargs = STORED[case]
    path = make_video(name, **kwargs)
    info = probe(path)
    assert info.frame_count == 40
    assert (info.height, info.width) == kwargs.get("size", (64, 128))
    assert info.fps == pytest.approx(kwargs.get("fps", 25), rel=2e-3)
    assert not info.variable_rate
    assert not info.has_audio
    assert [number_of(frame) for frame in read_frames(path)] == list(range(40))

    scattered = [0, 0, 3, 9, 9, 10, 17, 25, 26, 38, 39]
    assert [number_of(frame) for frame in read_frames(path, scattered)] == scattered
    assert [number_of(next(read_frames(path, [k]))) for k in (39, 20, 1)] == [39, 20, 1]
    # Seeking alone, whichever reader serves the file by default.
    index = read_index(path)
    assert [number_of(next(read_pyav(index, [k]))) for k in range(40)] == list(range(40))


@pytest.mark.long
def test_decord_and_pyav_give_the_same_pixels(make_video):
    served = 0
    for name, kwargs in STORED.values():
        index = read_index(make_video(name, **kwargs))
        if not decord_is_exact(index):
            continue
        served += 1
        for wanted in (list(range(40)), [1, 8, 9, 30]):
            decord, pyav = list(read_decord(index, wanted)), list(read_pyav(index, wanted))
            assert len(decord) == len(pyav) == len(wanted)
            assert all(np.array_equal(a, b) for a, b in zip(decord, pyav, strict=True))
    assert served >= 5


@pytest.mark.parametrize("name", ["dance_1.mp4", "dance_2_pose.mp4"])
def test_real_video_matches_sequential_decoding(shared_dir, name):
    path = shared_dir / "data" / name
    wanted = [0, 1, 5, 97, 98, 250]
    with av.open(str(path)) as container:
        expected = [
            f.to_ndarray(format="rgb24")
            for k, f in zip(range(251), container.decode(video=0), strict=False)
            if k in wanted
        ]
    index = read_index(path)
    for frames in (read_frames(path, wanted), read_pyav(index, wanted), read_decord(index, wanted)):
        assert all(np.array_equal(a, b) for a, b in zip(frames, expected, strict=True))
    info = probe(path)
    assert (info.width, info.height, info.fps) == (512, 896, 8.0)
    assert info.frame_count == (571 if "1" in name else 594)
    assert info.duration == pytest.approx(info.frame_count / 8)


def test_seeking_saves_decoding(make_video, monkeypatch):
    """From frame 1 to frame 38 of groups of 5: what lies between is not decoded."""
    from xdyna.media import reading

    decoded = []
    original = reading.decode_frames

    def counting(*args):
        for frame in original(*args):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(reading, "decode_frames", counting)
    index = read_index(make_video(options={"g": "5", "bf": "0"}))
    assert len(list(read_pyav(index, [1, 38]))) == 2
    assert len(decoded) <= 12


def test_decord_failure_falls_back_in_the_middle(make_video, number_of, monkeypatch):
    path = make_video()
    import decord

    original = decord.VideoReader.get_batch

    def failing(self, indices):
        if max(indices) >= 16:
            raise decord.DECORDError("cannot go on")
        return original(self, indices)

    monkeypatch.setattr(decord.VideoReader, "get_batch", failing)
    monkeypatch.setattr("xdyna.media.reading.BATCH_BYTES", 0)  # batches of 8 frames
    assert decord_is_exact(read_index(path))
    assert len(list(read_decord(read_index(path), list(range(40))))) == 16
    assert [number_of(frame) for frame in read_frames(path)] == list(range(40))


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_is_applied(make_video, frame_of, rotation):
    plain = next(read_frames(make_video("plain.mp4", count=2)))
    path = make_video("turned.mp4", count=2, rotation=rotation)
    info = probe(path)
    assert info.rotation == rotation
    assert (info.height, info.width) == ((128, 64) if rotation != 180 else (64, 128))
    turned = next(read_frames(path))
    clockwise = {90: plain.transpose(1, 0, 2)[:, ::-1], 180: plain[::-1, ::-1], 270: plain.transpose(1, 0, 2)[::-1]}
    assert np.array_equal(turned, clockwise[rotation])


@pytest.mark.parametrize(
    "matrix",
    [
        m
        for m in itertools.product((-1, 0, 1), repeat=4)
        if abs(m[0] * m[3] - m[1] * m[2]) == 1 and abs(sum(map(abs, m))) == 2
    ],
)
def test_all_rotations_and_mirrors_of_the_display_matrix(make_video, frame_of, matrix):
    """The eight of ISO 14496-12, 8.3.2, written into the header by hand; pixels are moved one by one here."""
    path = make_video(count=2, size=(16, 128), options={"qp": "0"}, pixels="yuv444p")
    stored = next(read_frames(path))
    a, b, c, d = matrix
    y, x = np.mgrid[:16, :128]
    there = np.stack([b * x + d * y, a * x + c * y])  # row, column
    there -= there.min(axis=(1, 2), keepdims=True)
    expected = np.zeros((*(there.max(axis=(1, 2)) + 1), 3), np.uint8)
    expected[there[0], there[1]] = stored
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 4 + 4 + 20 + 16
    assert struct.unpack(">9i", data[at : at + 36])[0] == 65536
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    info = probe(path)
    assert (info.height, info.width) == expected.shape[:2]
    assert np.array_equal(next(read_frames(path)), expected)


def test_pixel_aspect_is_made_square(make_video):
    path = make_video(count=3, aspect=Fraction(3, 2))
    info = probe(path)
    assert (info.width, info.height) == (192, 64)
    assert next(read_frames(path)).shape == (64, 192, 3)


def test_variable_rate_keeps_its_times(make_video, number_of):
    steps = np.random.default_rng(0).integers(1, 7, 39)
    pts = [0, *np.cumsum(steps).tolist()]
    for name in ("vfr.mp4", "vfr.mkv"):
        path = make_video(name, pts=pts)
        assert frame_times(path) == pytest.approx(np.array(pts) / 25, abs=6e-4)
        info = probe(path)
        assert info.variable_rate
        assert info.fps == pytest.approx(39 / frame_times(path)[-1]), "no distance is usual: the average"
        assert [number_of(f) for f in read_frames(path, [0, 20, 39])] == [0, 20, 39]


def _lost_at_the_end(rng):
    return [*range(17), 18], 8, 8


def _phone(rng):
    """30 a second with jitter in units of 1 / 90000 s; some frames were dropped in the dark."""
    kept = np.setdiff1d(np.arange(200), rng.integers(1, 199, 3))
    return (kept * 3000 + rng.integers(-80, 80, len(kept)) + 80).tolist(), 90000, 30


def _twice_each_hole(rng):
    return np.setdiff1d(np.arange(60), np.arange(5, 60, 4)).tolist(), 25, 25


@pytest.mark.parametrize("name", ["f.mp4", "f.mkv"])
@pytest.mark.parametrize("clip", [_lost_at_the_end, _phone, _twice_each_hole])
def test_the_rate_is_the_usual_one(make_video, clip, name):
    """Frames lost at a cut or dropped by a phone do not lower the rate, and the steps stay even."""
    pts, base, fps = clip(np.random.default_rng(0))
    path = make_video(name, count=len(pts), fps=base, pts=pts, options={"bf": "0"})
    assert probe(path).fps == pytest.approx(fps, rel=1e-9)
    assert natural_fps(probe(path).fps) == natural_fps(fps)


@pytest.mark.parametrize("name", ["f.mp4", "f.mkv", "f.mov", "f.ts"])
@pytest.mark.parametrize("rate", [Fraction(24000, 1001), 24, 25, Fraction(30000, 1001), 30, 50, Fraction(60000, 1001)])
def test_common_rates_are_exact(make_video, rate, name):
    path = make_video(name, count=80, fps=rate, size=(32, 32), options={"preset": "ultrafast"})
    assert Fraction(probe(path).fps).limit_denominator(1001) == rate


def test_cut_by_stream_copy(shared_dir):
    path = shared_dir / "cases/trimmed_by_stream_copy.mp4"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    info = probe(path)
    assert (info.fps, info.frame_count) == (8.0, 18)
    shown = resample_indices(frame_times(path), duration=info.duration, fps=8)
    assert shown.tolist() == [*range(17), 16, 17], "the lost frame repeats the one before it"


def _shifted(packet, number):
    packet.pts = packet.dts = packet.pts - 400


def _doubled(packet, number):
    if number == 6:
        packet.pts = packet.dts = packet.pts - 100


@pytest.mark.parametrize("change", [_shifted, _doubled], ids=["negative", "repeated"])
def test_odd_time_stamps(tmp_path, frame_of, number_of, change):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuvj420p"
        stream.time_base = Fraction(1, 1000)
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(frame_of(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            for packet in stream.encode(frame):
                packet.pts, packet.dts, packet.time_base = number * 100, number * 100, Fraction(1, 1000)
                change(packet, number)
                container.mux(packet)
    info = probe(path)
    assert (info.frame_count, info.fps, info.lost_frames) == (12, pytest.approx(10), 0)
    assert frame_times(path) == pytest.approx(np.arange(12) / 10)
    assert [number_of(frame) for frame in read_frames(path)] == list(range(12))


@pytest.mark.parametrize("first", ["cover", "video"])
def test_cover_art_and_further_tracks_are_not_shown(tmp_path, frame_of, number_of, first):
    """The cover is larger than the video, and may stand before it; a second track is smaller."""
    path = tmp_path / "a.mp4"
    cover = av.VideoFrame.from_ndarray(np.full((256, 256, 3), 90, np.uint8), format="rgb24")
    with av.open(str(path), "w") as container:
        made = {}
        for name in ("cover", "video", "small") if first == "cover" else ("video", "small", "cover"):
            made[name] = container.add_stream("png" if name == "cover" else "libx264", rate=10)
            size, pixels = {"cover": ((256, 256), "rgb24"), "video": ((64, 128), "yuv420p")}.get(
                name, ((32, 64), "yuv420p")
            )
            (made[name].height, made[name].width), made[name].pix_fmt = size, pixels
        made["cover"].disposition = 1024  # attached image
        cover.pts = 0
        container.mux(made["cover"].encode(cover))
        for number in range(5):
            for name, size in (("video", (64, 128)), ("small", (32, 64))):
                frame = av.VideoFrame.from_ndarray(frame_of(number), format="rgb24")
                frame = frame.reformat(width=size[1], height=size[0], format="yuv420p")
                frame.pts = number
                container.mux(made[name].encode(frame))
        for stream in made.values():
            container.mux(stream.encode(None))
    info = probe(path)
    assert (info.width, info.height, info.frame_count) == (128, 64, 5)
    assert [number_of(frame) for frame in read_frames(path)] == list(range(5))


def test_first_time_is_zero_where_the_file_starts_late(make_video, number_of):
    path = make_video("late.mkv", pts=[k + 50 for k in range(40)])
    assert probe(path).lost_frames == 0
    assert frame_times(path)[0] == 0
    assert frame_times(path)[-1] == pytest.approx(39 / 25, abs=2e-3)
    assert [number_of(f) for f in read_frames(path)] == list(range(40))


def test_edit_list_hides_frames(make_video, number_of, tmp_path):
    """An edit list that starts at frame 10 (made by copying from there with the group's start kept)."""
    source = make_video("long.mp4", options={"g": "40", "bf": "0"})
    data = bytearray(source.read_bytes())
    at = data.find(b"elst")
    version, entries = data[at + 4], struct.unpack(">I", data[at + 8 : at + 12])[0]
    assert (version, entries) == (0, 1)
    timescale = Fraction(1, read_index(source).time_base)
    struct.pack_into(">Ii", data, at + 12, 1200, int(10 * timescale / 25))  # 30 frames (ms), from frame 10 on
    path = tmp_path / "edited.mp4"
    path.write_bytes(data)
    assert (probe(path).frame_count, probe(path).lost_frames) == (30, 0)
    assert [number_of(f) for f in read_frames(path)] == list(range(10, 40))
    assert number_of(next(read_frames(path, [7]))) == 17


def test_hidden_frames_are_not_counted(make_video, number_of, tmp_path):
    """VP8 frames with show_frame = 0 (RFC 6386, 9.1) are packets with a time of their own, but no image."""
    source = make_video("a.webm", codec="libvpx", options={"cpu-used": "8", "g": "40"})
    path = tmp_path / "hidden.webm"
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for number, packet in enumerate(old.demux(video=0)):
            if not packet.size:
                continue
            data = bytearray(bytes(packet))
            if number in (5, 20):
                data[0] &= ~0x10
            copy = av.Packet(bytes(data))
            copy.pts, copy.dts, copy.time_base, copy.stream = packet.pts, packet.dts, packet.time_base, stream
            copy.is_keyframe = packet.is_keyframe
            new.mux(copy)
    shown = [k for k in range(40) if k not in (5, 20)]
    assert probe(path).frame_count == 38
    assert frame_times(path) == pytest.approx(np.array(shown) / 25, abs=2e-3)
    assert [number_of(frame) for frame in read_frames(path)] == shown
    assert number_of(next(read_frames(path, [30]))) == 32


def test_one_frame(make_video, number_of):
    path = make_video(count=1)
    info = probe(path)
    assert (info.frame_count, info.variable_rate) == (1, False)
    assert info.duration == pytest.approx(0.04)
    assert frame_times(path).tolist() == [0.0]
    assert len(list(read_frames(path, [0, 0, 0]))) == 3


def test_repeated_frames_are_arrays_of_their_own(make_video):
    first, second = read_frames(make_video(), [5, 5])
    first[:] = 0
    assert second.any()


def test_a_changed_file_is_indexed_again(make_video):
    path = make_video(count=5)
    assert probe(path).frame_count == 5
    make_video(count=9)
    assert probe(path).frame_count == 9


# ---- bad input


def _check(path, pattern, function=probe):
    with pytest.raises(MediaError, match=pattern):
        function(path)


@pytest.mark.parametrize("function", [probe, frame_times, read_frames])
def test_missing(tmp_path, function):
    _check(tmp_path / "no.mp4", "does not exist", function)


def test_folder_empty_link_and_fifo(tmp_path):
    _check(tmp_path, "is a folder")
    (tmp_path / "empty.mp4").write_bytes(b"")
    _check(tmp_path / "empty.mp4", r"empty \(0 bytes\)")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "nowhere.mp4")
    _check(tmp_path / "link.mp4", "broken link")
    os.mkfifo(tmp_path / "pipe.mp4")
    _check(tmp_path / "pipe.mp4", "not a regular file")


def test_unreadable(make_video, monkeypatch):
    path = make_video()

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    _check(path, "cannot be read: Permission denied; check its permissions")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("text.mp4", b"this is no video\n" * 50),
        ("page.mp4", b"<!DOCTYPE html><html><body>404</body></html>" * 20),
        ("noise.mp4", np.random.default_rng(0).bytes(20000)),
        ("list.m3u8", b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n"),
        ("list.ffconcat", b"ffconcat version 1.0\nfile 'video.mp4'\n"),
        ("words.srt", b"1\n00:00:00,000 --> 00:00:01,000\nhello\n\n"),
        ("zeros.mp4", bytes(5000)),
    ],
)
def test_not_a_video(tmp_path, make_video, name, content):
    make_video()
    (tmp_path / name).write_bytes(content)
    _check(tmp_path / name, "is not a video|holds no")


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp", "tiff"])
def test_a_image_is_no_video(tmp_path, kind):
    from PIL import Image

    path = tmp_path / f"image.{kind}"
    Image.new("RGB", (64, 64), (200, 30, 30)).save(path)
    _check(path, "is an image, not a video")


def test_audio_only(make_sound):
    for name, codec in (("a.m4a", "aac"), ("b.wav", "pcm_s16le"), ("c.mp3", "libmp3lame")):
        _check(make_sound(name, codec=codec, video=False), "sound only")


def test_zero_frames(tmp_path):
    path = tmp_path / "none.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        container.start_encoding()
    _check(path, "zero frames|no video stream")


def test_mp4_cut_before_its_index(make_video):
    path = make_video()  # the index is at the end
    data = path.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        _check(path, "truncated or damaged: its index")


def _refused(path):
    try:
        probe(path)
    except MediaError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ["cut.mp4", *long("cut.mkv", "cut.ts", "cut.webm", "cut.avi")])
def test_cut_tail_keeps_what_can_be_read(make_video, number_of, name):
    kwargs = {"options": {"g": "5", "bf": "2"}}
    if name.endswith("webm"):
        kwargs = {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "g": "5"}}
    path = make_video(name, container_options={"movflags": "faststart"} if name.endswith("mp4") else None, **kwargs)
    data = path.read_bytes()
    readable = []
    for share in np.linspace(0.02, 0.999, 25):
        path.write_bytes(data[: int(len(data) * share)])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            message = _refused(path)
            if message:
                assert not readable, "a longer file must not be worse than a shorter one"
                assert any(word in message for word in ("cut", "trunc", "not a video"))
                continue
            info = probe(path)
            numbers = [number_of(frame) for frame in read_frames(path)]
        assert len(numbers) == info.frame_count
        readable.append(info.frame_count)
        sure = max(0, info.frame_count - 4)  # the last group may lack what its B-frames lean on
        assert numbers[:sure] == list(range(sure))
        if info.lost_frames:
            assert any(issubclass(w.category, MediaWarning) and "cannot be read" in str(w.message) for w in caught)
        if name.endswith(("mp4", "webm")):
            assert info.lost_frames == 40 - info.frame_count
    assert readable[-1] >= 38
    assert readable[0] < 12


def test_a_cut_tail_is_told_once(make_video, tmp_path):
    path = make_video("cut.mp4", container_options={"movflags": "faststart"}, options={"g": "5", "bf": "0"})
    data = path.read_bytes()

    def told():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            probe(path)
            frame_times(path)
            list(read_frames(path))
            probe(os.path.relpath(path))
        return [str(w.message) for w in caught if "is cut off or damaged" in str(w.message)]

    path.write_bytes(data[: len(data) // 2])
    assert len(told()) == 1
    assert told() == []
    for k in range(20):  # more files than indices are remembered
        (tmp_path / f"{k}.mp4").write_bytes(data)
        probe(tmp_path / f"{k}.mp4")
    assert told() == []
    path.write_bytes(data[: len(data) * 2 // 3])
    assert len(told()) == 1, "another file under the name"
    path.write_bytes(data[: len(data) * 3 // 4])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(MediaWarning):
                probe(path)


def test_damage_in_the_middle_neither_hangs_nor_shifts(make_video, number_of):
    path = make_video(container_options={"movflags": "faststart"}, options={"g": "8", "bf": "0"})
    data = path.read_bytes()
    start = data.find(b"mdat") + 1000
    rng = np.random.default_rng(3)
    for _ in range(6):
        broken = bytearray(data)
        at = int(rng.integers(start, len(data) - 80))
        broken[at : at + 80] = rng.bytes(80)
        path.write_bytes(broken)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            numbers = [number_of(frame) for frame in read_frames(path)]
        assert len(numbers) == 40
        wrong = [k for k, number in enumerate(numbers) if number != k]
        assert not wrong or wrong[-1] // 8 - wrong[0] // 8 <= 1  # at a border two groups are hit


def test_nothing_decodable(make_video):
    path = make_video(container_options={"movflags": "faststart"})
    data = path.read_bytes()
    start = data.find(b"mdat") + 4
    path.write_bytes(data[:start] + bytes(len(data) - start))
    _check(path, "no frame that can be decoded")


def test_bad_positions(make_video):
    path = make_video()
    for wanted, pattern in (([40], "frame 40 .* numbered 0 to 39"), ([-1, 2], "frame -1"), ([3, 2], "must ascend")):
        with pytest.raises(MediaError, match=pattern):
            read_frames(path, wanted)
    assert list(read_frames(path, [])) == []


def test_odd_names(make_video, tmp_path):
    source = make_video()
    for name in ("concat:x|y.mp4", "a b%03d'ü.mp4", "-i.mp4", "data:,x.mp4"):
        path = tmp_path / name
        path.write_bytes(source.read_bytes())
        assert probe(path).frame_count == 40
        assert len(list(read_frames(path, [1, 30]))) == 2


# ---- time


def _brute_force(times, duration, fps):
    shown = []
    for k in range(max(1, int(duration * fps + 0.5))):
        shown.append(max((i for i, t in enumerate(times) if t <= k / fps + 1e-3), default=0))
    return shown


def test_resample_against_brute_force():
    rng = np.random.default_rng(1)
    for _ in range(60):
        times = np.concatenate([[0], np.cumsum(rng.uniform(0.005, 0.2, rng.integers(0, 50)))])
        duration, fps = float(times[-1] + 0.05), float(rng.choice([1, 7.5, 8, 15, 24000 / 1001, 60]))
        indices = resample_indices(times, duration=duration, fps=fps)
        assert indices.tolist() == _brute_force(times, duration, fps)
        assert indices.dtype == np.int64
        assert len(indices) == max(1, round(duration * fps + 1e-12))


def test_resample_at_the_same_rate_is_the_identity():
    for fps in (8, 25, 30, 60, 30000 / 1001):
        times = np.arange(100) / fps
        assert resample_indices(times, duration=100 / fps, fps=fps).tolist() == list(range(100))
        rounded = np.round(times, 3)  # as Matroska stores them
        assert resample_indices(rounded, duration=100 / fps, fps=fps).tolist() == list(range(100))
    assert resample_indices(np.arange(100) / 30, duration=100 / 30, fps=15, max_frames=4).tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize(
    "kwargs", [{"fps": 0}, {"fps": float("nan")}, {"duration": 0}, {"duration": -1}, {"max_frames": 0}, {"times": []}]
)
def test_resample_refuses(kwargs):
    with pytest.raises(MediaError):
        resample_indices(**{"times": np.arange(4) / 8, "duration": 0.5, "fps": 8, **kwargs})


@pytest.mark.parametrize(
    ("source", "limit", "expected"),
    [
        (8.0, 15, Fraction(8)),
        (15, 15, Fraction(15)),
        (16, 15, Fraction(8)),
        (25, 15, Fraction(25, 2)),
        (30, 15, Fraction(15)),
        (60, 15, Fraction(15)),
        (29.97002997, 15, Fraction(15000, 1001)),
        (24000 / 1001, 15, Fraction(12000, 1001)),
        (59.94005994, 15, Fraction(15000, 1001)),
        (120, 7, Fraction(120, 18)),
    ],
)
def test_natural_fps(source, limit, expected):
    assert natural_fps(source, limit) == expected
