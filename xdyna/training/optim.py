"""Optimizer and learning rates. The rate is a pure function of the step, so a resumed run needs no scheduler state."""

import importlib.util
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from xdyna.config.train import OptimConfig
from xdyna.core.errors import ConfigError
from xdyna.training.muon import Muon, is_matrix


def build_optimizer(
    groups: Mapping[str, Mapping[str, nn.Parameter]], config: OptimConfig, *, fused: bool = True
) -> torch.optim.Optimizer:
    """The optimizer over groups, each with its own learning rate.

    Args:
        groups: group -> parameters by name.
        config: settings.
        fused: use PyTorch's fused kernel (CPU and CUDA have one).

    Returns:
        Optimizer: its param_groups carry "name" and "base_lr".

    Raises:
        ConfigError: a rate for a group that does not train, or bitsandbytes is missing.
    """
    unknown = sorted(set(config.group_lr) - set(groups))
    if unknown:
        raise ConfigError(f"optim.group_lr: {', '.join(unknown)} does not train here; groups: {', '.join(groups)}")
    settings: list[dict[str, Any]] = []
    for name, parameters in groups.items():
        rate = config.group_lr.get(name, config.lr)
        settings.append({"params": list(parameters.values()), "lr": rate, "base_lr": rate, "name": name})
    shared: dict[str, Any] = {
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    if config.name == "adamw8bit":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ConfigError(
                "optim.name=adamw8bit needs bitsandbytes: `pip install bitsandbytes`, or use optim.name=adamw"
            )
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(settings, **shared)
    if config.name == "muon":
        parts = [
            {**group, "params": [p for p in group["params"] if is_matrix(p) == muon], "muon": muon}
            for group in settings
            for muon in (True, False)
        ]
        return Muon([part for part in parts if part["params"]], fused=fused, **shared)
    return torch.optim.AdamW(settings, fused=fused, **shared)


def rate_factor(step: int, config: OptimConfig, *, max_steps: int, share: float = 0.0) -> float:
    """Share of the base learning rate at a step: linear warm-up, then constant or cosine (arXiv 1608.03983, eq. 5).

    Args:
        step: 0-based optimizer step.
        config: settings.
        max_steps: steps of the whole run.
        share: of the run that has passed, where time limits it and not the number of steps.
    """
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    done = min(1.0, max(share, (step - config.warmup) / max(1, max_steps - config.warmup)))
    return config.final_ratio + (1 - config.final_ratio) * 0.5 * (1 + math.cos(math.pi * done))


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to `factor` times its base rate."""
    for group in optimizer.param_groups:
        rate = group["base_lr"] * factor
        if isinstance(group["lr"], torch.Tensor):  # of a step that is a CUDA graph
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Euclidean norm of all gradients together, (), on their device; nobody waits for it.

    Source: the first half of torch.nn.utils.clip_grad_norm_ (torch.nn.utils.get_total_norm from PyTorch 2.6 on).
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def scale_to_norm(parameters: Iterable[nn.Parameter], norm: Tensor, largest: float) -> None:
    """Scale gradients down to a norm; smaller ones stay.

    Args:
        parameters: whose gradients are scaled, all on one device.
        norm: `gradient_norm` of them.
        largest: norm that they have at most afterwards, > 0.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, torch.clamp(largest / (norm + 1e-6), max=1.0))
