"""Live animations of the page, up to what makes windows."""

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xdyna.config.live import LiveConfig
from xdyna.config.page import PageConfig
from xdyna.page.jobs import Busy, Unknown
from xdyna.page.rooms import FPS, Feed, Puppet, Room, Rooms, _moved, camera_image


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def puppet() -> Puppet:
    return Puppet()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def came(feed: Feed, count: int) -> list[Any]:
    frames = feed.frames(threading.Event())
    return [next(frames) for _ in range(count)]


def test_the_puppets_face_and_hands_follow_its_body(puppet: Puppet) -> None:
    body = puppet.body.copy()
    body[0, :2] += (10, -4)  # the nose
    body[4, :2] += (-7, 3)  # the right wrist
    before, after = puppet.figure(puppet.body), puppet.figure(body)
    assert np.allclose((after.face - before.face)[:, :2], (10, -4))
    assert np.allclose((after.hands - before.hands)[1, :, :2], (-7, 3))
    assert np.allclose(after.hands[0], before.hands[0])
    assert np.array_equal(after.body, body)


def test_points_that_are_not_seen_stay() -> None:
    points = np.array([[10, 20, 1], [0, 0, 0]], np.float32)
    assert _moved(points, np.array([5, -5, 1])).tolist() == [[15, 15, 1], [0, 0, 0]]


def test_after_a_pause_poses_come_in_at_the_rate(puppet: Puppet, clock: Clock) -> None:
    """What was not sent meanwhile is not made up for."""
    feed = Feed("skeleton", puppet, None, clock=clock)
    for pause in (5, 0):
        for _ in range(24):  # a second, three times as many as are wanted
            feed.put({"body": puppet.body.tolist()})
            clock.now += 1 / (3 * FPS)
        clock.now += pause
    assert 2 * FPS <= len(feed._came) <= 2 * (FPS + 2)


def test_poses_come_in_at_the_rate(puppet: Puppet, clock: Clock) -> None:
    feed = Feed("skeleton", puppet, None, clock=clock)
    for k in range(9):  # three times as many as are wanted
        body = puppet.body.copy()
        body[:, 0] += k
        feed.put({"body": body.tolist()})
        clock.now += 1 / (3 * FPS)
    items = came(feed, 4)
    assert [round(item.time * FPS, 3) for item in items] == [
        0,
        0.667,
        1.667,
        2.667,
    ]  # not above the rate
    assert items[0].size == puppet.size
    assert items[0].people[0].body[0, 0] == pytest.approx(puppet.body[0, 0])
    assert not feed._came


def test_the_puppet_stands_first(puppet: Puppet, clock: Clock) -> None:
    feed = Feed("skeleton", puppet, None, clock=clock)
    feed.stand(3)
    assert [np.array_equal(item.people[0].body, puppet.body) for item in came(feed, 3)] == [True] * 3


def test_nobody_is_nobody(puppet: Puppet, clock: Clock) -> None:
    feed = Feed("skeleton", puppet, None, clock=clock)
    feed.put({"body": None})
    assert came(feed, 1)[0].people == ()


def test_the_newest_camera_image_counts(puppet: Puppet, clock: Clock) -> None:
    looked: list[int] = []

    def detect(image: np.ndarray) -> list[Any]:
        looked.append(int(image[0, 0, 0]))
        return []

    feed = Feed("camera", puppet, detect, clock=clock)
    for grey in (10, 100, 200):
        feed.put({"image": encoded((60, 80), grey=grey)})
        clock.now += 1 / FPS
    item = came(feed, 1)[0]
    assert (looked, feed.dropped, item.size) == ([200], 2, (60, 80))


def encoded(size: tuple[int, int], *, grey: int = 128, kind: str = "PNG") -> str:
    data = io.BytesIO()
    Image.fromarray(np.full((*size, 3), grey, np.uint8)).save(data, kind)
    return "data:image/x;base64," + base64.b64encode(data.getvalue()).decode()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_camera_images(kind: str) -> None:
    assert camera_image(encoded((48, 64), kind=kind)).shape == (48, 64, 3)


@pytest.mark.parametrize(
    "text",
    [None, 7, "", "data:image/png;base64,", "####", base64.b64encode(b"hello").decode(), encoded((700, 64))]
    + [encoded((8, 8)), encoded((48, 64), kind="BMP"), encoded((48, 64))[:-200], {"path": "/etc/passwd"}],
)
def test_what_is_no_camera_image(text: Any) -> None:
    with pytest.raises(ValueError, match="expected a JPEG, PNG or WebP image of at most 640 px"):
        camera_image(text)


@pytest.mark.parametrize(
    "body", [7, "x", [], [[1, 2]] * 18, [[1, 2, 3]] * 17, [[float("nan")] * 3] * 18, [["a"] * 3] * 18]
)
def test_what_is_no_pose(body: Any, puppet: Puppet, clock: Clock) -> None:
    with pytest.raises(ValueError, match="body"):
        Feed("skeleton", puppet, None, clock=clock).put({"body": body})


Make = Callable[..., Rooms]


@pytest.fixture
def rooms(clock: Clock) -> Iterator[Make]:
    made: list[Rooms] = []
    gate = threading.Event()

    def make(**limits: Any) -> Rooms:
        rooms = Rooms(PageConfig(**limits), LiveConfig(), lambda error: f"explained: {error}", clock=clock)

        def model() -> Any:
            gate.wait(20)
            raise ValueError("no weights")

        rooms._model = model  # type: ignore[method-assign]
        made.append(rooms)
        return rooms

    yield make
    gate.set()
    for one in made:
        one.close()


def opened(page: Rooms) -> Room:
    name = page.start("skeleton")["room"]
    return page._rooms[name]


def test_no_more_rooms_than_may(rooms: Make) -> None:
    page = rooms(live=2)
    first = page.start("skeleton")
    assert (first["size"], len(first["body"]), first["fps"]) == ([256, 256], 18, FPS)
    page.start("skeleton")
    with pytest.raises(Busy, match="2 run already; try again"):
        page.start("skeleton")
    with pytest.raises(Busy, match="switched off"):
        rooms(live=0).start("skeleton")
    with pytest.raises(ValueError, match="expected one of skeleton, camera"):
        page.start("../x")


def test_messages(rooms: Make) -> None:
    page = rooms()
    name = page.start("skeleton")["room"]
    found = page.exchange(name, json.dumps({"after": 0}))
    assert (found["state"], found["frames"], found["reason"]) == ("starting", [], "")
    for text, says in [
        ("{", "no JSON"), ("[" * 9999, "no JSON"), ("7", "no JSON object"), ('{"after": "x"}', "after"),
        ('{"after": true}', "after"), ('{"body": 7}', "body"), ("x" * 400_001, "at most 400000 characters"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=says):
            page.exchange(name, text)
    for unknown in ("", None, {"a": 1}, name + "x"):
        with pytest.raises(Unknown):
            page.exchange(unknown, "{}")
    page.stop("unknown")  # no mistake


def test_a_room_ends(rooms: Make, clock: Clock) -> None:
    page = rooms(live=3, live_minutes=2)
    silent, long, stopped = (opened(page) for _ in range(3))
    clock.now += 9
    assert not silent.over()
    page.exchange(long.id, "{}")
    clock.now += 2
    assert silent.over()
    assert silent.reason == "its visitor has left"
    assert not long.over()
    clock.now += 110
    page.exchange(long.id, "{}")
    assert long.over()
    assert "ends after 2 minutes" in long.reason
    page.stop(stopped.id)
    assert stopped.over()


def test_the_first_reason_stays(rooms: Make, clock: Clock) -> None:
    room = opened(rooms())
    room.end()
    clock.now += 1000
    assert room.over()
    assert room.reason == "it was stopped"


def test_an_ended_room_takes_nothing_in(rooms: Make) -> None:
    """A page that stays open goes on sending."""
    page = rooms()
    room = opened(page)
    room.state = "ended"
    waiting = len(room.feed._came)
    for _ in range(3):
        page.clock.now += 1  # type: ignore[attr-defined]
        assert room.exchange({"body": room.feed.puppet.body.tolist()})["state"] == "ended"
    assert len(room.feed._came) == waiting


def test_a_puppet_before_a_camera_does_not_stand_for_its_person(rooms: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from xdyna.perception import base

    class Backend:
        def detect(self, image: np.ndarray) -> list[Any]:
            return []

    monkeypatch.setattr(base, "get_backend", lambda name: Backend())
    page = rooms()
    name = page.start("camera")["room"]
    assert not page._rooms[name].feed._came
    assert len(opened(rooms()).feed._came) == LiveConfig().window


def test_frames_that_nobody_fetches_are_forgotten(rooms: Make) -> None:
    room = opened(rooms())
    for _ in range(60):
        room._frame(np.zeros((16, 16, 3), np.uint8), 0.0)
    assert [number for number, _ in room.exchange({})["frames"]] == list(range(13, 61))


def test_rooms_share_their_weights(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    from types import SimpleNamespace

    from xdyna.pipelines import model

    loaded: list[Any] = []
    monkeypatch.setattr(model, "load", lambda *a: loaded.append(a) or SimpleNamespace(pipeline=None))
    page = Rooms(PageConfig(), LiveConfig(), str, clock=clock)
    assert page._model() is page._model()
    assert len(loaded) == 1


def test_closing_waits_for_the_rooms(rooms: Make) -> None:
    """What they still write would be removed under them."""
    page, began = rooms(), threading.Event()

    def model() -> Any:
        began.set()
        time.sleep(0.5)
        raise ValueError("no weights")

    page._model = model  # type: ignore[method-assign]
    room = opened(page)
    assert began.wait(60)
    page.close()
    assert not room.thread.is_alive()
    assert room.state == "ended"


def test_what_fails_is_said(rooms: Make) -> None:
    def fail() -> Any:
        raise ValueError("no weights")

    page = rooms(live=1)
    page._model = fail  # type: ignore[method-assign]
    room = opened(page)
    room.thread.join(60)
    found = page.exchange(room.id, "{}")
    assert (found["state"], found["reason"]) == ("ended", "explained: no weights")
    page.start("skeleton")  # its place is free again


def test_the_rate_is_that_of_windows(rooms: Make, clock: Clock) -> None:
    """Frames of a window come at once: their distance says nothing."""
    room = opened(rooms())
    for _ in range(3):
        for k in range(6):
            room._frame(np.full((16, 16, 3), 40 * k, np.uint8), 0.0)
            clock.now += 0.001
        assert room.exchange({})["frames_per_second"] in (0.0, pytest.approx(3, abs=0.05))
        clock.now += 2 - 0.006
    found = room.exchange({"after": 12})
    assert found["frames_per_second"] == pytest.approx(3, abs=0.05)
    assert [number for number, _ in found["frames"]] == [13, 14, 15, 16, 17, 18]
    image = Image.open(io.BytesIO(base64.b64decode(found["frames"][-1][1])))
    assert image.size == (16, 16)
    assert abs(int(np.asarray(image)[8, 8, 0]) - 200) < 4
