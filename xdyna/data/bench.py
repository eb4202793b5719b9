"""Benchmark of the training data: how fast workers make clips, and how many a run needs (`scripts/bench.py loader`)."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from xdyna.config.bench import BenchConfig
from xdyna.config.data import DataConfig
from xdyna.data.clips import build_dataset
from xdyna.data.loader import build_loader
from xdyna.data.samples import Batch

WARM_UP = 2  # batches a worker that are not timed: it starts, and reads what it keeps


@dataclass(frozen=True)
class Rate:
    """What was measured.

    Attributes:
        workers: processes; 0 is the measuring process itself.
        clips: made in the time measured.
        frames: images in them, references included.
        seconds: wall clock.
    """

    workers: int
    clips: int
    frames: int
    seconds: float

    @property
    def clips_per_worker(self) -> float:
        """clips/s of one worker."""
        return self.clips / self.seconds / max(self.workers, 1)

    def needed(self, *, clips_per_step: int, steps_per_second: float) -> int:
        """Workers of one process such that its data are there when it wants them."""
        return math.ceil(clips_per_step * steps_per_second / self.clips_per_worker - 1e-9)


def bench_loader(config: BenchConfig) -> None:
    """Time the training data, and print what a run needs.

    Args:
        config: what is measured.

    Raises:
        ValueError: the data cannot be read.
    """
    torch.set_num_threads(1)  # as in a worker
    data = config.data
    build_dataset(data, seed=config.seed)
    print(
        f"{data.source}: clips of 1 + {data.frames} frames, {data.height} x {data.width} px, batches of "
        f"{config.batch_size}"
    )
    for workers in config.workers:
        rate = measure(data, workers=workers, batch_size=config.batch_size, batches=config.batches, seed=config.seed)
        needed = rate.needed(clips_per_step=config.batch_size, steps_per_second=config.steps_per_second)
        print(
            f"workers {workers:>2}: {rate.clips_per_worker:7.2f} clips/s and "
            f"{rate.frames / rate.clips * rate.clips_per_worker:7.1f} frames/s per worker "
            f"({rate.clips} clips in {rate.seconds:.2f} s); {config.steps_per_second:g} steps/s need {needed} "
            f"worker{'s' if needed != 1 else ''}"
        )


def measure(config: DataConfig, *, workers: int, batch_size: int, batches: int, seed: int) -> Rate:
    """Time batches as a run takes them, after a warm-up.

    Args:
        config: the options; its `workers` is not looked at.
        workers: processes that make batches.
        batch_size: clips of a batch.
        batches: batches that are timed, for each worker.
        seed: of the clips.

    Returns:
        Rate: of batches that were begun and ended in the time measured: all workers are busy at both ends.

    Raises:
        DataError: a clip cannot be made.
    """
    loader = build_loader(replace(config, workers=workers, prefetch=1), seed=seed, batch_size=batch_size)
    stream: Iterator[Batch] = iter(loader)
    count = max(workers, 1)
    for _ in range(WARM_UP * count):
        next(stream)
    began, frames = time.perf_counter(), 0
    for _ in range(batches * count):
        batch = next(stream)
        frames += batch.pose.shape[0] * (1 + batch.pose.shape[1])
    seconds = time.perf_counter() - began
    return Rate(workers, batches * count * batch_size, frames, seconds)
