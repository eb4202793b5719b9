"""Muon: momentum whose matrices are orthogonalised, for weights that are matrices; AdamW for all others.

Source: K. Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; the factor that makes its steps as large as
those of AdamW, so that both take one learning rate, is that of J. Liu et al., arXiv 2502.16982.
"""

import functools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic whose iteration drives singular values towards 1
ITERATIONS = 5
ADAM_RMS = 0.2  # root mean square of AdamW's steps as a share of the learning rate, about


def orthogonalised(matrices_NRC: Tensor) -> Tensor:
    """U V^T for matrices U S V^T, roughly: singular values end up within about 0.7 .. 1.2 (Newton-Schulz iteration).

    Args:
        matrices_NRC: (N, R, C), any floating-point type; computed in bfloat16 where the device multiplies in it, else
            in float32.

    Returns:
        Tensor: (N, R, C) in the type that was computed in.
    """
    a, b, c = COEFFICIENTS
    tall = matrices_NRC.shape[1] > matrices_NRC.shape[2]
    x = (matrices_NRC.mT if tall else matrices_NRC).float()
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(_working_type(x.device.type))
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


@functools.lru_cache
def _working_type(device: str) -> torch.dtype:
    """CPUs without instructions for bfloat16 take several times as long for it."""
    able = [getattr(torch.cpu, f"_is_{name}_supported", lambda: False)() for name in ("avx512_bf16", "amx_tile")]
    return torch.bfloat16 if device != "cpu" or any(able) else torch.float32


def is_matrix(parameter: Tensor) -> bool:
    """Whether Muon is for this parameter: matrices and convolutions, not vectors, and none with fewer than 8 rows."""
    return parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) >= 8


class Muon(torch.optim.AdamW):
    """Muon for the parameter groups with `muon=True`, AdamW for those with `muon=False`.

    Args:
        params: groups, each with its "muon".
        momentum: of Muon (Nesterov).
        adamw: arguments of `torch.optim.AdamW`.
    """

    def __init__(self, params: list[dict[str, Any]], *, momentum: float = 0.95, **adamw: Any) -> None:
        self.momentum = momentum
        super().__init__(params, **adamw)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As AdamW's, which looks for a "step" in the state of every parameter."""
        for values in state["state"].values():
            values.setdefault("step", torch.tensor(0.0))
        super().__setstate__(state)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of all groups."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            loss = super().step(closure) if self.param_groups or closure else None
        finally:
            self.param_groups = groups
        for group in groups:
            if group["muon"]:
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        alike: dict[tuple[int, int], list[Tensor]] = defaultdict(list)  # one product for all matrices of a shape
        for parameter in group["params"]:
            if parameter.grad is not None:
                alike[(parameter.shape[0], parameter[0].numel())].append(parameter)
        for (rows, columns), parameters in alike.items():
            gradients = [p.grad.reshape(rows, columns) for p in parameters if p.grad is not None]
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if "momentum_buffer" not in self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(gradient)
            momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 1 - self.momentum)
            updates = torch._foreach_lerp(gradients, momenta, self.momentum)
            size = group["lr"] * ADAM_RMS * max(rows, columns) ** 0.5
            steps = orthogonalised(torch.stack(updates)).float() * -size
            if group["weight_decay"]:
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, [s.reshape(p.shape) for s, p in zip(steps, parameters, strict=True)])
