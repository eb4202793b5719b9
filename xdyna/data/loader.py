"""Batches for one rank of a run, resumable at any step."""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from xdyna.config.data import DataConfig, DataError
from xdyna.data.clips import ClipDataset, build_dataset
from xdyna.data.samples import Batch, Sample, collate


class StepSampler(Sampler[list[int]]):
    """Indices of one rank's batches, without end.

    Step s of the run has the samples s * G .. (s + 1) * G - 1, G = accumulation * world_size * batch_size. Each of its
    `accumulation` micro-steps takes the next world_size * batch_size of them, rank by rank. So all ranks together see,
    micro-step by micro-step, what one rank of the same total batch would see.

    Args:
        batch_size: samples of one rank in one micro-step.
        rank: of this process, 0 .. world_size - 1.
        world_size: number of processes.
        start_step: optimizer step to begin with; a resumed run continues exactly there.
        accumulation: micro-steps of one optimizer step.

    Raises:
        DataError: a number out of range.
    """

    def __init__(
        self, *, batch_size: int, rank: int = 0, world_size: int = 1, start_step: int = 0, accumulation: int = 1
    ) -> None:
        for name, value, lowest in (
            ("batch_size", batch_size, 1),
            ("world_size", world_size, 1),
            ("accumulation", accumulation, 1),
            ("start_step", start_step, 0),
        ):
            if value < lowest:
                raise DataError(f"{name}: got {value}, expected {lowest} or more")
        if not 0 <= rank < world_size:
            raise DataError(f"rank: got {rank}, expected 0 to world_size - 1 = {world_size - 1}")
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.start_step, self.accumulation = start_step, accumulation

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of one micro-step after the other."""
        micro_step = self.start_step * self.accumulation
        while True:
            first = (micro_step * self.world_size + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))
            micro_step += 1


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


_running: WeakSet[Any] = WeakSet()
"""PyTorch's iterators with workers that are in use."""


@atexit.register
def _end_workers() -> None:
    """At its exit Python sends SIGTERM to the workers and waits for them, but they do not heed it (`_start_worker`): so
    they are ended before."""
    for batches in list(_running):
        batches._shutdown_workers()
        for worker in batches._workers:
            worker.kill()


class ClipLoader(DataLoader[Batch]):
    """A `DataLoader` of `Batch`, one per micro-step, whose failures are one `DataError`.

    It is for one rank already: do not hand it to `accelerate.prepare`.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield batches without end.

        Raises:
            DataError: a sample could not be made, or a worker died.
        """
        batches = super().__iter__()
        if self.num_workers:
            _running.add(batches)
        while True:
            try:
                batch = next(batches)
            except RuntimeError as error:
                if not str(error).startswith("DataLoader worker"):
                    raise
                raise DataError(
                    f"a process that makes training data died ({str(error).splitlines()[0]}); it may have run out of "
                    f"memory: lower data.workers or data.prefetch"
                ) from error
            if isinstance(batch, _Failure):
                raise DataError(batch.message)
            yield batch


def build_loader(
    config: DataConfig,
    *,
    seed: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    start_step: int = 0,
    accumulation: int = 1,
    vae: str | None = None,
    tokens: str | None = None,
) -> ClipLoader:
    """Batches of one rank; the same for any number of workers.

    Args:
        config: the options.
        seed: of everything random; the same on all ranks.
        batch_size: samples of one rank in one micro-step.
        rank: of this process.
        world_size: number of processes.
        start_step: optimizer step to begin with.
        accumulation: micro-steps of one optimizer step.
        vae: see `build_dataset`.
        tokens: see `build_dataset`.

    Returns:
        Endless iterable of `Batch`, one per micro-step.

    Raises:
        DataError: numbers out of range, options that cannot be met, or a cache that does not fit them.
    """
    sampler = StepSampler(
        batch_size=batch_size, rank=rank, world_size=world_size, start_step=start_step, accumulation=accumulation
    )
    step = batch_size * world_size * accumulation
    return ClipLoader(
        _Guarded(build_dataset(config, seed=seed, vae=vae, tokens=tokens, step=step)),  # type: ignore[arg-type]
        batch_sampler=sampler,
        num_workers=config.workers,
        prefetch_factor=config.prefetch if config.workers else None,
        collate_fn=_collate_guarded,
        worker_init_fn=_start_worker,
    )


def _collate_guarded(samples: Sequence[Sample | _Failure]) -> Batch | _Failure:
    for sample in samples:
        if isinstance(sample, _Failure):
            return sample
    return collate([sample for sample in samples if isinstance(sample, Sample)])


def _start_worker(worker: int) -> None:
    """One thread each, in a process group of its own: Ctrl-C and SIGTERM are for the training process, which saves
    first, also where they are sent to all processes (Slurm). Workers end when it ends (`_end_workers`)."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):  # not on Windows
        os.setpgrp()
