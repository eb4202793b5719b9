"""Which sample of a run shows what: human or scene, and which video.

Everything is a function of (seed, index), so that neither workers nor processes nor a resumed run change the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from xdyna.data.samples import KINDS

# Third word of a seed. Samples have [seed, index], which numpy pads with zeros: tags are never zero.
_OFFSET, _EPOCH = 1, 2


def sample_rng(seed: int, index: int) -> np.random.Generator:
    """The generator everything random of one sample is drawn from.

    Args:
        seed: of the run, >= 0.
        index: of the sample, >= 0.
    """
    return np.random.default_rng([seed, index])


@dataclass(frozen=True)
class Slot:
    """What a sample shows.

    Attributes:
        kind: "human" or "scene".
        number: of the video among those of its kind; None where videos are without number.
    """

    kind: str
    number: int | None


@dataclass(frozen=True)
class Schedule:
    """The order of kinds and videos.

    The scenes are spread evenly: any n samples in a row hold n * scene_ratio of them, rounded down or up. A finite set
    of videos is shown in seeded permutations, one after the other, humans and scenes each for themselves.

    Attributes:
        seed: of the run.
        scene_ratio: share of scenes, in [0, 1].
        humans: number of human videos; None for no end.
        scenes: number of scene videos; None for no end.
    """

    seed: int
    scene_ratio: float
    humans: int | None = None
    scenes: int | None = None

    def scenes_before(self, index: int) -> int:
        """Number of scenes among the samples 0 .. index - 1."""
        offset = _offset(self.seed)
        return math.floor(index * self.scene_ratio + offset) - math.floor(offset)

    def slot(self, index: int) -> Slot:
        """What sample `index` (>= 0) shows."""
        before = self.scenes_before(index)
        is_scene = self.scenes_before(index + 1) > before
        kind, turn, count = ("scene", before, self.scenes) if is_scene else ("human", index - before, self.humans)
        if count is None:
            return Slot(kind, None)
        order = _permutation(self.seed, turn // count, KINDS.index(kind), count)
        return Slot(kind, int(order[turn % count]))


@lru_cache(maxsize=64)
def _offset(seed: int) -> float:
    """Where in the cycle of scenes a run begins, in [0, 1)."""
    return float(np.random.default_rng([seed, 0, _OFFSET]).random())


@lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, kind: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, _EPOCH, kind]).permutation(count)
