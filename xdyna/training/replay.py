"""Replay of training clips: most of a batch are clips of earlier steps, drawn from the last ones that were made.

Where clips are made more slowly than the device trains on them (rendering, decoding of videos), each is shown several
times, with new noise and another timestep: "data echoing" with a shuffle buffer (Choi et al., arXiv 1907.05550). What
frozen encoders say of a clip is computed once, when it comes.

The batch of micro-step m is a pure function of (seed, m): a resumed run makes the kept clips again.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xdyna.core.device import to_device
from xdyna.data.samples import Batch

_STREAM = 11  # of random numbers that choose what is replayed


@dataclass(frozen=True)
class Replay:
    """Plan of one rank's batches.

    Attributes:
        clips: how many of the newest clips are kept; whole multiples of `fresh` of them are.
        fresh: new clips in each batch.
        batch_size: clips in each batch.
        seed: of the run.
        rank: of this process.
        world_size: number of processes.
        accumulation: micro-steps of an optimizer step.
    """

    clips: int
    fresh: int
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    accumulation: int = 1

    @property
    def rows(self) -> int:
        """Fresh batches that are kept."""
        return max(1, self.clips // self.fresh)

    def first_step(self, step: int) -> int:
        """Optimizer step whose fresh clips must be made first for the batches from `step` on."""
        return max(0, step - -(-self.rows // self.accumulation))

    def picks(self, micro_step: int) -> np.ndarray:
        """Which kept clips are shown beside the fresh ones.

        Args:
            micro_step: number of the batch, from 0.

        Returns:
            np.ndarray: int64 (batch_size - fresh,), numbers of clips counted from the first one ever made by this rank.
        """
        newest = (micro_step + 1) * self.fresh
        oldest = max(0, micro_step + 1 - self.rows) * self.fresh
        others = newest - self.fresh  # the fresh ones are in the batch already
        rng = np.random.default_rng([self.seed, _STREAM, micro_step, self.rank])
        return rng.integers(oldest, others if others > oldest else newest, size=self.batch_size - self.fresh)

    def indices(self, micro_step: int) -> Tensor:
        """Sample indices of a batch, int64 (batch_size,): each showing of a clip has its own noise and timestep."""
        first = (micro_step * self.world_size + self.rank) * self.batch_size
        return torch.arange(first, first + self.batch_size)

    def batches(self, fresh: Iterator[Batch], *, step: int, prepare: Callable[[Batch], Batch]) -> Iterator[Batch]:
        """Yield the batches from an optimizer step on, without end.

        Args:
            fresh: batches of `fresh` new clips, from optimizer step `first_step(step)` on.
            step: first optimizer step.
            prepare: moves new clips to the device, and computes what frozen encoders say of them.
        """
        kept: dict[str, Any] = {}
        micro_step = self.first_step(step) * self.accumulation
        while True:
            new = prepare(next(fresh))
            self._keep(kept, new, micro_step % self.rows)
            if micro_step >= step * self.accumulation:
                yield self._mixed(kept, new, micro_step)
            micro_step += 1

    def _keep(self, kept: dict[str, Any], new: Batch, row: int) -> None:
        """Put clips in the place of the oldest."""
        size, first = self.rows * self.fresh, row * self.fresh
        for name, value in vars(new).items():
            if isinstance(value, Tensor):
                if name not in kept:
                    kept[name] = torch.empty((size, *value.shape[1:]), dtype=value.dtype, device=value.device)
                kept[name][first : first + self.fresh] = value
            elif value is not None:
                kept.setdefault(name, [None] * size)[first : first + self.fresh] = value

    def _mixed(self, kept: dict[str, Any], new: Batch, micro_step: int) -> Batch:
        places = self.picks(micro_step) % (self.rows * self.fresh)
        mixed: dict[str, Any] = {}
        for name, value in vars(new).items():
            if isinstance(value, Tensor):
                rows = to_device(torch.from_numpy(places), value.device)
                mixed[name] = torch.cat([value, kept[name][rows]])
            elif value is not None:
                mixed[name] = [*value, *(kept[name][place] for place in places)]
        return dataclasses.replace(new, **{**mixed, "index": self.indices(micro_step)})
