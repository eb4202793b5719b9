"""An evaluation from pairs of videos to a report, in one process or shared among several."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from xdyna.config.eval import EvalConfig
from xdyna.core.errors import UsageError
from xdyna.core.manifest import versions
from xdyna.evaluation import engine
from xdyna.evaluation.catalogue import Shared, make_metrics
from xdyna.evaluation.inputs import Inputs, counted
from xdyna.evaluation.metric import Metric
from xdyna.evaluation.processes import Team
from xdyna.evaluation.report import Report, Skipped
from xdyna.evaluation.store import Store
from xdyna.evaluation.weights import WeightsFolder


def evaluate(
    found: Inputs,
    config: EvalConfig,
    *,
    cache: Path,
    weights: WeightsFolder,
    team: Team | None = None,
    command: Sequence[str] = (),
    advance: Callable[[str], None] = lambda name: None,
    tell: Callable[[str], None] = lambda text: None,
) -> Report | None:
    """Measure pairs of videos.

    Args:
        found: the pairs.
        config: the protocol.
        cache: folder of records and features, used again by a later call.
        weights: of the metrics' networks.
        team: the processes, each of which measures its share; None: this one alone.
        command: words of the program, for the report.
        advance: called with a video's name when it is measured.
        tell: called before anything is measured with what will be missing in the report: weights, unreadable videos.

    Returns:
        The report; None in all processes but the first.

    Raises:
        UsageError: an unknown metric.
        ProcessError: another process failed.
        ValueError: no video can be read, or the records cannot be kept.
    """
    store = Store(cache)
    team = team or Team()
    metrics, skipped = _metrics(config, store, weights, tell if team.rank == 0 else lambda text: None)
    mine = engine.share(found.entries, rank=team.rank, world=team.world)
    failures = engine.preflight(mine)
    for name, reason in failures.items():
        tell(f"{name} cannot be measured: {reason}")

    def step(name: str) -> None:
        team.check()
        advance(name)

    with torch.autocast(
        torch.device(weights.device or "cpu").type, getattr(torch, config.dtype), enabled=config.dtype != "float32"
    ):
        outcomes = engine.measure(mine, metrics, store, max_frames=config.max_frames, failures=failures, advance=step)
    texts = team.gather(engine.dump_outcomes(outcomes))
    if texts is None:
        return None
    outcomes = engine.merge_outcomes(texts)
    failures = {name: outcomes[name].failure for name in sorted(outcomes) if outcomes[name].failure}
    if len(failures) == len(outcomes):
        raise ValueError(f"no video can be read, for example {next(iter(failures.values()))}")
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
        failures,
    )


def check_metrics(
    config: EvalConfig, *, cache: Path, weights: WeightsFolder, tell: Callable[[str], None] = lambda text: None
) -> None:
    """See, before videos are made for it, which metrics can be computed; their networks are let go again.

    Args:
        config: the protocol.
        cache: as for `evaluate`.
        weights: of the metrics' networks; what is missing and has an address is downloaded where that is asked for.
        tell: called with what will be missing in the report.

    Raises:
        UsageError: an unknown metric.
        WeightsError: a weight file is damaged or another one.
    """
    _metrics(config, Store(cache), weights, tell)
    weights.release()


def _metrics(
    config: EvalConfig, store: Store, weights: WeightsFolder, tell: Callable[[str], None]
) -> tuple[list[Metric], list[Skipped]]:
    weights.batch, weights.dtype = config.batch, config.dtype
    shared = Shared(
        store,
        weights,
        clip=config.clip,
        masks=config.masks,
        pose_backend=config.pose_backend,
        mtcnn_softmax=config.mtcnn_softmax,
    )
    metrics, skipped = make_metrics(config.metrics, shared)
    for entry in skipped:
        tell(f"{entry.name} will be skipped: {entry.reason}")
    return metrics, skipped


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


def _protocol(config: EvalConfig, found: Inputs) -> dict[str, Any]:
    plain = dataclasses.asdict(config)
    plain["metrics"] = ", ".join(config.metrics)
    return {
        **plain,
        "pairs": len(found.entries),
        "frames": "generated frames resized bilinearly to the truth where needed",
    }
