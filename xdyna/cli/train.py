"""`scripts/train.py`: one stage of training, from a configuration to a pipeline folder."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import yaml
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, set_seed

from xdyna.config.loader import compose_config
from xdyna.config.train import TrainConfig
from xdyna.core.errors import UsageError
from xdyna.core.manifest import peak_memory, versions
from xdyna.core.program import FAILURE, INTERRUPTED
from xdyna.training import stages
from xdyna.training.checkpointing import set_checkpointing
from xdyna.training.logs import RunLog, plot_curves, read_metrics
from xdyna.training.loop import Trainer
from xdyna.training.objective import build_objective
from xdyna.training.parts import build_components, export, initial_hashes, sampler, whole
from xdyna.training.plan import describe
from xdyna.training.run import prepare_run_dir

Result = TypeVar("Result")
PATIENCE = timedelta(hours=2)  # of the processes that wait while the main one samples videos or writes
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Settings that a resumed run may change: they do not alter what is computed at a given step.
FREE = (
    "save_every",
    "keep",
    "log_every",
    "tracker",
    "validation",
    "out",
    "on_nan",
    "spike",
    "checkpointing",
)
FREE_DATA = ("data.workers", "data.prefetch")


def main(argv: Sequence[str]) -> int:
    """Run `scripts/train.py`. Args: argv: without the program's name. Returns: exit code."""
    args = _parser().parse_args(argv)
    config = _config(args)
    if args.dry_run:
        print(describe(config))
        return 0
    run_dir = Path(config.out)
    final = run_dir / "final"
    if args.export and not (run_dir / "config.yaml").is_file():
        raise UsageError(f"--export: {run_dir} is no run folder; train first, or give --out FOLDER of the run")
    accelerator = make_accelerator(config, cpu=args.cpu)
    if final.exists() and not args.export:
        accelerator.print(
            f"{final} is there already: this run is finished. Remove it to export again, or use another out=FOLDER."
        )
        return 0
    set_seed(config.seed)
    components = build_components(config)
    chosen = stages.training_groups(config.stage, config.appearance, config.train)
    groups = stages.select_trainable(components, chosen)
    set_checkpointing(components.unet, components.beside_unet(), config.checkpointing)
    objective = build_objective(config.stage, components, config.loss, seed=config.seed)
    on_main(accelerator, lambda: _prepare(run_dir, config, argv, groups, resume=args.resume or bool(args.export)))
    trainer = Trainer(
        config,
        objective,
        groups,
        accelerator=accelerator,
        run_dir=run_dir,
        sample=sampler(config, components),
        max_minutes=args.max_minutes,
    )
    resumed = (args.resume or args.export) and trainer.resume(args.which)
    if args.export:
        return _export_only(trainer, components, Path(args.export), resumed=bool(resumed), config=config)
    log = on_main(
        accelerator,
        lambda: RunLog(
            run_dir,
            config.tracker,
            name=run_dir.name,
            config=dataclasses.asdict(config),
            resume_step=trainer.progress.step,
        ),
    )
    if log is not None:
        _announce(config, groups, trainer, resumed=bool(resumed))
    progress = trainer.fit(log)
    finished = trainer.finished
    weights = trainer.gathered() if finished else None
    if log is not None:
        log.close()
        if any(values for name, values in read_metrics(run_dir / "metrics.csv").items() if name == "train/loss"):
            plot_curves(run_dir / "metrics.csv", run_dir / "curves.png")
        if not finished:
            print(f"stopped at step {progress.step} of {config.max_steps}; continue with --resume", file=sys.stderr)
        else:
            memory = {"peak_memory": peak_memory(accelerator.device)}
            export(trainer, whole(components, weights, config), final, config=config, extra=memory)
            print(f"Trained: {final}")
    return 0 if finished or args.max_minutes is not None else INTERRUPTED


def make_accelerator(config: TrainConfig, *, cpu: bool) -> Accelerator:
    """accelerate's, for a run. Args: config: settings; cpu: use the CPU even where there is a GPU."""
    return Accelerator(
        mixed_precision="no" if config.precision == "fp32" else config.precision,
        gradient_accumulation_steps=config.accumulation,
        cpu=cpu,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )


def on_main(accelerator: Accelerator, work: Callable[[], Result]) -> Result | None:
    """Do something in the main process alone; where it fails there, all processes end.

    Args:
        accelerator: of the run.
        work: what is done.

    Returns:
        What `work` returns; None in the other processes.

    Raises:
        ValueError: of `work`.
        SystemExit: in the other processes, when `work` raised in the main one.
    """
    result, error = None, None
    if accelerator.is_main_process:
        try:
            result = work()
        except (ValueError, OSError) as failure:
            error = failure
    (failed,) = broadcast_object_list([error is not None])
    if error is not None:
        raise error
    if failed:
        raise SystemExit(FAILURE)  # the main process says why
    return result


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="train.py",
        description="Train one stage of X-Dyna. Settings are key=value: every key of configs/train is one, and "
        "model=NAME, data=NAME take another file of configs/model, configs/data.",
        epilog="example: accelerate launch scripts/train.py --config dynamics data.scene_ratio=0 max_steps=2000",
    )
    p.add_argument("--config", required=True, metavar="FILE", help="YAML file, or a name in configs/train (tiny/vae)")
    p.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the file")
    p.add_argument("--resume", action="store_true", help="continue the run in its folder (starts it if there is none)")
    p.add_argument(
        "--which", default="latest", help="checkpoint to continue from: latest, best or a step (%(default)s)"
    )
    p.add_argument("--max-minutes", type=float, metavar="M", help="save and stop after so many minutes")
    p.add_argument("--export", metavar="FOLDER", help="write the pipeline of the run's checkpoint and stop")
    p.add_argument("--dry-run", action="store_true", help="show what trains and the memory it needs, and stop")
    p.add_argument("--out", metavar="FOLDER", help="folder of the run (as out=FOLDER)")
    p.add_argument("--tracker", choices=("none", "wandb", "tensorboard"), help="as tracker=NAME")
    p.add_argument("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def read_config(name: str, overrides: Sequence[str]) -> TrainConfig:
    """The configuration of a run.

    Args:
        name: a YAML file, or the name of one in configs/train.
        overrides: "key=value" settings that win over the file.

    Raises:
        UsageError: no such file, or something in it or in a setting is wrong.
    """
    path = Path(name)
    named = CONFIGS / "train" / f"{name}.yaml"
    if not path.suffix and named.is_file():
        path = named
    if not path.is_file():
        names = sorted(
            str(p.relative_to(CONFIGS / "train").with_suffix(""))
            for p in (CONFIGS / "train").rglob("*.yaml")
            if not p.name.startswith("_")
        )
        raise UsageError(f"--config {name}: no such file; give a YAML file or one of: {', '.join(names)}")
    try:
        return compose_config(TrainConfig, path, overrides, groups=CONFIGS)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _config(args: argparse.Namespace) -> TrainConfig:
    overrides = list(args.overrides)
    for key in ("out", "tracker"):
        if getattr(args, key) is not None:
            overrides.append(f"{key}={getattr(args, key)}")
    config = read_config(args.config, overrides)
    if args.which not in ("latest", "best"):
        if not args.which.isdecimal():
            raise UsageError(f"--which {args.which}: expected latest, best or a step")
        args.which = int(args.which)
    if args.max_minutes is not None and not args.max_minutes > 0:
        raise UsageError(f"--max-minutes {args.max_minutes}: expected a positive number")
    return config


def _prepare(run_dir: Path, config: TrainConfig, argv: Sequence[str], groups: Any, *, resume: bool) -> None:
    manifest = {
        "command": ["train.py", *argv],
        "versions": versions(),
        "trainable": stages.count(groups),
        "initial_weights": initial_hashes(config),
    }
    may_differ = (*_may_differ(config), *_newer(run_dir, config))
    prepare_run_dir(run_dir, dataclasses.asdict(config), manifest=manifest, resume=resume, may_differ=may_differ)


def _may_differ(config: TrainConfig) -> tuple[str, ...]:
    longer = ("max_steps",) if config.optim.schedule == "constant" else ()  # a cosine depends on its end
    return (*FREE, *FREE_DATA, *longer)


def _newer(run_dir: Path, config: TrainConfig) -> list[str]:
    """Settings that did not exist when the run was started, and stand at what was done then: their defaults."""
    try:
        there = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):  # no run yet, or one that is refused with a better message
        return []

    def absent(given: Any, known: Any, default: Any, name: str) -> Iterator[str]:
        for key, value in given.items():
            if key not in known:
                yield from [f"{name}{key}"] if value == default.get(key) else []
            elif isinstance(value, dict) and isinstance(known[key], dict):
                yield from absent(value, known[key], default.get(key) or {}, f"{name}{key}.")

    if not isinstance(there, dict):
        return []
    return list(absent(dataclasses.asdict(config), there, dataclasses.asdict(TrainConfig()), ""))


def _announce(config: TrainConfig, groups: Any, trainer: Trainer, *, resumed: bool) -> None:
    numbers = ", ".join(f"{name} {n / 1e6:.2f} M" for name, n in stages.count(groups).items())
    where = f"continues at step {trainer.progress.step}" if resumed else "starts"
    print(
        f"stage {config.stage} {where}: {numbers}; {config.max_steps} steps "
        f"{'' if config.minutes is None else f'or {config.minutes:g} minutes '}of "
        f"{config.batch_size * config.accumulation * trainer.accelerator.num_processes} clips -> {config.out}"
    )


def _export_only(trainer: Trainer, components: Any, folder: Path, *, resumed: bool, config: TrainConfig) -> int:
    if not resumed:
        raise UsageError(f"--export: there is no checkpoint in {config.out}; train first")
    weights = trainer.gathered()
    if trainer.accelerator.is_main_process:
        export(trainer, whole(components, weights, config), folder, config=config, extra={})
        print(f"Exported step {trainer.progress.step}: {folder}")
    return 0
