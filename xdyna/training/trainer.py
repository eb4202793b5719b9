"""Training: one stage, from a configuration to a pipeline folder.

accelerate brings processes, devices and precision; data, noise and learning rates are pure functions of the step, so
that a resumed run continues exactly where it was.
"""

import dataclasses
import math
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from torch import nn
from tqdm import tqdm

from xdyna.config.data import DataError
from xdyna.config.train import TrainConfig
from xdyna.core.errors import UsageError
from xdyna.core.manifest import peak_memory
from xdyna.core.stop import StopSignal
from xdyna.data.cache import token_digest, vae_digest
from xdyna.data.loader import build_loader
from xdyna.data.samples import Batch
from xdyna.training import checkpoint
from xdyna.training.checkpointing import set_checkpointing
from xdyna.training.components import Components, initial_hashes
from xdyna.training.contract import warn_of_untrained_branch
from xdyna.training.groups import count, select_trainable
from xdyna.training.logs import RunLog, plot_curves, read_metrics
from xdyna.training.objective import Objective
from xdyna.training.processes import at_leisure, describe_processes, make_accelerator, on_main
from xdyna.training.replay import Replay
from xdyna.training.resumable import ResumableStepper
from xdyna.training.run import CONFIG, start_run
from xdyna.training.stages import STAGES
from xdyna.training.state import Progress
from xdyna.training.step import Values
from xdyna.training.validation import Sampler, band_losses, check_videos, sample_together

VIDEO_FPS = 12  # of validation videos in the tracker


def train(
    config: TrainConfig,
    *,
    command: Sequence[str] = (),
    resume: bool = False,
    which: str | int = "latest",
    max_minutes: float | None = None,
    export_to: Path | None = None,
    cpu: bool = False,
    change: Collection[str] = (),
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
        change: settings that differ from the run's on purpose, as dotted keys.

    Returns:
        bool: whether the run is finished.

    Raises:
        UsageError: there is nothing to export.
        ValueError: settings, weights or data that cannot be used.
    """
    run_dir, stage = Path(config.out), STAGES[config.stage]
    if export_to is not None and not (run_dir / CONFIG).is_file():
        raise UsageError(f"--export: {run_dir} is no run folder; train first, or give --out FOLDER of the run")
    accelerator = make_accelerator(config, cpu=cpu)
    if (final := run_dir / "final").exists() and export_to is None:
        accelerator.print(
            f"{final} is there already: this run is finished. Remove it to export again, or use another out=FOLDER."
        )
        return True
    if export_to is None:
        at_leisure(lambda: check_videos(config))
    set_seed(config.seed)
    components = stage.build(config)
    groups = select_trainable(components, stage.chosen_groups(config.appearance, config.train))
    set_checkpointing(components.unet, components.beside_unet(), config.checkpointing)
    objective = stage.objective(components, config.loss, seed=config.seed)
    resume = resume or export_to is not None
    about: dict[str, Any] = {
        "command": list(command),
        "processes": describe_processes(accelerator),
        "trainable": count(groups),
    }
    from_step = checkpoint.find(run_dir, which) if resume else None
    about |= {"from": None if from_step is None else from_step.name}
    write_down = on_main(
        accelerator,
        lambda: start_run(config, about | {"initial_weights": initial_hashes(config)}, resume=resume, change=change),
    )
    trainer = Trainer(
        config,
        objective,
        groups,
        accelerator=accelerator,
        run_dir=run_dir,
        sample=stage.sampler(config, components) if export_to is None and config.validation.every else None,
        max_minutes=max_minutes,
    )
    resumed = resume and trainer.resume(which)
    on_main(accelerator, lambda: write_down() if write_down is not None else None)  # nothing refuses it any more
    if export_to is None:
        return _train(trainer, components, groups, resumed=resumed)
    if not resumed:
        raise UsageError(f"--export: there is no checkpoint in {config.out}; train first")
    trainer.export(components, export_to)
    accelerator.print(f"Exported step {trainer.progress.step}: {export_to}")
    return True


def _train(trainer: "Trainer", components: Components, groups: Any, *, resumed: bool) -> bool:
    """Steps, log, export. Returns: whether the run is finished."""
    config, run_dir, accelerator = trainer.config, trainer.run_dir, trainer.accelerator
    settings, step = dataclasses.asdict(config), trainer.progress.step
    log = on_main(
        accelerator, lambda: RunLog(run_dir, config.tracker, name=run_dir.name, config=settings, resume_step=step)
    )
    if log is not None:
        warn_of_untrained_branch(config)
        _announce(config, groups, trainer, resumed=resumed)
    progress = trainer.fit(log)
    if log is not None:
        log.close()
        if any(values for name, values in read_metrics(run_dir / "metrics.csv").items() if name == "train/loss"):
            plot_curves(run_dir / "metrics.csv", run_dir / "curves.png")
        if not trainer.finished:
            print(f"stopped at step {progress.step} of {config.max_steps}; continue with --resume", file=sys.stderr)
    if trainer.finished:
        trainer.export(components, run_dir / "final", {"peak_memory": peak_memory(accelerator.device)})
        accelerator.print(f"Trained: {run_dir / 'final'}")
    return trainer.finished


def _announce(config: TrainConfig, groups: Any, trainer: "Trainer", *, resumed: bool) -> None:
    numbers = ", ".join(f"{name} {n / 1e6:.2f} M" for name, n in count(groups).items())
    where = f"continues at step {trainer.progress.step}" if resumed else "starts"
    print(
        f"stage {config.stage} {where}: {numbers}; {config.max_steps} steps "
        f"{'' if config.minutes is None else f'or {config.minutes:g} minutes '}of "
        f"{config.batch} clips{_shares(trainer)} -> {config.out}"
    )


def _shares(trainer: "Trainer") -> str:
    share, processes = trainer.share, trainer.accelerator.num_processes
    if processes == share.accumulation == 1:
        return ""
    return f" ({processes} process{'es' if processes > 1 else ''} x {share.accumulation} x {share.micro_batch})"


class Trainer(ResumableStepper):
    """Trains an objective: steps, and what is due between them.

    Args:
        config: settings.
        objective: networks and loss, groups unfrozen already.
        groups: the trainable parameters by group (`select_trainable`).
        accelerator: accelerate's.
        run_dir: folder of the run, prepared.
        sample: what validation shows, with EMA weights; None for none.
        max_minutes: save and stop after so much time, as if interrupted; None for no limit.
    """

    def __init__(
        self,
        config: TrainConfig,
        objective: Objective,
        groups: Mapping[str, Mapping[str, nn.Parameter]],
        *,
        accelerator: Accelerator,
        run_dir: Path,
        sample: Sampler | None = None,
        max_minutes: float | None = None,
    ) -> None:
        super().__init__(config, objective, groups, accelerator=accelerator, run_dir=run_dir)
        # Under FSDP one process alone cannot run a network that is divided among all.
        self.sample = None if accelerator.distributed_type == DistributedType.FSDP else sample
        self.max_minutes = max_minutes

    def fit(self, log: RunLog | None) -> Progress:
        """Train until `max_steps`, the time limit, SIGTERM or SIGINT; the state is saved in every case.

        Args:
            log: of the main process; None on the others.

        Returns:
            Progress: where the run stands; see `finished`.
        """
        config, began = self.config, time.monotonic()
        before = self.progress.seconds
        batches = self._batches()
        bar = tqdm(
            total=config.max_steps,
            initial=self.progress.step,
            desc=config.stage,
            unit="step",
            disable=not self.accelerator.is_main_process,
        )
        with StopSignal() as stop, bar:
            self.wants_to_stop = lambda: stop.requested or self._is_late(began)
            self._set_time_share()
            while not self.finished:
                try:
                    values = self.step(batches)
                except DataError:
                    # The other processes may have their data and wait elsewhere: then nothing more can be saved.
                    if not stop.requested or self.accelerator.num_processes > 1:
                        raise
                    self.save(is_best=False)  # the signal reached the workers too: this step has no data any more
                    break
                self.progress.step += 1
                self.progress.samples += config.batch
                self.progress.seconds = before + time.monotonic() - began
                bar.update()
                bar.set_postfix(loss=f"{values['loss']:.4f}")
                self._set_time_share()
                if self._hooks(log, values):
                    break
        return self.progress

    def _hooks(self, log: RunLog | None, values: Values) -> bool:
        """What is due after a step: log, validate, save. Returns: whether to leave."""
        self._log(log, values)
        last = self.finished
        saved = self._validate(log, last=last)
        # All processes leave at the same step: by what they told each other in it.
        leave = self.wants_to_stop() if self.accelerator.num_processes == 1 else self.all_stop
        if (self.progress.step % self.config.save_every == 0 or leave or last) and not saved:
            self.save(is_best=False)
        return leave

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or the time is over."""
        return self.progress.step >= self.config.max_steps or self.time_share >= 1

    def _set_time_share(self) -> None:
        """Share of `minutes` that has passed, by the main process's clock: all processes must agree."""
        if self.config.minutes is not None:
            own = self.progress.seconds / (60 * self.config.minutes) if self.accelerator.is_main_process else 0.0
            share = torch.tensor(own)
            if self.accelerator.num_processes > 1:
                share = self.accelerator.reduce(share.to(self.accelerator.device), "sum")
            self.time_share = float(share)

    def _is_late(self, began: float) -> bool:
        return self.max_minutes is not None and time.monotonic() - began > 60 * self.max_minutes

    def _batches(self) -> Iterator[Batch]:
        config, progress = self.config, self.progress
        micro, passes = self.share.micro_batch, self.share.accumulation
        place: dict[str, Any] = {
            "rank": self.accelerator.process_index,
            "world_size": self.accelerator.num_processes,
        }
        encoders: dict[str, Any] = self._encoders() if config.data.source == "cache" else {}
        replay, start, fresh = None, progress.samples, micro
        if config.replay.clips:
            replay = Replay(**vars(config.replay), batch_size=micro, seed=config.seed, accumulation=passes, **place)
            fresh = config.replay.fresh
            start = replay.first_step(progress.step) * passes * fresh * self.accelerator.num_processes
        loader = build_loader(
            config.data,
            seed=config.seed,
            batch_size=fresh,
            start=start,
            step=passes * fresh * self.accelerator.num_processes,
            **place,
            **encoders,
        )
        return replay.batches(iter(loader), step=progress.step, prepare=self._prepare) if replay else iter(loader)

    def _prepare(self, batch: Batch) -> Batch:
        with self.accelerator.autocast(), self.autocast():
            return self.objective.prepare(batch.to(self.accelerator.device))

    def _encoders(self) -> dict[str, str]:
        """Digests of what a cache has computed already; image tokens only where nothing that makes them trains."""
        parts = self.objective.components
        digests = {"vae": vae_digest(parts.vae)}
        makers = (parts.image_encoder, parts.image_projection)
        if not any(p.requires_grad for module in makers for p in module.parameters()):
            digests["tokens"] = token_digest(*makers)
        return digests

    def _log(self, log: RunLog | None, values: Values) -> None:
        """Means since the last line, where one is due; a step that was left out at once."""
        step = self.progress.step
        told = {"skipped": 1.0} if "skipped" in values else {}
        if step % self.config.log_every == 0 or step == 1 or self.finished:
            told |= {**self.meter.line(), "lr": values["lr"]}
        if log is not None and told:
            log.scalars(step, {f"train/{name}": value for name, value in told.items()})

    # --- validation ---------------------------------------------------------------------------------------------

    def _validate(self, log: RunLog | None, *, last: bool) -> bool:
        """Measure when it is time. Returns: whether a checkpoint was written."""
        settings, step = self.config.validation, self.progress.step
        if not settings.every or (step % settings.every and not last):
            return False
        with self.averaged(), self.autocast():
            scalars = band_losses(self.model, self.objective, self.config, accelerator=self.accelerator)
            sampled = None
            if self.sample is not None:
                sampled = sample_together(self.sample, accelerator=self.accelerator)
        if log is not None:
            log.scalars(step, {f"val/{name}": value for name, value in scalars.items()})
            if sampled is not None:
                log.scalars(step, {f"val/{name}": value for name, value in sampled.scalars.items()})
                for name, sheet in sampled.sheets.items():
                    log.images(step, f"val/{name}", sheet)
                for name, video in sampled.videos.items():
                    log.video(step, f"val/{name}", video, VIDEO_FPS)
        loss = scalars["loss"]
        best = self.progress.best_metric
        is_best = math.isfinite(loss) and (best is None or loss < best)
        if is_best:
            self.progress.best_metric, self.progress.best_step = loss, step
            self.save(is_best=True)
        return is_best
