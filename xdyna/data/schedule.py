"""Which sample of a run shows what: its size, human or scene, and which video.

Everything is a function of (seed, index), so that neither workers nor processes nor a resumed run change the data.
Shares are met by even spreading, not by chance: `split` deals a row of turns out to sets, and says for each turn how
many turns its set had before, so that splits can follow each other (size, then kind, then data set, then video). Within
blocks of `BLOCK` turns the order is shuffled: else whoever looks at every n-th sample (one of n processes, a log of
every n-th step) could see one kind or one data set alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from xdyna.config.data import KINDS

# Third word of a seed. Samples have [seed, index], which numpy pads with zeros: tags are never zero.
_OFFSET, _EPOCH, _REPLACEMENT, _SHUFFLE = 1, 2, 3, 4
_SIZES, _SETS, _KINDS = 1, 2, 3  # fourth word: what is dealt out
BLOCK = 8  # turns that are shuffled: a block has its share of everything, as far as whole numbers can


def sample_rng(seed: int, index: int) -> np.random.Generator:
    """The generator everything random of one sample is drawn from.

    Args:
        seed: of the run, >= 0.
        index: of the sample, >= 0.
    """
    return np.random.default_rng([seed, index])


@dataclass(frozen=True)
class ClipPool:
    """A set of videos of one kind.

    Attributes:
        share: how often it comes, relative to the other sets of its kind; above 0.
        count: number of videos; None for no end.
    """

    share: float = 1.0
    count: int | None = None


@dataclass(frozen=True)
class Bucket:
    """The videos that are shown at one size.

    Attributes:
        size: (H, W) of the images, px.
        share: how many steps have this size, relative to the other sizes; above 0.
        stocks: the sets of each kind ("human", "scene"); an empty one is never drawn from.
    """

    size: tuple[int, int]
    share: float
    stocks: Mapping[str, Sequence[ClipPool]]


@dataclass(frozen=True)
class ClipPlace:
    """What a sample shows.

    Attributes:
        kind: "human" or "scene".
        number: of the video in its set; None where videos are without number.
        stock: place of the set among those of its kind and size.
    """

    kind: str
    number: int | None
    stock: int = 0


@dataclass(frozen=True)
class Schedule:
    """The order of kinds and videos.

    Every block of samples holds its share of scenes, rounded down or up, in a seeded order. So it is with the sets of
    each kind. A finite set of videos is shown in seeded permutations, one after the other, each set for itself.

    Attributes:
        seed: of the run.
        scene_ratio: share of scenes, in [0, 1].
        humans: sets of human videos.
        scenes: sets of scene videos.
        row: number of this schedule among those of a run; each has its own order.
    """

    seed: int
    scene_ratio: float
    humans: Sequence[ClipPool] = (ClipPool(),)
    scenes: Sequence[ClipPool] = (ClipPool(),)
    row: int = 0

    def slot(self, index: int) -> ClipPlace:
        """What sample `index` (>= 0) shows."""
        tag, turn = split(index, (1 - self.scene_ratio, self.scene_ratio), self.seed, _KINDS, self.row)
        kind, stocks = KINDS[tag], (self.humans, self.scenes)[tag]
        shares = [stock.share for stock in stocks]
        chosen, turn = split(turn, shares, self.seed, _SETS, self.row, tag)
        count = stocks[chosen].count
        if count is None:
            return ClipPlace(kind, None, chosen)
        first = self.row == chosen == 0
        order = _permutation(self.seed, turn // count, count, tag, *(() if first else (self.row, chosen + 1)))
        return ClipPlace(kind, int(order[turn % count]), chosen)

    def replacement(self, index: int, kind: str, attempt: int) -> ClipPlace:
        """Another video for sample `index`, where one cannot be read.

        Args:
            index: of the sample.
            kind: of the video, which stays.
            attempt: 1 for the first replacement, 2 for that of the replacement, ...
        """
        rng = np.random.default_rng([self.seed, index, _REPLACEMENT, attempt])
        stocks = self.scenes if kind == "scene" else self.humans
        shares = np.cumsum([stock.share for stock in stocks])
        chosen = min(int(np.searchsorted(shares, rng.random() * shares[-1], side="right")), len(stocks) - 1)
        count = stocks[chosen].count
        return ClipPlace(kind, None if count is None else int(rng.integers(count)), chosen)


@dataclass(frozen=True)
class Sizes:
    """Which size the samples of a step have: all the same.

    Attributes:
        seed: of the run.
        shares: of the sizes, relative to each other.
        step: samples of an optimizer step, of all processes and micro-steps together.
    """

    seed: int
    shares: Sequence[float]
    step: int

    def place(self, index: int) -> tuple[int, int]:
        """Number of the size of sample `index`, and how many samples of that size come before it."""
        if len(self.shares) == 1:
            return 0, index
        step, rest = divmod(index, self.step)
        chosen, before = split(step, self.shares, self.seed, _SIZES)
        return chosen, before * self.step + rest


def split(turn: int, shares: Sequence[float], seed: int, *tag: int) -> tuple[int, int]:
    """Deal turns out to sets, each as often as its share says and as evenly as can be, shuffled within blocks.

    Args:
        turn: number of the turn, >= 0.
        shares: of the sets, relative to each other, 0 or more.
        seed: of the run.
        tag: more words of the seed, the first not zero.

    Returns:
        The set that has this turn, and how many turns before this one it had.
    """
    if len(shares) == 1:
        return 0, turn
    number, place = divmod(turn, BLOCK)
    return _block(number, tuple(shares), seed, *tag)[place]


@lru_cache(maxsize=256)
def _block(number: int, shares: tuple[float, ...], seed: int, *tag: int) -> list[tuple[int, int]]:
    """What `split` says of the turns of a block."""
    dealt = [_deal(turn, shares, seed, *tag) for turn in range(number * BLOCK, (number + 1) * BLOCK)]
    order = np.random.default_rng([seed, number, _SHUFFLE, *tag]).permutation(BLOCK)
    turns = {chosen: iter([before for other, before in dealt if other == chosen]) for chosen, _ in dealt}
    return [(dealt[place][0], next(turns[dealt[place][0]])) for place in order]


def _deal(turn: int, shares: Sequence[float], seed: int, *tag: int) -> tuple[int, int]:
    """As `split`, in the even order."""
    rest = sum(shares)
    for number, share in enumerate(shares[:-1]):
        offset = _offset(seed, *tag, number)
        before = _dealt(turn, share / rest, offset)
        if _dealt(turn + 1, share / rest, offset) > before:
            return number, before
        turn, rest = turn - before, rest - share
    return len(shares) - 1, turn


def _dealt(turn: int, ratio: float, offset: float) -> int:
    """How many of the turns 0 .. turn - 1 a set of share `ratio` has; offset in [0, 1)."""
    return math.floor(turn * ratio + offset)


@lru_cache(maxsize=256)
def _offset(seed: int, *tag: int) -> float:
    """Where in the cycle a run begins, in [0, 1)."""
    return float(np.random.default_rng([seed, 0, _OFFSET, *tag]).random())


@lru_cache(maxsize=64)
def _permutation(seed: int, epoch: int, count: int, *tag: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, _EPOCH, *tag]).permutation(count)
