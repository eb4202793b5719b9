"""Checkpoints of one run: complete or not there, verified when read.

RUN/checkpoints/step-00001000/
    weights.safetensors   the trainable parameters
    ema.safetensors       their moving average, where there is one
    optimizer.pt          optimizer, scheduler, random states and what else the loop keeps: plain values and tensors
    state.json, SHA256SUMS: see `folders`; runs that are sharded write other files (`sharded`)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from xdyna.checkpoints.io import save_safetensors
from xdyna.training.errors import CheckpointError
from xdyna.training.folders import find, read_progress, steps, usable, verify, writing
from xdyna.training.sharded import LoadedShard, load_sharded, save_sharded
from xdyna.training.state import Progress, load_tree, plain, rng_state, save_tree, set_rng_state

__all__ = [
    "CheckpointError",
    "Loaded",
    "LoadedShard",
    "Progress",
    "find",
    "load",
    "load_sharded",
    "rng_state",
    "save",
    "save_sharded",
    "set_rng_state",
    "steps",
    "verify",
]

WEIGHTS, AVERAGE, OPTIMIZER = "weights.safetensors", "ema.safetensors", "optimizer.pt"


@dataclass
class Loaded:
    """A checkpoint as read; see `save` for the parts.

    Args:
        progress: how far the run was.
        weights: trainable parameters by name.
        ema: their moving average; None where the run had none.
        optimizer: the optimizer's state dict.
        scheduler: the scheduler's.
        rng: what was given as `rng`.
        extra: what was given as `extra`.
        path: the checkpoint's folder.
    """

    progress: Progress
    weights: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    rng: dict[str, Any]
    extra: dict[str, Any]
    path: Path


def save(
    run_dir: Path,
    *,
    progress: Progress,
    weights: Mapping[str, Tensor],
    ema: Mapping[str, Tensor] | None,
    optimizer: dict[str, Any],
    scheduler: dict[str, Any],
    rng: dict[str, Any],
    extra: dict[str, Any],
    keep_last: int,
    is_best: bool,
) -> Path:
    """Write a checkpoint of step `progress.step`, and remove those that are no longer kept.

    Checkpoints of later steps belong to a continuation that this run left by resuming before them: they are removed,
    the best of them is kept as `superseded-step-...`. Call it in the main process alone.

    Args:
        run_dir: folder of the run.
        progress: how far the run is.
        weights: trainable parameters by name, on any device.
        ema: their moving average, or None.
        optimizer: `optimizer.state_dict()`.
        scheduler: `scheduler.state_dict()`.
        rng: `rng_state()`, or one of them per process.
        extra: anything else, such as the data's position.
        keep_last: checkpoints to keep, >= 1; the best is kept beside them.
        is_best: whether this is the best so far.

    Returns:
        Path: the checkpoint's folder.

    Raises:
        CheckpointError: disk full, folder not writable, or a part that could not be read back safely. The former
            checkpoints stay.
    """
    trees = {"optimizer": optimizer, "scheduler": scheduler, "rng": rng, "extra": extra}
    rest = {name: plain(tree, where=name) for name, tree in trees.items()}
    with writing(run_dir, progress=progress, keep_last=keep_last, is_best=is_best) as (temporary, final):
        save_safetensors(weights, temporary / WEIGHTS)
        if ema is not None:
            save_safetensors(ema, temporary / AVERAGE)
        save_tree(rest, temporary / OPTIMIZER)
    return final


def load(run_dir: Path, which: str | int = "latest", *, map_location: str | torch.device = "cpu") -> Loaded | None:
    """Read a checkpoint after verifying it.

    Args:
        run_dir: folder of the run.
        which: "latest" (falls back to earlier ones), "best", or a step.
        map_location: device of the tensors; the random states may be on any.

    Returns:
        Loaded | None: None when the run has no checkpoint yet.

    Raises:
        CheckpointError: see `usable`; or the checkpoint is of another kind, or contains code.

    Warns:
        TrainingWarning: see `usable`.
    """
    path = usable(run_dir, which)
    if path is None:
        return None
    if not (path / OPTIMIZER).is_file():
        raise CheckpointError(f"{path} was written by a sharded run (FSDP or DeepSpeed); resume it as one")
    try:
        weights = load_file(path / WEIGHTS, device=str(map_location))
        ema = load_file(path / AVERAGE, device=str(map_location)) if (path / AVERAGE).is_file() else None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); choose another checkpoint") from error
    rest = load_tree(path / OPTIMIZER, map_location=map_location)
    if absent := {"optimizer", "scheduler", "rng", "extra"} - rest.keys():
        raise CheckpointError(f"{path / OPTIMIZER} has no {', '.join(sorted(absent))}; another program wrote it")
    return Loaded(
        progress=read_progress(path),
        weights=weights,
        ema=ema,
        optimizer=rest["optimizer"],
        scheduler=rest["scheduler"],
        rng=rest["rng"],
        extra=rest["extra"],
        path=path,
    )
