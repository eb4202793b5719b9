"""Benchmark of the training data: how fast workers make clips, and how many a run needs (`scripts/bench.py loader`)."""

import argparse
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from xdyna.config.data import DataConfig
from xdyna.config.loader import load_config
from xdyna.core.errors import UsageError
from xdyna.data.clips import build_dataset
from xdyna.data.loader import build_loader
from xdyna.data.samples import Batch

WARM_UP = 2  # batches a worker that are not timed: it starts, and reads what it keeps


@dataclass
class LoaderConfig:
    """Settings of `scripts/bench.py loader`.

    Attributes:
        data: what is read; see `DataConfig`.
    """

    data: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True)
class Rate:
    """What was measured.

    Attributes:
        workers: processes; 0 is the measuring process itself.
        clips: made in the time measured.
        frames: pictures in them, references included.
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


def main(argv: Sequence[str]) -> int:
    """Run `scripts/bench.py loader`. Args: argv: without "loader". Returns: exit code."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(1)  # as in a worker
    try:
        config = load_config(LoaderConfig, None, args.overrides).data
        build_dataset(config, seed=args.seed)
    except ValueError as error:
        raise UsageError(str(error)) from error
    print(
        f"{config.source}: clips of 1 + {config.frames} frames, {config.height} x {config.width} px, batches of "
        f"{args.batch_size}"
    )
    for workers in args.workers:
        rate = measure(config, workers=workers, batch_size=args.batch_size, batches=args.batches, seed=args.seed)
        needed = rate.needed(clips_per_step=args.batch_size, steps_per_second=args.steps_per_second)
        print(
            f"workers {workers:>2}: {rate.clips_per_worker:7.2f} clips/s and "
            f"{rate.frames / rate.clips * rate.clips_per_worker:7.1f} frames/s per worker "
            f"({rate.clips} clips in {rate.seconds:.2f} s); {args.steps_per_second:g} steps/s need {needed} "
            f"worker{'s' if needed != 1 else ''}"
        )
    return 0


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


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="bench.py loader",
        description="Measure how fast training clips are made, and how many workers a run needs.",
    )
    p.add_argument("--workers", type=int, nargs="+", default=[1], metavar="N", help="numbers to try (%(default)s)")
    p.add_argument("--batch-size", type=int, default=1, help="clips of one process and step (%(default)s)")
    p.add_argument("--batches", type=int, default=20, help="timed batches of each worker (%(default)s)")
    p.add_argument("--steps-per-second", type=float, default=1.0, metavar="N", help="speed of the run (%(default)s)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    p.add_argument(
        "overrides", nargs="*", metavar="data.key=value", help="e.g. data.source=footage 'data.manifests=[FOLDER]'"
    )
    return p
