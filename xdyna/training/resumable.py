"""Optimizer steps whose state can be saved, resumed and handed on as a pipeline folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor

from xdyna.training import checkpoint, sharded
from xdyna.training.components import Components
from xdyna.training.errors import CheckpointError
from xdyna.training.export import export, whole_components
from xdyna.training.graph import make_capturable
from xdyna.training.state import refuse_non_finite, rng_state, set_rng_state
from xdyna.training.step import Stepper


class ResumableStepper(Stepper):
    """A `Stepper` that saves and resumes. Args: those of `Stepper`."""

    def averaged(self) -> Any:
        """Context in which the networks hold the EMA weights."""
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

    def export(self, components: Components, folder: Path, extra: dict[str, Any] | None = None) -> None:
        """Write the pipeline folder of the present weights; every process must call it.

        Args:
            components: the networks of the run; left with the EMA weights, prepared for the next stage.
            folder: must not exist.
            extra: more entries for its `training.json`.
        """
        weights = self.gathered()
        if self.accelerator.is_main_process:
            with self.averaged():
                parts = whole_components(components, weights, self.config)
                export(parts, folder, config=self.config, progress=self.progress, extra=extra or {})

    def save(self, *, is_best: bool) -> None:
        """Write a checkpoint.

        Raises:
            CheckpointError: it cannot be written, or has NaN or infinity in it.
        """
        if self.sharded:
            sharded.save_sharded(
                self.accelerator,
                self.run_dir,
                progress=self.progress,
                ema=self.ema.state_dict() if self.ema is not None else None,
                extra=self._memory(),
                weights=self.parameters,
                keep_last=self.config.keep,
                is_best=is_best,
            )
            return
        ema, optimizer = self.ema.state_dict() if self.ema is not None else None, self.optimizer.state_dict()
        # In every process, which all hold the same: so that none waits for one that ended.
        refuse_non_finite(
            {"weights": self.parameters, "ema": ema, "optimizer": optimizer["state"]},
            what=f"the state of step {self.progress.step}",
        )
        if self.accelerator.is_main_process:
            scaler = getattr(self.accelerator, "scaler", None)
            checkpoint.save(
                self.run_dir,
                progress=self.progress,
                weights={name: p.detach() for name, p in self.parameters.items()},
                ema=ema,
                optimizer=optimizer,
                scheduler={},
                rng=rng_state(),
                extra={
                    **self._memory(),
                    "scaler": scaler.state_dict() if scaler is not None else {},
                },
                keep_last=self.config.keep,
                is_best=is_best,
            )
        self.accelerator.wait_for_everyone()

    def resume(self, which: str | int = "latest") -> bool:
        """Continue from a checkpoint. Returns: whether there was one."""
        if self.sharded:
            settings = self._optimizer_settings()
            shard = sharded.load_sharded(self.accelerator, self.run_dir, which)
            if shard is None:
                return False
            self._set_optimizer(settings)
            self.progress = shard.progress
            if self.ema is not None and shard.ema is not None:
                self.ema.load_state_dict(shard.ema)
            self._remember(shard.extra)
            return True
        loaded = checkpoint.load(self.run_dir, which)
        if loaded is None:
            return False
        self._check_names(loaded.weights)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(loaded.weights[name])
        settings = self._optimizer_settings()
        self.optimizer.load_state_dict(loaded.optimizer)
        self._set_optimizer(settings)
        make_capturable(self.optimizer.optimizer, self.accelerator.device if self.graph is not None else None)
        if self.ema is not None:  # of a run that had none it begins here
            self.ema.load_state_dict(self.parameters if loaded.ema is None else loaded.ema)
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None and loaded.extra.get("scaler"):
            scaler.load_state_dict(loaded.extra["scaler"])
        set_rng_state(loaded.rng)
        self.progress = loaded.progress
        self._remember(loaded.extra)
        return True

    def _optimizer_settings(self) -> list[dict[str, Any]]:
        """What the configuration says of each group; a checkpoint has what it said then."""
        state = ("params", "lr", "capturable")
        return [{k: v for k, v in group.items() if k not in state} for group in self.optimizer.param_groups]

    def _set_optimizer(self, settings: list[dict[str, Any]]) -> None:
        for group, values in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(values)

    def _memory(self) -> dict[str, Any]:
        return {
            "guard": self.guard.state_dict(),
            "meter": self.meter.state_dict(),
            "processes": self.accelerator.num_processes,
        }

    def _remember(self, memory: Mapping[str, Any]) -> None:
        before, now = memory["processes"], self.accelerator.num_processes
        if before != now and self.config.replay.clips:
            raise CheckpointError(
                f"{self.run_dir} was trained by {before} processes and this start has {now}, but replay shows each "
                f"process its own clips again; start {before} processes, or a new run"
            )
        self.guard.load_state_dict(memory["guard"])
        self.meter.load_state_dict(memory["meter"])
        if self.config.data.buckets and self.progress.samples % self.config.batch:
            raise CheckpointError(
                f"--change batch={self.config.batch}: {self.progress.samples} clips were seen, which is no whole "
                "number of such batches, and with data.buckets a batch has one size; take a divisor"
            )

    def _check_names(self, weights: Mapping[str, Tensor]) -> None:
        missing, unexpected = sorted(set(self.parameters) - set(weights)), sorted(set(weights) - set(self.parameters))
        if missing or unexpected:
            raise CheckpointError(
                f"the checkpoint in {self.run_dir} trains other parameters: missing {missing[:3]}, not expected "
                f"{unexpected[:3]}; resume with the configuration it was made with, or use another --out"
            )
