"""Batches for one rank of a run, resumable at any step."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from xdyna.config.data import DataConfig, DataError
from xdyna.data.clips import ClipDataset, build_dataset
from xdyna.data.samples import Batch, Sample, collate


class StepSampler(Sampler[list[int]]):
    """Indices of one rank's batches, without end.

    Each micro-step takes the next world_size * batch_size samples, rank by rank. So all ranks together see, one after
    the other, what one rank of the same total batch would see, and a run may go on with another number of them.

    Args:
        batch_size: samples of one rank in one micro-step.
        rank: of this process, 0 .. world_size - 1.
        world_size: number of processes.
        start: samples that were seen before, by all ranks together; a resumed run continues exactly there.

    Raises:
        DataError: a number out of range.
    """

    def __init__(self, *, batch_size: int, rank: int = 0, world_size: int = 1, start: int = 0) -> None:
        for name, value, lowest in (("batch_size", batch_size, 1), ("world_size", world_size, 1), ("start", start, 0)):
            if value < lowest:
                raise DataError(f"{name}: got {value}, expected {lowest} or more")
        if not 0 <= rank < world_size:
            raise DataError(f"rank: got {rank}, expected 0 to world_size - 1 = {world_size - 1}")
        self.batch_size, self.rank, self.world_size, self.start = batch_size, rank, world_size, start

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of one micro-step after the other."""
        first = self.start + self.rank * self.batch_size
        while True:
            yield list(range(first, first + self.batch_size))
            first += self.world_size * self.batch_size


@dataclass(frozen=True)
class _Failure:
    """What a worker hands over instead of a batch: torch would wrap an exception into a wall of text."""

    message: str


class _Guarded(Dataset[Sample | _Failure]):
    """A set whose failures are values."""

    def __init__(self, dataset: ClipDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Sample | _Failure:
        try:
            return self.dataset[index]
        except (ValueError, OSError, MemoryError, cv2.error) as error:
            return _Failure(f"sample {index} cannot be made: {type(error).__name__}: {error}")


class _Iteration:
    """The workers of one iterator over a loader, and their end.

    Args:
        batches: PyTorch's iterator.
        in_use: the flag that the workers watch (`_WorkerStart`), without a lock; None without workers.
    """

    def __init__(self, batches: Any, in_use: Any) -> None:
        self.batches, self.in_use = batches, in_use
        self.workers: list[BaseProcess] = list(getattr(batches, "_workers", ()))

    def end(self) -> None:
        """End the workers, whatever state they are in: nobody needs to wait for them afterwards."""
        if self in _running:
            _running.remove(self)
        if self.in_use is None:
            return
        self.in_use.value = False
        # PyTorch asks its workers to end, waits, and ends those that did not. None is ended before: one that held a
        # lock of theirs at that moment would leave everybody else waiting for it.
        _quietly(self.batches._shutdown_workers)
        for worker in self.workers:  # one that hangs in a library does not see signals
            _quietly(worker.kill)
            _quietly(worker.join, 5)


def _quietly(action: Callable[..., Any], *arguments: Any) -> None:
    with contextlib.suppress(ValueError, ProcessLookupError, RuntimeError):  # gone already, or PyTorch's word of that
        action(*arguments)


_running: list[_Iteration] = []
"""Not weak: an iterator that was lost in an exception leaves workers behind that somebody must end."""


@atexit.register
def _end_workers() -> None:
    """At its exit Python sends SIGTERM to the workers and waits for them, but while their loader is in use they leave
    SIGTERM to the training process (`_WorkerStart`): so they are ended before."""
    for iteration in list(_running):
        iteration.end()


class ClipLoader(DataLoader[Batch]):
    """A `DataLoader` of `Batch`, one per micro-step, whose failures are one `DataError`.

    It is for one rank already: do not hand it to `accelerate.prepare`.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield batches without end.

        Raises:
            DataError: a sample could not be made, or a worker died.
        """
        in_use = self.multiprocessing_context.RawValue(ctypes.c_bool, True) if self.num_workers else None
        self.worker_init_fn = _WorkerStart(in_use)
        batches = super().__iter__()
        iteration = _Iteration(batches, in_use)
        _running.append(iteration)
        try:
            while True:
                batch = _next_batch(batches)
                if isinstance(batch, _Failure):
                    raise DataError(batch.message)
                yield batch
        finally:  # also where this iterator is dropped, or lost in an exception
            iteration.end()


def _next_batch(batches: Iterator[Any]) -> Any:
    try:
        return next(batches)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        codes = {worker.exitcode for worker in getattr(batches, "_workers", ())} - {None, 0}
        told = f"; exit code {', '.join(map(str, sorted(codes)))}" if codes else ""
        raise DataError(
            f"a process that makes training data died ({str(error).splitlines()[0]}{told}); it may have run out of "
            f"memory: lower data.workers or data.prefetch"
        ) from error


def build_loader(
    config: DataConfig,
    *,
    seed: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    step: int | None = None,
    vae: str | None = None,
    tokens: str | None = None,
    start_method: str | None = None,
) -> ClipLoader:
    """Batches of one rank; the same for any number of workers.

    Args:
        config: the options.
        seed: of everything random; the same on all ranks.
        batch_size: samples of one rank in one micro-step.
        rank: of this process.
        world_size: number of processes.
        start: samples that were seen before, by all ranks together.
        step: samples of an optimizer step, of all ranks and micro-steps together (see `build_dataset`); None: one
            micro-step of each rank.
        vae: see `build_dataset`.
        tokens: see `build_dataset`.
        start_method: "fork", "spawn" or "forkserver"; None takes Python's own for this system.

    Returns:
        Endless iterable of `Batch`, one per micro-step.

    Raises:
        DataError: numbers out of range, options that cannot be met, or a cache that does not fit them.
    """
    sampler = StepSampler(batch_size=batch_size, rank=rank, world_size=world_size, start=start)
    step = step or batch_size * world_size
    return ClipLoader(
        _Guarded(build_dataset(config, seed=seed, vae=vae, tokens=tokens, step=step)),  # type: ignore[arg-type]
        batch_sampler=sampler,
        num_workers=config.workers,
        prefetch_factor=config.prefetch if config.workers else None,
        collate_fn=_collate_guarded,
        multiprocessing_context=multiprocessing.get_context(start_method) if config.workers else None,
    )


def _collate_guarded(samples: Sequence[Sample | _Failure]) -> Batch | _Failure:
    for sample in samples:
        if isinstance(sample, _Failure):
            return sample
    return collate([sample for sample in samples if isinstance(sample, Sample)])


@dataclass(frozen=True)
class _WorkerStart:
    """What a worker does first. It runs one thread, in a process group of its own: Ctrl-C and SIGTERM are for the
    training process, which saves first, also where they are sent to all processes (Slurm).

    A worker ends when its loader is gone (then SIGTERM counts again) and when its parent dies, however that was.

    Attributes:
        in_use: shared flag, true while the loader's iterator is in use; None without workers.
    """

    in_use: Any

    def __call__(self, worker: int) -> None:
        torch.set_num_threads(1)
        cv2.setNumThreads(0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._terminated)
        if hasattr(os, "setpgrp"):  # not on Windows
            os.setpgrp()
        threading.Thread(target=_end_with_parent, daemon=True).start()

    def _terminated(self, number: int, frame: FrameType | None) -> None:
        if self.in_use is None or not self.in_use.value:
            os._exit(0)  # another code would be an error to PyTorch


def _end_with_parent() -> None:
    """Wait for the parent's end. Under forkserver it is not the process that this one was forked from: Python knows it
    by a pipe, which a kill -9 closes too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
