"""Which frames are made, and which are dropped to stay in time; what came of it. Nothing here waits or reads a clock.

A window begins each `busy` s, and is a picture `delay` s after that (decoding runs beside the next window, so that
delay is more than busy). A frame that is begun at `now` is a picture at now + delay, one that is left for the next
window at now + busy + delay at the earliest. Where what is left would be later than `latency`, all that waits is
thinned evenly to one window, and what is too old already goes first.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xdyna.perception.types import Person

STALL = 0.5  # s without input after which a window is begun with the frames that there are
_SMOOTH = 0.3  # weight of the newest window in the expected duration


@dataclass(frozen=True)
class LiveInput:
    """One frame of the input.

    Attributes:
        time: of the source, s from its beginning.
        arrived: on the session's clock, s.
        size: (H, W) of the image that the keypoints belong to, px.
        people: who is there, largest first; keypoints come as one person or none.
        image: uint8 (H, W, 3); None for keypoints.
    """

    time: float
    arrived: float
    size: tuple[int, int]
    people: tuple[Person, ...]
    image: np.ndarray | None = None


class Backlog:
    """Frames that wait for a window.

    Args:
        latency: aim for the time from arrival to picture, s.
        drop: whether frames may be dropped.

    Attributes:
        pending: frames, oldest first.
        ended: whether no more come.
        busy: s from window to window, as expected.
        delay: s from a window's beginning to its pictures, as expected.
    """

    def __init__(self, *, latency: float, drop: bool) -> None:
        self.latency, self.drop = latency, drop
        self.pending: deque[LiveInput] = deque()
        self.ended = False
        self.busy = self.delay = 0.0

    def ready(self, count: int, now: float) -> bool:
        """Whether a window of `count` new frames may begin: there are so many, or no more come (for now)."""
        if len(self.pending) >= count or not self.pending:
            return bool(self.pending)
        return self.ended or (self.drop and now - self.pending[-1].arrived > STALL)

    def full(self, count: int) -> bool:
        """Whether input that is never dropped has to wait."""
        return not self.drop and len(self.pending) >= 2 * count

    def take(self, count: int, now: float) -> tuple[list[LiveInput], int]:
        """The frames of a window, at most `count`, in order; and how many were dropped."""
        waiting = list(self.pending)
        left = waiting[count:]
        on_time = not left or now - left[0].arrived + self.busy + self.delay <= self.latency
        if not self.drop or on_time:
            chosen, kept = waiting[:count], left
        else:
            young = [item for item in waiting if now - item.arrived + self.delay <= self.latency]
            young = young if len(young) >= count else waiting[-count:]
            chosen, kept = [young[k] for k in np.linspace(0, len(young) - 1, count).round().astype(int)], []
        self.pending = deque(kept)
        return chosen, len(waiting) - len(chosen) - len(kept)

    def took(self, seconds: float) -> None:
        """Learn how long a window took, until the next could begin."""
        self.busy = _smoothed(self.busy, seconds)

    def shown(self, seconds: float) -> None:
        """Learn how long after its beginning a window was a picture."""
        self.delay = _smoothed(self.delay, seconds)


def _smoothed(before: float, now: float) -> float:
    return now if not before else (1 - _SMOOTH) * before + _SMOOTH * now


@dataclass
class LiveReport:
    """What came of a live animation.

    Attributes:
        frames: generated.
        dropped: input frames that were dropped.
        windows: denoised.
        seconds: from the first frame's arrival to the last picture.
        latencies: of each frame, from arrival to picture, s.
        busy: s of denoising of each window, control images included.
        decoding: s of decoding of each window, beside the denoising of the next.
        cpu: processor s from window to window, of all threads of the process (detection, too): what remains comparable
            on a busy machine.
        threads: that denoise; None: as torch has it (not on a CPU).
        lost: frames without the person.
        ended: why it ended, in words.
        written: files, the manifest last.
        memory: peak in bytes, by name.
    """

    frames: int = 0
    dropped: int = 0
    windows: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list, repr=False)
    busy: list[float] = field(default_factory=list, repr=False)
    decoding: list[float] = field(default_factory=list, repr=False)
    cpu: list[float] = field(default_factory=list, repr=False)
    threads: int | None = None
    lost: int = 0
    ended: str = ""
    written: tuple[Any, ...] = ()
    memory: dict[str, int] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Generated frames per second."""
        return self.frames / self.seconds if self.seconds else 0.0

    def latency(self, share: float) -> float:
        """Quantile of the latencies, s; 0 before the first frame."""
        return float(np.quantile(self.latencies, share)) if self.latencies else 0.0

    def numbers(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "frames": self.frames,
            "dropped": self.dropped,
            "lost": self.lost,
            "windows": self.windows,
            "seconds": round(self.seconds, 3),
            "frames_per_second": round(self.rate, 3),
            "latency_median": round(self.latency(0.5), 3),
            "latency_p95": round(self.latency(0.95), 3),
            "window_seconds_median": round(float(np.median(self.busy)), 4) if self.busy else None,
            "decoding_seconds_median": round(float(np.median(self.decoding)), 4) if self.decoding else None,
            "window_cpu_seconds_median": round(float(np.median(self.cpu)), 4) if self.cpu else None,
            "threads": self.threads,
            "ended": self.ended,
            "peak_memory_bytes": self.memory,
        }

    def __str__(self) -> str:
        """One line."""
        busy, decoding, spent = (float(np.median(s or [0])) for s in (self.busy, self.decoding, self.cpu))
        memory = ", ".join(f"{value / 2**30:.2f} GiB ({name})" for name, value in self.memory.items())
        return (
            f"{self.frames} frames in {self.seconds:.1f} s = {self.rate:.2f} frames/s, latency median "
            f"{self.latency(0.5):.2f} s, p95 {self.latency(0.95):.2f} s, {self.dropped} dropped, {self.lost} without "
            f"the person, {busy:.2f} s a window and {decoding:.2f} s to decode it ({spent:.2f} processor s), "
            f"peak memory {memory or 'unknown'}"
        )
