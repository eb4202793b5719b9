"""Measure generated videos: `scripts/eval.py`. `eval parity` compares the metrics' networks with their libraries."""

import argparse
import functools
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdyna.cli.arguments import Command, Program, quoted
from xdyna.config.eval import EvalConfig
from xdyna.core.atomic import output_path
from xdyna.core.errors import UsageError
from xdyna.core.program import FAILURE

if TYPE_CHECKING:
    from xdyna.evaluation.inputs import Inputs
    from xdyna.evaluation.processes import Team
    from xdyna.evaluation.report import Report

WORK = ".work"
PROGRAM = Program(
    name="eval",
    root="eval",
    schema=EvalConfig,
    description="Measure generated videos against true ones; write report.json, report.csv, report.md, report.png. "
    "`eval parity` compares the metrics' networks with their libraries, `eval keypoints` a pose backend with "
    "pose videos.",
    example="xdyna eval --generated outputs --truth videos metrics=table2 clip.frames=32 --out outputs/eval",
)


def parser() -> argparse.ArgumentParser:
    """The argument parser."""
    p = PROGRAM.parser()
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
    what.add_argument("--quick", type=int, metavar="N", help="only the first N pairs")
    p.add_argument("--metrics", metavar="NAME", help="as metrics=NAME; also a YAML file, or name,name")
    p.add_argument("--set", dest="overrides", action="override", metavar="KEY=VALUE", help="as KEY=VALUE alone")
    files = p.add_argument_group("files")
    files.add_argument(
        "--out", type=output_path, default=Path("outputs/eval"), metavar="DIR", help="default: outputs/eval"
    )
    files.add_argument("--overwrite", action="store_true", help="replace the report in --out")
    files.add_argument("--cache", type=output_path, metavar="DIR", help="records and features (default: OUT/.work)")
    files.add_argument("--weights-dir", type=Path, metavar="DIR", help="weight files of metrics")
    files.add_argument("--download", action="store_true", help="fetch missing weight files into --weights-dir")
    files.add_argument("--allow-skipped", action="store_true", help="exit code 0 even if a metric was skipped")
    files.add_argument(
        "--device",
        default="cpu",
        help="where networks run: cpu, cuda (each process its own GPU), cuda:N, mps or auto (default: cpu)",
    )
    return p


def main(argv: Sequence[str]) -> int:
    """Run `scripts/eval.py`.

    Args:
        argv: arguments without the program's name.

    Returns:
        int: 0 when every metric was computed, else 1 (0 with --allow-skipped).
    """
    if argv and argv[0] == "keypoints":
        from xdyna.evaluation import keypoints

        return keypoints.main(argv[1:])
    if argv and argv[0] == "parity":
        from xdyna.evaluation import parity

        return parity.main(argv[1:])
    return PROGRAM.main(parser(), argv, work, prepare=_choose_metrics, numbered=_numbered)


def _numbered(command: Command[EvalConfig], number: int) -> list[str]:
    return ["--out", str(command.flags.out / str(number))]


def _choose_metrics(flags: argparse.Namespace) -> None:
    """--metrics as a setting: a config of the group, a YAML file, or names of metrics."""
    if flags.metrics is None:
        return
    from xdyna.config import loader

    chosen = flags.metrics
    if chosen.endswith((".yaml", ".yml")):
        loader.store_group("metrics", "file", loader.read_yaml(Path(chosen)))
        chosen = "file"
    elif chosen not in loader.names("metrics", flags.config_dir):
        chosen = f"[{','.join(quoted(name.strip()) for name in chosen.split(',') if name.strip())}]"
    flags.overrides.insert(0, f"metrics={chosen}")


def work(command: Command[EvalConfig]) -> int:
    """Measure. Args: command: what is asked for. Returns: exit code."""
    from xdyna.core.quiet import quiet_libraries
    from xdyna.evaluation.catalogue import check_names
    from xdyna.evaluation.evaluate import not_computed
    from xdyna.evaluation.processes import Team
    from xdyna.evaluation.report import write_report

    args, config = command.flags, command.config
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    quiet_libraries()
    config.metrics = check_names(config.metrics)
    team = Team(rank, world)
    try:
        report = _measure(command, team)
        files = write_report(report, args.out) if report is not None else []
    except BaseException as error:
        team.fail(str(error) or type(error).__name__)
        raise
    if report is None:
        return 0
    print(f"\n{files[2].read_text()}\nwritten: {', '.join(str(file) for file in files)}")
    if report.complete:
        return 0
    skipped, empty = not_computed(report)
    if skipped or empty:
        print(f"not computed: {', '.join([*skipped, *empty])}")
    if report.failures:
        print(f"{len(report.failures)} of {report.videos} videos could not be read: {', '.join(report.failures)}")
    return 0 if args.allow_skipped and not empty and not report.failures else FAILURE


def _measure(command: Command[EvalConfig], team: "Team") -> "Report | None":
    """Measure this process's share; the report in process 0."""
    from tqdm import tqdm

    from xdyna.core.device import device_of_rank
    from xdyna.evaluation.evaluate import check_metrics, check_out, evaluate
    from xdyna.evaluation.weights import WeightsFolder

    args = command.flags
    if team.rank == 0:
        check_out(args.out, overwrite=args.overwrite)
    device = str(device_of_rank(args.device, int(os.environ.get("LOCAL_RANK", "0"))))
    weights = WeightsFolder(args.weights_dir, download=args.download, device=device)
    cache = args.cache or args.out / WORK / "records"
    if args.generate is not None:
        check_metrics(command.config, cache=cache, weights=weights, tell=_tell)
    found = _inputs(args)
    with tqdm(total=-(-len(found.entries) // team.world), desc="videos", unit="video", disable=team.rank > 0) as bar:
        return evaluate(
            found,
            command.config,
            cache=cache,
            weights=weights,
            team=team,
            command=["eval.py", *command.argv],
            advance=lambda name: bar.update() and None,
            tell=_tell,
        )


def _tell(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


def _inputs(args: argparse.Namespace) -> "Inputs":
    """The pairs that the flags name."""
    from xdyna.evaluation.inputs import from_folders, from_list

    if sum(option is not None for option in (args.pairs, args.generated, args.generate)) != 1:
        raise UsageError("give either --generated (with --truth, --driving), --pairs or --generate")
    if args.generated is None and (args.truth or args.driving or args.masks_dir):
        raise UsageError("a list names truth, driving videos and masks itself; leave the other options out")
    if args.quick is not None and args.quick < 1:
        raise UsageError(f"--quick {args.quick}: expected 1 or more")
    if args.pairs is not None:
        found = from_list(args.pairs)
    elif args.generate is not None:
        found = _generated(args)
    else:
        found = from_folders(args.generated, args.truth, args.driving, args.masks_dir)
    found.entries = found.entries[: args.quick]
    return found


def _generated(args: argparse.Namespace) -> "Inputs":
    """Make the videos of a test list with the settings of scripts/infer.py, without loss unless they say otherwise."""
    from xdyna.cli import infer
    from xdyna.evaluation.generate import generate
    from xdyna.pipelines.model import load

    found: list[Inputs] = []

    def work(command: Command[Any]) -> int:
        if command.flags.dry_run or command.flags.ref or command.flags.batch or command.flags.out:
            raise UsageError('--infer "..." takes settings and weights; the list names files, and nothing is made dry')
        command.flags.overwrite = True  # what is there was made differently, which is said
        model = load(command.flags.checkpoint, command.config)
        folder = args.out / "generated"
        make = functools.partial(infer.make_all, command=command)
        found.append(generate(args.generate, folder, make, model=model, settings=command.config, first=args.quick))
        return 0

    infer.PROGRAM.main(infer.parser(), ["save=ffv1", *shlex.split(args.infer)], work, prepare=infer.prepare)
    if not found:
        raise UsageError(f'--infer "{args.infer}" makes no videos; give settings of scripts/infer.py alone')
    return found[0]
