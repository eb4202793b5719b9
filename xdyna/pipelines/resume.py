"""Partial results of an interrupted run, so that the same command goes on where it stopped.

One file beside the output, `NAME.partial.safetensors`: the latents after the last finished step, and a fingerprint of
everything that decides the result. It is written at most every half minute and when the run is interrupted, and
removed when the output is complete. Noise and window offsets follow from the seed and need not be stored.
"""

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from xdyna.core.atomic import atomic_output
from xdyna.core.errors import FileError
from xdyna.pipelines.solvers import SolverState

SECONDS_BETWEEN_WRITES = 30.0


def fingerprint(entries: dict[str, Any]) -> str:
    """A hash of all values that decide the result."""
    return hashlib.sha256(json.dumps(entries, sort_keys=True, default=str).encode()).hexdigest()


class PartialRun:
    """Keeps and finds the partial result of one output.

    Args:
        output: the final file.
        key: fingerprint of the run; a partial result with another one is not used.
    """

    def __init__(self, output: Path, key: str) -> None:
        self.path = output.with_name(f"{output.stem}.partial.safetensors")
        self.key = key
        self._latest: tuple[int, torch.Tensor, SolverState] | None = None
        self._written = time.monotonic()

    def load(self) -> tuple[int, torch.Tensor, SolverState] | None:
        """Finished steps, the latents and the solver's state after them; None when there is nothing to go on from."""
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("key") != self.key:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
                latents = tensors.pop("latents")
                return int(metadata["steps"]), latents, SolverState(tensors, metadata["solver"])
        except (OSError, SafetensorError, KeyError, ValueError):
            return None  # missing or damaged: the run starts from the beginning

    def update(self, steps: int, latents: torch.Tensor, solver: SolverState) -> None:
        """Remember the state after a step; writes it now and then."""
        self._latest = (steps, latents, solver)
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self.save()

    def save(self) -> bool:
        """Write the latest state. A failure (full disk, ...) is told and does not end the run.

        Returns:
            bool: whether it was written.
        """
        if self._latest is None:
            return False
        self._written = time.monotonic()
        steps, latents, solver = self._latest
        try:
            with atomic_output(self.path, overwrite=True) as temporary:
                metadata = {"key": self.key, "steps": str(steps), "solver": solver.values}
                save_file({**solver.tensors, "latents": latents.cpu().contiguous()}, temporary, metadata=metadata)
        except (OSError, SafetensorError, FileError) as error:
            print(f"warning: the partial result could not be written: {error}", file=sys.stderr)
            return False
        return True

    def remove(self) -> None:
        """Forget the partial result: the output is complete."""
        self.path.unlink(missing_ok=True)
