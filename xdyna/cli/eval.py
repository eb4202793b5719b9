"""Measure generated videos: `scripts/eval.py`. `eval parity` compares the metrics' networks with their libraries."""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xdyna.cli.arguments import Command, Program, quoted
from xdyna.config.eval import EvalConfig
from xdyna.core.errors import UsageError
from xdyna.core.program import FAILURE

if TYPE_CHECKING:
    from xdyna.evaluation.inputs import Inputs
    from xdyna.pipelines.plan import Request

WORK = ".work"
PROGRAM = Program(
    name="eval",
    root="eval",
    schema=EvalConfig,
    description="Measure generated videos against true ones; write report.json, report.csv, report.md, report.png. "
    "`eval parity` compares the metrics' networks with their libraries.",
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
    files.add_argument("--out", type=Path, default=Path("outputs/eval"), metavar="DIR", help="default: outputs/eval")
    files.add_argument("--overwrite", action="store_true", help="replace the report in --out")
    files.add_argument("--cache", type=Path, metavar="DIR", help="records and features (default: OUT/.work)")
    files.add_argument("--weights-dir", type=Path, metavar="DIR", help="weight files of metrics")
    files.add_argument("--download", action="store_true", help="fetch missing weight files into --weights-dir")
    files.add_argument("--allow-skipped", action="store_true", help="exit code 0 even if a metric was skipped")
    files.add_argument("--device", help="where networks run (default: cpu)")
    return p


def main(argv: Sequence[str]) -> int:
    """Run `scripts/eval.py`.

    Args:
        argv: arguments without the program's name.

    Returns:
        int: 0 when every metric was computed, else 1 (0 with --allow-skipped).
    """
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
    from tqdm import tqdm

    from xdyna.core.quiet import quiet_libraries
    from xdyna.evaluation.catalogue import check_names
    from xdyna.evaluation.evaluate import check_out, evaluate, not_computed
    from xdyna.evaluation.report import write_report
    from xdyna.evaluation.weights import WeightsFolder

    args, config = command.flags, command.config
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    quiet_libraries()
    config.metrics = check_names(config.metrics)
    if rank == 0:
        check_out(args.out, overwrite=args.overwrite)
    found = _inputs(args)
    with tqdm(total=-(-len(found.entries) // world), desc="videos", unit="video", disable=rank > 0) as bar:
        report = evaluate(
            found,
            config,
            work=args.out / WORK,
            cache=args.cache or args.out / WORK / "records",
            weights=WeightsFolder(args.weights_dir, download=args.download, device=args.device),
            rank=rank,
            world=world,
            command=["eval.py", *command.argv],
            advance=lambda name: bar.update() and None,
        )
    if report is None:
        return 0
    files = write_report(report, args.out)
    print(f"\n{files[2].read_text()}\nwritten: {', '.join(str(file) for file in files)}")
    if report.complete:
        return 0
    skipped, empty = not_computed(report)
    print(f"not computed: {', '.join([*skipped, *empty])}")
    return 0 if args.allow_skipped and not empty else FAILURE


def _inputs(args: argparse.Namespace) -> "Inputs":
    """The pairs that the flags name."""
    from xdyna.evaluation.generate import generate
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
        found = generate(args.generate, args.out / "generated", lambda requests: _animate(requests, args.infer))
    else:
        found = from_folders(args.generated, args.truth, args.driving, args.masks_dir)
    found.entries = found.entries[: args.quick]
    return found


def _animate(requests: "list[Request]", options: str) -> int:
    """Make videos with the settings of scripts/infer.py. Args: options: of its command line."""
    from xdyna.cli import infer

    return infer.PROGRAM.main(
        infer.parser(), shlex.split(options), lambda command: infer.make_all(requests, command), prepare=infer.prepare
    )
