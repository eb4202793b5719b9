"""One optimizer step: forward and backward passes, the verdict on losses and gradients, clipping, the update.

The host does not wait for the device before the backward passes are queued: the losses of all micro-steps and the norm
of the gradients are read together, once, behind them. A step in which one of these is not finite ends there, and has
touched neither weights nor optimizer nor EMA.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from xdyna.config.train import TrainConfig
from xdyna.core.device import to_device
from xdyna.core.errors import ConfigError
from xdyna.data.samples import Batch
from xdyna.training.ema import EMA
from xdyna.training.errors import NonFiniteLossError
from xdyna.training.graph import StepGraph, make_capturable
from xdyna.training.guards import StepGuard, Verdict
from xdyna.training.meter import LossMeter
from xdyna.training.objective import DiffusionObjective, Objective
from xdyna.training.optim import build_optimizer, gradient_norm, rate_factor, scale_to_norm, set_rates
from xdyna.training.state import Progress

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)
GUARD_WINDOW = 200  # steps whose median loss tells a spike

# What a step tells: "loss", "grad_norm" before clipping, "lr"; "skipped" where it was left out.
Values = dict[str, float]


@dataclass(frozen=True)
class Told:
    """What all processes together say of a step.

    Attributes:
        losses: of its micro-steps, means over all processes.
        norm: of the gradients, before clipping; NaN where it is not known.
        sums: losses added up, by the names of the meter.
        counts: numbers of clips, by the names of the meter.
    """

    losses: list[float]
    norm: float
    sums: list[float]
    counts: list[float]


class Stepper:
    """Takes optimizer steps.

    Args:
        config: settings.
        objective: networks and loss, groups unfrozen already.
        groups: the trainable parameters by group (`select_trainable`).
        accelerator: accelerate's.
        run_dir: folder of the run, prepared.

    Attributes:
        share: what this process has of a batch.
        progress: how far the run is; left to the caller.
        time_share: share of `minutes` that has passed; left to the caller.
        wants_to_stop: asked in every step, where there are several processes; left to the caller.
        all_stop: whether any process wanted to when the last step was taken.
        meter: losses of the steps taken since somebody logged them.
    """

    def __init__(
        self,
        config: TrainConfig,
        objective: Objective,
        groups: Mapping[str, Mapping[str, nn.Parameter]],
        *,
        accelerator: Accelerator,
        run_dir: Path,
    ) -> None:
        self.config, self.accelerator, self.run_dir = config, accelerator, run_dir
        self.objective = objective
        self.sharded = accelerator.distributed_type in SHARDED
        check_distribution(config, accelerator.distributed_type)
        self.share = config.share(accelerator.num_processes)
        plugin = getattr(accelerator.state, "deepspeed_plugin", None)
        if plugin is not None:  # no DataLoader is prepared that DeepSpeed could read it from; it clips by itself
            plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = self.share.micro_batch
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
        objective.follow(self.parameters if self.ema is None else self.ema.state_dict())
        self.progress = Progress()
        self.time_share = 0.0
        self.wants_to_stop: Callable[[], bool] = lambda: False
        self.all_stop = False
        self.guard = StepGuard(
            run_dir,
            policy=config.on_nan,
            spike_factor=config.spike,
            window=GUARD_WINDOW,
            rank=accelerator.process_index,
            norm_ratio=config.optim.max_norm_ratio,
            scaled=getattr(accelerator, "scaler", None) is not None,
        )
        self.meter = LossMeter(steps=objective.num_timesteps, bands=config.validation.bands)

    def step(self, batches: Iterator[Batch]) -> Values:
        """One optimizer step; `progress` is left to the caller.

        Args:
            batches: `share.accumulation` of them are taken.

        Returns:
            dict: see `Values`; "loss" is a float.

        Raises:
            NonFiniteLossError: see `StepGuard.check`.
        """
        config = self.config
        factor = rate_factor(self.progress.step, config.optim, max_steps=config.max_steps, share=self.time_share)
        set_rates(self.optimizer, factor)
        if self.graph is not None:
            return self._graph_step(self.graph, next(batches))
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return self._deepspeed_step(batches)
        self.optimizer.zero_grad()  # also what a step left out has added up
        losses, members, ids = [], [], []
        for _ in range(self.share.accumulation):
            batch = next(batches)
            with self.accelerator.accumulate(self.model):
                each = self.model(batch.to(self.accelerator.device))
                self.accelerator.backward(each.mean())
            losses.append(each.detach())
            members.append(self._members(batch))
            ids.append(batch.clip_id)
        norm = self._norm()
        told = self._read(losses, members, norm)
        if self.guard.check(told.losses, told.norm, step=self.progress.step + 1, ids=ids) == Verdict.SKIP:
            return self._skipped()
        largest = self.guard.largest_norm(config.optim.clip)
        if largest < math.inf:
            scale_to_norm(self.parameters.values(), norm, largest)
        self.optimizer.step()
        return self._done(told)

    def _members(self, batch: Batch) -> Tensor:
        """See `LossMeter.members`; on the device."""
        members = self.meter.members(batch.kind, self.objective.timesteps(batch.index.tolist()))
        return to_device(members, self.accelerator.device)

    def _read(self, losses: Sequence[Tensor], members: Sequence[Tensor], norm: Tensor | None) -> Told:
        """What all processes say together; here the host waits for the device. The wish to stop goes along.

        Args:
            losses: (B,) of each micro-step.
            members: see `_members`.
            norm: of the gradients, (); None where it is not known yet.
        """
        several, names = self.accelerator.num_processes > 1, len(self.meter.names)
        parts = [torch.stack([loss.float().mean() for loss in losses])]
        parts += [torch.stack([m @ loss.float() for m, loss in zip(members, losses, strict=True)]).sum(0)]
        parts += [torch.stack([m.sum(1) for m in members]).sum(0)]
        parts += [torch.full_like(parts[0][:1], math.nan) if norm is None else norm.float().reshape(1)]
        if several:
            parts += [torch.full_like(parts[0][:1], float(self.wants_to_stop()))]
        values = self.accelerator.reduce(torch.cat(parts), "mean").tolist()
        self.all_stop = several and values.pop() > 0
        means, rest = values[: len(losses)], values[len(losses) :]
        sums, counts = ([value * self.accelerator.num_processes for value in rest[k : k + names]] for k in (0, names))
        return Told(means, rest[-1], sums, counts)

    def _skipped(self) -> Values:
        if (scaler := getattr(self.accelerator, "scaler", None)) is not None:
            scaler.update()  # gradients were unscaled: the scale is lowered where they overflowed
        return {"loss": math.nan, "skipped": 1.0, "lr": self._rate()}

    def _done(self, told: Told) -> Values:
        step, loss = self.progress.step + 1, sum(told.losses) / len(told.losses)
        self.guard.taken(loss, told.norm, step=step)
        self.meter.add(loss, told.norm, told.sums, told.counts)
        if self.ema is not None:
            self.ema.update(step)
        return {"loss": loss, "grad_norm": told.norm, "lr": self._rate()}

    def _deepspeed_step(self, batches: Iterator[Batch]) -> Values:
        """DeepSpeed clips and steps within its backward pass: each loss must be looked at before."""
        parts: list[Told] = []
        norm, skipped, ids = 0.0, False, []
        for _ in range(self.share.accumulation):
            batch = next(batches)
            with self.accelerator.accumulate(self.model):
                if skipped:  # the other micro-steps go by too: accelerate counts them, and data are a function of them
                    continue
                with self.autocast():
                    each = self.model(batch.to(self.accelerator.device))
                told = self._read([each.detach()], [self._members(batch)], None)
                verdict = self.guard.check(told.losses, None, step=self.progress.step + 1, ids=[batch.clip_id])
                skipped = verdict == Verdict.SKIP
                if not skipped:
                    parts.append(told)
                    ids += batch.clip_id
                    self.accelerator.backward(each.mean())
                    if self.accelerator.sync_gradients:
                        norm = self._deepspeed_norm()
                    self.optimizer.step()
        if skipped:
            return self._skipped()
        if not math.isfinite(norm):
            if self.optimizer.step_was_skipped:  # float16: DeepSpeed lowers its scale
                return self._skipped()
            raise NonFiniteLossError(
                f"the gradient norm is {norm} in step {self.progress.step + 1} (batch: {', '.join(ids[:16])}), and "
                "DeepSpeed has taken the step already. Resume from the last checkpoint with a lower learning rate or "
                "in float32, or use DDP, which leaves such steps out"
            )
        sums, counts = (
            [sum(column) for column in zip(*rows, strict=True)]
            for rows in ([part.sums for part in parts], [part.counts for part in parts])
        )
        return self._done(Told([part.losses[0] for part in parts], norm, sums, counts))

    def _deepspeed_norm(self) -> float:
        """The norm that DeepSpeed has clipped by; 0 where it does not say it."""
        norm = self.accelerator.clip_grad_norm_(self.parameters.values(), self.config.optim.clip)
        return 0.0 if norm is None else float(norm)

    def _graph_step(self, graph: StepGraph, batch: Batch) -> Values:
        assert isinstance(self.objective, DiffusionObjective)
        batch = batch.to(self.accelerator.device)
        losses, norm = graph.forward_backward(batch, self.objective.inputs(batch))
        told = self._read([losses], [self._members(batch)], norm)
        if self.guard.check(told.losses, told.norm, step=self.progress.step + 1, ids=[batch.clip_id]) == Verdict.SKIP:
            return self._skipped()
        graph.update()
        return self._done(told)

    def _norm(self) -> Tensor:
        """Norm of all gradients together, unscaled, where they are."""
        self.accelerator.unscale_gradients()
        if self.accelerator.distributed_type == DistributedType.FSDP:
            # Each process has its shard; the model adds their norms up. A limit of infinity changes nothing.
            return self.model.clip_grad_norm_(math.inf)
        return gradient_norm(self.parameters.values())

    def autocast(self) -> AbstractContextManager[Any]:
        """Context of forward passes: DeepSpeed makes the weights 16 bit, not the inputs; accelerate does the rest."""
        dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
        if self.accelerator.distributed_type != DistributedType.DEEPSPEED or self.config.precision not in dtypes:
            return contextlib.nullcontext()
        return torch.autocast(self.accelerator.device.type, dtypes[self.config.precision])

    def _rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])


def check_distribution(config: TrainConfig, kind: DistributedType) -> None:
    """Refuse what a way of sharing the work among processes cannot do.

    Args:
        config: settings of the run.
        kind: accelerate's.

    Raises:
        ConfigError: FSDP or DeepSpeed with what needs whole parameters.
    """
    fsdp = kind == DistributedType.FSDP
    if kind in SHARDED and config.stage == "distill":
        raise ConfigError(
            "stage=distill holds whole copies of what trains beside it, which FSDP and DeepSpeed divide; use DDP"
        )
    if kind == DistributedType.DEEPSPEED and config.optim.max_norm_ratio is not None:
        raise ConfigError("optim.max_norm_ratio: DeepSpeed clips by itself, at optim.clip; set it to null or use DDP")
    if kind in SHARDED and config.optim.name == "muon":
        raise ConfigError(
            "optim.name=muon needs whole matrices, which FSDP and DeepSpeed divide; use optim.name=adamw or DDP"
        )
    if fsdp and config.replay.clips:
        raise ConfigError(
            "replay encodes clips outside of the layers that FSDP wraps; set replay.clips=0 (a cache does instead) "
            "or use DDP"
        )
    if fsdp and config.optim.ema:
        raise ConfigError("optim.ema averages whole parameters, which FSDP does not keep; set optim.ema=0 or use DDP")
    if fsdp and config.appearance == "reference_net":
        raise ConfigError(
            "appearance=reference_net does not run under FSDP (its features leave the wrapped layers); use DDP"
        )
