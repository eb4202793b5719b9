"""What is logged of the losses: means since the last line, over all clips, by kind and by band of timesteps."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xdyna.config.data import KINDS


def band_middles(steps: int, bands: int) -> list[int]:
    """The middle of each of `bands` equal bands of `steps` timesteps; none where there are no timesteps."""
    return [int((band + 0.5) * steps / bands) for band in range(bands)] if steps else []


class LossMeter:
    """Adds losses up until they are logged.

    Args:
        steps: timesteps of the noise schedule; 0 for none.
        bands: equal bands of them.

    Attributes:
        names: of what is told apart: "loss_human", "loss_scene", and "loss_t125" ... by the middle of a band.
    """

    def __init__(self, *, steps: int, bands: int) -> None:
        self.steps, self.bands = steps, bands if steps else 0
        self.names = [f"loss_{kind}" for kind in KINDS]
        self.names += [f"loss_t{middle}" for middle in band_middles(steps, bands)]
        self._taken, self._loss, self._norm = 0, 0.0, 0.0
        self._sums, self._counts = [0.0] * len(self.names), [0] * len(self.names)

    def members(self, kinds: Sequence[str], timesteps: Sequence[int]) -> Tensor:
        """Which clip counts for what.

        Args:
            kinds: of B clips, "human" or "scene".
            timesteps: of B clips; without a noise schedule none.

        Returns:
            Tensor: float32 (len(names), B), 0 or 1.
        """
        members = torch.zeros(len(self.names), len(kinds))
        for clip, kind in enumerate(kinds):
            members[KINDS.index(kind), clip] = 1
        for clip, timestep in enumerate(timesteps):
            members[len(KINDS) + timestep * self.bands // self.steps, clip] = 1
        return members

    def add(self, loss: float, norm: float, sums: Sequence[float], counts: Sequence[float]) -> None:
        """Add a step that was taken.

        Args:
            loss: mean over its clips.
            norm: of its gradients, before clipping.
            sums: losses added up, by `names`.
            counts: numbers of clips, by `names`.
        """
        self._taken += 1
        self._loss += loss
        self._norm += norm
        self._sums = [one + other for one, other in zip(self._sums, sums, strict=True)]
        self._counts = [one + round(other) for one, other in zip(self._counts, counts, strict=True)]

    def line(self) -> dict[str, float]:
        """Means since the last call; of what was not seen, and where no step was taken, nothing."""
        values = {}
        if self._taken:
            values = {"loss": self._loss / self._taken, "grad_norm": self._norm / self._taken}
            values |= {
                name: total / count
                for name, total, count in zip(self.names, self._sums, self._counts, strict=True)
                if count and math.isfinite(total)
            }
        self._clear()
        return values

    def state_dict(self) -> dict[str, Any]:
        """What is added up; plain values."""
        return {
            "taken": self._taken,
            "loss": self._loss,
            "norm": self._norm,
            "names": list(self.names),
            "sums": list(self._sums),
            "counts": list(self._counts),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`; where bands were others, the present line begins anew."""
        if state["names"] == self.names:
            self._taken, self._loss, self._norm = state["taken"], state["loss"], state["norm"]
            self._sums, self._counts = list(state["sums"]), list(state["counts"])

    def _clear(self) -> None:
        self._taken, self._loss, self._norm = 0, 0.0, 0.0
        self._sums, self._counts = [0.0] * len(self.names), [0] * len(self.names)
