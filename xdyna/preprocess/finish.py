"""From the outcomes of all videos to a data set: near-duplicates out, splits by group, tables and reports written.

Everything here follows from the outcomes alone, in the order of their ids: engines, numbers of workers and
interruptions leave no trace in the bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xdyna.config.data import DataError
from xdyna.config.preprocess import FinishOptions, PreprocessOptions
from xdyna.data.records import (
    DATASET_FILE,
    FORMAT,
    MANIFEST,
    SKIPPED,
    ClipRecord,
    Skip,
    VideoOutcome,
    place,
)
from xdyna.data.store import read_manifest, write_if_changed, write_manifest, write_skips
from xdyna.preprocess.report import Summary, write_card, write_report

_HASH_BITS = 64


def split_of(group: str, options: FinishOptions) -> str:
    """The split of a group: "train", "validation" or "test".

    It depends on the group's name and the options alone, so that more footage moves no group to another split.
    """
    name = f"{options.split_seed}:{group}".encode()
    position = int.from_bytes(hashlib.sha256(name).digest()[:7], "big") / 2**56  # 56 bits are exact in a float
    if position < options.validation:
        return "validation"
    return "test" if position < options.validation + options.test else "train"


def find_duplicates(clips: Sequence[ClipRecord], bits: int) -> dict[int, int]:
    """Clips that look like an earlier one of another video.

    Clips of one video are not compared: they show the same place, and their perceptual hashes are close whatever moves.
    Of two hashes that differ in at most k bits, one of any k + 1 parts is equal: only those pairs are looked at.

    Args:
        clips: in the order in which the first one stays.
        bits: largest Hamming distance; below 0: none.

    Returns:
        Position of a duplicate -> position of the clip it looks like, which stays.
    """
    if bits < 0:
        return {}
    edges = [_HASH_BITS * part // (bits + 1) for part in range(bits + 2)]
    parts = [(low, (1 << (high - low)) - 1) for low, high in itertools.pairwise(edges)]
    kept: dict[tuple[str, int, int], list[int]] = {}
    values: list[int] = []
    duplicates: dict[int, int] = {}
    for position, clip in enumerate(clips):
        value = int(clip.phash, 16)
        values.append(value)
        keys = [(clip.kind, low, value >> low & mask) for low, mask in parts]
        near = [
            other
            for key in keys
            for other in kept.get(key, ())
            if (value ^ values[other]).bit_count() <= bits and clips[other].source_id != clip.source_id
        ]
        if near:
            duplicates[position] = min(near)
            continue
        for key in keys:
            kept.setdefault(key, []).append(position)
    return duplicates


def assemble(
    outcomes: Sequence[VideoOutcome], options: FinishOptions, thumbnails: dict[str, str]
) -> tuple[list[ClipRecord], list[Skip]]:
    """Decide about all clips together.

    Args:
        outcomes: of all videos, in any order.
        options: duplicates and splits.
        thumbnails: path of the image of a clip, by its id, where there is one.

    Returns:
        The clips that stay, with their splits, and everything that was skipped; both ordered.
    """
    clips = sorted((clip for o in outcomes for clip in o.clips), key=lambda c: (c.source_id, c.start, c.clip_id))
    skips = [skip for outcome in sorted(outcomes, key=lambda o: o.source_id) for skip in outcome.skips]
    duplicates = find_duplicates(clips, options.duplicate_bits)
    for position, other in duplicates.items():
        clip, first = clips[position], clips[other]
        distance = (int(clip.phash, 16) ^ int(first.phash, 16)).bit_count()
        detail = f"{distance} of {_HASH_BITS} bits differ from {first.clip_id}"
        skips.append(
            Skip(clip.source_id, clip.path, "duplicate", "duplicate", detail, clip.start, clip.frames,
                 thumbnails.get(clip.clip_id, ""))
        )  # fmt: skip
    stay = [
        dataclasses.replace(clip, split=split_of(clip.group or clip.source_id, options))
        for position, clip in enumerate(clips)
        if position not in duplicates
    ]
    return stay, skips


def finish(
    folder: Path,
    outcomes: Sequence[VideoOutcome],
    *,
    footage: PreprocessOptions,
    options: FinishOptions,
    versions: dict[str, str],
) -> Summary:
    """Write manifest, skips, `dataset.json`, card and report; files that are right already are not touched.

    Args:
        folder: the data set.
        outcomes: of all videos.
        footage: options the videos were processed with.
        options: see `FinishOptions`.
        versions: of this project and the packages it stands on, for the card.

    Returns:
        What is in the data set.

    Raises:
        DataError: nothing was kept; the report is written nevertheless.
        MediaError: a file cannot be written.
    """
    thumbnails = find_thumbnails(folder, [clip.clip_id for outcome in outcomes for clip in outcome.clips])
    records, skips = assemble(outcomes, options, thumbnails)
    records = _with_derived(folder, records)
    summary = Summary(
        videos=len(outcomes),
        seconds=math.fsum(sorted(outcome.seconds for outcome in outcomes)),
        records=records,
        skips=skips,
        thumbnails=thumbnails,
        options={"preprocess": dataclasses.asdict(footage), "finish": dataclasses.asdict(options)},
        versions=versions,
    )
    write_skips(folder / SKIPPED, skips)
    write_report(folder, summary)
    if not records:
        raise DataError(
            f"none of {len(outcomes)} videos gave a clip ({_most_frequent(skips)}); '{folder / 'report.html'}' shows "
            f"why: change the options or the input"
        )
    write_manifest(folder / MANIFEST, records)
    write_card(folder, summary)
    write_if_changed(folder / DATASET_FILE, _header(summary))
    return summary


def find_thumbnails(folder: Path, clip_ids: Sequence[str]) -> dict[str, str]:
    """Images of clips, by clip id, where there are any."""
    places = {clip_id: place("thumbnails", clip_id, ".jpg") for clip_id in clip_ids}
    return {clip_id: where for clip_id, where in places.items() if (folder / where).is_file()}


def _with_derived(folder: Path, records: list[ClipRecord]) -> list[ClipRecord]:
    """What was made of clips since (other faces) stays with those that are still the same."""
    if not (folder / MANIFEST).is_file():
        return records
    before = {record.clip_id: record for record in read_manifest(folder / MANIFEST)}
    kept = []
    for record in records:
        old = before.get(record.clip_id)
        same = old is not None and (old.sha256, old.start, old.frames) == (record.sha256, record.start, record.frames)
        if old is not None and same and old.faces and (folder / old.faces).exists():
            record = dataclasses.replace(record, faces=old.faces)
        kept.append(record)
    return kept


def _most_frequent(skips: Sequence[Skip]) -> str:
    counts = Counter(skip.reason for skip in skips).most_common(3)
    return ", ".join(f"{reason}: {count}" for reason, count in counts) or "no videos"


def _header(summary: Summary) -> bytes:
    tree: dict[str, Any] = {
        "format": FORMAT,
        "options": summary.options,
        "counts": {
            "videos": summary.videos,
            "clips": len(summary.records),
            "skips": len(summary.skips),
            "splits": dict(sorted(Counter(record.split for record in summary.records).items())),
            "kinds": dict(sorted(Counter(record.kind for record in summary.records).items())),
        },
    }
    return (json.dumps(tree, indent=1, sort_keys=True) + "\n").encode()
