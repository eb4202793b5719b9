"""A training step as CUDA graphs. Networks as small as xdyna-tiny keep a GPU waiting for Python, which launches some
ten thousand short kernels a step; a graph launches them at once ("Accelerating PyTorch with CUDA Graphs", PyTorch blog,
2021).

Two graphs, so that losses and gradients can be looked at before they change anything: forward and backward pass and
the gradients' norm; clipping and optimizer.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from xdyna.data.samples import Batch
from xdyna.training.draws import Inputs
from xdyna.training.errors import TrainingError
from xdyna.training.optim import gradient_norm, scale_to_norm

Result = TypeVar("Result")
WARM_UP = 3  # steps before the recording: lazy initialisations must be over


class StepGraph:
    """Runs training steps of one process on one GPU; the first few as usual, then as graphs.

    Args:
        model: the objective as accelerate prepared it.
        optimizer: with `capturable` groups, whose learning rates are tensors (`make_capturable`).
        parameters: the trainable ones.
        clip: largest norm of the gradients; 0 for no clipping.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], *, clip: float
    ) -> None:
        self.model, self.optimizer, self.parameters, self.clip = model, optimizer, list(parameters), clip
        self._stream = torch.cuda.Stream()
        self._done = 0  # steps so far
        self._forward: torch.cuda.CUDAGraph | None = None
        self._update: torch.cuda.CUDAGraph | None = None
        self._batch: Batch
        self._inputs: Inputs
        self._told: tuple[Tensor, Tensor]

    def forward_backward(self, batch: Batch, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Losses of a batch, (B,), and the norm of its gradients, (), which are then in the parameters.

        Args:
            batch: on the GPU, with latents and image tokens; the shapes are the same in every step.
            inputs: of the objective.

        Raises:
            TrainingError: other shapes than before.
        """
        if self._done < WARM_UP:
            return self._beside(lambda: self._run(batch, inputs))
        if self._forward is None:
            self._batch, self._inputs = _cloned(batch), _cloned(inputs)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            self._forward = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._forward, stream=self._stream, capture_error_mode="thread_local"):
                self._told = self._run(self._batch, self._inputs)
        _copy(batch, self._batch)
        _copy(inputs, self._inputs)
        self._forward.replay()
        return self._told

    def update(self) -> None:
        """Clip the gradients and take a step."""
        self._done += 1
        if self._done <= WARM_UP:
            self._beside(self._step)
            return
        if self._update is None:
            self._update = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._update, stream=self._stream, capture_error_mode="thread_local"):
                self._step()
        self._update.replay()

    def _run(self, batch: Batch, inputs: Inputs) -> tuple[Tensor, Tensor]:
        for parameter in self.parameters:
            parameter.grad = None  # the backward pass then writes new ones, in a graph always to the same place
        losses = self.model(batch, inputs=inputs)
        losses.mean().backward()
        self._norm = gradient_norm(self.parameters)
        return losses.detach(), self._norm

    def _step(self) -> None:
        if self.clip:
            scale_to_norm(self.parameters, self._norm, self.clip)
        self.optimizer.step()

    def _beside(self, work: Callable[[], Result]) -> Result:
        """Do it on the stream of the recording, which what is recorded later may depend on."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = work()
        torch.cuda.current_stream().wait_stream(self._stream)
        return result


def make_capturable(optimizer: torch.optim.Optimizer, device: torch.device | None) -> None:
    """Make an optimizer's steps fit for a graph: learning rates become tensors, which a graph reads anew.

    Args:
        optimizer: changed in place.
        device: of the parameters; None undoes it (an optimizer loaded from such a run).
    """
    for group in optimizer.param_groups:
        rate = float(group["lr"])
        group["lr"] = rate if device is None else torch.tensor(rate, device=device)
        group["capturable"] = device is not None


def _tensors(values: Any) -> dict[str, Tensor]:
    return {name: value for name, value in vars(values).items() if isinstance(value, Tensor)}


def _cloned(values: Any) -> Any:
    return dataclasses.replace(values, **{name: value.clone() for name, value in _tensors(values).items()})


def _copy(source: Any, target: Any) -> None:
    ours, theirs = _tensors(source), _tensors(target)
    if {name: x.shape for name, x in ours.items()} != {name: x.shape for name, x in theirs.items()}:
        raise TrainingError(
            "cuda_graph: a batch has other shapes than the first one; use clips of one size, or cuda_graph=false"
        )
    for name, value in ours.items():
        theirs[name].copy_(value)
