"""Live animation: what is dropped, what is held, what comes in and goes out, and that nothing ever hangs."""

import dataclasses
import io
import json
import os
import socket
import threading
import time

import numpy as np
import pytest
import torch

from tests.process.small import SMALL, make_conditions, standing_figure
from xdyna.config.contract import ConditionContract
from xdyna.config.infer import InferConfig
from xdyna.config.live import LiveConfig
from xdyna.core.errors import ConfigError, UsageError
from xdyna.core.progress import Watch
from xdyna.media.folder import frame_files
from xdyna.pipelines.crop import published_crop
from xdyna.pipelines.driving import open_driving
from xdyna.pipelines.live import session as sessions
from xdyna.pipelines.live import sources
from xdyna.pipelines.live.backlog import Backlog, LiveInput
from xdyna.pipelines.live.controls import LiveControls
from xdyna.pipelines.live.session import LiveSession, live
from xdyna.pipelines.live.sinks import CallbackSink, RawSink
from xdyna.pipelines.live.sources import CameraSource, JsonSource, LineReader
from xdyna.pipelines.live.window import generator_of
from xdyna.pipelines.model import Model, load
from xdyna.pipelines.untrained import build_pipeline

REFERENCE = (np.indices((96, 64)).sum(0)[..., None] * np.array([1, 1, 0.5])).astype(np.uint8)
SETTINGS = LiveConfig(new=3, held=2, drop=False, every=0, device="cpu", dtype="float32", fps=10)
SIZE = (96, 64)


@pytest.fixture(scope="module")
def model() -> Model:
    pipeline = build_pipeline(SMALL, seed=0)
    for part in (pipeline.unet, pipeline.pose_controlnet):
        for p in part.parameters():
            if not p.any():  # output layers start at zero: nothing would depend on anything
                p.data = 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    return load(pipeline)


def figures(count: int) -> list[LiveInput]:
    track = standing_figure(frames=count)
    return [LiveInput(k / 10, 0.0, SIZE, sources._person_of(track, k)) for k in range(count)]


def at(arrived: float) -> LiveInput:
    return LiveInput(arrived, arrived, SIZE, ())


# --- when: no clock runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fps", "busy", "delay", "share", "worst"),
    [
        (8, 0.3, 0.3, 1.0, 1.0),
        (8, 0.72, 0.72, 1.0, 1.4),
        (8, 0.9, 0.9, 0.83, 2.0),
        (8, 1.5, 1.5, 0.5, 3.0),
        (30, 0.5, 0.5, 0.4, 2.0),
        (8, 0.7, 0.95, 1.0, 1.6),  # decoding beside the next window
        (10, 0.7, 0.95, 0.85, 2.0),
    ],
)
def test_latency_is_bounded_by_drops(fps: float, busy: float, delay: float, share: float, worst: float) -> None:
    """A minute of input against windows of 6, each `busy` s, pictures after `delay`: share made, largest latency."""
    backlog, arrivals, now = Backlog(latency=2.0, drop=True), [k / fps for k in range(int(60 * fps))], 0.0
    made: list[float] = []
    late, dropped, fed = [], 0, 0
    backlog.busy, backlog.delay = busy, delay
    while not (backlog.ended and not backlog.pending):
        while fed < len(arrivals) and arrivals[fed] <= now:
            backlog.pending.append(at(arrivals[fed]))
            fed += 1
        backlog.ended = fed == len(arrivals)
        if not backlog.ready(6, now):
            now = arrivals[fed] if fed < len(arrivals) else now + 0.01
            continue
        chosen, lost = backlog.take(6, now)
        late += [now + delay - item.arrived for item in chosen]
        now += busy
        backlog.took(busy)
        backlog.shown(delay)
        dropped += lost
        made += [item.arrived for item in chosen]
    assert made == sorted(set(made))  # in order, none twice
    assert len(made) + dropped == len(arrivals)
    assert len(made) / len(arrivals) == pytest.approx(share, abs=0.04)
    assert max(late) <= worst
    assert dropped == 0 if share == 1.0 else np.diff(made).max() <= busy


def test_a_window_waits_for_frames_but_not_for_ever() -> None:
    backlog = Backlog(latency=2.0, drop=True)
    assert not backlog.ready(3, 0.0)
    backlog.pending.extend([at(0.0), at(0.1)])
    assert not backlog.ready(3, 0.5)
    assert backlog.ready(3, 0.7)  # nothing came for half a second
    backlog.ended = True
    assert backlog.ready(3, 0.2)
    assert backlog.take(3, 0.2) == ([at(0.0), at(0.1)], 0)
    patient = Backlog(latency=0.1, drop=False)
    patient.pending.extend(at(k) for k in range(6))
    assert patient.full(3)
    assert patient.take(3, 1e6) == ([at(0), at(1), at(2)], 0)


# --- what -----------------------------------------------------------------------------------------------------------


def equations(scheduler, clean, noise, t):
    """DDIM's forward process by hand."""
    a = scheduler.alphas_cumprod[int(t)]
    return a.sqrt() * clean + (1 - a).sqrt() * noise


@pytest.mark.parametrize("held_as", ["noised", "clean"])
def test_held_frames_come_out_as_they_were_and_go_in_by_the_equation(model, held_as, monkeypatch) -> None:
    session = LiveSession(REFERENCE, model, dataclasses.replace(SETTINGS, held_as=held_as))
    seen, results = [], []
    predict, denoise = session.denoiser.denoiser.predict, session.denoiser.denoise

    def spy(noisy, t, *args, **options):
        seen.append((noisy.clone(), t))
        return predict(noisy, t, *args, **options)

    def keep(*args, **options):
        results.append((options["start"], denoise(*args, **options)))
        return results[-1][1]

    monkeypatch.setattr(session.denoiser.denoiser, "predict", spy)
    monkeypatch.setattr(session.denoiser, "denoise", keep)
    items = figures(11)
    shown = [session.window(items[:5]), session.window(items[5:8]), session.window(items[8:11])]
    assert [len(frames) for frames in shown] == [5, 3, 3]
    assert [start for start, _ in results] == [0, 3, 6]
    for number in (1, 2):
        start, latents = results[number]
        held = results[number - 1][1][:, :, -2:]
        assert torch.equal(latents[:, :, :2], held)
        assert not torch.equal(latents[:, :, 2:4], held)
        draws = []
        for index in (start, start + 1):
            generator = generator_of(42, index)
            torch.rand(held[:, :, 0].shape, generator=generator)
            draws.append(torch.randn(held[:, :, 0].shape, generator=generator))
        for noisy, t in seen[2 * number : 2 * number + 2]:
            expected = held
            if held_as == "noised":
                expected = equations(session.denoiser.scheduler, held, torch.stack(draws, 2), t)
            torch.testing.assert_close(noisy[:, :, :2], expected, rtol=1e-5, atol=1e-5)


def test_a_short_window_is_filled_and_the_next_goes_on_from_what_was_shown(model) -> None:
    session = LiveSession(REFERENCE, model, SETTINGS)
    items = figures(7)
    assert len(session.window(items[:1])) == 1
    assert session.wanted == 4  # one frame is held
    assert len(session.window(items[1:5])) == 4
    assert session.wanted == 3
    assert session._start == 3
    assert session._held.shape[2] == 2


class Scripted:
    """A source that gives frames with pauses."""

    name, fps, faces, dropped = "scripted", 10.0, False, 0

    def __init__(self, items, pause=0.0, error=None, forever=False):
        self.items, self.pause, self.error, self.forever = items, pause, error, forever

    def frames(self, ended):
        for k, item in enumerate(self.items):
            time.sleep(self.pause * (k % 3))
            yield dataclasses.replace(item, arrived=time.monotonic())
        if self.error is not None:
            raise self.error
        while self.forever and not ended.is_set():
            time.sleep(0.01)


def go(model, source, settings=SETTINGS, sink=None, cancel=None):
    frames: list[np.ndarray] = []
    session = LiveSession(REFERENCE, model, settings)
    sink = sink or CallbackSink(lambda frame, at: frames.append(frame))
    watch = Watch(cancel=cancel)
    cpu = torch.device("cpu")
    return sessions.run(session, source, sink, settings=settings, watch=watch, device=cpu), frames


def test_the_result_does_not_depend_on_when_frames_come(model) -> None:
    """Nothing is dropped: the same frames at once, and with pauses; the whole of the input is shown."""
    (first, _), at_once = go(model, Scripted(figures(12)))
    (second, _), slowly = go(model, Scripted(figures(12), pause=0.02))
    assert first.frames == second.frames == 12
    assert first.windows == 4  # 5, 3, 3, 1
    np.testing.assert_array_equal(at_once, slowly)
    other = dataclasses.replace(SETTINGS, seed=1)
    assert not np.array_equal(at_once, go(model, Scripted(figures(12)), other)[1])
    assert np.abs(np.diff(np.array(at_once, np.int16), axis=0)).max() > 0


def test_it_ends_whatever_happens(model, tmp_path) -> None:
    begin = time.monotonic()
    (report, error), frames = go(model, Scripted(figures(5), error=ValueError("unplugged")))
    assert (len(frames), str(error)) == (5, "unplugged")  # what came before is shown first
    shown: list[int] = []
    sink = CallbackSink(lambda frame, at: shown.append(1))
    (report, _), _ = go(model, Scripted(figures(6), forever=True), sink=sink, cancel=lambda: len(shown) >= 5)
    assert (report.frames, report.ended) == (5, "stopped")

    def gone(frame, at):
        raise BrokenPipeError(32, "Broken pipe")

    (report, error), _ = go(model, Scripted(figures(6), forever=True), sink=CallbackSink(gone))
    assert (error, report.ended) == (None, "nobody reads the output any more (Broken pipe)")
    assert time.monotonic() - begin < 120
    assert not [t for t in threading.enumerate() if t.name == "live source"]


def test_a_session_writes_its_files_and_their_manifest(model, tmp_path) -> None:
    """Frames that the input left out are filled, so that a second stays a second."""
    track = standing_figure(frames=9)
    settings = dataclasses.replace(SETTINGS, save="frames")
    given = dataclasses.replace(settings, fps=5.0)
    report = live(REFERENCE, track, out=tmp_path / "a", settings=given, model=model)
    assert len(frame_files(tmp_path / "a")) == report.frames == 5
    manifest = json.loads((tmp_path / "a.run.json").read_text())
    assert manifest["live"]["frames"] == 5
    assert manifest["live"]["ended"] == "the input ended"
    assert manifest["config"]["guidance"] == 7.5
    assert list(manifest["outputs"]) == ["a"]
    assert manifest["suitability"]["verdict"] == "unknown"
    with pytest.raises(ValueError, match="exists already"):
        live(REFERENCE, track, out=tmp_path / "a", settings=settings, model=model)
    stands: list[int] = []

    class Counting(CallbackSink):
        def write(self, frame, at, repeats):
            stands.append(repeats)

    items = [item for k, item in enumerate(figures(12)) if k not in (3, 4, 9)]
    go(model, Scripted(items), sink=Counting(lambda *_: None))
    assert stands == [1, 1, 1, 3, 1, 1, 1, 2, 1]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"held": 4}, ConfigError, "held: got 4, expected 0 to new = 3"),
        ({"face_source": "a.B"}, ConfigError, "give align=global"),
        ({"height": 30, "width": 32}, ConfigError, "nearest valid"),
        ({"new": 30}, UsageError, "know 24 frames"),
        ({"face": True}, UsageError, "the input has no faces"),
    ],
)
def test_settings_that_cannot_be_followed(model, changes, error, message) -> None:
    with pytest.raises(error, match=message):
        LiveSession(REFERENCE, model, dataclasses.replace(SETTINGS, **changes))


# --- controls -------------------------------------------------------------------------------------------------------


def controls(said, person=None, **changes) -> LiveControls:
    settings = dataclasses.replace(SETTINGS, **changes)
    crop = published_crop(REFERENCE.shape, (32, 32), face=False)
    return LiveControls(settings, ConditionContract(), crop, reference=SIZE, person=person, face=False, say=said.append)


@pytest.mark.parametrize("align", ["none", "global"])
def test_poses_are_those_of_a_whole_file(align) -> None:
    """Of a clip as long as the first window, where alignment has seen the same."""
    track, person = standing_figure(frames=6), figures(1)[0].people[0]
    person = dataclasses.replace(person, body=person.body * np.array([0.8, 0.8, 1], np.float32))
    driving = open_driving(track, fps=10)
    asked = InferConfig(align=align, fps=10)
    expected = make_conditions(
        driving, asked, reference=REFERENCE, size=(32, 32), face=False, cache_dir=None, person=person
    )
    images = controls([], person, align=align)(figures(6))
    np.testing.assert_array_equal(images["pose"], expected.pose)
    assert images["pose"].max() == 255


def test_a_lost_person_is_held_then_gone_and_said() -> None:
    said: list[str] = []
    make = controls(said, max_gap=2)
    items = [dataclasses.replace(item, people=() if 2 <= k < 6 else item.people) for k, item in enumerate(figures(8))]
    poses = make(items)["pose"]
    drawn = poses.any(axis=(1, 2, 3))
    assert drawn.tolist() == [True, True, True, True, False, False, True, True]
    np.testing.assert_array_equal(poses[2], poses[1])
    unknown = "suitability: unknown (nobody is known in the reference image)"
    assert said == ["at 0.2 s the person is lost", "at 0.6 s the person is back", unknown]
    assert make.lost == 4
    with pytest.raises(UsageError, match="changed its size"):
        make([dataclasses.replace(items[0], size=(10, 10))])


@pytest.mark.parametrize(("align", "verdict"), [("none", "refuse"), ("global", "warn")])
def test_how_well_input_and_image_suit_each_other_is_said_once(align, verdict) -> None:
    """By the first frames that show the person; never refused. Aligned, 22 px are still few."""
    said: list[str] = []
    items = figures(9)
    person = items[0].people[0]
    small = np.float32([0.3, 0.3, 1])
    items = [
        dataclasses.replace(item, people=(dataclasses.replace(one, body=one.body * small, face=one.face * small),))
        for item in items
        for one in item.people
    ]
    make = controls(said, person, align=align, align_frames=4)
    make(items[:3])
    assert make.suitability is None
    make(items[3:6])
    make(items[6:])
    make.judge()
    verdicts = [text for text in said if text.startswith("suitability")]
    assert len(verdicts) == 1
    assert f"({verdict};" in verdicts[0]
    assert make.suitability.verdict == verdict
    assert any("0.30 times as large" in text for text in said) == (align == "none")
    assert len(make.suitability.checks) == (8 if align == "none" else 7)
    short = controls(said := [], person)
    short(figures(2))
    assert said == []
    short.judge()
    assert said[0].startswith("suitability: ")


# --- sources --------------------------------------------------------------------------------------------------------


def line(k: int = 0, **more) -> dict:
    body = standing_figure(frames=k + 1).body[k]
    return {"size": [96, 64], "body": body.tolist(), **more}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "it is no JSON"),
        ("[1]", 'expected an object with "body" or "joints"'),
        ('{"body": null}', 'the first line needs "size"'),
        ('{"size": [0, 2], "body": null}', "size is"),
        ('{"size": [9, 9], "body": [[1, 2, 3]]}', r"body has shape \(1, 3\), expected \(18, 3\)"),
        ('{"size": [9, 9], "body": "x"}', "body is not made of numbers"),
        ('{"size": [9, 9], "joints": {"99": [1, 2]}}', "joint '99' is unknown"),
        ('{"size": [9, 9], "joints": {"4": 1}}', "joint 4 has shape"),
        ('{"size": [9, 9], "body": null, "time": -1}', "time is -1"),
        (json.dumps(line(hands=[[[0, 0, 0]] * 21])), "hands has 1 entries"),
    ],
)
def test_lines_that_are_refused(text, message) -> None:
    with pytest.raises(ValueError, match=message):
        LineReader().read(text.encode())


def test_joints_move_the_last_body_and_nobody_may_be_there() -> None:
    reader = LineReader()
    (person,), at_ = reader.read(json.dumps(line(time=2.5)).encode())
    assert (at_, person.box.tolist()) == (2.5, [18, 14, 46, 86])
    (moved,), _ = reader.read(b'{"joints": {"4": [30, 40]}}')
    assert moved.body[4].tolist() == [30, 40, 1]
    np.testing.assert_array_equal(np.delete(moved.body, 4, 0), np.delete(person.body, 4, 0))
    assert reader.read(b'{"body": null}')[0] == ()


def test_keypoints_from_a_socket(tmp_path) -> None:
    """Bad lines are told and counted, lines may come in pieces; without a sender it ends by itself."""
    said: list[str] = []
    settings = dataclasses.replace(SETTINGS, wait=5)
    source = JsonSource("tcp:127.0.0.1:0", settings, said.append)
    with socket.create_connection(source._server.getsockname()) as client:
        text = "\n".join([json.dumps(line(0)), "oops", json.dumps(line(1)), "", '{"body": null}']).encode()
        client.sendall(text[:700])
        client.sendall(text[700:])
        client.shutdown(socket.SHUT_WR)
        got = list(source.frames(threading.Event()))
    assert [item.time for item in got] == [0.0, 0.1, 0.2]
    assert [len(item.people) for item in got] == [1, 1, 0]
    assert "a line of tcp:127.0.0.1:0 is left out: it is no JSON" in said[1]
    assert said[-1] == "1 lines of tcp:127.0.0.1:0 were no keypoints"
    begin = time.monotonic()
    lonely = JsonSource(f"unix:{tmp_path / 's'}", dataclasses.replace(settings, wait=0.3), said.append)
    assert not list(lonely.frames(threading.Event()))
    assert time.monotonic() - begin < 3
    assert not (tmp_path / "s").exists()
    with pytest.raises(UsageError, match="expected tcp:HOST:PORT"):
        JsonSource("tcp:nowhere", settings, said.append)


def test_files_go_at_their_own_speed_and_cameras_at_the_rate_asked_for() -> None:
    """With a clock that only sleeping moves."""
    now = [100.0]
    settings = dataclasses.replace(SETTINGS, drop=True, loop=True)
    driving = open_driving(standing_figure(frames=4), fps=10)
    source = sources.FileSource(driving, settings, clock=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s))
    frames = source.frames(threading.Event())
    got = [next(frames) for _ in range(6)]  # goes round
    np.testing.assert_allclose([item.arrived - 100 for item in got], np.arange(6) / 10)
    assert now[0] == pytest.approx(100.5)

    class Capture:
        count = 0

        def isOpened(self):
            return True

        def set(self, *_):
            return True

        def grab(self):
            self.count += 1
            now[0] += 1 / 30
            return self.count <= 60

        def retrieve(self):
            return True, np.full((8, 8, 3), (0, 0, self.count), np.uint8)

        def release(self):
            self.count = -1

    class Nobody:
        def detect(self, frame):
            assert frame[0, 0, 0] > 0  # red first: OpenCV's order is turned round
            return []

    capture = Capture()
    camera = CameraSource(0, settings, capture=capture, detector=Nobody(), clock=lambda: now[0])
    times = [item.time for item in camera.frames(threading.Event())]
    np.testing.assert_allclose(np.diff(times), 0.1, atol=0.04)  # frames come each 0.033 s
    assert 20 <= len(times) <= 21
    assert capture.count == -1


def test_raw_bytes_reach_a_pipe_or_say_that_nobody_reads() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    out, into = os.pipe()
    with io.FileIO(out) as reader, RawSink(into, wait=0.3) as sink:
        sink.write(frame, 0.0, 2)
        assert reader.read(18000) == frame.tobytes() * 2
        with pytest.raises(BrokenPipeError, match="nobody reads for"):
            sink.write(frame, 0.0, 20)  # the pipe holds 64 KiB
    with pytest.raises(BrokenPipeError):
        RawSink(into, wait=0.3).write(frame, 0.0, 1)
    os.close(into)
