"""`scripts/train.py`: one stage of training, from a configuration to a pipeline folder."""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xdyna.cli.arguments import Command, Program, quoted
from xdyna.config.train import TrainConfig
from xdyna.core.errors import UsageError
from xdyna.core.program import INTERRUPTED

PROGRAM = Program(
    name="train",
    root="train",
    schema=TrainConfig,
    description="Train one stage of X-Dyna. experiment=NAME takes a recipe; model=NAME, data=NAME, "
    "stage=NAME, ablation=NAME another config of these groups.",
    example="accelerate launch scripts/train.py experiment=dynamics 'data.manifests=[datasets/mine]' optim.lr=1e-4",
)


def parser() -> argparse.ArgumentParser:
    """The argument parser."""
    p = PROGRAM.parser()
    p.add_argument("--resume", action="store_true", help="continue the run in its folder (starts it if there is none)")
    p.add_argument(
        "--which", default="latest", help="checkpoint to continue from: latest, best or a step (%(default)s)"
    )
    p.add_argument(
        "--change",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="with --resume: another setting than the run began with, on purpose; written into its run.json",
    )
    p.add_argument("--max-minutes", type=float, metavar="M", help="save and stop after so many minutes")
    p.add_argument("--export", metavar="FOLDER", help="write the pipeline of the run's checkpoint and stop")
    p.add_argument(
        "--dry-run", action="store_true", help="show the settings, what trains and the memory it needs, and stop"
    )
    p.add_argument("--stages", metavar="RECIPE", help="print the experiments of a recipe (tiny) in order, and stop")
    p.add_argument("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    return p


def main(argv: Sequence[str]) -> int:
    """Run `scripts/train.py`. Args: argv: without the program's name. Returns: exit code."""
    return PROGRAM.main(
        parser(),
        argv,
        work,
        prepare=_check_flags,
        placeholders=_placeholders,
        numbered=lambda command, number: [f"out={quoted(f'{command.config.out}/{number}')}"],
    )


def _placeholders(flags: argparse.Namespace) -> Mapping[str, Any] | None:
    from xdyna.config.recipes import PLACEHOLDERS

    return PLACEHOLDERS if flags.dry_run or flags.stages else None


def _check_flags(flags: argparse.Namespace) -> None:
    if flags.which not in ("latest", "best"):
        if not flags.which.isdecimal():
            raise UsageError(f"--which {flags.which}: expected latest, best or a step")
        flags.which = int(flags.which)
    if flags.change and not flags.resume:
        raise UsageError(f"--change {flags.change[0]}: it changes a run under way; give --resume, or {flags.change[0]}")
    for word in flags.change:
        if not re.match(r"\+{0,2}[A-Za-z_][\w.]*=", word):
            raise UsageError(f"--change {word}: expected key=value, such as optim.lr=1e-4")
    flags.overrides = [*flags.overrides, *flags.change]
    if flags.max_minutes is not None and not flags.max_minutes > 0:
        raise UsageError(f"--max-minutes {flags.max_minutes}: expected a positive number")


def work(command: Command[TrainConfig]) -> int:
    """Train. Args: command: what is asked for. Returns: exit code."""
    args, config = command.flags, command.config
    if args.stages:
        from xdyna.config.recipes import stages_of

        print("\n".join(stages_of(args.stages, args.config_dir)))
        return 0
    if args.dry_run:
        import yaml

        from xdyna.training.plan import describe

        print(f"{describe(config)}\n\nsettings\n{yaml.safe_dump(command.tree, sort_keys=False)}", end="")
        return 0
    from xdyna.training.trainer import train

    finished = train(
        config,
        command=["train.py", *command.argv],
        resume=args.resume,
        which=args.which,
        max_minutes=args.max_minutes,
        export_to=None if args.export is None else Path(args.export),
        cpu=args.cpu,
        change=[word.partition("=")[0].lstrip("+") for word in args.change],
    )
    return 0 if finished or args.max_minutes is not None else INTERRUPTED
