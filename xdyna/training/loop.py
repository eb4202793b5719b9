"""The only training loop. accelerate brings processes, devices and precision; data, noise and learning rates are pure
functions of the step, so that a resumed run continues exactly where it was."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from tqdm import tqdm

from xdyna.config.data import DataError
from xdyna.config.train import TrainConfig
from xdyna.core.errors import ConfigError
from xdyna.core.stop import StopSignal
from xdyna.data.cache import token_digest, vae_digest
from xdyna.data.loader import build_loader
from xdyna.data.samples import Batch
from xdyna.training import checkpoint, sharded
from xdyna.training.ema import EMA
from xdyna.training.errors import CheckpointError
from xdyna.training.graph import StepGraph, make_capturable
from xdyna.training.guards import LossGuard, Verdict
from xdyna.training.logs import RunLog
from xdyna.training.objective import DiffusionObjective, Objective
from xdyna.training.optim import build_optimizer, rate_factor, set_rates
from xdyna.training.replay import Replay
from xdyna.training.state import Progress, rng_state, set_rng_state
from xdyna.training.validation import band_losses

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)
GUARD_WINDOW = 200  # losses whose median tells a spike
VIDEO_FPS = 12  # of validation videos in the tracker


@dataclass(frozen=True)
class Sampled:
    """What validation sampling gives.

    Attributes:
        scalars: metric -> value.
        sheets: name -> uint8 (H, W, 3) picture.
        videos: name -> uint8 (T, H, W, 3).
    """

    scalars: dict[str, float]
    sheets: dict[str, np.ndarray] = field(default_factory=dict)
    videos: dict[str, np.ndarray] = field(default_factory=dict)


class Trainer:
    """Trains an objective.

    Args:
        config: settings.
        objective: networks and loss, thawed groups chosen already.
        groups: the trainable parameters by group (`select_trainable`).
        accelerator: accelerate's.
        run_dir: folder of the run, prepared.
        sample: makes validation videos; called on the main process with averaged weights; None for none.
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
        sample: Callable[[int], Sampled] | None = None,
        max_minutes: float | None = None,
    ) -> None:
        self.config, self.accelerator, self.run_dir = config, accelerator, run_dir
        self.objective, self.sample, self.max_minutes = objective, sample, max_minutes
        self.sharded = accelerator.distributed_type in SHARDED
        if self.sharded and config.optim.name == "muon":
            raise ConfigError(
                "optim.name=muon needs whole matrices, which FSDP and DeepSpeed divide; use optim.name=adamw or DDP"
            )
        if accelerator.distributed_type == DistributedType.FSDP and config.replay.clips:
            raise ConfigError(
                "replay encodes clips outside of the layers that FSDP wraps; set replay.clips=0 (a cache does instead) "
                "or use DDP"
            )
        if accelerator.distributed_type == DistributedType.FSDP and config.optim.ema:
            raise ConfigError(
                "optim.ema averages whole parameters, which FSDP does not keep; set optim.ema=0 or use DDP"
            )
        if accelerator.distributed_type == DistributedType.FSDP and config.appearance == "reference_net":
            raise ConfigError(
                "appearance=reference_net does not run under FSDP (its features leave the wrapped layers); use DDP"
            )
        if accelerator.distributed_type == DistributedType.FSDP:
            self.sample = None  # one process alone cannot run a network that is divided among all
        plugin = getattr(accelerator.state, "deepspeed_plugin", None)
        if plugin is not None:  # no DataLoader is prepared that DeepSpeed could read it from; it clips by itself
            plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = config.batch_size
            plugin.deepspeed_config["gradient_clipping"] = config.optim.clip
        self.parameters = objective.trainable()
        objective.to(accelerator.device)
        optimizer = build_optimizer(groups, config.optim, fused=accelerator.device.type in ("cpu", "cuda"))
        self.model, self.optimizer = accelerator.prepare(objective, optimizer)
        self.graph: StepGraph | None = None
        if config.cuda_graph and accelerator.device.type == "cuda":
            if accelerator.distributed_type != DistributedType.NO:
                raise ConfigError("cuda_graph=true is for one process on one GPU; set it to false")
            bare = self.optimizer.optimizer
            make_capturable(bare, accelerator.device)
            self.graph = StepGraph(self.model, bare, list(self.parameters.values()), clip=config.optim.clip)
        self.ema = EMA(self.parameters, decay=config.optim.ema, warmup=True) if config.optim.ema else None
        self.progress = Progress()
        self._time_share = 0.0
        self.guard = LossGuard(
            run_dir,
            policy=config.on_nan,
            spike_factor=config.spike,
            window=GUARD_WINDOW,
            rank=accelerator.process_index,
        )

    # --- the loop -------------------------------------------------------------------------------------------------

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
            self._tell_time()
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
                self.progress.samples += config.batch_size * config.accumulation * self.accelerator.num_processes
                self.progress.seconds = before + time.monotonic() - began
                bar.update()
                bar.set_postfix(loss=f"{values['loss']:.4f}")
                self._log(log, values)
                self._tell_time()
                last = self.finished
                saved = self._validate(log, last=last)
                leave = self._leave(stop, began)
                if (self.progress.step % config.save_every == 0 or leave or last) and not saved:
                    self.save(is_best=False)
                if leave:
                    break
        return self.progress

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or the time is over."""
        return self.progress.step >= self.config.max_steps or self._time_share >= 1

    def _tell_time(self) -> None:
        """Share of `minutes` that has passed, by the main process's clock: all processes must agree."""
        if self.config.minutes is not None:
            own = self.progress.seconds / (60 * self.config.minutes) if self.accelerator.is_main_process else 0.0
            self._time_share = float(self.accelerator.reduce(torch.tensor(own, device=self.accelerator.device), "sum"))

    def step(self, batches: Iterator[Batch]) -> dict[str, float]:
        """One optimizer step; `progress` is left to the caller.

        Args:
            batches: `accumulation` of them are taken.

        Returns:
            dict[str, float]: "loss", "grad_norm" before clipping, "lr"; "skipped" where the loss was not finite and
            nothing was changed.

        Raises:
            NonFiniteLossError: see `LossGuard.check`.
        """
        config = self.config
        factor = rate_factor(self.progress.step, config.optim, max_steps=config.max_steps, share=self._time_share)
        set_rates(self.optimizer, factor)
        if self.graph is not None:
            return self._graph_step(self.graph, next(batches))
        total, norm, skipped = 0.0, 0.0, False
        self.optimizer.zero_grad()
        for _ in range(config.accumulation):
            batch = next(batches)
            with self.accelerator.accumulate(self.model):
                if skipped:  # the other micro-steps go by too: accelerate counts them, and data are a function of them
                    continue
                with self.autocast():
                    loss = self.model(batch.to(self.accelerator.device)).mean()
                value = float(self.accelerator.reduce(loss.detach(), "mean"))
                verdict = self.guard.check(value, step=self.progress.step + 1, ids=batch.clip_id)
                if verdict == Verdict.SKIP:
                    skipped = True
                    continue
                total += value / config.accumulation
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients and config.optim.clip:
                    norm = self._clip()
                self.optimizer.step()
        if skipped:  # what was added up is cleared when the next step begins
            return {"loss": math.nan, "skipped": 1.0, "lr": self._rate()}
        if self.ema is not None:
            self.ema.update(self.progress.step + 1)
        return {"loss": total, "grad_norm": norm, "lr": self._rate()}

    def _graph_step(self, graph: StepGraph, batch: Batch) -> dict[str, float]:
        assert isinstance(self.objective, DiffusionObjective)
        batch = batch.to(self.accelerator.device)
        loss = float(graph.forward_backward(batch, self.objective.inputs(batch)))
        verdict = self.guard.check(loss, step=self.progress.step + 1, ids=batch.clip_id)
        if verdict == Verdict.SKIP:
            return {"loss": math.nan, "skipped": 1.0, "lr": self._rate()}
        norm = graph.update()
        if self.ema is not None:
            self.ema.update(self.progress.step + 1)
        return {"loss": loss, "grad_norm": float(norm), "lr": self._rate()}

    def _clip(self) -> float:
        """Clip the gradients. Returns: their norm before."""
        largest = self.config.optim.clip
        if self.accelerator.distributed_type == DistributedType.FSDP:
            # accelerate asks FSDP only for all parameters of the model, frozen ones included; else it takes the norm of
            # this process's share.
            self.accelerator.unscale_gradients()
            return float(self.model.clip_grad_norm_(largest))
        norm = self.accelerator.clip_grad_norm_(self.parameters.values(), largest)
        return math.nan if norm is None else float(norm)  # None: DeepSpeed has not said it

    def autocast(self) -> AbstractContextManager[Any]:
        """Context of forward passes: DeepSpeed makes the weights 16 bit, not the inputs; accelerate does the rest."""
        dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
        if self.accelerator.distributed_type != DistributedType.DEEPSPEED or self.config.precision not in dtypes:
            return contextlib.nullcontext()
        return torch.autocast(self.accelerator.device.type, dtypes[self.config.precision])

    def _rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def _batches(self) -> Iterator[Batch]:
        config, step = self.config, self.progress.step
        place: dict[str, Any] = {
            "rank": self.accelerator.process_index,
            "world_size": self.accelerator.num_processes,
            "accumulation": config.accumulation,
        }
        encoders: dict[str, Any] = self._encoders() if config.data.source == "cache" else {}
        replay = None
        if config.replay.clips:
            replay = Replay(**vars(config.replay), batch_size=config.batch_size, seed=config.seed, **place)
        loader = build_loader(
            config.data,
            seed=config.seed,
            batch_size=config.replay.fresh if replay else config.batch_size,
            start_step=replay.first_step(step) if replay else step,
            **place,
            **encoders,
        )
        return replay.batches(iter(loader), step=step, prepare=self._prepare) if replay else iter(loader)

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

    def _leave(self, stop: StopSignal, began: float) -> bool:
        late = self.max_minutes is not None and time.monotonic() - began > 60 * self.max_minutes
        flag = torch.tensor(float(stop.requested or late), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum") > 0)  # all processes leave at the same step

    def _log(self, log: RunLog | None, values: dict[str, float]) -> None:
        step = self.progress.step
        if log is not None and (step % self.config.log_every == 0 or step == 1 or "skipped" in values):
            log.scalars(step, {f"train/{name}": value for name, value in values.items()})

    # --- validation and state -------------------------------------------------------------------------------------

    def _validate(self, log: RunLog | None, *, last: bool) -> bool:
        """Measure when it is time. Returns: whether a checkpoint was written."""
        settings, step = self.config.validation, self.progress.step
        if not settings.every or (step % settings.every and not last):
            return False
        with self.averaged(), self.autocast():
            scalars = band_losses(self.model, self.objective, self.config, accelerator=self.accelerator)
            sampled = None
            if self.sample is not None and self.accelerator.is_main_process:
                sampled = self.sample(step)
        self.accelerator.wait_for_everyone()
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
        is_best = best is None or loss < best
        if is_best:
            self.progress.best_metric, self.progress.best_step = loss, step
            self.save(is_best=True)
        return is_best

    def averaged(self) -> Any:
        """Context in which the networks hold the averaged weights."""
        return self.ema.applied() if self.ema is not None else torch.no_grad()

    def gathered(self) -> dict[str, Tensor] | None:
        """Whole weights of a model that is divided among the processes (FSDP); every process must call it.

        Returns:
            dict[str, Tensor] | None: by "component.name", empty but in the main process; None where the networks
            themselves are whole.
        """
        if self.accelerator.distributed_type != DistributedType.FSDP:
            return None
        whole = self.accelerator.get_state_dict(self.model)
        return {name.removeprefix("networks."): tensor for name, tensor in whole.items()}

    def save(self, *, is_best: bool) -> None:
        """Write a checkpoint."""
        if self.sharded:
            sharded.save_sharded(
                self.accelerator,
                self.run_dir,
                progress=self.progress,
                ema=self.ema.state_dict() if self.ema is not None else None,
                extra={"guard": self.guard.state_dict()},
                keep_last=self.config.keep,
                is_best=is_best,
            )
            return
        if self.accelerator.is_main_process:
            scaler = getattr(self.accelerator, "scaler", None)
            checkpoint.save(
                self.run_dir,
                progress=self.progress,
                weights={name: p.detach() for name, p in self.parameters.items()},
                ema=self.ema.state_dict() if self.ema is not None else None,
                optimizer=self.optimizer.state_dict(),
                scheduler={},
                rng=rng_state(),
                extra={
                    "guard": self.guard.state_dict(),
                    "scaler": scaler.state_dict() if scaler is not None else {},
                },
                keep_last=self.config.keep,
                is_best=is_best,
            )
        self.accelerator.wait_for_everyone()

    def resume(self, which: str | int = "latest") -> bool:
        """Continue from a checkpoint. Returns: whether there was one."""
        if self.sharded:
            shard = sharded.load_sharded(self.accelerator, self.run_dir, which)
            if shard is None:
                return False
            self.progress = shard.progress
            if self.ema is not None and shard.ema is not None:
                self.ema.load_state_dict(shard.ema)
            self.guard.load_state_dict(shard.extra["guard"])
            return True
        loaded = checkpoint.load(self.run_dir, which)
        if loaded is None:
            return False
        self._check_names(loaded.weights)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(loaded.weights[name])
        self.optimizer.load_state_dict(loaded.optimizer)
        make_capturable(self.optimizer.optimizer, self.accelerator.device if self.graph is not None else None)
        if self.ema is not None and loaded.ema is not None:
            self.ema.load_state_dict(loaded.ema)
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None and loaded.extra.get("scaler"):
            scaler.load_state_dict(loaded.extra["scaler"])
        set_rng_state(loaded.rng)
        self.guard.load_state_dict(loaded.extra["guard"])
        self.progress = loaded.progress
        return True

    def _check_names(self, weights: Mapping[str, Tensor]) -> None:
        missing, unexpected = sorted(set(self.parameters) - set(weights)), sorted(set(weights) - set(self.parameters))
        if missing or unexpected:
            raise CheckpointError(
                f"the checkpoint in {self.run_dir} trains other parameters: missing {missing[:3]}, not expected "
                f"{unexpected[:3]}; resume with the configuration it was made with, or use another --out"
            )
