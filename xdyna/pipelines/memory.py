"""Less memory: what `low_memory` changes in a pipeline, and how much memory a computation takes, found without one.

Same results up to rounding: parts that do not depend on each other run one after the other (branches of guidance,
frames in ControlNets, rows of feed-forward layers, images in the VAE), and what is not the UNet waits on the CPU
(diffusers' group offloading).
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.hooks import apply_group_offloading
from diffusers.models.attention import FeedForward
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

PARTS = 4  # a feed-forward layer's rows are split into
ALWAYS_ON_DEVICE = ("unet",)


def save_memory(pipeline: DiffusionPipeline, device: torch.device) -> None:
    """Let a pipeline run in little memory.

    Args:
        pipeline: an `XDynaPipeline` on the CPU.
        device: where its networks run.
    """
    pipeline._low_memory = True
    split_feed_forward(pipeline.unet, PARTS)
    pipeline.vae.enable_slicing()
    for name, part in pipeline.components.items():
        if not isinstance(part, nn.Module):
            continue
        if name in ALWAYS_ON_DEVICE:
            part.to(device)
        else:
            apply_group_offloading(part, onload_device=device, offload_type="leaf_level")


def split_feed_forward(module: nn.Module, parts: int) -> None:
    """Run every feed-forward layer on a part of its rows at a time: its inner width is the largest there is.

    Args:
        module: changed in place; its parameters stay as they are.
        parts: to split the rows into.
    """
    for layer in module.modules():
        if isinstance(layer, FeedForward):
            layer.forward = _InParts(layer.forward, parts)


class _InParts:
    """Calls a function of rows on some of them at a time, into one output of the input's shape."""

    def __init__(self, function: Callable[..., Tensor], parts: int) -> None:
        self.function, self.parts = function, parts

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or len(x) < self.parts:
            return self.function(x)
        out = torch.empty_like(x)
        for part, target in zip(x.chunk(self.parts), out.chunk(self.parts), strict=True):
            target.copy_(self.function(part))
        return out


class _FusedAttention(TorchFunctionMode):
    """Attention on meta tensors as fused kernels compute it: no matrix of scores."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and kwargs.get("attn_mask") is None:
            qkv = (*args, *(kwargs[name] for name in ("query", "key", "value") if name in kwargs))
            if len(qkv) == 3:
                return torch.ops.aten._scaled_dot_product_flash_attention(*qkv)[0]
        return func(*args, **kwargs)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive while it is on, made by operations under it.

    Attributes:
        live: now.
        peak: at most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self._watch(tensor.untyped_storage())
        return out

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def peak_bytes(function: Callable[[], Any]) -> int:
    """Largest number of bytes alive at a time in what a function makes; on meta tensors, attention counts as fused.

    Args:
        function: called once, without gradients.

    Returns:
        int: bytes, the inputs and weights that were there before not counted.
    """
    meter = LiveBytes()
    with torch.no_grad(), _FusedAttention(), meter:
        kept = function()
    del kept
    return meter.peak
