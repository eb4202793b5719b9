"""The loop of a live animation: three stages side by side, each in a thread of its own, in the order of the input.

    source: reads, detects  ->  Backlog  ->  denoises window after window  ->  decodes, writes (the caller's thread)

Windows hold each other's ends, so that they are denoised one after the other; what is decoded meanwhile does not change
them. So the frames do not depend on how the stages fall together in time, as long as nothing is dropped.
"""

import queue
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from xdyna.config.live import LiveConfig
from xdyna.core.manifest import peak_memory
from xdyna.core.progress import Watch
from xdyna.pipelines.live.backlog import Backlog, LiveInput, LiveReport
from xdyna.pipelines.live.rehearsal import Rehearsal, Worker, rehearse, torch_threads
from xdyna.pipelines.live.sinks import Sink
from xdyna.pipelines.live.sources import Source

if TYPE_CHECKING:
    from xdyna.pipelines.live.session import LiveSession

_POLL = 0.05  # s between looks at what came in
_LEAVE = 2.0  # s that the source has to end


def run(
    session: "LiveSession",
    source: Source,
    sink: Sink,
    *,
    settings: LiveConfig,
    watch: Watch,
    device: torch.device,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[LiveReport, Exception | None]:
    """Take frames from a source and give windows to a sink, until the input ends, `watch.cancel` says so, or nobody
    reads.

    Args:
        session: makes windows, in a thread; decodes and writes in this one.
        source: of the frames; runs in a thread.
        sink: takes them.
        settings: of the run.
        watch: see `live`.
        device: for the memory's peak.
        clock: s.

    Returns:
        The report, and what the source failed with, after all that came before it was written.
    """
    rehearsal = rehearse(session, threads=settings.threads, say=watch.say)
    report, backlog = LiveReport(threads=rehearsal.threads), Backlog(latency=settings.latency, drop=settings.drop)
    backlog.busy, backlog.delay = rehearsal.period, rehearsal.delay
    feeder = _Feeder(source, backlog, lambda: session.wanted, settings.seconds)
    windows = _Windows(session, feeder, rehearsal, clock)
    try:
        with sink, torch_threads(rehearsal.threads):
            feeder.start()
            windows.start()
            try:
                _show(windows, sink, report, source.fps, settings, watch, clock)
            except BrokenPipeError as error:
                report.ended = f"nobody reads the output any more ({error.strerror or error})"
    finally:
        windows.end()
        feeder.end()
    report.dropped = windows.dropped + source.dropped
    report.lost = session.controls.lost
    report.memory = peak_memory(device)
    return report, feeder.error


@dataclass(frozen=True)
class _Window:
    """A window that was denoised: its frames of the input, their latents, when it was begun and how long it took, s."""

    inputs: list[LiveInput]
    latents: Tensor
    begun: float
    seconds: float


def _show(
    windows: "_Windows", sink: Sink, report: LiveReport, fps: float, settings: LiveConfig, watch: Watch,
    clock: Callable[[], float],
) -> None:  # fmt: skip
    """Decode and write windows as they are made; `report.ended` says why they ended."""
    begin, told, slot, spent = None, clock(), 0, time.process_time()
    while True:
        if not windows.ending and watch.cancel is not None and watch.cancel():
            windows.stop()  # what is begun is finished
            report.ended = "stopped"
        try:
            window = windows.made.get(timeout=_POLL)
        except queue.Empty:
            continue
        if window is None:
            report.ended = report.ended or "the input ended"
            windows.end()  # raises what it failed with
            return
        begin = window.inputs[0].arrived if begin is None else begin
        before = clock()
        frames = windows.session.decode(window.latents)
        report.busy.append(window.seconds)
        report.decoding.append(clock() - before)
        report.windows += 1
        for item, frame in zip(window.inputs, frames, strict=True):
            stands = max(1, round(item.time * fps) - slot + 1)  # what was dropped is filled, so that time is kept
            sink.write(frame, item.time, stands)
            slot += stands
            report.frames += 1
            report.latencies.append(clock() - item.arrived)
        backlog = windows.feeder.backlog
        backlog.shown(clock() - window.begun)
        report.seconds = clock() - begin
        report.cpu.append(time.process_time() - spent)
        spent = time.process_time()
        if settings.drop and report.windows == 3 and backlog.delay > settings.latency:
            watch.say(
                f"warning: a window takes {backlog.delay:.1f} s here, so that a latency of {settings.latency:g} s "
                "cannot be had; take fewer steps, a smaller size or fewer new frames"
            )
        if settings.every and clock() - told >= settings.every:
            told = clock()
            recent = statistics.median(report.latencies[-settings.window * 4 :])
            watch.say(
                f"{report.seconds:6.1f} s  {report.rate:5.2f} frames/s  latency {recent:.2f} s  dropped "
                f"{windows.dropped}  window {report.busy[-1]:.2f} + {report.decoding[-1]:.2f} s  waiting "
                f"{len(backlog.pending)}"
            )


class _Windows:
    """Denoises windows in a thread, one ahead of what is decoded.

    Attributes:
        made: windows in order; None after the last one.
        dropped: frames of the input that no window took.
    """

    def __init__(
        self, session: "LiveSession", feeder: "_Feeder", rehearsal: Rehearsal, clock: Callable[[], float]
    ) -> None:
        self.session, self.feeder, self.rehearsal, self.clock = session, feeder, rehearsal, clock
        self.made: queue.Queue[_Window | None] = queue.Queue(maxsize=1)
        self.dropped = 0
        self._stop, self._abandoned = threading.Event(), threading.Event()
        self._worker: Worker | None = None

    @property
    def ending(self) -> bool:
        """Whether no further window is begun."""
        return self._stop.is_set()

    def start(self) -> None:
        self._worker = Worker(self._run, threads=self.rehearsal.threads)

    def stop(self) -> None:
        """Begin no further window."""
        self._stop.set()

    def end(self) -> None:
        """Wait for the window that is being made, and let go of it. Raises: what the thread failed with, once."""
        self._stop.set()
        self._abandoned.set()
        if self._worker is not None:
            worker, self._worker = self._worker, None
            worker.result()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                inputs, dropped = self.feeder.take(self.session.wanted, self.clock)
                self.dropped += dropped
                if inputs:
                    begun = self.clock()
                    latents = self.session.latents(inputs)
                    self._put(_Window(inputs, latents, begun, self.clock() - begun))
                    self.feeder.backlog.took(self.clock() - begun)
                elif self.feeder.backlog.ended:
                    return
        finally:
            self._put(None)

    def _put(self, window: _Window | None) -> None:
        while not self._abandoned.is_set():
            try:
                self.made.put(window, timeout=_POLL)
            except queue.Full:
                continue
            return


class _Feeder:
    """Runs a source in a thread and lets its frames wait."""

    def __init__(self, source: Source, backlog: Backlog, count: Callable[[], int], seconds: float | None) -> None:
        self.source, self.backlog, self.count, self.seconds = source, backlog, count, seconds
        self.error: Exception | None = None
        self._changed, self._stop = threading.Condition(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="live source", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Let the source end; one that is stuck in its driver is left behind."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(_LEAVE)

    def take(self, count: int, clock: Callable[[], float]) -> tuple[list[LiveInput], int]:
        """The frames of the next window, or none yet after a short wait."""
        with self._changed:
            if not self.backlog.ready(count, clock()):
                self._changed.wait(_POLL)
            if not self.backlog.ready(count, clock()):
                return [], 0
            taken = self.backlog.take(count, clock())
            self._changed.notify_all()
            return taken

    def _run(self) -> None:
        try:
            for item in self.source.frames(self._stop):
                if self.seconds is not None and item.time >= self.seconds:
                    break
                with self._changed:
                    while self.backlog.full(self.count()) and not self._stop.is_set():
                        self._changed.wait(_POLL)
                    self.backlog.pending.append(item)
                    self._changed.notify_all()
        except Exception as error:  # whatever it is, it is raised where the run ends
            self.error = error
        finally:
            with self._changed:
                self.backlog.ended = True
                self._changed.notify_all()
