"""Real videos to train on: the clips of one or several data sets of `scripts/preprocess.py`, mixed by weight."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xdyna.config.data import KINDS, SPLITS, DataConfig, DataError, DataWarning
from xdyna.data.addresses import is_remote
from xdyna.data.footage_video import FootageVideo, video_path
from xdyna.data.records import ClipRecord
from xdyna.data.schedule import Bucket, ClipPlace, ClipPool
from xdyna.data.store import Dataset, read_dataset
from xdyna.data.verify import State, memory_file, states_of

Clip = tuple[Dataset, ClipRecord]


@dataclass(frozen=True)
class _Shelf:
    """Clips of one kind, one size and one data set.

    Attributes:
        share: how often they come among all of their kind; the shares of a kind add up to 1.
        clips: in the order of the manifest.
    """

    share: float
    clips: list[Clip]


class FootageSource:
    """The clips of the data sets of a configuration; see `sources.Source`.

    A clip belongs to the size whose aspect is nearest to its own. Sizes are as frequent as human clips of their aspect
    (scene clips, where no others are asked for). Nothing is kept open: workers can share it. With `verify` the bytes of
    all videos are read here, once (see `verify`).

    Args:
        config: the options; `manifests` are the folders.

    Raises:
        DataError: no data set in a folder, or no clip that can be used as asked.

    Warns:
        DataWarning: clips that are too short, a size without clips of a kind, a split without clips.
    """

    video_type: type[FootageVideo] = FootageVideo

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        sizes = self.sizes = [(height, width) for height, width in config.buckets] or [config.size]
        self.datasets = [self._open(entry["folder"]) for entry in config.manifests]
        needed = {"human": config.scene_ratio < 1, "scene": config.scene_ratio > 0}
        self._refuse_remote()
        by_kind = {kind: self._by_size(kind) for kind in KINDS if needed[kind]}
        lead = "human" if needed["human"] else "scene"
        shares = [sum(shelf.share for shelf in shelves) for shelves in by_kind[lead]]
        kept = [number for number, share in enumerate(shares) if share]
        for number in set(range(len(sizes))) - set(kept):
            _warn(f"no {lead} clip has the aspect of {_px(sizes[number])}: that size is left out")
        self.sizes = [sizes[number] for number in kept]
        self._shelves: dict[str, list[list[_Shelf]]] = {kind: [[] for _ in kept] for kind in KINDS}
        for kind, shelves in by_kind.items():
            self._shelves[kind] = [shelves[number] or _borrowed(kind, sizes[number], shelves) for number in kept]
        self._states = self._preflight() if config.verify else {}
        self.buckets: Sequence[Bucket] = tuple(
            Bucket(
                size,
                shares[number],
                {
                    kind: tuple(ClipPool(shelf.share, len(shelf.clips)) for shelf in self._shelves[kind][row])
                    for kind in KINDS
                },
            )
            for row, (number, size) in enumerate(zip(kept, self.sizes, strict=True))
        )

    def video(self, bucket: int, slot: ClipPlace, rng: np.random.Generator) -> FootageVideo:
        """The clip of a slot; always with a new crop."""
        assert slot.number is not None, "a data set is finite"
        dataset, record = self._shelves[slot.kind][bucket][slot.stock].clips[slot.number]
        share, across, down = rng.random(3).tolist()
        config = self.config
        return self.video_type(
            dataset,
            record,
            self.sizes[bucket],
            config.crop_scale,
            (share, across, down),
            faces=config.face == "cross",
            verify=config.verify,
            states=self._states,
        )

    def clips(self, kind: str) -> list[Clip]:
        """All clips of a kind that are shown, each once."""
        found = {
            (dataset.root, record.clip_id): (dataset, record)
            for shelves in self._shelves[kind]
            for shelf in shelves
            for dataset, record in shelf.clips
        }
        return list(found.values())

    def _by_size(self, kind: str) -> list[list[_Shelf]]:
        """The clips of a kind: for each size one shelf per data set that has some."""
        sets = self._usable(kind)
        weights = [entry["weight"] for entry in self.config.manifests]
        shares = [
            0.0 if not clips else float(len(clips) if weight is None else weight)
            for weight, clips in zip(weights, sets, strict=True)
        ]
        shelves: list[list[_Shelf]] = [[] for _ in self.sizes]
        for share, clips in zip(shares, sets, strict=True):
            for number, fitting in enumerate(self._sorted(clips)):
                if fitting:
                    part = len(fitting) / len(clips)
                    shelves[number].append(_Shelf(share / sum(shares) * part, fitting))
        return shelves

    def _sorted(self, clips: Iterable[Clip]) -> list[list[Clip]]:
        """Clips by the size that is nearest to their aspect."""
        result: list[list[Clip]] = [[] for _ in self.sizes]
        for dataset, record in clips:
            distances = [abs(math.log(record.height / record.width * width / height)) for height, width in self.sizes]
            result[int(np.argmin(distances))].append((dataset, record))
        return result

    def _usable(self, kind: str) -> list[list[Clip]]:
        """For each data set the clips of a kind that can be used as asked, all of one split."""
        config, shortest = self.config, self.config.shortest
        splits = (config.split, "test", "train") if config.split == "validation" else (config.split,)
        cross = config.face == "cross" and kind == "human"
        for split in splits:
            sets = [[(d, r) for r in d.records if (r.kind, r.split) == (kind, split)] for d in self.datasets]
            long = [[clip for clip in clips if clip[1].frames >= shortest] for clips in sets]
            usable = [[clip for clip in clips if clip[1].faces or not cross] for clips in long]
            if any(usable):
                break
        counts = [sum(map(len, clips)) for clips in (sets, long, usable)]
        if not counts[2]:
            self._refuse(kind, shortest, counts)
        if split != config.split:
            _warn(f"there are no {kind} clips of split '{config.split}': those of split '{split}' stand in for them")
        if counts[1] < counts[0]:
            _warn(
                f"{counts[0] - counts[1]} of {counts[0]} {kind} clips are shorter than the {shortest} frames that "
                f"data.frames={config.frames} at data.stride={config.stride} takes; they are left out"
            )
        if counts[2] < counts[1]:
            _warn(f"{counts[1] - counts[2]} of {counts[1]} {kind} clips have no other faces; they are left out")
        return self._first(usable, kind)

    def _first(self, sets: list[list[Clip]], kind: str) -> list[list[Clip]]:
        """The first `num_clips` of them."""
        wanted = self.config.num_clips
        if wanted is None:
            return sets
        if (there := sum(map(len, sets))) < wanted:
            raise DataError(f"data.num_clips is {wanted}, but there are {there} {kind} clips; lower it")
        kept = []
        for clips in sets:
            kept.append(clips[:wanted])
            wanted -= len(kept[-1])
        return kept

    def _open(self, folder: str) -> Dataset:
        return read_dataset(Path(folder))

    def _preflight(self) -> dict[str, State]:
        """The bytes of all videos that are shown, read once; workers then look at sizes and times alone."""
        states: dict[str, State] = {}
        clips = [*self.clips("human"), *self.clips("scene")]
        for root in dict.fromkeys(dataset.root for dataset in self.datasets):
            paths = [os.path.abspath(video_path(d, record)) for d, record in clips if d.root == root]
            states.update(states_of(paths, memory_file(root)))
        return states

    def _refuse_remote(self) -> None:
        for dataset in self.datasets:
            for record in dataset.records:
                if is_remote(record.path):
                    raise DataError(
                        f"data set '{dataset.root}': '{record.path}' lies on another machine, and training reads "
                        f"videos from local paths; copy the footage, and preprocess it there"
                    )

    def _refuse(self, kind: str, shortest: int, counts: list[int]) -> None:
        where = ", ".join(f"'{dataset.root}'" for dataset in self.datasets)
        if not counts[0]:
            splits = {r.split for d in self.datasets for r in d.records if r.kind == kind}
            there = f"only of {', '.join(s for s in SPLITS if s in splits)}" if splits else "none of any split"
            raise DataError(
                f"{where}: no {kind} clips of split '{self.config.split}' ({there}); set data.scene_ratio="
                f"{1 if kind == 'human' else 0}, or add {kind} clips"
            )
        if not counts[1]:
            raise DataError(
                f"{where}: all {counts[0]} {kind} clips are shorter than the {shortest} frames that data.frames="
                f"{self.config.frames} at data.stride={self.config.stride} with data.reference="
                f"{self.config.reference} takes; lower one of them"
            )
        raise DataError(
            f"{where}: no clip has another identity's face, which data.face=cross (stage=face) needs; add them with "
            f"scripts/preprocess.py --faces mesh-warp"
        )


def _borrowed(kind: str, size: tuple[int, int], shelves: list[list[_Shelf]]) -> list[_Shelf]:
    """The clips of all other sizes, for a size that has none of a kind."""
    _warn(f"no {kind} clip has the aspect of {_px(size)}: parts of others are shown at that size")
    return [shelf for others in shelves for shelf in others]


def _px(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} px"


def _warn(text: str) -> None:
    warnings.warn(text, DataWarning, stacklevel=2)
