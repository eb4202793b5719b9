"""Exponential moving average of the trainable parameters: often the better weights to sample with.

Source: Karras et al. 2024 (arXiv 2312.02696), section 3, on why; the warm-up is the one of TensorFlow's
ExponentialMovingAverage(num_updates=...).
"""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from xdyna.training.errors import TrainingError


def ema_decay(step: int, *, decay: float, warmup: bool) -> float:
    """Decay at update t = `step`: min(decay, (1 + t) / (10 + t)) with warm-up, which forgets the start sooner."""
    return min(decay, (1 + step) / (10 + step)) if warmup else decay


class EMA:
    """A float32 shadow of parameters: shadow <- decay * shadow + (1 - decay) * parameter.

    Args:
        named_parameters: what is averaged, by name; the parameters are kept, not copied.
        decay: in [0, 1).
        warmup: see `ema_decay`.

    Raises:
        TrainingError: decay out of range, or nothing to average.
    """

    def __init__(self, named_parameters: Mapping[str, nn.Parameter], *, decay: float, warmup: bool) -> None:
        if not 0 <= decay < 1:
            raise TrainingError(f"ema decay is {decay}, expected 0 <= decay < 1, for example 0.9999")
        if not named_parameters:
            raise TrainingError("ema was given no parameters; give the trainable ones, or switch it off")
        self.decay, self.warmup = decay, warmup
        self._names = list(named_parameters)
        self._parameters = list(named_parameters.values())
        self._shadow = [parameter.detach().to(torch.float32, copy=True) for parameter in self._parameters]
        self._applied = False

    def to(self, device: torch.device) -> None:
        """Move the shadow to the parameters' device; call it once these have moved."""
        self._shadow = [shadow.to(device) for shadow in self._shadow]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the parameters in, after optimizer step `step` (from 1)."""
        assert not self._applied, "the parameters hold the average itself"
        current = [parameter.detach().float() for parameter in self._parameters]  # float() of float32 copies nothing
        weight = 1 - ema_decay(step, decay=self.decay, warmup=self.warmup)
        torch._foreach_lerp_(self._shadow, current, weight)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the parameters hold the average; after it, exactly what they held before."""
        assert not self._applied, "applied() inside applied()"
        with torch.no_grad():
            kept = [parameter.detach().clone() for parameter in self._parameters]
            self._applied = True
            try:
                for parameter, shadow in zip(self._parameters, self._shadow, strict=True):
                    parameter.copy_(shadow)
                with torch.enable_grad():
                    yield
            finally:
                for parameter, value in zip(self._parameters, kept, strict=True):
                    parameter.copy_(value)
                self._applied = False

    def state_dict(self) -> dict[str, Tensor]:
        """The average by name: float32, on the parameters' device. The tensors are the shadow itself, not a copy."""
        return dict(zip(self._names, self._shadow, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a stored average.

        Raises:
            TrainingError: other names or shapes than the parameters'; nothing is changed then.
        """
        own = {name: tuple(shadow.shape) for name, shadow in self.state_dict().items()}
        given = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if own != given:
            wrong = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
            shown = "; ".join(f"{n}: {given.get(n, 'absent')}, expected {own.get(n, 'absent')}" for n in wrong[:5])
            raise TrainingError(
                f"the stored ema does not fit the trainable parameters ({len(wrong)} names differ: {shown}); "
                "resume with the stage and model of the checkpoint"
            )
        for name, shadow in self.state_dict().items():
            shadow.copy_(state[name])
