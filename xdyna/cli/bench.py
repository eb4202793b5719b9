"""Measure speed and memory: `scripts/bench.py [sampling|modes|window|loader|metrics|train|live]`."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xdyna.cli.arguments import Command, Program
from xdyna.config.bench import BenchConfig
from xdyna.config.live import LiveConfig
from xdyna.config.train import CHECKPOINTING, TrainConfig
from xdyna.core.atomic import output_path
from xdyna.core.errors import UsageError
from xdyna.core.program import FAILURE

DEFAULT_FRAMES = 16
WINDOW = (
    "Measure one step of one window with random weights of the published sizes: naive, eager, compiled by blocks and "
    "as a whole, and as a CUDA graph, in bfloat16 and float16 (float32 on a CPU). `height=896 width=512` is the "
    "published shape."
)
RANDOM = "random weights of these sizes (configs/model) in the checkpoint's place"
TRAIN = Program(
    name="bench train",
    root="train",
    schema=TrainConfig,
    description="Measure time and memory of training steps with each checkpointing policy, at the sizes of a "
    "configuration and with random weights. On a CPU the peak is that of the whole process.",
    example="xdyna bench train experiment=dynamics --policies full,selective",
)
LIVE = Program(
    name="bench live",
    root="live",
    schema=LiveConfig,
    description="Measure live windows: time of denoising and decoding, and the frames per second that they allow. "
    "`--random sd15` has the published sizes with random weights.",
    example="xdyna bench live --windows 6+2,12+2 --each-steps 2,4 dtype=bfloat16",
)


def _program(name: str, description: str) -> Program[BenchConfig]:
    lists = {"loader": ("workers",), "metrics": ("metrics",)}.get(name, ())
    return Program(f"bench {name}", "bench", BenchConfig, description, lists=lists)


def main(argv: Sequence[str]) -> int:
    """Run `scripts/bench.py`. Args: argv: without the program's name. Returns: exit code."""
    actions: dict[str, tuple[str, Callable[[Command[BenchConfig]], int]]] = {
        "sampling": ("What the exact savings of the sampling loop bring.", _sampling),
        "modes": (
            "Speed, memory and distance to exact of preset=exact|fast|preview|lowmem, and few_step.",
            _modes,
        ),
        "loader": ("How fast training clips are made, and how many workers a run needs.", _loader),
        "metrics": ("The speed of every metric.", _metrics),
    }
    if argv and argv[0] == "train":
        return TRAIN.main(_train_parser(), argv[1:], _train, prepare=_choose_recipe, placeholders=_no_data)
    if argv and argv[0] == "live":
        return LIVE.main(_live_parser(), argv[1:], _live)
    if argv and argv[0] == "window":
        return _program("window", WINDOW).main(_window_parser(), argv[1:], _window)
    name, words = (argv[0], argv[1:]) if argv and argv[0] in actions else ("sampling", argv)
    description, work = actions[name]
    others = ", ".join(f"`bench {other}`" for other in (*actions, "window", "train", "live") if other != name)
    program = _program(name, f"Measure: {description} Others: {others}.")
    parser = program.parser()
    if name == "sampling":
        parser.add_argument(
            "--json", metavar="FILE", type=output_path, help="write the result here, and a plot beside it"
        )
    if name == "modes":
        parser.add_argument("--random", metavar="MODEL", help=f"{RANDOM}, e.g. proxy")
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


def _modes(command: Command[BenchConfig]) -> int:
    from xdyna.core.quiet import quiet_libraries
    from xdyna.pipelines.bench_modes import bench_modes, bench_random, table

    config, out, sizes = command.config, Path(command.config.out), command.flags.random
    quiet_libraries()
    options: dict[str, Any] = {"device": config.device, "dtype": config.dtype, "out": out}
    options |= {"frames": config.frames or DEFAULT_FRAMES, "rounds": config.pairs}
    rows = bench_modes(config.checkpoint, **options) if sizes is None else bench_random(sizes, **options)
    print(f"{table(rows)}wrote {out}/modes.json, modes.md, modes.png, plot.png")
    return 0


def _window_parser() -> argparse.ArgumentParser:
    p = _program("window", WINDOW).parser()
    p.add_argument(
        "--sizes", default="sd15", metavar="MODEL", help="of the networks: sd15 (published), tiny (%(default)s)"
    )
    p.add_argument("--ways", default="naive,eager,regional,compiled,graph", metavar="NAME,...", help="(%(default)s)")
    p.add_argument("--json", metavar="FILE", type=output_path, help="write the rows here")
    return p


def _window(command: Command[BenchConfig]) -> int:
    import torch

    from xdyna.config.loader import load_model
    from xdyna.core.device import pick_device
    from xdyna.core.quiet import quiet_libraries
    from xdyna.pipelines.bench_window import WAYS, bench_window

    flags, config = command.flags, command.config
    ways = [name.strip() for name in flags.ways.split(",")]
    if wrong := [name for name in ways if name not in WAYS]:
        raise UsageError(f"--ways: {wrong[0]!r} is none of {', '.join(WAYS)}")
    quiet_libraries()
    device = pick_device(config.device)
    rows = bench_window(
        load_model(flags.sizes),
        frames=config.frames or DEFAULT_FRAMES,
        size=(config.height, config.width),
        repeats=config.pairs,
        device=device,
        dtypes=(torch.bfloat16, torch.float16) if device.type == "cuda" else (torch.float32,),
        ways=ways,
        report_to=flags.json,
    )
    return 0 if any("ms" in row for row in rows) else FAILURE


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


def _live_parser() -> argparse.ArgumentParser:
    p = LIVE.parser()
    p.add_argument("--windows", default="4+2,6+2,12+2", metavar="NEW+HELD,...", help="frames (%(default)s)")
    p.add_argument("--each-steps", default="1,2,4", metavar="N,...", help="denoising steps (%(default)s)")
    p.add_argument("--repeats", type=int, default=5, help="timed windows of each (%(default)s)")
    p.add_argument("--checkpoint", type=Path, default=Path("xdyna-tiny"), metavar="DIR", help="pipeline folder")
    p.add_argument("--random", metavar="MODEL", help=RANDOM)
    p.add_argument("--json", type=output_path, metavar="FILE", help="write the rows")
    return p


def _live(command: Command[LiveConfig]) -> int:
    import json

    from xdyna.config.loader import load_model
    from xdyna.core.atomic import write_file
    from xdyna.core.quiet import quiet_libraries
    from xdyna.pipelines.live.bench import bench_live
    from xdyna.pipelines.live.session import live_dtype
    from xdyna.pipelines.model import load
    from xdyna.pipelines.untrained import build_pipeline

    flags, config = command.flags, command.config
    try:
        windows = [(int(new), int(held)) for new, held in (entry.split("+") for entry in flags.windows.split(","))]
        steps = [int(entry) for entry in flags.each_steps.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--windows {flags.windows} --each-steps {flags.each_steps}: expected windows like 6+2,12+2, steps like 2,4"
        ) from error
    quiet_libraries()
    settings = dataclasses.replace(config, dtype=live_dtype(config))
    model = load(flags.checkpoint, settings.animation())
    model.merge_lora()  # as live animations do
    pipeline, checkpoint = model.pipeline, model.checkpoint
    if flags.random is not None:
        pipeline = build_pipeline(load_model(flags.random), seed=0).to(device=model.device, dtype=model.dtype)
    size = config.height or checkpoint.size[0], config.width or checkpoint.size[1]
    guided = 1.0 if config.guidance is None else config.guidance
    rows = bench_live(
        pipeline, dataclasses.replace(settings, guidance=guided), size=size, face=config.face is not False,
        windows=windows, steps=steps, repeats=flags.repeats,
    )  # fmt: skip
    if flags.json is not None:
        write_file(flags.json, (json.dumps(rows, indent=1) + "\n").encode())
    return 0
