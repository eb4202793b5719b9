"""Where the frames of a live animation come from. Each source runs in a thread, and ends when it is asked to.

Keypoints as JSON lines (stdin, TCP, Unix socket), one object a line, in px of an image of `size`:

    {"size": [256, 256], "body": [[x, y, confidence] * 18], "hands": [[...] * 21] * 2, "face": [[...] * 68], "time": 0}

`size` is needed once. Only `body` (OpenPose-18; null: nobody) or `joints` ({"4": [x, y]}: these joints of the last body
anew, what a mouse needs) must be there; `time` in s stands in for the time of arrival.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from xdyna.config.live import LiveConfig
from xdyna.core.errors import UsageError
from xdyna.media.video import read_frames
from xdyna.perception.base import PoseBackend, get_backend
from xdyna.perception.errors import PerceptionError
from xdyna.perception.types import Person, PoseTrack, mark_outside, missing_points
from xdyna.pipelines.driving import Driving, open_driving
from xdyna.pipelines.live.backlog import LiveInput

STREAM_FPS = 8.0  # of cameras and streams, where none is asked for
_POLL = 0.1  # s between looks at the wish to stop
_LONGEST_LINE = 1 << 20  # bytes
_TOLD = 3  # bad lines that are told one by one


class Source(Protocol):
    """Frames that come in.

    Attributes:
        name: for people.
        fps: frames per second.
        faces: whether there are images of faces.
        dropped: frames that the source left out because it was late.
    """

    name: str
    fps: float
    faces: bool
    dropped: int

    def frames(self, ended: threading.Event) -> Iterator[LiveInput]:
        """The frames as they come, until the input ends or `ended` is set; no wait is longer than a second."""


def open_source(given: str | Path | PoseTrack, settings: LiveConfig, say: Callable[[str], None]) -> Source:
    """The source of a name.

    Args:
        given: a video or keypoints (.npz), "camera:N", "-" (JSON lines of stdin), "tcp:HOST:PORT" or "unix:PATH" (waits
            for one who sends JSON lines); or a track.
        settings: of the run.
        say: given notes, a sentence each.

    Raises:
        UsageError: no such file, or another form.
    """
    text = str(given) if isinstance(given, str | Path) else ""
    kind, _, rest = text.partition(":")
    if kind == "camera":
        if not rest.isdecimal():
            raise UsageError(f"--drive {text}: expected the number of a camera, for example camera:0")
        return CameraSource(int(rest), settings)
    if text == "-" or kind in ("tcp", "unix"):
        return JsonSource(text, settings, say)
    return FileSource(open_driving(given, fps=settings.fps), settings)


class FileSource:
    """A video of a person, or keypoints, at its own speed.

    Args:
        driving: the file and its frames.
        settings: of the run: rate, detector, loop, drop.
        clock: s.
        sleep: waits so many s.
    """

    def __init__(
        self,
        driving: Driving,
        settings: LiveConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Any] = time.sleep,
    ) -> None:
        self.driving, self.settings, self.clock, self.sleep = driving, settings, clock, sleep
        self.name, self.fps, self.faces = str(driving.path), float(driving.fps), driving.track is None
        self.dropped = 0
        self._detector = get_backend(settings.pose_backend) if self.faces else None

    def frames(self, ended: threading.Event) -> Iterator[LiveInput]:
        """See `Source`."""
        begin, number = self.clock(), 0
        while True:
            for item in self._once():
                due = number / self.fps
                number += 1
                if self.settings.drop:
                    while (early := begin + due - self.clock()) > 0 and not ended.is_set():
                        self.sleep(min(early, _POLL))
                    if -early > 1 / self.fps and item.image is not None:  # another frame is due already
                        self.dropped += 1
                        continue
                if ended.is_set():
                    return
                people = item.people if self._detector is None else tuple(self._detector.detect(_image(item)))
                yield LiveInput(due, begin + due if self.settings.drop else self.clock(), item.size, people, item.image)
            if not self.settings.loop:
                return

    def _once(self) -> Iterator[LiveInput]:
        driving = self.driving
        if driving.track is not None:
            for row in driving.rows:
                yield LiveInput(0.0, 0.0, driving.size, _person_of(driving.track, int(row)))
        else:
            for frame in read_frames(driving.path, driving.rows.tolist()):
                yield LiveInput(0.0, 0.0, driving.size, (), frame)


class CameraSource:
    """A camera, by OpenCV.

    Args:
        number: of the device.
        settings: of the run: rate, detector, drop.
        capture: what `cv2.VideoCapture` is; for tests.
        detector: finds the person; None makes the one of the settings.
        clock: s.
    """

    def __init__(
        self,
        number: int,
        settings: LiveConfig,
        *,
        capture: Any = None,
        detector: PoseBackend | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        import cv2

        self.name, self.fps, self.faces, self.dropped = f"camera:{number}", settings.fps or STREAM_FPS, True, 0
        self.clock = clock
        self._capture = cv2.VideoCapture(number) if capture is None else capture
        if not self._capture.isOpened():
            raise UsageError(f"--drive {self.name}: there is no such camera here; give another number, or a file")
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        self._detector = detector or get_backend(settings.pose_backend)

    def frames(self, ended: threading.Event) -> Iterator[LiveInput]:
        """See `Source`; frames beyond the rate are left out and do not count as dropped."""
        begin: float | None = None
        due = 0.0
        try:
            while not ended.is_set() and self._capture.grab():
                arrived = self.clock()
                begin = arrived if begin is None else begin
                if arrived - begin < due - 0.5 / self.fps:
                    continue
                due = max(due + 1 / self.fps, arrived - begin)
                fine, frame = self._capture.retrieve()
                if not fine:
                    return
                image = np.ascontiguousarray(frame[:, :, ::-1])
                people = tuple(self._detector.detect(image))
                yield LiveInput(arrived - begin, arrived, (len(image), image.shape[1]), people, image)
        finally:
            self._capture.release()


class JsonSource:
    """Keypoints as JSON lines.

    Args:
        address: "-", "tcp:HOST:PORT" or "unix:PATH".
        settings: of the run: rate, wait, drop.
        say: given notes, a sentence each.
        clock: s.

    Raises:
        UsageError: an address that cannot be listened at.
    """

    def __init__(
        self,
        address: str,
        settings: LiveConfig,
        say: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.fps, self.faces = address if address != "-" else "stdin", settings.fps or STREAM_FPS, False
        self.dropped, self.settings, self.say, self.clock = 0, settings, say, clock
        self.bad = 0
        self._reader = LineReader()
        self._server: socket.socket | None = None
        self._path: Path | None = None
        if address != "-":
            self._server = self._listen(address)

    def _listen(self, address: str) -> socket.socket:
        kind, _, rest = address.partition(":")
        host, _, port = rest.rpartition(":")
        try:
            if kind == "unix":
                server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                server.bind(rest)
                self._path = Path(rest)
            elif port.isdecimal():
                server = socket.create_server((host or "127.0.0.1", int(port)))
            else:
                raise OSError("no port")
        except (OSError, OverflowError) as error:
            raise UsageError(
                f"--drive {address}: cannot listen there ({error}); expected tcp:HOST:PORT or unix:PATH that is free"
            ) from error
        server.listen(1)
        bound = rest if kind == "unix" else "{}:{}".format(*server.getsockname()[:2])
        self.say(f"waiting for keypoints at {kind}:{bound}")
        return server

    def frames(self, ended: threading.Event) -> Iterator[LiveInput]:
        """See `Source`. Lines that are none are counted and told; after `wait` s of silence the input has ended."""
        begin: float | None = None
        due, number = 0.0, 0
        for line in self._lines(ended):
            arrived = self.clock()
            try:
                people, at = self._reader.read(line)
            except ValueError as error:
                self.bad += 1
                if self.bad <= _TOLD:
                    more = "; further ones are only counted" if self.bad == _TOLD else ""
                    self.say(f"warning: a line of {self.name} is left out: {error}{more}")
                continue
            begin = arrived if begin is None else begin
            if at is None:
                at = arrived - begin if self.settings.drop else number / self.fps
            if self.settings.drop and at < due - 0.5 / self.fps:  # more than the rate
                continue
            due, number = max(due + 1 / self.fps, at), number + 1
            assert self._reader.size is not None
            yield LiveInput(at, arrived, self._reader.size, people)
        if self.bad:
            self.say(f"{self.bad} lines of {self.name} were no keypoints")

    def _lines(self, ended: threading.Event) -> Iterator[bytes]:
        with ExitStack() as stack:
            if self._server is None:
                handle: Any = sys.stdin.fileno()
            else:
                stack.callback(self._close)
                if not self._wait(self._server, ended):
                    return
                handle = stack.enter_context(self._server.accept()[0])
            rest = b""
            while self._wait(handle, ended):
                part = os.read(handle, 65536) if isinstance(handle, int) else handle.recv(65536)
                *lines, rest = (rest + part).split(b"\n")
                yield from (line for line in lines if line.strip())
                if len(rest) > _LONGEST_LINE:
                    raise UsageError(f"{self.name} sends a line of more than 1 MiB; expected JSON lines of keypoints")
                if not part:
                    if rest.strip():
                        yield rest
                    return

    def _wait(self, handle: Any, ended: threading.Event) -> bool:
        """Whether there is something to read; False when nothing came for long, or the end is wished."""
        until = self.clock() + self.settings.wait
        while not ended.is_set():
            if select.select([handle], [], [], _POLL)[0]:
                return True
            if self.clock() > until:
                self.say(f"nothing came from {self.name} for {self.settings.wait:g} s, so it ends (wait)")
                return False
        return False

    def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)


@dataclass
class LineReader:
    """Reads JSON lines of keypoints.

    Attributes:
        size: (H, W) px of the lines so far; None before the first.
        body: (18, 3) of the last line, to which `joints` are put.
    """

    size: tuple[int, int] | None = None
    body: np.ndarray | None = None

    def read(self, line: bytes) -> tuple[tuple[Person, ...], float | None]:
        """The person of a line (none or one), and its time where it has one.

        Raises:
            ValueError: another form; the message says which.
        """
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise PerceptionError(f"it is no JSON ({str(error).splitlines()[0]})") from error
        if not isinstance(entry, dict) or not {"body", "joints"} & set(entry):
            raise PerceptionError('expected an object with "body" or "joints"')
        size = entry.get("size")
        if size is not None:
            whole = isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)
            if not whole:
                raise PerceptionError(f"size is {size!r}, expected [height, width] in px")
            self.size = int(size[0]), int(size[1])
        if self.size is None:
            raise PerceptionError('the first line needs "size": [height, width] in px')
        at = entry.get("time")
        if at is not None and (isinstance(at, bool) or not isinstance(at, int | float) or not 0 <= at < 1e9):
            raise PerceptionError(f"time is {at!r}, expected seconds, 0 or more")
        body = _points(entry["body"], 18, "body") if entry.get("body") is not None else None
        if "joints" in entry:
            body = self._with_joints(body, entry["joints"])
        if body is None:
            return (), at
        self.body = body
        hands = [_points(hand, 21, "hands") for hand in entry.get("hands") or []]
        if len(hands) not in (0, 2):
            raise PerceptionError(f"hands has {len(hands)} entries, expected the left and the right one")
        face = _points(entry["face"], 68, "face") if entry.get("face") is not None else missing_points(68)
        body = mark_outside(body, self.size)
        if not (body[:, 2] > 0).any():
            return (), at
        return (_person(body, np.stack(hands) if hands else missing_points(2, 21), face),), at

    def _with_joints(self, body: np.ndarray | None, joints: Any) -> np.ndarray:
        body = missing_points(18) if body is None and self.body is None else (self.body if body is None else body)
        assert body is not None
        body = body.copy()
        if not isinstance(joints, dict):
            raise PerceptionError('joints are no object like {"4": [x, y]}')
        for name, point in joints.items():
            values = point if isinstance(point, list) and len(point) == 3 else [*point, 1.0] if isinstance(
                point, list) else point  # fmt: skip
            if not name.isdecimal() or int(name) >= 18:
                raise PerceptionError(f"joint {name!r} is unknown, expected 0 to 17")
            body[int(name)] = _points([values], 1, f"joint {name}")[0]
        return body


def _points(values: Any, count: int, name: str) -> np.ndarray:
    try:
        points = np.array(values, dtype=np.float32)
    except (ValueError, TypeError, OverflowError) as error:
        raise PerceptionError(f"{name} is not made of numbers") from error
    if points.shape != (count, 3) or not np.isfinite(points).all() or np.abs(points).max() > 1e6:
        raise PerceptionError(f"{name} has shape {points.shape}, expected ({count}, 3): x px, y px, confidence")
    points[:, 2] = points[:, 2].clip(0, 1)
    return points


def _person(body: np.ndarray, hands: np.ndarray, face: np.ndarray) -> Person:
    seen = body[body[:, 2] > 0, :2]
    return Person(body, hands, face, np.concatenate([seen.min(0), seen.max(0)]), 1.0)


def _person_of(track: PoseTrack, row: int) -> tuple[Person, ...]:
    body = track.body[row]
    return (_person(body, track.hands[row], track.face[row]),) if (body[:, 2] > 0).any() else ()


def _image(item: LiveInput) -> np.ndarray:
    assert item.image is not None
    return item.image
