"""The processes of a run: accelerate's view of them, and what the main one does alone."""

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list

from xdyna.config.train import TrainConfig
from xdyna.core.program import FAILURE

Result = TypeVar("Result")
WAIT_FOR_MAIN = timedelta(hours=2)  # of the processes that wait while the main one samples videos or writes


def make_accelerator(config: TrainConfig, *, cpu: bool) -> Accelerator:
    """accelerate's, for a run. Args: config: settings; cpu: use the CPU even where there is a GPU."""
    return Accelerator(
        mixed_precision="no" if config.precision == "fp32" else config.precision,
        gradient_accumulation_steps=config.accumulation,
        cpu=cpu,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT_FOR_MAIN)],
    )


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
