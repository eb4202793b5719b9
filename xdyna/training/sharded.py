"""Checkpoints of sharded runs (FSDP, DeepSpeed): no process has all weights, so accelerate writes each one's part.

The folders are those of `folders`: hidden until complete, hashed, renamed, rotated. All processes must see the same
file system.

    RUN/checkpoints/step-00001000/
        accelerate/       what `Accelerator.save_state` writes: weights, optimizer, scheduler, scaler
        rank-00000.pt     per process: average, random states, what else the loop keeps
        state.json SHA256SUMS
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from xdyna.core.atomic import flush
from xdyna.core.errors import WeightsError
from xdyna.training.errors import CheckpointError
from xdyna.training.folders import path_of, read_progress, usable, writing
from xdyna.training.state import Progress, load_tree, plain, refuse_non_finite, rng_state, save_tree, set_rng_state

PARTS = "accelerate"


@dataclass
class LoadedShard:
    """What this process gets back; weights, optimizer, scheduler and random states are in place already.

    Args:
        progress: how far the run was.
        ema: this process's part of the average; None where the run had none.
        extra: what this process gave as `extra`.
        path: the checkpoint's folder.
    """

    progress: Progress
    ema: dict[str, Tensor] | None
    extra: dict[str, Any]
    path: Path


def save_sharded(
    accelerator: Accelerator,
    run_dir: Path,
    *,
    progress: Progress,
    ema: Mapping[str, Tensor] | None,
    extra: dict[str, Any],
    keep_last: int,
    is_best: bool,
    weights: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a checkpoint; every process must call it.

    Args:
        accelerator: has prepared model, optimizer and scheduler.
        run_dir: folder of the run, seen by all processes.
        progress: how far the run is.
        ema: this process's part of the average, or None.
        extra: anything else of this process, such as the data's position.
        keep_last: checkpoints to keep, >= 1.
        is_best: whether this is the best so far.
        weights: what trains, as far as this process has it: nothing is written where it has NaN or infinity.

    Returns:
        Path: the checkpoint's folder.

    Raises:
        CheckpointError: in every process, when one of them cannot write its part or must not.
    """
    average = None if ema is None else {name: tensor.detach().cpu() for name, tensor in ema.items()}
    own = plain({"ema": average, "rng": rng_state(), "extra": extra}, where="extra of this process")
    final = path_of(run_dir, progress.step)
    _refuse_together(weights or {}, ema or {}, step=progress.step)
    context = writing(run_dir, progress=progress, keep_last=keep_last, is_best=is_best)
    problem, temporary = "", None
    if accelerator.is_main_process:
        try:
            temporary, final = context.__enter__()
        except CheckpointError as error:
            problem = str(error)
    temporary, problem = broadcast_object_list([temporary, problem])
    if problem:
        raise CheckpointError(problem)
    # Gathering waits for all processes, so that the folder is published when all parts are in it.
    problems = gather_object([_write_part(accelerator, temporary, own)])
    problem = "; ".join(dict.fromkeys(text for text in problems if text))
    if accelerator.is_main_process:
        cause = OSError(problem) if problem else _flushing_error(temporary / PARTS)
        try:
            context.__exit__(type(cause) if cause else None, cause, None)
        except CheckpointError as failure:
            problem = str(failure)
    (problem,) = broadcast_object_list([problem])
    if problem:
        raise CheckpointError(problem)
    return final


def _refuse_together(weights: Mapping[str, Tensor], ema: Mapping[str, Tensor], *, step: int) -> None:
    """Raise in every process what one of them finds in its part."""
    problem = ""
    try:
        refuse_non_finite({"weights": weights, "ema": ema}, what=f"the state of step {step}")
    except CheckpointError as error:
        problem = str(error)
    if problems := [text for text in gather_object([problem]) if text]:
        raise CheckpointError(problems[0])


def _write_part(accelerator: Accelerator, temporary: Path, own: dict[str, Any]) -> str:
    """Write this process's part. Returns the problem met, or ""."""
    try:
        accelerator.save_state(str(temporary / PARTS))
        save_tree(own, temporary / f"rank-{accelerator.process_index:05d}.pt")
    except (OSError, RuntimeError, WeightsError) as error:
        return f"process {accelerator.process_index}: {error}"
    return ""


def _flushing_error(folder: Path) -> OSError | None:
    """Flush what accelerate wrote, which does not do so itself."""
    try:
        for path in folder.rglob("*"):
            if path.is_file():
                flush(path)
    except OSError as error:
        return error
    return None


def load_sharded(accelerator: Accelerator, run_dir: Path, which: str | int = "latest") -> LoadedShard | None:
    """Read a checkpoint into the prepared model, optimizer and scheduler; every process must call it.

    Args:
        accelerator: has prepared the same parts as when saving, with as many processes.
        run_dir: folder of the run.
        which: "latest" (falls back to earlier ones), "best", or a step.

    Returns:
        LoadedShard | None: None when the run has no checkpoint yet.

    Raises:
        CheckpointError: in every process; damaged, or written by another kind or number of processes.
    """
    path, problem = None, ""
    if accelerator.is_main_process:
        try:
            path = usable(run_dir, which)
            problem = _misfit(path, accelerator.num_processes) if path else ""
        except CheckpointError as error:
            problem = str(error)
    path, problem = broadcast_object_list([path, problem])
    if problem:
        raise CheckpointError(problem)
    if path is None:
        return None
    own = load_tree(path / f"rank-{accelerator.process_index:05d}.pt", map_location="cpu")
    accelerator.load_state(str(path / PARTS))
    set_rng_state(own["rng"])
    return LoadedShard(progress=read_progress(path), ema=own["ema"], extra=own["extra"], path=path)


def _misfit(path: Path, processes: int) -> str:
    parts = len(list(path.glob("rank-*.pt")))
    if parts == 0 or not (path / PARTS).is_dir():
        return f"{path} was not written by a sharded run; resume it without FSDP and DeepSpeed"
    if parts != processes:
        return f"{path} was written by {parts} processes, this run has {processes}; start it with as many"
    return ""
