"""Who does the work: processes of this machine (`LocalEngine`), or a Ray cluster (`engine_ray.RayEngine`).

Both take independent tasks from one queue, so that whoever is free takes the next one, start a task again whose worker
died, and hand results back in the order in which they are finished. What a task returns may not depend on who ran it.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Protocol, TypeVar

import cv2

from xdyna.config.data import DataError

RETRIES = 3

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Failure:
    """Instead of the result of a task: why there is none.

    Attributes:
        reason: a sentence.
        kind: name of the exception's class; "" where the worker died without a word.
        trace: where it happened, for developers; "" likewise.
    """

    reason: str
    kind: str = ""
    trace: str = ""


class Engine(Protocol):
    """Runs independent tasks."""

    def run(
        self, tasks: Sequence[Task], work: Callable[[Task], Result]
    ) -> Generator[tuple[int, Result | Failure], None, None]:
        """Run all tasks, begun in their order.

        Args:
            tasks: can be pickled.
            work: makes a result of a task; can be pickled, and may be called again for a task whose worker died.

        Yields:
            The number of a task and its result, in the order in which they are finished, each task once.
        """
        ...


class LocalEngine:
    """Processes of this machine.

    Each worker is a process of its own, so that one that dies (a full memory, a codec that crashes) takes along nothing
    but its own task. Workers end at once when this process ends, however it ends.

    Args:
        workers: number of processes; None: as many as there are cores this process may use.
        retries: how often a task is begun again whose worker died.

    Raises:
        DataError: no workers.
    """

    def __init__(self, workers: int | None = None, *, retries: int = RETRIES) -> None:
        self.workers = available_cores() if workers is None else workers
        self.retries = retries
        if self.workers < 1 or retries < 0:
            raise DataError(f"workers and retries: got {self.workers} and {retries}, expected 1 and 0 or more")

    def run(
        self, tasks: Sequence[Task], work: Callable[[Task], Result]
    ) -> Generator[tuple[int, Result | Failure], None, None]:
        """See `Engine.run`."""
        queue = deque((number, 0) for number in range(len(tasks)))
        idle = [_Worker() for _ in range(min(self.workers, len(tasks)))]
        running: dict[Future[Result], tuple[_Worker, int, int]] = {}
        try:
            while queue or running:
                while queue and idle:
                    worker, (number, deaths) = idle.pop(), queue.popleft()
                    running[worker.begin(work, tasks[number])] = worker, number, deaths
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    worker, number, deaths = running.pop(future)
                    error = future.exception()
                    if not isinstance(error, BrokenProcessPool):
                        idle.append(worker)
                        yield number, future.result() if error is None else failure(error)
                        continue
                    worker.stop()
                    idle.append(_Worker())
                    if deaths < self.retries:
                        queue.appendleft((number, deaths + 1))
                    else:
                        yield number, died(deaths + 1)
        finally:
            for worker in [*idle, *(worker for worker, _, _ in running.values())]:
                worker.stop()


class _Worker:
    """One process, started with its first task, that ends when the line to it is closed."""

    def __init__(self) -> None:
        context = get_context("spawn")  # fork copies threads' locks, and decoders and mediapipe have threads
        self._listening, self._line = context.Pipe(duplex=False)
        self.pool = ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(self._listening,))

    def begin(self, work: Callable[[Task], Result], task: Task) -> Future[Result]:
        """Start a task; that the process died while it waited is told by the future, as if it were during the task."""
        try:
            return self.pool.submit(work, task)
        except BrokenProcessPool as error:
            future: Future[Result] = Future()
            future.set_exception(error)
            return future

    def stop(self) -> None:
        """End the process, in the middle of a task too."""
        self._line.close()
        self.pool.shutdown(wait=True, cancel_futures=True)
        self._listening.close()


def _begin(line: Connection) -> None:
    """What a worker does first: leave Ctrl-C to its parent, keep to one core, and watch the line to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, args=(line,), daemon=True).start()


def _end_with_parent(line: Connection) -> None:
    try:
        line.recv()
    except (EOFError, OSError):
        os._exit(1)


def failure(error: BaseException, trace: str | None = None) -> Failure:
    """What is told of an exception that a task ended with.

    Args:
        error: the exception.
        trace: where it happened; default: as the exception knows.
    """
    text = str(error).splitlines()[0] if str(error) else "no message"
    return Failure(text, type(error).__name__, trace or "".join(traceback.format_exception(error)))


def died(times: int) -> Failure:
    """What is told of a task whose worker died each time."""
    return Failure(f"the process that worked on it died {times} times: the memory is full, or a decoder crashes on it")


def available_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
