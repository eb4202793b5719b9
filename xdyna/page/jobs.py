"""The queue of the page: one job after the other, a bounded number that waits, progress, cancelling, a time to keep.

A job is known by an id that cannot be guessed; who knows it may watch, cancel and fetch.
"""

from __future__ import annotations

import secrets
import shutil
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from xdyna.core.errors import UsageError
from xdyna.core.progress import CancelledError, Watch

State = Literal["waiting", "running", "done", "failed", "cancelled"]
_RECENT = 8  # finished jobs whose duration tells how long one takes
_JOIN = 30.0  # s that the running job has to end when the page ends


class Busy(UsageError):
    """The queue is full."""


class Unknown(UsageError):
    """There is no such job (any more)."""


@dataclass
class Job:
    """One animation that a visitor asked for.

    Attributes:
        id: known to the visitor alone.
        folder: of its files, removed with it.
        label: for its visitor's list.
        work: does it; takes the job and what to tell progress to.
        state: where it stands.
        stage: of the work, with `done` of `total` parts.
        notes: what was said on the way.
        error: why it failed, a sentence.
        result: what `work` returned.
        created: on the queue's clock, s; `started` and `ended` likewise.
    """

    id: str
    folder: Path
    label: str
    work: Callable[[Job, Watch], Any]
    state: State = "waiting"
    stage: str = ""
    done: int = 0
    total: int = 0
    notes: list[str] = field(default_factory=list)
    error: str = ""
    result: Any = None
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    stage_began: float = 0.0
    cancel: threading.Event = field(default_factory=threading.Event)

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ("waiting", "running")


@dataclass(frozen=True)
class Progress:
    """Where a job stands.

    Attributes:
        job: its id.
        label: what it is.
        state: where it stands.
        stage: of the work.
        done: parts of the stage.
        total: parts of the stage.
        place: jobs before it, 0 where it runs or has ended.
        seconds: since it began (since it came, where it waits).
        eta_seconds: until the stage ends (until it begins, where it waits); None where that is unknown.
        notes: what was said on the way.
        error: why it failed.
    """

    job: str
    label: str
    state: State
    stage: str
    done: int
    total: int
    place: int
    seconds: float
    eta_seconds: float | None
    notes: list[str]
    error: str


class Jobs:
    """Runs jobs one after the other in a thread.

    Args:
        root: folder below which each job has its own.
        limit: jobs that may wait.
        keep: s after its end that a job is kept.
        explain: turns an exception into a sentence for the visitor.
        clock: s.
    """

    def __init__(
        self,
        root: Path,
        *,
        limit: int,
        keep: float,
        explain: Callable[[BaseException], str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.root, self.limit, self.keep, self.explain, self.clock = root, limit, keep, explain, clock
        self._jobs: dict[str, Job] = {}
        self._waiting: list[Job] = []
        self._coming = 0
        self._changed = threading.Condition()
        self._closed = False
        self._durations: list[float] = []
        self._thread = threading.Thread(target=self._run, name="page jobs", daemon=True)
        self._thread.start()

    def submit(self, prepare: Callable[[Path], tuple[str, Callable[[Job, Watch], Any]]]) -> Job:
        """Let a job wait.

        Args:
            prepare: given the job's folder, puts its inputs there and returns its label and its work. It is called
                only where there is room; what it raises is raised, and the room is given back.

        Raises:
            Busy: as many wait as may.
        """
        with self._changed:
            if self._closed:
                raise Busy("the page is being closed; try again later")
            if len(self._waiting) + self._coming >= self.limit:
                raise Busy(self._full())
            self._coming += 1
        name, folder = secrets.token_urlsafe(16), self.new_folder("job")
        try:
            label, work = prepare(folder)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            with self._changed:
                self._coming -= 1
            raise
        job = Job(name, folder, label, work, created=self.clock())
        with self._changed:
            self._coming -= 1
            self._jobs[name] = job
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def new_folder(self, what: str) -> Path:
        """An empty folder below the root, whose name nobody knows. Args: what: its name's beginning."""
        folder = self.root / f"{what}-{secrets.token_hex(12)}"
        folder.mkdir(parents=True)
        return folder

    def _full(self) -> str:
        each = statistics.median(self._durations) if self._durations else None
        soon = f" in about {_minutes(each)}" if each is not None else " in a minute"
        animations = "animation waits" if self.limit == 1 else f"{self.limit} animations wait"
        return f"the queue is full: {animations} already, so this one was not taken; try again{soon}"

    def get(self, name: str) -> Job:
        """The job of an id.

        Raises:
            Unknown: there is none.
        """
        with self._changed:
            job = self._jobs.get(name) if isinstance(name, str) else None
        if job is None:
            minutes = self.keep / 60
            raise Unknown(f"there is no such animation (any more): results are kept for {minutes:g} minutes")
        return job

    def progress(self, name: str) -> Progress:
        """Where a job stands.

        Raises:
            Unknown: there is none.
        """
        job, now = self.get(name), self.clock()
        with self._changed:
            place = self._waiting.index(job) + 1 if job in self._waiting else 0
            return Progress(
                job.id,
                job.label,
                job.state,
                job.stage,
                job.done,
                job.total,
                place,
                round((job.ended or now) - (job.started or job.created), 1),
                self._eta(job, place, now),
                list(job.notes),
                job.error,
            )

    def _eta(self, job: Job, place: int, now: float) -> float | None:
        """s until the stage ends, by what is done of it; of a job that waits until it begins, by those before it."""
        if job.state == "waiting":
            return round(statistics.median(self._durations) * place, 1) if self._durations else None
        if job.state != "running" or not job.done or not job.total:
            return None
        return round((now - job.stage_began) / job.done * (job.total - job.done), 1)

    def cancel(self, name: str) -> Job:
        """End a job: one that waits at once, one that runs at its next part; one that has ended stays as it is.

        Raises:
            Unknown: there is none.
        """
        job = self.get(name)
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                self._end(job, "cancelled")
            job.cancel.set()
        return job

    def counts(self) -> tuple[int, int]:
        """Jobs that wait, and jobs that run."""
        with self._changed:
            return len(self._waiting), sum(job.state == "running" for job in self._jobs.values())

    def sweep(self) -> int:
        """Remove jobs, with their files, that ended longer ago than they are kept. Returns: how many."""
        now = self.clock()
        with self._changed:
            old = [job for job in self._jobs.values() if job.ended is not None and now - job.ended > self.keep]
            for job in old:
                del self._jobs[job.id]
        for job in old:
            shutil.rmtree(job.folder, ignore_errors=True)
        return len(old)

    def close(self) -> None:
        """Cancel all jobs and wait for the one that runs, for a while."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                self._end(job, "cancelled")
            self._waiting.clear()
            for job in self._jobs.values():
                job.cancel.set()
            self._changed.notify_all()
        self._thread.join(_JOIN)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                job = self._waiting.pop(0)
                job.state, job.started = "running", self.clock()
                job.stage_began = job.started
            self._do(job)

    def _do(self, job: Job) -> None:
        def step(stage: str, done: int, total: int) -> None:
            with self._changed:
                if stage != job.stage or done < job.done:
                    job.stage_began = self.clock()
                job.stage, job.done, job.total = stage, done, total

        try:
            result = job.work(job, Watch(progress=step, cancel=job.cancel.is_set, tell=job.notes.append))
        except CancelledError:
            state: State = "cancelled"
        except BaseException as error:  # whatever it is, the queue goes on
            state, job.error = "failed", self.explain(error)
        else:
            state, job.result = "done", result
        with self._changed:
            self._end(job, state)
            if state == "done" and job.started is not None:
                self._durations = [*self._durations[-_RECENT + 1 :], self.clock() - job.started]

    def _end(self, job: Job, state: State) -> None:
        job.state, job.ended = state, self.clock()
        if state != "done":
            shutil.rmtree(job.folder, ignore_errors=True)


def _minutes(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"
