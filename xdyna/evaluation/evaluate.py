"""An evaluation from pairs of videos to a report, in one process or shared among several."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from xdyna.config.eval import EvalConfig
from xdyna.core.errors import UsageError
from xdyna.core.manifest import versions
from xdyna.evaluation import engine
from xdyna.evaluation.catalogue import Shared, make_metrics
from xdyna.evaluation.inputs import Inputs, counted
from xdyna.evaluation.report import Report
from xdyna.evaluation.store import Store
from xdyna.evaluation.weights import WeightsFolder


def evaluate(
    found: Inputs,
    config: EvalConfig,
    *,
    work: Path,
    cache: Path,
    weights: WeightsFolder,
    rank: int = 0,
    world: int = 1,
    command: Sequence[str] = (),
    advance: Callable[[str], None] = lambda name: None,
) -> Report | None:
    """Measure pairs of videos.

    Args:
        found: the pairs.
        config: the protocol.
        work: folder for what the processes tell each other.
        cache: folder of records and features, used again by a later call.
        weights: of the metrics' networks.
        rank: number of this process.
        world: number of processes; each measures its share.
        command: words of the program, for the report.
        advance: called with a video's name when it is measured.

    Returns:
        The report; None in all processes but the first.

    Raises:
        UsageError: an unknown metric.
        ValueError: a video cannot be measured.
    """
    store = Store(cache)
    shared = Shared(store, weights, clip=config.clip, masks=config.masks, pose_backend=config.pose_backend)
    metrics, skipped = make_metrics(config.metrics, shared)
    mine = engine.share(found.entries, rank=rank, world=world)
    outcomes = engine.measure(mine, metrics, store, max_frames=config.max_frames, advance=advance)
    if world > 1:
        merged = _gather(outcomes, work, rank=rank, world=world)
        if merged is None:
            return None
        outcomes = merged
    return Report(
        engine.reduce(metrics, outcomes, store),
        skipped,
        len(outcomes),
        counted(outcome.policies for outcome in outcomes.values())
        | ({"companions": found.companions} if found.companions else {}),
        found.unpaired,
        _protocol(config, found),
        dict(sorted(weights.used.items())),
        {"versions": versions(), "command": list(command)},
        config.table,
    )


def check_out(out: Path, *, overwrite: bool) -> None:
    """See that a report can be written.

    Args:
        out: folder of the report.
        overwrite: whether one that is there may be replaced.

    Raises:
        UsageError: it cannot.
    """
    if (out / "report.json").exists() and not overwrite:
        raise UsageError(f"{out} holds a report already; give --overwrite, or another --out")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a folder")


def not_computed(report: Report) -> tuple[list[str], list[str]]:
    """Names of the metrics that were skipped, and of those that found nothing to measure. Args: report."""
    empty = [r.metric.name for r in report.results if any(value != value for value in r.values.values())]
    return [entry.name for entry in report.skipped], empty


def _gather(outcomes: dict[str, Any], work: Path, *, rank: int, world: int) -> dict[str, Any] | None:
    """Everything that all processes found, in process 0; None in the others."""
    from accelerate import PartialState

    state = PartialState(cpu=True)
    engine.save_outcomes(work / f"outcomes-{rank}.json", outcomes)
    state.wait_for_everyone()
    merged = None
    if rank == 0:
        merged = engine.load_outcomes([work / f"outcomes-{k}.json" for k in range(world)])
    state.wait_for_everyone()
    state.destroy_process_group()
    return merged


def _protocol(config: EvalConfig, found: Inputs) -> dict[str, Any]:
    plain = dataclasses.asdict(config)
    plain["metrics"], plain["clip"] = ", ".join(config.metrics), json.dumps(plain["clip"])
    return {
        **plain,
        "pairs": len(found.entries),
        "frames": "generated frames resized bilinearly to the truth where needed",
    }
