"""The processes of a run: accelerate's view of them, and what the main one does alone."""

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object

from xdyna.config.train import TrainConfig
from xdyna.core.program import FAILURE

Result = TypeVar("Result")
WAIT_FOR_MAIN = timedelta(hours=2)  # of the processes that wait while the main one samples videos or writes


def make_accelerator(config: TrainConfig, *, cpu: bool) -> Accelerator:
    """accelerate's, for a run.

    Args:
        config: settings.
        cpu: use the CPU even where there is a GPU.

    Raises:
        ConfigError: the batch cannot be shared evenly among the processes.
    """
    accelerator = Accelerator(
        mixed_precision="no" if config.precision == "fp32" else config.precision,
        cpu=cpu,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT_FOR_MAIN)],
    )
    on_main(accelerator, lambda: config.share(accelerator.num_processes))
    accelerator.gradient_accumulation_steps = config.share(accelerator.num_processes).accumulation
    return accelerator


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
