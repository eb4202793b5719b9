"""The processes of a run: accelerate's view of them, and what the main one does alone."""

import itertools
import os
import re
import threading
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object

from xdyna.config.train import TrainConfig
from xdyna.core.program import FAILURE
from xdyna.training.errors import TrainingError, TrainingWarning

Result = TypeVar("Result")
# How long processes wait for one that does something alone: reading a model, writing a checkpoint. One that died is
# noticed then.
WAIT_FOR_MAIN = timedelta(minutes=15)
PULSE = 2.0  # seconds between two signs of life of a process that works at leisure
_times = itertools.count()


def make_accelerator(config: TrainConfig, *, cpu: bool) -> Accelerator:
    """accelerate's, for a run.

    Args:
        config: settings.
        cpu: use the CPU even where there is a GPU.

    Raises:
        ConfigError: the batch cannot be shared evenly among the processes.
    """
    warn_of_one_process()
    accelerator = Accelerator(
        mixed_precision="no" if config.precision == "fp32" else config.precision,
        cpu=cpu,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT_FOR_MAIN)],
    )
    on_main(accelerator, lambda: config.share(accelerator.num_processes))
    accelerator.gradient_accumulation_steps = config.share(accelerator.num_processes).accumulation
    return accelerator


def warn_of_one_process() -> None:
    """Say so where a launcher was asked for several processes and started one.

    Warns:
        TrainingWarning: the environment has the address of a group, and not its size.
    """
    if "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        warnings.warn(
            "one process trains, though MASTER_ADDR is set as if for several (`accelerate launch --cpu "
            "--num_processes N` starts but one); several on CPUs come from `accelerate launch --multi_gpu "
            "--num_processes N ... --cpu`",
            TrainingWarning,
            stacklevel=3,
        )


def describe_processes(accelerator: Accelerator) -> dict[str, Any]:
    """The processes of this start, for its record; every process must call it."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "world_size": accelerator.num_processes,
        "distributed": accelerator.distributed_type.value,
        "devices": gather_object([name]),
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def _driver() -> str | None:
    """Version of NVIDIA's driver, as Linux tells it."""
    try:
        found = re.search(r"Kernel Module\D*(\d[\d.]+)", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return None
    return found[1] if found else None


def on_main(accelerator: Accelerator, work: Callable[[], Result]) -> Result | None:
    """Do something in the main process alone; where it fails there, all processes end.

    Args:
        accelerator: of the run.
        work: what is done.

    Returns:
        What `work` returns; None in the other processes.

    Raises:
        ValueError: of `work`.
        SystemExit: in the other processes, when `work` raised in the main one.
    """
    result, error = None, None
    if accelerator.is_main_process:
        try:
            result = work()
        except (ValueError, OSError) as failure:
            error = failure
    (failed,) = broadcast_object_list([error is not None])
    if error is not None:
        raise error
    if failed:
        raise SystemExit(FAILURE)  # the main process says why
    return result


def at_leisure(work: Callable[[], Result], *, patience: timedelta = WAIT_FOR_MAIN, pulse: float = PULSE) -> Result:
    """Do something in every process that may take hours; all go on when all have done it.

    Nobody waits in a collective meanwhile, whose timeout would end the run: those at work count up a number in the
    group's store, and the others wait as long as it rises.

    Args:
        work: what is done; it may take another time in each process.
        patience: how long the number may stand still.
        pulse: seconds between two signs of life.

    Returns:
        What `work` returns.

    Raises:
        TrainingError: a process gave no sign of life for so long.
        SystemExit: `work` raised in another process, which says why.
    """
    if not dist.is_initialized():
        return work()
    # The store that the group met in; torch offers no other way to it.
    store = dist.PrefixStore(f"at_leisure/{next(_times)}", dist.distributed_c10d._get_default_store())
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(pulse):
            store.add("beats", 1)

    heart = threading.Thread(target=beat, daemon=True)
    heart.start()
    try:
        result = work()
    except BaseException:
        store.add("failed", 1)
        raise
    finally:
        ended.set()
        heart.join()
    store.add("done", 1)
    store.set(f"done/{dist.get_rank()}", "")
    _await_all(store, patience=patience.total_seconds(), pulse=pulse)
    return result


def _await_all(store: dist.Store, *, patience: float, pulse: float) -> None:
    beats, since, world, pause = -1, time.monotonic(), dist.get_world_size(), 0.05
    while store.add("done", 0) < world:
        if store.add("failed", 0):
            raise SystemExit(FAILURE)
        if (now := store.add("beats", 0)) != beats:
            beats, since = now, time.monotonic()
        elif time.monotonic() - since > patience:
            silent = [rank for rank in range(world) if not store.check([f"done/{rank}"])]
            raise TrainingError(
                f"process {', '.join(map(str, silent))} of {world} gave no sign of life for {patience / 60:g} minutes "
                "while the data were checked; see its own messages, and start the run again: what was checked is kept"
            )
        time.sleep(pause)
        pause = min(1.5 * pause, pulse)
