"""Several processes that sample together, started by `accelerate launch` or torchrun.

What they exchange is small beside what they compute, so it goes by the host's memory (gloo), whatever the devices are.
A process that ends is noticed at once by those that wait for it.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from xdyna.core.errors import UsageError

WAIT = timedelta(hours=6)  # for one that does something alone, such as finding the person in a long video


class RankError(ValueError):
    """Another process of the run ended."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run; a single one needs no launcher.

    Attributes:
        rank: number of this process; 0 writes.
        world: number of processes.
        store: where all can leave short notes; None for a single process.
    """

    rank: int = 0
    world: int = 1
    store: dist.Store | None = None

    @classmethod
    def launched(cls) -> Ranks:
        """The processes that a launcher has started, connected; a single one without a launcher.

        Raises:
            UsageError: WORLD_SIZE without the launcher's other variables.
            RankError: they cannot reach each other.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
            raise UsageError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {', '.join(missing)} not set; start several processes "
                "by a launcher: accelerate launch --multi_gpu --num_processes N scripts/infer.py ..."
            )
        with _reached():
            store, rank, world = next(dist.rendezvous("env://", timeout=timedelta(minutes=5)))
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=WAIT)
        return cls(rank, world, store)

    def share(self, value: Any = None) -> Any:
        """A small value of process 0, in all of them.

        Args:
            value: in process 0.

        Raises:
            RankError: another process ended.
        """
        if self.world == 1:
            return value
        values = [value]
        with _reached():
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def collect(self, value: Any) -> list[Any]:
        """A small value of each process, in all of them.

        Args:
            value: of this process.

        Raises:
            RankError: another process ended.
        """
        values = [value] * self.world
        if self.world > 1:
            with _reached():
                dist.all_gather_object(values, value)
        return values

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor of process 0, in all of them.

        Args:
            tensor: of the same shape and type everywhere, on the CPU; it is overwritten in the others.

        Returns:
            Tensor: the same.

        Raises:
            RankError: another process ended.
        """
        if self.world > 1:
            with _reached():
                dist.broadcast(tensor, src=0)
        return tensor

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor] | None:
        """The tensors of all processes, in process 0; None in the others.

        Args:
            tensor: of the same shape and type everywhere, on the CPU.

        Raises:
            RankError: another process ended.
        """
        if self.world == 1:
            return [tensor]
        gathered = [torch.empty_like(tensor) for _ in range(self.world)] if self.rank == 0 else None
        with _reached():
            dist.gather(tensor, gathered, dst=0)
        return gathered

    def take(self, name: str) -> int:
        """How often this was asked for before, by any of the processes: 0, 1, 2, ... each once."""
        if self.store is None:
            raise RuntimeError("a single process has nobody to share with")
        with _reached():
            return self.store.add(f"xdyna/{name}", 1) - 1

    def fail(self) -> bool:
        """End the work with the others because of an error. Returns: whether this process is the one to say why."""
        if self.store is None:
            return True
        try:
            first = self.store.add("xdyna/failed", 1) == 1
        except RuntimeError:  # process 0 kept the store and is gone: if it could, it has said why
            return self.rank == 1
        with contextlib.suppress(RuntimeError, AssertionError):
            dist.destroy_process_group()  # those that wait for this process wake up
        if first and self.rank == 0:
            time.sleep(1)  # with the store that they ask who was first
        return first


@contextlib.contextmanager
def _reached() -> Any:
    try:
        yield
    except RuntimeError as error:
        raise RankError("another process of this run ended, so this one ends, too; the same command goes on") from error
