"""What a metric is, and what it is given: one pair of videos at a time.

A metric measures one case (a generated video, and what it is compared with) into a `Record` of plain numbers and small
arrays, and reduces the records of all cases to the reported values. Records are stored, so that an interrupted
evaluation goes on; several processes measure disjoint cases; and since records are always reduced in the order of their
ids, neither order nor the number of processes changes a result.

Shape legend: T frames, H W pixels, N features, D channels of a feature.
"""

from __future__ import annotations

import abc
import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from xdyna.evaluation.frames import FrameSequence, Part

LOWER, HIGHER, ONE = "lower", "higher", "one"  # which value of a column is better; ONE: the nearest to 1


@dataclass(frozen=True)
class Video:
    """A decoded video.

    Attributes:
        name: how messages call it.
        frames: uint8 (T, H, W, 3), RGB, T >= 1: an array, or decoded as it is asked for.
        fps: frames per second; NaN for frame folders, which state none.
        digest: sha256 of its content (the file's bytes, or all frame files' names and bytes).
    """

    name: str
    frames: FrameSequence
    fps: float
    digest: str


@dataclass(frozen=True)
class Case:
    """What one generated video is measured against.

    Attributes:
        id: unique within an evaluation; records are reduced in its order.
        generated: the video to judge.
        truth: what it should be, frame for frame; None where there is none (cross-driving).
        driving: the video whose motion and expression it follows; None where unknown. In self-driving it is the truth.
        masks: bool (T, H, W) figures of (truth, generated), each in its video's own size, where they are given from
            outside (folder of masks, puppet truth); None: to be segmented.
    """

    id: str
    generated: Video
    truth: Video | None = None
    driving: Video | None = None
    masks: tuple[np.ndarray, np.ndarray] | None = None

    @cached_property
    def paired(self) -> tuple[FrameSequence, FrameSequence]:
        """Frames to compare one by one, (truth, generated): uint8 (T, H, W, 3) each, cut to the shorter of the two, the
        generated ones resized bilinearly to the size of the truth.

        Raises:
            ValueError: there is no truth.
        """
        if self.truth is None:
            raise ValueError(f"{self.id} has no ground truth, which this metric compares with")
        length = min(len(self.truth.frames), len(self.generated.frames))
        size = (self.truth.frames.shape[1], self.truth.frames.shape[2])
        return Part(self.truth.frames, length, size), Part(self.generated.frames, length, size)

    @property
    def digest(self) -> str:
        """Of everything that a metric sees."""
        parts = [v.digest if v is not None else "-" for v in (self.generated, self.truth, self.driving)]
        if self.masks is not None:
            parts += [hashlib.sha256(np.packbits(mask).tobytes()).hexdigest() for mask in self.masks]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Record:
    """What a metric measured on one case. Stored as JSON (values) and npz (arrays).

    Attributes:
        values: finite floats by name, for instance sums and counts that `reduce` adds up, and what the table per
            video shows.
        arrays: numeric arrays by name, for instance features.
    """

    values: dict[str, float] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """One reported number of a metric.

    Attributes:
        name: unique among all metrics, in snake case, e.g. "psnr", "dtfvd_fg".
        label: for tables, e.g. "FG-DTFVD".
        better: `LOWER`, `HIGHER` or `ONE`.
        digits: decimals in tables.
    """

    name: str
    label: str
    better: str
    digits: int = 3


class Metric(abc.ABC):
    """A metric, or a family that is measured in one go.

    Attributes:
        name: how it is asked for (`--metrics name,name`).
        version: changes whenever its records would: code version, protocol, backend, hash of weights. Part of the key
            under which records are stored.
        needs: of {"truth", "driving"}: what a case must have; others are counted as not applicable.
        columns: what `reduce` returns.
    """

    name: str
    version: str
    needs: frozenset[str]
    columns: tuple[Column, ...]

    @abc.abstractmethod
    def measure(self, case: Case) -> Record:
        """Measure one case; the same whatever was measured before it."""

    @abc.abstractmethod
    def reduce(self, records: Iterable[Record]) -> dict[str, float]:
        """The reported numbers.

        Args:
            records: of all cases in the order of their ids; an iterator that reads them one by one from disk, to be
                gone through once.

        Returns:
            A value by column name, NaN where nothing could be measured. Further keys are shown as notes (valid
            fractions, counts).
        """

    def per_video(self, record: Record) -> dict[str, float]:
        """What the table per video shows. Default: a record's values, "x.sum" and "x.count" as their mean x."""
        return pooled_means([record])


def pooled(name: str, values: npt.ArrayLike) -> dict[str, float]:
    """Values of a record whose mean is over all frames of all videos: "name.sum" and "name.count" (NaN left out).

    Args:
        name: of the column.
        values: one per frame (or pair of frames).
    """
    array = np.asarray(values, dtype=np.float64)
    kept = array[~np.isnan(array)]
    return {f"{name}.sum": float(kept.sum()), f"{name}.count": float(kept.size)}


def pooled_means(records: Iterable[Record]) -> dict[str, float]:
    """Means of what `pooled` wrote, over all records: {name: mean}, NaN where no value was kept.

    Args:
        records: gone through once.
    """
    sums: dict[str, list[float]] = {}
    counts: dict[str, float] = {}
    for record in records:
        for name in [key[: -len(".sum")] for key in record.values if key.endswith(".sum")]:
            sums.setdefault(name, []).append(record.values[f"{name}.sum"])
            counts[name] = counts.get(name, 0.0) + record.values[f"{name}.count"]
    return {name: math.fsum(parts) / counts[name] if counts[name] else math.nan for name, parts in sums.items()}


class Extractor(Protocol):
    """A network that turns frames into features.

    Attributes:
        name: e.g. "inception".
        version: preprocessing version and hash of the weights.
        dim: D.
        batch: images, or clips, that it sees at once.
    """

    name: str
    version: str
    dim: int
    batch: int

    def features(self, frames: FrameSequence) -> np.ndarray:
        """Features of a video: uint8 (T, H, W, 3) -> float32 (N, D).

        A network of images gives N = T; a network of clips N = 1 for the clip that it is given (its length is the
        protocol's business, see xdyna/evaluation/clips.py), or N for (N, T, H, W, 3), where its `batch` is above 1.
        """
        ...
