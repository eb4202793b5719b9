"""Live animations of the page. A room is one visitor's: requests bring keypoints or camera images and take frames away.

Frames that come in faster than they are wanted are thinned here, before the detector; what is late is dropped by the
session, as in `xdyna live`. A room ends when its visitor says so, is silent, or has had its time.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
import json
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from xdyna.config.live import LiveConfig
from xdyna.config.page import PageConfig
from xdyna.core.errors import UsageError
from xdyna.core.progress import Watch
from xdyna.media.image import read_image
from xdyna.page.jobs import Busy, Unknown
from xdyna.page.studio import SAMPLE_IMAGE
from xdyna.perception.types import Person, PoseTrack

if TYPE_CHECKING:
    from torch import Tensor

    from xdyna.pipelines.live.backlog import LiveInput
    from xdyna.pipelines.model import Model

KINDS = ("skeleton", "camera")
FPS = 8.0
LONGEST = 400_000  # characters of a message: a camera image of a few hundred px
_SILENT = 10.0  # s without a request after which a visitor has left
_BURST = 0.1  # s within which frames are of one window
_BURSTS = 6  # windows that the rate is measured on
_KEPT = 48  # frames that wait for the visitor
_SIDE = 640  # px, largest of a camera image
_QUALITY = 90  # of JPEG
_NOSE, _WRISTS = 0, (7, 4)  # OpenPose-18; hands stand left before right
_NOTES = 20


class Puppet:
    """The sample's puppet: its image, and a figure whose face and hands follow its body.

    Attributes:
        size: (H, W) of the image, px.
        body: (18, 3) as it stands in the image.
    """

    def __init__(self) -> None:
        track = PoseTrack.load(SAMPLE_IMAGE.points)
        self.size, self.body = track.size, track.body[0]
        self._hands, self._face = track.hands[0], track.face[0]

    def figure(self, body: np.ndarray) -> Person:
        """A person of that body. Args: body: (18, 3) px of the image."""
        face = _moved(self._face, body[_NOSE] - self.body[_NOSE])
        hands = [_moved(h, body[w] - self.body[w]) for h, w in zip(self._hands, _WRISTS, strict=True)]
        seen = body[body[:, 2] > 0, :2]
        return Person(body, np.stack(hands), face, np.concatenate([seen.min(0), seen.max(0)]), 1.0)


def _moved(points: np.ndarray, by: np.ndarray) -> np.ndarray:
    xy = np.where(points[..., 2:] > 0, points[..., :2] + by[:2], points[..., :2])
    return np.concatenate([xy, points[..., 2:]], axis=-1).astype(np.float32)


class Feed:
    """What a visitor sends, as a source of frames (see `xdyna.pipelines.live.sources.Source`).

    Args:
        kind: of `KINDS`.
        puppet: whose figure the skeleton moves.
        detect: finds people in a camera image.
        clock: s.
    """

    def __init__(
        self,
        kind: str,
        puppet: Puppet,
        detect: Callable[[np.ndarray], Sequence[Person]] | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from xdyna.pipelines.live.sources import LineReader

        self.name, self.fps, self.faces, self.dropped = kind, FPS, kind == "camera", 0
        self.puppet, self.detect, self.clock = puppet, detect, clock
        self._reader = LineReader(size=puppet.size)
        self._came: deque[tuple[float, Any]] = deque()
        self._changed = threading.Condition()
        self._begin: float | None = None
        self._due = 0.0

    def put(self, message: dict[str, Any]) -> None:
        """Take a message: {"body": [[x, y, confidence] * 18]} px of the puppet's image, or {"image": BASE64}.

        Raises:
            ValueError: another form.
        """
        now = self.clock()
        content: Any
        if self.faces:
            content = camera_image(message.get("image"))
        else:
            people, _ = self._reader.read(json.dumps({"body": message.get("body")}).encode())
            content = self.puppet.figure(people[0].body) if people else None
        with self._changed:
            self._begin = now if self._begin is None else self._begin
            if now - self._begin < self._due - 0.5 / self.fps:  # more than the rate
                return
            self._due = max(self._due + 1 / self.fps, now - self._begin)
            if self.faces and self._came:  # the detector is busy with an older one
                self._came.clear()
                self.dropped += 1
            self._came.append((now, content))
            self._changed.notify_all()

    def stand(self, frames: int) -> None:
        """Let the puppet stand as in its image for so many frames: alignment is measured on them."""
        with self._changed:
            now = self.clock()
            self._begin = now
            self._came.extend((now, self.puppet.figure(self.puppet.body)) for _ in range(frames))
            self._changed.notify_all()

    def frames(self, ended: threading.Event) -> Iterator[LiveInput]:
        """See `Source`."""
        from xdyna.pipelines.live.backlog import LiveInput

        while not ended.is_set():
            with self._changed:
                if not self._came:
                    self._changed.wait(0.1)
                    continue
                arrived, content = self._came.popleft()
            assert self._begin is not None
            at = arrived - self._begin
            if isinstance(content, np.ndarray):
                assert self.detect is not None
                yield LiveInput(at, arrived, (len(content), content.shape[1]), tuple(self.detect(content)), content)
            else:
                yield LiveInput(at, arrived, self.puppet.size, () if content is None else (content,))


def camera_image(text: Any) -> np.ndarray:
    """A camera image, uint8 (H, W, 3), of base64 text (a data URL's beginning is left out).

    Raises:
        UsageError: no JPEG, PNG or WebP image of at most 640 px a side.
    """
    wrong = UsageError(f"expected a JPEG, PNG or WebP image of at most {_SIDE} px a side, as base64")
    if not isinstance(text, str):
        raise wrong
    try:
        data = base64.b64decode(text.rpartition(",")[2], validate=True)
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as opened:
            if max(opened.size) > _SIDE or min(opened.size) < 16:
                raise wrong
            return np.asarray(opened.convert("RGB"))
    except (binascii.Error, OSError, SyntaxError, ValueError) as error:
        raise wrong from error


class Room:
    """One live animation.

    Args:
        feed: what comes in.
        settings: of the run.
        limits: of the page.
        model: gives the weights, called in the room's thread.
        turn: held while a window is made.
        explain: turns an exception into a sentence.
        clock: s.
    """

    def __init__(
        self,
        feed: Feed,
        settings: LiveConfig,
        limits: PageConfig,
        *,
        model: Callable[[], Model],
        turn: threading.Lock,
        explain: Callable[[BaseException], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.id, self.feed, self.settings, self.limits = secrets.token_urlsafe(16), feed, settings, limits
        self.state, self.reason = "starting", ""
        self._model, self._turn, self._explain, self._clock = model, turn, explain, clock
        self._began = self._heard = clock()
        self._frames: deque[tuple[int, bytes]] = deque(maxlen=_KEPT)
        self._notes: deque[str] = deque(maxlen=_NOTES)
        self._made = 0
        self._bursts: deque[tuple[float, int]] = deque(maxlen=_BURSTS)  # when a window was there, frames until then
        self._stop = threading.Event()
        self.thread = threading.Thread(target=self._run, name="page live", daemon=True)

    def exchange(self, message: dict[str, Any]) -> dict[str, Any]:
        """Take what came, and give what was made since.

        Args:
            message: see `Feed.put`; "after" is the number of the last frame that the visitor has. Without "body" and
                "image" nothing comes in.

        Returns:
            dict: state, reason, notes, frames_per_second, frames: list of [number, base64 of JPEG].

        Raises:
            ValueError: another form.
        """
        self._heard = self._clock()
        if self.state != "ended" and ("body" in message or "image" in message):
            self.feed.put(message)
        after = message.get("after", 0)
        if isinstance(after, bool) or not isinstance(after, int):
            raise UsageError("after is no whole number; expected that of the last frame")
        news = [[number, base64.b64encode(data).decode()] for number, data in list(self._frames) if number > after]
        return {
            "state": self.state,
            "reason": self.reason,
            "notes": list(self._notes),
            "frames_per_second": self._rate(),
            "frames": news,
        }

    def _rate(self) -> float:
        """Frames per second of the last windows; 0 before the second one."""
        bursts = list(self._bursts)
        if len(bursts) < 2:
            return 0.0
        return round((bursts[-1][1] - bursts[0][1]) / (bursts[-1][0] - bursts[0][0]), 2)

    def end(self, why: str = "it was stopped") -> None:
        """Let it end with the window that is being made. Args: why: for the visitor."""
        self.reason = self.reason or why
        self._stop.set()

    def over(self) -> bool:
        """Whether it is to end."""
        now = self._clock()
        if now - self._heard > _SILENT:
            self.end("its visitor has left")
        if now - self._began > 60 * self.limits.live_minutes:
            self.end(f"a live animation ends after {self.limits.live_minutes:g} minutes here; start it again")
        return self._stop.is_set()

    def _frame(self, frame: np.ndarray, at: float) -> None:
        data = io.BytesIO()
        Image.fromarray(frame).save(data, "JPEG", quality=_QUALITY)
        self._made += 1
        now = self._clock()
        if self._bursts and now - self._bursts[-1][0] < _BURST:
            self._bursts.pop()
        self._bursts.append((now, self._made))
        self._frames.append((self._made, data.getvalue()))

    def _run(self) -> None:
        from xdyna.pipelines.live.session import LiveSession, run
        from xdyna.pipelines.live.sinks import CallbackSink

        turn = self._turn

        class Session(LiveSession):
            """Makes windows in turn with the other rooms: they share the networks."""

            def latents(self, inputs: Sequence[LiveInput]) -> Tensor:
                with turn:
                    return super().latents(inputs)

        try:
            model = self._model()
            session = Session(
                read_image(SAMPLE_IMAGE.media), model, self.settings, faces=self.feed.faces,
                ref_keypoints=SAMPLE_IMAGE.points, say=self._notes.append,
            )  # fmt: skip
            self.state = "running"
            watch = Watch(cancel=self.over, tell=self._notes.append)
            _, error = run(
                session, self.feed, CallbackSink(self._frame), settings=self.settings, watch=watch, device=model.device
            )
            if error is not None:
                raise error
        except Exception as error:  # the page goes on, whatever it is
            self.reason = self._explain(error)
        self.state = "ended"


class Rooms:
    """All live animations.

    Args:
        limits: of the page.
        settings: of the runs.
        explain: turns an exception into a sentence.
        clock: s.
    """

    def __init__(
        self,
        limits: PageConfig,
        settings: LiveConfig,
        explain: Callable[[BaseException], str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits, self.settings, self.explain, self.clock = limits, settings, explain, clock
        self.puppet = Puppet()
        self._rooms: dict[str, Room] = {}
        self._lock, self._turn, self._loading = threading.Lock(), threading.Lock(), threading.Lock()
        self._loaded: Model | None = None

    def start(self, kind: str) -> dict[str, Any]:
        """Open a room.

        Args:
            kind: "skeleton" (keypoints of the puppet) or "camera" (images of a person, who moves the puppet).

        Returns:
            dict: room: its id; size: [H, W] of the puppet's image; body: its 18 joints [x, y]; fps.

        Raises:
            Busy: as many run as may.
            ValueError: another kind; or no detector, for a camera.
        """
        if kind not in KINDS:
            raise UsageError(f"there is no live animation of that kind; expected one of {', '.join(KINDS)}")
        with self._lock:
            self._rooms = {name: room for name, room in self._rooms.items() if room.thread.is_alive()}
            if len(self._rooms) >= self.limits.live:
                many = "one runs" if self.limits.live == 1 else f"{self.limits.live} run"
                raise Busy(
                    "live animations are switched off here"
                    if not self.limits.live
                    else f"no live animation is free: {many} already; try again in some minutes"
                )
            detect = None
            if kind == "camera":
                from xdyna.perception.base import get_backend

                detect = get_backend(self.settings.pose_backend).detect
            feed = Feed(kind, self.puppet, detect, clock=self.clock)
            room = Room(
                feed, self.settings, self.limits, model=self._model, turn=self._turn, explain=self.explain,
                clock=self.clock,
            )  # fmt: skip
            if kind == "skeleton":
                feed.stand(self.settings.window)
            self._rooms[room.id] = room
            room.thread.start()
        body = self.puppet.body[:, :2].round(1).tolist()
        return {"room": room.id, "size": list(self.puppet.size), "body": body, "fps": FPS}

    def exchange(self, name: str, text: str) -> dict[str, Any]:
        """See `Room.exchange`.

        Args:
            name: of the room.
            text: the message, as JSON.

        Raises:
            Unknown: there is no such room.
            ValueError: another form.
        """
        with self._lock:
            room = self._rooms.get(name) if isinstance(name, str) else None
        if room is None:
            raise Unknown("this live animation has ended; start it again")
        if not isinstance(text, str) or len(text) > LONGEST:
            raise UsageError(f"a message is a JSON object of at most {LONGEST} characters")
        try:
            message = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError("the message is no JSON; expected an object") from error
        if not isinstance(message, dict):
            raise UsageError("the message is no JSON object")
        return room.exchange(message)

    def stop(self, name: str) -> None:
        """End a room; one that has ended already is no mistake. Args: name: of the room."""
        with self._lock:
            room = self._rooms.get(name) if isinstance(name, str) else None
        if room is not None:
            room.end()

    def close(self) -> None:
        """End all rooms and wait for them, a while."""
        with self._lock:
            rooms = list(self._rooms.values())
        for room in rooms:
            room.end("the page is being closed")
        until = time.monotonic() + 20
        for room in rooms:
            room.thread.join(max(0.0, until - time.monotonic()))
            if room.thread.is_alive():
                print("a live animation did not end in time and is left behind", file=sys.stderr)

    def _model(self) -> Model:
        """The networks, loaded once: beside those of the queue, whose scheduler and dtype are others."""
        from xdyna.pipelines.live.session import live_dtype
        from xdyna.pipelines.model import load

        with self._loading:
            if self._loaded is None:
                settings = dataclasses.replace(self.settings, dtype=live_dtype(self.settings))
                model = load(self.limits.live_checkpoint, settings.animation())
                _ = model.pipeline
                self._loaded = model
            return self._loaded
