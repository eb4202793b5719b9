"""Measure all cases, one video at a time, and reduce the records to the reported numbers.

Every record goes through the store. A process measures the cases `rank::world` of the sorted ids (no padding
duplicates); then one process reduces all records in the order of the ids. The numbers are therefore the same for any
number of processes and any number of interruptions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from xdyna.evaluation.frames import VideoError
from xdyna.evaluation.inputs import Entry, check_entry, read_case
from xdyna.evaluation.metric import Case, Metric, Record
from xdyna.evaluation.store import Store, record_key


@dataclass
class Outcome:
    """Of one case.

    Attributes:
        keys: of the stored records, by metric name.
        reasons: why a metric could not be measured, by metric name.
        policies: that applied to the case (see `xdyna.evaluation.inputs.read_case`).
        frames: of the generated video.
        failure: why a video of the case cannot be read; "" where all can.
    """

    keys: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    policies: list[str] = field(default_factory=list)
    frames: int = 0
    failure: str = ""


@dataclass
class Result:
    """Of one metric.

    Attributes:
        metric: what was measured.
        values: by column name; NaN where nothing could be measured.
        notes: further numbers that `Metric.reduce` gave.
        measured: cases that counted.
        reasons: why others did not, by case id.
        per_video: values by case id.
    """

    metric: Metric
    values: dict[str, float]
    notes: dict[str, float]
    measured: int
    reasons: dict[str, str]
    per_video: dict[str, dict[str, float]]


def share(entries: Sequence[Entry], *, rank: int, world: int) -> list[Entry]:
    """The entries that a process measures: every `world`-th in the order of the ids."""
    return sorted(entries, key=lambda entry: entry.id)[rank::world]


def preflight(entries: Iterable[Entry]) -> dict[str, str]:
    """See which cases cannot be read, before anything is measured.

    Args:
        entries: of this process.

    Returns:
        The reason by case id, of those that cannot. Frames in the middle of a file are not looked at.
    """
    failures = {}
    for entry in entries:
        try:
            check_entry(entry)
        except (ValueError, OSError) as error:
            failures[entry.id] = str(error)
    return failures


def measure(
    entries: Iterable[Entry],
    metrics: Sequence[Metric],
    store: Store,
    *,
    max_frames: int | None = None,
    failures: Mapping[str, str] | None = None,
    advance: Callable[[str], None] = lambda name: None,
) -> dict[str, Outcome]:
    """Measure what is not stored yet. A case that cannot be read is listed, and the others go on.

    Args:
        entries: of this process.
        metrics: to measure.
        store: where records are found and kept.
        max_frames: only the first so many frames of each video.
        failures: cases that are known to be unreadable, from `preflight`.
        advance: called after each case with its id.

    Returns:
        Outcomes by case id.
    """
    outcomes = {}
    for entry in entries:
        failure = (failures or {}).get(entry.id)
        if failure is None:
            try:
                case, policies = read_case(entry, max_frames=max_frames)
            except (ValueError, OSError) as error:
                failure = str(error)
        if failure is None:
            try:
                outcomes[entry.id] = _measure_case(case, metrics, store, policies)
            except VideoError as error:
                failure = str(error)
        if failure is not None:
            outcomes[entry.id] = Outcome(failure=failure)
        advance(entry.id)
    return outcomes


def _measure_case(case: Case, metrics: Sequence[Metric], store: Store, policies: list[str]) -> Outcome:
    outcome = Outcome(policies=policies, frames=len(case.generated.frames))
    for metric in metrics:
        missing = [name for name in sorted(metric.needs) if getattr(case, name) is None]
        if "driving" in missing and case.truth is not None:
            missing.remove("driving")  # self-driving: the truth drives
        if missing:
            outcome.reasons[metric.name] = f"needs a {' and a '.join(missing)} video"
            continue
        key = record_key(metric, case)
        if store.load(key) is None:
            try:
                record = metric.measure(case)
            except VideoError:
                raise
            except ValueError as error:  # this video cannot be measured so: counted, and the others go on
                outcome.reasons[metric.name] = str(error)
                continue
            bad = [name for name, value in record.values.items() if not math.isfinite(value)]
            assert not bad, f"{metric.name} recorded {bad[0]} as not finite"
            store.save(key, record)
        outcome.keys[metric.name] = key
    return outcome


def dump_outcomes(outcomes: dict[str, Outcome]) -> str:
    """What a process found, as text for the one that reduces."""
    return json.dumps({name: vars(outcome) for name, outcome in outcomes.items()})


def merge_outcomes(texts: Iterable[str]) -> dict[str, Outcome]:
    """What all processes found, from the texts of `dump_outcomes`."""
    return {name: Outcome(**outcome) for text in texts for name, outcome in json.loads(text).items()}


def reduce(metrics: Sequence[Metric], outcomes: dict[str, Outcome], store: Store) -> list[Result]:
    """Reduce the records of all cases.

    Args:
        metrics: as they were measured.
        outcomes: of all cases.
        store: that holds the records.

    Returns:
        One result per metric, in their order.
    """
    results = []
    for metric in metrics:
        ids = [name for name in sorted(outcomes) if metric.name in outcomes[name].keys]
        keys = [outcomes[name].keys[metric.name] for name in ids]
        numbers = metric.reduce(_records(keys, store))
        columns = [column.name for column in metric.columns]
        per_video = {name: metric.per_video(record) for name, record in zip(ids, _records(keys, store), strict=True)}
        results.append(
            Result(
                metric,
                {name: numbers.get(name, math.nan) for name in columns},
                {name: value for name, value in numbers.items() if name not in columns},
                len(ids),
                {name: o.reasons[metric.name] for name, o in sorted(outcomes.items()) if metric.name in o.reasons},
                per_video,
            )
        )
    return results


def _records(keys: Sequence[str], store: Store) -> Iterator[Record]:
    for key in keys:
        record = store.load(key)
        if record is None:
            raise ValueError(
                f"the record {key[:12]} vanished from '{store.folder}' while it was in use; run the evaluation again"
            )
        yield record
