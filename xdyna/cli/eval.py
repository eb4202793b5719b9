"""Measure generated videos: `scripts/eval.py`."""

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from xdyna.config.eval import TABLES, EvalConfig
from xdyna.config.loader import load_config
from xdyna.core.errors import UsageError
from xdyna.core.manifest import versions
from xdyna.core.program import FAILURE
from xdyna.core.quiet import quiet_libraries
from xdyna.evaluation import engine
from xdyna.evaluation.catalogue import Shared, check_names, make_metrics
from xdyna.evaluation.generate import generate
from xdyna.evaluation.inputs import Inputs, counted, from_folders, from_list
from xdyna.evaluation.report import Report, write_report
from xdyna.evaluation.store import Store
from xdyna.evaluation.weights import WeightsFolder

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "eval"
WORK = ".work"


def parser() -> argparse.ArgumentParser:
    """The argument parser."""
    p = argparse.ArgumentParser(
        prog="eval.py",
        description="Measure generated videos against true ones; write report.json, report.csv, report.md, report.png.",
        epilog="example: scripts/eval.py --generated outputs --truth videos --metrics offline --out outputs/eval",
    )
    what = p.add_argument_group("videos")
    what.add_argument("--generated", type=Path, metavar="DIR", help="videos (or frame folders) to judge, or one video")
    what.add_argument("--truth", type=Path, metavar="DIR", help="ground truth, paired by name")
    what.add_argument("--driving", type=Path, metavar="DIR", help="driving videos (cross-driving), paired by name")
    what.add_argument("--masks-dir", type=Path, metavar="DIR", help="figure masks: generated/NAME and truth/NAME")
    what.add_argument("--pairs", type=Path, metavar="FILE", help="list of pairs (CSV, JSON lines) instead of folders")
    what.add_argument(
        "--generate", type=Path, metavar="JSON", help="make the videos of a test list first (into OUT/generated)"
    )
    what.add_argument(
        "--infer", default="", metavar="OPTIONS", help='for --generate, e.g. "--checkpoint DIR --steps 10"'
    )
    how = p.add_argument_group("protocol")
    how.add_argument(
        "--metrics", default="offline", help="offline, table1, table2, table4, table5, a YAML file, or name,name"
    )
    how.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting: clip.frames=32")
    how.add_argument("--quick", type=int, metavar="N", help="only the first N pairs")
    files = p.add_argument_group("files")
    files.add_argument("--out", type=Path, default=Path("outputs/eval"), metavar="DIR", help="default: outputs/eval")
    files.add_argument("--overwrite", action="store_true", help="replace the report in --out")
    files.add_argument("--cache", type=Path, metavar="DIR", help="records and features (default: OUT/.work)")
    files.add_argument("--weights-dir", type=Path, metavar="DIR", help="weight files of metrics")
    files.add_argument("--download", action="store_true", help="fetch missing weight files into --weights-dir")
    files.add_argument("--allow-skipped", action="store_true", help="exit code 0 even if a metric was skipped")
    p.add_argument("--device", help="where networks run (default: cpu)")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def settings(args: argparse.Namespace) -> EvalConfig:
    """The protocol that the arguments ask for.

    Raises:
        ConfigError: a bad value or an unknown key.
        UsageError: an unknown name.
    """
    named = CONFIGS / f"{args.metrics}.yaml"
    if args.metrics.endswith((".yaml", ".yml")):
        config = load_config(EvalConfig, Path(args.metrics), args.set)
    elif named.is_file() and args.metrics in (*TABLES, "offline"):
        config = load_config(EvalConfig, named, args.set)
    else:
        names = [name.strip() for name in args.metrics.split(",") if name.strip()]
        check_names(names)
        config = load_config(EvalConfig, None, [*args.set, f"metrics=[{','.join(names)}]"])
    config.metrics = check_names(config.metrics)
    return config


def inputs(args: argparse.Namespace) -> Inputs:
    """The pairs that the arguments name."""
    given = [option is not None for option in (args.pairs, args.generated, args.generate)]
    if sum(given) != 1:
        raise UsageError("give either --generated (with --truth, --driving), --pairs or --generate")
    if args.generated is None and (args.truth or args.driving or args.masks_dir):
        raise UsageError("a list names truth, driving videos and masks itself; leave the other options out")
    if args.pairs is not None:
        found = from_list(args.pairs)
    elif args.generate is not None:
        found = generate(args.generate, args.out / "generated", options=args.infer)
    else:
        found = from_folders(args.generated, args.truth, args.driving, args.masks_dir)
    if args.quick is not None:
        if args.quick < 1:
            raise UsageError(f"--quick {args.quick}: expected 1 or more")
        found.entries = found.entries[: args.quick]
    return found


def main(argv: Sequence[str]) -> int:
    """Run `scripts/eval.py`.

    Args:
        argv: arguments without the program's name.

    Returns:
        int: 0 when every metric was computed, else 1 (0 with --allow-skipped).
    """
    args = parser().parse_args(argv)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    quiet_libraries()
    config = settings(args)
    if rank == 0:
        _check_out(args.out, overwrite=args.overwrite)
    found = inputs(args)
    store = Store(args.cache or args.out / WORK / "records")
    weights = WeightsFolder(args.weights_dir, download=args.download, device=args.device)
    shared = Shared(store, weights, clip=config.clip, masks=config.masks, pose_backend=config.pose_backend)
    metrics, skipped = make_metrics(config.metrics, shared)
    mine = engine.share(found.entries, rank=rank, world=world)
    with tqdm(total=len(mine), desc="videos", unit="video", disable=rank > 0) as bar:
        outcomes = engine.measure(
            mine, metrics, store, max_frames=config.max_frames, advance=lambda name: bar.update() and None
        )
    if world > 1:
        merged = _gather(outcomes, args.out / WORK, rank=rank, world=world)
        if merged is None:
            return 0
        outcomes = merged
    report = Report(
        engine.reduce(metrics, outcomes, store),
        skipped,
        len(outcomes),
        counted(outcome.policies for outcome in outcomes.values()),
        found.unpaired,
        _protocol(config, found),
        dict(sorted(weights.used.items())),
        {"versions": versions(), "command": ["eval.py", *argv]},
        config.table,
    )
    files = write_report(report, args.out)
    print(f"\n{files[2].read_text()}\nwritten: {', '.join(str(file) for file in files)}")
    return _ending(report, allow_skipped=args.allow_skipped)


def _check_out(out: Path, *, overwrite: bool) -> None:
    if (out / "report.json").exists() and not overwrite:
        raise UsageError(f"{out} holds a report already; give --overwrite, or another --out")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; give a folder")


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


def _ending(report: Report, *, allow_skipped: bool) -> int:
    if report.complete:
        return 0
    empty = [r.metric.name for r in report.results if any(v != v for v in r.values.values())]
    print(f"not computed: {', '.join([*(entry.name for entry in report.skipped), *empty])}")
    return 0 if allow_skipped and not empty else FAILURE
