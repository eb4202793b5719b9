"""What a run remembers beside its weights: how far it is, and the state of every random number generator.

All of it is made of plain values and tensors, so that `torch.load(weights_only=True)` reads it back.
"""

import pickle
import random
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xdyna.core.atomic import flush
from xdyna.training.errors import CheckpointError, TrainingWarning

PLAIN = (type(None), bool, int, float, str, bytes)


@dataclass
class Progress:
    """How far a run is.

    Args:
        step: optimizer steps done.
        best_metric: the best validation metric so far; None before the first validation.
        best_step: the step it belongs to.
        samples: clips or images trained on, over all processes.
        seconds: training time, over all resumes.
    """

    step: int = 0
    best_metric: float | None = None
    best_step: int | None = None
    samples: int = 0
    seconds: float = 0.0


def rng_state() -> dict[str, Any]:
    """The random state of this process: Python, NumPy (global generator), torch on the CPU and on the current GPU.

    Returns:
        dict[str, Any]: plain values and CPU tensors. With several processes each has its own: gather them.
    """
    version, keys, gauss = random.getstate()
    name, words, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - libraries use the global one
    state: dict[str, Any] = {
        "python": {"version": version, "keys": torch.tensor(keys, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "name": str(name),
            "keys": torch.from_numpy(np.asarray(words).astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "gauss": float(cached),
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` returned; the tensors may lie on any device.

    Warns:
        TrainingWarning: the state has a GPU's generator, and there is no GPU.
    """
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["keys"].tolist()), python["gauss"]))
    words = numpy["keys"].cpu().numpy().astype(np.uint32)
    np.random.set_state((numpy["name"], words, numpy["position"], numpy["has_gauss"], numpy["gauss"]))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state:
        if torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"].cpu())
        else:
            message = "the checkpoint was made on a GPU; on the CPU its random numbers do not continue exactly"
            warnings.warn(message, TrainingWarning, stacklevel=2)


def plain(tree: Any, *, where: str) -> Any:
    """A copy of nested dicts, lists and tuples that `torch.load(weights_only=True)` can read back.

    Args:
        tree: values, tensors and containers; NumPy's scalars become Python's.
        where: name of the tree, for the message.

    Returns:
        Any: the same tree of exact built-in types; tensors are shared, not copied.

    Raises:
        CheckpointError: holds something else; found now, not when the run is to be resumed.
    """
    if isinstance(tree, dict):
        return {plain(key, where=where): plain(value, where=f"{where}[{key!r}]") for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        items = [plain(value, where=f"{where}[{i}]") for i, value in enumerate(tree)]
        return items if isinstance(tree, list) else tuple(items)
    if isinstance(tree, np.generic):
        return plain(tree.item(), where=where)
    if isinstance(tree, Tensor):
        return tree.detach()
    if type(tree) in PLAIN:
        return tree
    raise CheckpointError(
        f"{where} is a {type(tree).__module__}.{type(tree).__qualname__}, which cannot be read back safely; "
        "expected None, bool, int, float, str, bytes, tensors, and dicts, lists and tuples of these"
    )


def refuse_non_finite(tree: Mapping[str, Any], *, what: str) -> None:
    """See that no tensor has NaN or infinity in it.

    Args:
        tree: tensors in nested dicts and lists.
        what: they are of, for the message.

    Raises:
        CheckpointError: names the first.
    """
    named = [(name, t.detach()) for name, t in _tensors(tree) if t.is_floating_point() and t.numel()]
    finite = [torch.isfinite(t if t.element_size() > 1 else t.float()).all().reshape(1) for _, t in named]
    if not finite:
        return
    device = finite[-1].device  # read once, not tensor by tensor; an optimizer may count its steps on the host
    good = torch.cat([flag.to(device, non_blocking=True) for flag in finite]).tolist()
    if bad := [name for (name, _), is_good in zip(named, good, strict=True) if not is_good]:
        raise CheckpointError(
            f"{what} has NaN or infinity in {bad[0]} ({len(bad)} of {len(named)} tensors), so nothing is written; the "
            "checkpoints before are as they were: resume from one with a lower learning rate, or in float32 or bfloat16"
        )


def _tensors(tree: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(tree, Tensor):
        yield name, tree
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from _tensors(value, f"{name}.{number}")


def save_tree(tree: dict[str, Any], path: Path) -> None:
    """Write what `plain` returned, flushed to the disk.

    Raises:
        OSError, RuntimeError: the disk is full or the folder cannot be written to.
    """
    torch.save(tree, path)
    flush(path)


def load_tree(path: Path, *, map_location: str | torch.device) -> dict[str, Any]:
    """Read what `save_tree` wrote; nothing else is accepted, and no code is run.

    Raises:
        CheckpointError: damaged, or contains code.
    """
    try:
        tree = torch.load(path, map_location=map_location, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"contains code (a call of {found[1]}), nothing of it was run" if found else "is damaged"
        raise CheckpointError(f"{path} {what}; expected a file that this program wrote") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path} holds a {type(tree).__name__}; expected a file that this program wrote")
    return tree
