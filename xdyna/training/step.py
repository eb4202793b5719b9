"""One optimizer step: forward and backward passes, the verdict on the losses, clipping, the update.

The host does not wait for the device before the backward passes are queued: the losses of all micro-steps are read
together, once, behind them. A step whose loss is not finite ends there, and has touched neither weights nor optimizer.
Norms stay on the device until somebody logs them.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from xdyna.config.train import TrainConfig
from xdyna.core.errors import ConfigError
from xdyna.data.samples import Batch
from xdyna.training.ema import EMA
from xdyna.training.graph import StepGraph, make_capturable
from xdyna.training.guards import LossGuard, Verdict
from xdyna.training.objective import DiffusionObjective, Objective
from xdyna.training.optim import build_optimizer, rate_factor, set_rates
from xdyna.training.state import Progress

SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)
GUARD_WINDOW = 200  # losses whose median tells a spike

# What a step tells: "loss", "grad_norm" before clipping (on the device), "lr"; "skipped" where the loss was not finite.
Values = dict[str, Tensor | float]


class Stepper:
    """Takes optimizer steps.

    Args:
        config: settings.
        objective: networks and loss, groups unfrozen already.
        groups: the trainable parameters by group (`select_trainable`).
        accelerator: accelerate's.
        run_dir: folder of the run, prepared.

    Attributes:
        progress: how far the run is; left to the caller.
        time_share: share of `minutes` that has passed; left to the caller.
        wants_to_stop: asked in every step, where there are several processes; left to the caller.
        all_stop: whether any process wanted to when the last step was taken.
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
        self.time_share = 0.0
        self.wants_to_stop: Callable[[], bool] = lambda: False
        self.all_stop = False
        self.guard = LossGuard(
            run_dir,
            policy=config.on_nan,
            spike_factor=config.spike,
            window=GUARD_WINDOW,
            rank=accelerator.process_index,
        )

    def step(self, batches: Iterator[Batch]) -> Values:
        """One optimizer step; `progress` is left to the caller.

        Args:
            batches: `accumulation` of them are taken.

        Returns:
            dict: see `Values`; "loss" is a float.

        Raises:
            NonFiniteLossError: see `LossGuard.check`.
        """
        config = self.config
        factor = rate_factor(self.progress.step, config.optim, max_steps=config.max_steps, share=self.time_share)
        set_rates(self.optimizer, factor)
        if self.graph is not None:
            return self._graph_step(self.graph, next(batches))
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return self._deepspeed_step(batches)
        self.optimizer.zero_grad()  # also what a step left out has added up
        losses, ids = [], []
        for _ in range(config.accumulation):
            batch = next(batches)
            with self.accelerator.accumulate(self.model):
                loss = self.model(batch.to(self.accelerator.device)).mean()
                self.accelerator.backward(loss)
            losses.append(loss.detach())
            ids.append(batch.clip_id)
        values = self._read(losses)
        if not self._accept(values, ids):
            return self._skipped()
        norm = self._clip() if config.optim.clip else 0.0
        self.optimizer.step()
        return self._done(sum(value / config.accumulation for value in values), norm)

    def _read(self, losses: Sequence[Tensor]) -> list[float]:
        """Means of losses over all processes; here the host waits for the device. The wish to stop goes along."""
        several = self.accelerator.num_processes > 1
        told = torch.stack([loss.float() for loss in losses])
        if several:
            told = torch.cat([told, torch.full_like(told[:1], float(self.wants_to_stop()))])
        values = self.accelerator.reduce(told, "mean").tolist()
        self.all_stop = several and values.pop() > 0
        return values

    def _accept(self, values: Sequence[float], ids: Sequence[Sequence[str]]) -> bool:
        """Whether all losses of a step are such that it is taken."""
        step = self.progress.step + 1
        return all(self.guard.check(v, step=step, ids=i) != Verdict.SKIP for v, i in zip(values, ids, strict=True))

    def _skipped(self) -> Values:
        return {"loss": math.nan, "skipped": 1.0, "lr": self._rate()}

    def _done(self, loss: float, norm: Tensor | float) -> Values:
        if self.ema is not None:
            self.ema.update(self.progress.step + 1)
        return {"loss": loss, "grad_norm": norm, "lr": self._rate()}

    def _deepspeed_step(self, batches: Iterator[Batch]) -> Values:
        """DeepSpeed clips and steps within its backward pass: each loss must be looked at before."""
        total, norm, skipped = 0.0, math.nan, False
        for _ in range(self.config.accumulation):
            batch = next(batches)
            with self.accelerator.accumulate(self.model):
                if skipped:  # the other micro-steps go by too: accelerate counts them, and data are a function of them
                    continue
                with self.autocast():
                    loss = self.model(batch.to(self.accelerator.device)).mean()
                values = self._read([loss.detach()])
                skipped = not self._accept(values, [batch.clip_id])
                if not skipped:
                    total += values[0] / self.config.accumulation
                    self.accelerator.backward(loss)
                    if self.accelerator.sync_gradients and self.config.optim.clip:
                        norm = float(self._clip())
                    self.optimizer.step()
        return self._skipped() if skipped else self._done(total, norm)

    def _graph_step(self, graph: StepGraph, batch: Batch) -> Values:
        assert isinstance(self.objective, DiffusionObjective)
        batch = batch.to(self.accelerator.device)
        loss = float(graph.forward_backward(batch, self.objective.inputs(batch)))
        if not self._accept([loss], [batch.clip_id]):
            return self._skipped()
        return self._done(loss, graph.update().clone())  # the next step writes over the graph's own

    def _clip(self) -> Tensor | float:
        """Clip the gradients. Returns: their norm before, where it is."""
        largest = self.config.optim.clip
        if self.accelerator.distributed_type == DistributedType.FSDP:
            # accelerate asks FSDP only for all parameters of the model, frozen ones included; else it takes the norm of
            # this process's share.
            self.accelerator.unscale_gradients()
            return self.model.clip_grad_norm_(largest)
        norm = self.accelerator.clip_grad_norm_(self.parameters.values(), largest)
        return math.nan if norm is None else norm  # None: DeepSpeed has not said it

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
