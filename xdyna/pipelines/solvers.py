"""What a scheduler and a random generator remember between steps, as tensors and plain values: runs with any solver
can go on after an interruption.

Multistep solvers (DPM-Solver++, UniPC, ...) keep earlier predictions; ancestral ones draw noise in their steps. A run
that goes on sets the timesteps anew, then puts back what was kept.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import SchedulerMixin
from torch import Tensor


@dataclass(frozen=True)
class SolverState:
    """State between two steps.

    Attributes:
        tensors: by name, on the CPU; the random generator's state is "generator".
        values: what else there is, as JSON; a tensor in it stands as {"tensor": name}.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: str = "{}"


def solver_state(scheduler: SchedulerMixin, generator: torch.Generator | None = None) -> SolverState | None:
    """What a scheduler and a generator remember.

    Args:
        scheduler: its timesteps are set.
        generator: that its steps draw from.

    Returns:
        SolverState | None: None where the scheduler holds something that cannot be stored (a random process of its
        own, say), so that a run cannot go on from here.
    """
    tensors: dict[str, Tensor] = {}
    if generator is not None:
        tensors["generator"] = generator.get_state()
    try:
        values = {name: _packed(value, name, tensors) for name, value in vars(scheduler).items() if _counts(name)}
    except TypeError:
        return None
    return SolverState(tensors, json.dumps(values))


def restore_solver(
    scheduler: SchedulerMixin, state: SolverState, generator: torch.Generator | None = None, *, device: torch.device
) -> None:
    """Put back what `solver_state` gave.

    Args:
        scheduler: of the same class and configuration, its timesteps set.
        state: what was kept.
        generator: that its steps draw from.
        device: where kept predictions belong.

    Raises:
        ValueError: the state is another scheduler's.
    """
    values = json.loads(state.values)
    known = {name for name in vars(scheduler) if _counts(name)}
    if missing := sorted(known - set(values)):  # but some schedulers add entries in their first step
        raise ValueError(
            f"the solver's state lacks {', '.join(missing)} of a {type(scheduler).__name__}; expected what this "
            "scheduler gave: begin the run anew"
        )
    for name, value in values.items():
        setattr(scheduler, name, _unpacked(value, state.tensors, getattr(scheduler, name, None), device))
    if generator is not None and "generator" in state.tensors:
        generator.set_state(state.tensors["generator"].cpu())


def _counts(name: str) -> bool:
    return name not in ("_internal_dict", "config")  # the configuration does not change


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON; tensors go to `tensors` under names of their own."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(value.copy())
        return {"array": name}
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_packed(entry, f"{name}.{k}", tensors) for k, entry in enumerate(value)]}
    raise TypeError(f"{name} is a {type(value).__name__}")


def _unpacked(value: Any, tensors: dict[str, Tensor], fresh: Any, device: torch.device) -> Any:
    """`fresh`: what the scheduler has now; a tensor goes to that one's device, one that is new to `device`."""
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "array":
        return tensors[content].numpy().copy()
    if kind == "tensor":
        return tensors[content].to(fresh.device if isinstance(fresh, Tensor) else device)
    entries = [_unpacked(entry, tensors, None, device) for entry in content]
    return entries if kind == "list" else tuple(entries)
