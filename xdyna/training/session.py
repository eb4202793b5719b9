"""A run: one stage of training, from a configuration to a pipeline folder."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import yaml
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, set_seed

from xdyna.config.train import TrainConfig
from xdyna.core.errors import UsageError
from xdyna.core.manifest import peak_memory, versions
from xdyna.core.program import FAILURE
from xdyna.training import stages
from xdyna.training.checkpointing import set_checkpointing
from xdyna.training.logs import RunLog, plot_curves, read_metrics
from xdyna.training.loop import Trainer
from xdyna.training.objective import build_objective
from xdyna.training.parts import build_components, export, initial_hashes, sampler, whole
from xdyna.training.run import prepare_run_dir

Result = TypeVar("Result")
PATIENCE = timedelta(hours=2)  # of the processes that wait while the main one samples videos or writes
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


def train(
    config: TrainConfig,
    *,
    command: Sequence[str],
    resume: bool = False,
    which: str | int = "latest",
    max_minutes: float | None = None,
    export_to: Path | None = None,
    cpu: bool = False,
) -> bool:
    """Train one stage, or go on with it, in every process of the launcher.

    Args:
        config: of the run.
        command: words of the program, for the manifest.
        resume: go on from a checkpoint in the run's folder, if there is one.
        which: that checkpoint: "latest", "best" or a step.
        max_minutes: save and stop after so many minutes.
        export_to: write the pipeline of the run's checkpoint into this folder, and do not train.
        cpu: use the CPU even where there is a GPU.

    Returns:
        bool: whether the run is finished.

    Raises:
        UsageError: there is nothing to export.
        ValueError: settings, weights or data that cannot be used.
    """
    run_dir = Path(config.out)
    final = run_dir / "final"
    if export_to is not None and not (run_dir / "config.yaml").is_file():
        raise UsageError(f"--export: {run_dir} is no run folder; train first, or give --out FOLDER of the run")
    accelerator = make_accelerator(config, cpu=cpu)
    if final.exists() and export_to is None:
        accelerator.print(
            f"{final} is there already: this run is finished. Remove it to export again, or use another out=FOLDER."
        )
        return True
    set_seed(config.seed)
    components = build_components(config)
    chosen = stages.training_groups(config.stage, config.appearance, config.train)
    groups = stages.select_trainable(components, chosen)
    set_checkpointing(components.unet, components.beside_unet(), config.checkpointing)
    objective = build_objective(config.stage, components, config.loss, seed=config.seed)
    on_main(accelerator, lambda: _prepare(run_dir, config, command, groups, resume=resume or export_to is not None))
    trainer = Trainer(
        config,
        objective,
        groups,
        accelerator=accelerator,
        run_dir=run_dir,
        sample=sampler(config, components),
        max_minutes=max_minutes,
    )
    resumed = (resume or export_to is not None) and trainer.resume(which)
    if export_to is not None:
        _export_only(trainer, components, export_to, resumed=bool(resumed), config=config)
        return True
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
    return finished


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


def _prepare(run_dir: Path, config: TrainConfig, command: Sequence[str], groups: Any, *, resume: bool) -> None:
    manifest = {
        "command": list(command),
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


def _export_only(trainer: Trainer, components: Any, folder: Path, *, resumed: bool, config: TrainConfig) -> None:
    if not resumed:
        raise UsageError(f"--export: there is no checkpoint in {config.out}; train first")
    weights = trainer.gathered()
    if trainer.accelerator.is_main_process:
        export(trainer, whole(components, weights, config), folder, config=config, extra={})
        print(f"Exported step {trainer.progress.step}: {folder}")
