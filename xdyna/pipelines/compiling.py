"""Compiled networks (`compile=regional`): the blocks that a network repeats, each by torch.compile.

A block is compiled once for all places that have its shapes, so that it takes a fraction of the time and memory that
compiling the whole network does. Results agree with those of the blocks themselves up to rounding.
"""

from collections.abc import Sequence

import torch
from diffusers import ControlNetModel, ModelMixin
from torch import nn

from xdyna.core.errors import UsageError

CONTROLNET_BLOCKS = ["BasicTransformerBlock", "ResnetBlock2D"]  # diffusers names none for ControlNets
RECOMPILES = 64  # shapes of one kind of block that are compiled before PyTorch gives up and runs it as it is


def require_compiler(device: torch.device) -> None:
    """See whether torch.compile works here, by a function of one line.

    Args:
        device: where compiled code is to run.

    Raises:
        UsageError: no C++ compiler or headers (CPU), no Triton (GPU), or whatever else is missing.
    """
    x = torch.ones(8, device=device)
    try:
        torch.compile(_one_more)(x)
    except (RuntimeError, ImportError, OSError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UsageError(
            f"compile=regional was asked for, but torch.compile does not work on {device} ({reason}); install a C++ "
            "compiler such as g++ (on GPUs: triton), or use compile=none"
        ) from error


def _one_more(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def compile_networks(networks: Sequence[ModelMixin]) -> None:
    """Compile the repeated blocks of networks; they are compiled when they first run.

    Args:
        networks: a video UNet, ControlNets; changed in place, their weights and names are not.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, RECOMPILES)
    for net in networks:
        if isinstance(net, ControlNetModel):
            net._repeated_blocks = CONTROLNET_BLOCKS
        net.compile_repeated_blocks(dynamic=False)


def restore_networks(networks: Sequence[nn.Module]) -> None:
    """Undo `compile_networks`."""
    for net in networks:
        for module in net.modules():
            module._compiled_call_impl = None
