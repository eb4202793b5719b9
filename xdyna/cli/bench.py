"""Measure speed and memory: `scripts/bench.py [sampling|loader|metrics|train]`."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xdyna.cli.arguments import Command, Program
from xdyna.config.bench import BenchConfig
from xdyna.config.train import CHECKPOINTING, TrainConfig
from xdyna.core.errors import UsageError
from xdyna.core.program import FAILURE

DEFAULT_FRAMES = 16
TRAIN = Program(
    name="bench train",
    root="train",
    schema=TrainConfig,
    description="Measure time and memory of training steps with each checkpointing policy, at the sizes of a "
    "configuration and with random weights. On a CPU the peak is that of the whole process.",
    example="xdyna bench train experiment=dynamics --policies full,selective",
)


def _program(name: str, description: str) -> Program[BenchConfig]:
    lists = {"loader": ("workers",), "metrics": ("metrics",)}.get(name, ())
    return Program(f"bench {name}", "bench", BenchConfig, description, lists=lists)


def main(argv: Sequence[str]) -> int:
    """Run `scripts/bench.py`. Args: argv: without the program's name. Returns: exit code."""
    actions: dict[str, tuple[str, Callable[[Command[BenchConfig]], int]]] = {
        "sampling": ("What the exact savings of the sampling loop bring.", _sampling),
        "loader": ("How fast training clips are made, and how many workers a run needs.", _loader),
        "metrics": ("The speed of every metric.", _metrics),
    }
    if argv and argv[0] == "train":
        return TRAIN.main(_train_parser(), argv[1:], _train, prepare=_choose_recipe, placeholders=_no_data)
    name, words = (argv[0], argv[1:]) if argv and argv[0] in actions else ("sampling", argv)
    description, work = actions[name]
    others = ", ".join(f"`bench {other}`" for other in (*actions, "train") if other != name)
    program = _program(name, f"Measure: {description} Others: {others}.")
    parser = program.parser()
    if name == "sampling":
        parser.add_argument("--json", metavar="FILE", type=Path, help="write the result here, and a plot beside it")
    return program.main(parser, words, work, prepare=_split_names if name == "metrics" else None)


def _split_names(flags: argparse.Namespace) -> None:
    """--metrics l1,psnr names two."""
    flags.overrides = [word.replace("'", "") if word.startswith("metrics=[") else word for word in flags.overrides]


def _sampling(command: Command[BenchConfig]) -> int:
    from xdyna.core.device import pick_device
    from xdyna.core.quiet import quiet_libraries
    from xdyna.pipelines.bench import bench_sampling

    config = command.config
    quiet_libraries()
    frames = config.frames or DEFAULT_FRAMES
    device = pick_device(config.device)
    size = {"height": config.height, "width": config.width}
    bench_sampling(frames=frames, **size, pairs=config.pairs, device=device, report_to=command.flags.json)
    return 0


def _loader(command: Command[BenchConfig]) -> int:
    from xdyna.data.bench import bench_loader

    try:
        bench_loader(command.config)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return 0


def _metrics(command: Command[BenchConfig]) -> int:
    from xdyna.core.quiet import quiet_libraries
    from xdyna.evaluation.bench import bench_metrics

    config = command.config
    quiet_libraries()
    video = None if config.video is None else Path(config.video)
    bench_metrics(config.metrics, video=video, frames=config.frames or DEFAULT_FRAMES, repeats=config.repeats)
    return 0


def _train_parser() -> argparse.ArgumentParser:
    p = TRAIN.parser()
    policies = ",".join(reversed(CHECKPOINTING))
    p.add_argument("--policies", default=policies, metavar="NAME,...", help="in this order (%(default)s)")
    p.add_argument("--steps", type=int, default=5, help="timed steps of each (%(default)s)")
    p.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="%(choices)s")
    return p


def _choose_recipe(flags: argparse.Namespace) -> None:
    if not any(word.lstrip("+").startswith("experiment=") for word in flags.overrides):
        flags.overrides.insert(0, "experiment=dynamics")


def _no_data(flags: argparse.Namespace) -> Mapping[str, Any]:
    from xdyna.config.recipes import PLACEHOLDERS

    return PLACEHOLDERS


def _train(command: Command[TrainConfig]) -> int:
    from xdyna.config.recipes import PLACEHOLDERS
    from xdyna.core.device import pick_device
    from xdyna.core.quiet import quiet_libraries
    from xdyna.training.bench import bench_training

    args = command.flags
    policies = [name.strip() for name in args.policies.split(",")]
    if wrong := [name for name in policies if name not in CHECKPOINTING]:
        raise UsageError(f"--policies: {wrong[0]!r} is none of {', '.join(CHECKPOINTING)}")
    if args.steps < 1:
        raise UsageError(f"--steps {args.steps}: expected 1 or more")
    quiet_libraries()
    config = command.config
    if command.tree["data"]["manifests"] == PLACEHOLDERS["data.manifests"]:  # rendered clips of the same size
        puppets: dict[str, Any] = {"source": "puppet", "manifests": [], "buckets": [], "fps": None, "stride": [1, 1]}
        puppets |= {"workers": 0, "video_frames": max(48, config.data.frames + 1)}
        config.data = dataclasses.replace(config.data, **puppets)
    fits = bench_training(config, policies=policies, steps=args.steps, device=pick_device(args.device))
    return 0 if fits else FAILURE
