"""How metrics react to known damage of puppet clips: blur, noise, frozen scenes, ... (`scripts/sensitivity.py`).

The truth is compared with a damaged copy of itself. A metric reacts as it should where its value gets worse from level
to level. What a metric does not react to is written down as well.
"""

import argparse
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from xdyna.core.atomic import atomic_output, output_path
from xdyna.core.errors import UsageError
from xdyna.core.quiet import quiet_libraries
from xdyna.core.resources import resource
from xdyna.evaluation.masks import Masker
from xdyna.evaluation.metric import HIGHER, LOWER, Case, Column, Metric, Record
from xdyna.evaluation.metrics.people import FaceDetection, FaceExpression, PeopleReader, PoseAccuracy
from xdyna.evaluation.store import Store, record_key
from xdyna.perception import get_backend
from xdyna.puppets.damage import DAMAGES, LEVELS, Puppet, case_of, render
from xdyna.puppets.evaluate import PuppetNets, puppet_metrics
from xdyna.puppets.heldout import load_held_out
from xdyna.puppets.sensitivity_report import SMALL_CHANGE, Values, draw, markdown

OUT, WORK = Path("docs") / "metrics", Path("outputs") / "sensitivity"


def conditions() -> Iterator[tuple[str, int]]:
    """("clean", 0), then each kind of damage and its level 1 to 4."""
    yield "clean", 0
    for name in DAMAGES:
        for level in range(1, LEVELS + 1):
            yield name, level


def study(clips: Sequence[Puppet], metrics: Sequence[Metric], store: Store) -> Values:
    """Measure all metrics on all clips in all conditions.

    Args:
        clips: the truths.
        metrics: what to measure.
        store: keeps records, so that an interrupted study goes on.

    Returns:
        The reported values.
    """
    found: dict[tuple[str, int], dict[str, float]] = {}
    for name, level in tqdm(list(conditions()), desc="measuring", unit="condition"):
        records: dict[str, list[Record]] = {metric.name: [] for metric in metrics}
        for clip in clips:
            undamaged = (clip.frames, clip.masks)
            case = case_of(clip, DAMAGES[name].make(clip, DAMAGES[name].levels[level - 1]) if level else undamaged)
            for metric in metrics:
                record = _measured(metric, case, store)
                if record is not None:
                    records[metric.name].append(record)
        found[name, level] = {}
        for metric in metrics:
            numbers = metric.reduce(records[metric.name])
            found[name, level] |= {column.name: numbers[column.name] for column in metric.columns}
    return {
        column: {
            name: [found["clean", 0][column], *(found[name, level][column] for level in range(1, LEVELS + 1))]
            for name in DAMAGES
        }
        for column in found["clean", 0]
    }


def _measured(metric: Metric, case: Case, store: Store) -> Record | None:
    key = record_key(metric, case)
    record = store.load(key)
    if record is None:
        try:
            record = metric.measure(case)
        except ValueError:  # nothing to measure in this clip (a scene that does not move, say)
            return None
        store.save(key, record)
    return record


def badness(value: float, better: str) -> float:
    """A number that is larger where a value is worse."""
    if better == LOWER:
        return value
    return -value if better == HIGHER else abs(math.log(max(value, 1e-6)))


def verdict(values: Sequence[float], better: str, *, largest: float) -> str:
    """How a metric reacted.

    Args:
        values: at levels 0 to 4.
        better: which values are.
        largest: change of badness that any damage made to this column.

    Returns:
        "yes": worse at every level; "partly": worse in the end, not at every level; "no": no reaction (below 2 % of
        the largest); "wrong": not worse in the end; "-": not measured.
    """
    if any(math.isnan(value) for value in values):
        return "-"
    bad = [badness(value, better) for value in values]
    change = bad[-1] - bad[0]
    if max(abs(value - bad[0]) for value in bad) <= SMALL_CHANGE * largest:
        return "no"
    if all(after > before for before, after in itertools.pairwise(bad)):
        return "yes"
    return "partly" if change > SMALL_CHANGE * largest else "wrong"


def verdicts(values: Values, columns: Sequence[Column]) -> dict[str, dict[str, str]]:
    """Column -> damage -> `verdict`."""
    table = {}
    for column in columns:
        rows = values[column.name]
        changes = [
            abs(badness(v, column.better) - badness(row[0], column.better)) for row in rows.values() for v in row
        ]
        largest = max((change for change in changes if not math.isnan(change)), default=0.0)
        table[column.name] = {name: verdict(row, column.better, largest=largest) for name, row in rows.items()}
    return table


def main(argv: Sequence[str]) -> int:
    """Run `scripts/sensitivity.py`. Args: argv: without the program's name. Returns: exit code."""
    args = _parser().parse_args(argv)
    quiet_libraries()
    held_out = load_held_out()
    if not 2 <= args.clips <= len(held_out) or not 0 <= args.people_clips <= args.clips:
        raise UsageError(
            f"--clips {args.clips} --people-clips {args.people_clips}: expected 2 to {len(held_out)}, and at most "
            "as many for people"
        )
    store = Store(args.work)
    clips = [render(number, held_out[number]) for number in range(args.clips)]
    faces = {f"{clip.number:02d}": clip.face for clip in clips}
    metrics = puppet_metrics(PuppetNets.load(resource("pretrained")), lambda case: faces[case.id], Masker(None), store)
    values, columns = study(clips, metrics, store), [c for metric in metrics for c in metric.columns]
    counts = {column.name: args.clips for column in columns}
    if args.people_clips:
        reader = PeopleReader(get_backend("mediapipe"), cache=store)
        people: list[Metric] = [FaceDetection(reader), FaceExpression(reader), PoseAccuracy(reader)]
        values |= study(clips[: args.people_clips], people, store)
        columns += [c for metric in people for c in metric.columns]
        counts |= {c.name: args.people_clips for metric in people for c in metric.columns}
    table = verdicts(values, columns)
    with atomic_output(args.out / "sensitivity.md", overwrite=True) as path:
        path.write_text(markdown(values, columns, table, counts))
    with atomic_output(args.out / "sensitivity.json", overwrite=True) as path:
        path.write_text(json.dumps({"values": values, "verdicts": table}, indent=1) + "\n")
    with atomic_output(args.out / "sensitivity.png", overwrite=True) as path:
        draw(values, columns, table, path)
    print(f"written to {args.out}: sensitivity.md, sensitivity.json, sensitivity.png")
    return 0


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="sensitivity.py", description="How metrics react to known damage of puppet clips.")
    p.add_argument("--clips", type=int, default=24, help="the first so many held-out clips (%(default)s)")
    p.add_argument(
        "--people-clips", type=int, default=4, help="for metrics with a detector, which is slow; 0: none (%(default)s)"
    )
    p.add_argument("--out", type=output_path, default=OUT, metavar="FOLDER", help="where to write (%(default)s)")
    p.add_argument("--work", type=output_path, default=WORK, metavar="FOLDER", help="what was measured (%(default)s)")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p
