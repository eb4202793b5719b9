"""How many processor threads denoise, chosen by windows of noise before the first real one; and how long these take.

On a few cores that others use too, a second thread can cost more than it brings: each small operation waits for the
slower one. So the choice is measured where it is needed, beside a decoding as in the run itself.
"""

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from xdyna.pipelines.live.session import LiveSession

_TIMED = 2  # windows of each number of threads, after one that is not timed


@dataclass(frozen=True)
class Rehearsal:
    """What was measured.

    Attributes:
        threads: that denoise; None: as torch has it (not on a CPU).
        period: s from window to window, decoding beside the next one.
        delay: s from a window's beginning to its pictures.
    """

    threads: int | None
    period: float
    delay: float


def rehearse(session: "LiveSession", *, threads: int | None, say: Callable[[str], None]) -> Rehearsal:
    """Make windows of noise, so that the first real one is as quick as all, and choose the number of threads.

    Args:
        session: before its first window.
        threads: so many; None measures all that torch may use, half and a quarter of them.
        say: told the choice where there is one.
    """
    if session.denoiser.device.type != "cpu":
        found = [_measure(session, None)]
    else:
        most = torch.get_num_threads()
        tried = [threads] if threads is not None else sorted({max(most // part, 1) for part in (1, 2, 4)})
        found = []
        for count in tried:
            with torch_threads(count):
                found.append(_measure(session, count))
    best = min(found, key=lambda one: one.period)
    session.denoiser.forget()
    if len(found) > 1:
        told = ", ".join(f"{one.period:.2f} s with {one.threads}" for one in found)
        say(f"threads: a window takes {told}; denoising with {best.threads} (threads=N sets it)")
    return best


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """While the block runs, torch uses so many threads for what this thread does; None leaves it as it is."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


def _measure(session: "LiveSession", threads: int | None) -> Rehearsal:
    height, width = session.controls.size
    shapes = {"pose": 3, "face": 6} if session.face else {"pose": 3}
    noise = np.random.default_rng(0)
    latents = torch.zeros(1)
    alone: list[tuple[float, float]] = []
    for number in range(1 + _TIMED):
        images = {
            name: noise.integers(0, 256, (session.settings.window, height, width, channels), np.uint8)
            for name, channels in shapes.items()
        }
        begin = time.monotonic()
        worker = Worker(functools.partial(session.denoiser.denoise, images, start=0, held=None), threads=threads)
        if number:
            session.decode(latents)  # of the window before
        decoded = time.monotonic() - begin
        latents = worker.result()[:, :, : session.settings.new]
        alone.append((max(worker.seconds, decoded), worker.seconds + decoded))
    period, delay = (min(values) for values in zip(*alone[1:], strict=True))
    return Rehearsal(threads, period, delay)


class Worker:
    """Runs something in a thread of its own.

    Args:
        work: what it does.
        threads: that torch may use there; None leaves it.
        name: of the thread.

    Attributes:
        seconds: how long it took, once it has ended.
    """

    def __init__(self, work: Callable[[], Any], *, threads: int | None = None, name: str = "live denoising") -> None:
        self.work, self.threads, self.seconds = work, threads, 0.0
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def result(self) -> Any:
        """Wait for it. Raises: what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self) -> None:
        begin = time.monotonic()
        try:
            with torch_threads(self.threads):  # OpenMP has a number for each thread
                self._result = self.work()
        except BaseException as error:
            self._error = error
        self.seconds = time.monotonic() - begin
