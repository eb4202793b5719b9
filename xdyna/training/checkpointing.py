"""Gradient checkpointing: which layers forget their activations and compute them again on the backward pass (Chen et
al., arXiv 1604.06174). Losses and gradients are the same to the bit; memory is paid for with a second forward pass of
these layers.
"""

from collections.abc import Iterable

from diffusers import ModelMixin

from xdyna.config.train import CHECKPOINTING
from xdyna.core.errors import ConfigError


def set_checkpointing(unet: ModelMixin, controlnets: Iterable[ModelMixin], policy: str) -> None:
    """Choose the layers that are recomputed.

    Args:
        unet: the UNet.
        controlnets: the networks trained with it: ControlNets, ReferenceNet.
        policy: "none", "selective" or "full".

    Raises:
        ConfigError: another policy.
    """
    if policy not in CHECKPOINTING:
        raise ConfigError(f"checkpointing: got {policy!r}, expected one of {', '.join(CHECKPOINTING)}")
    for net in (unet, *controlnets):
        if policy == "none":
            net.disable_gradient_checkpointing()
            continue
        net.enable_gradient_checkpointing()
        if policy == "selective":
            highest = [net.down_blocks[0], *list(getattr(net, "up_blocks", []))[-1:]]
            kept = {module for block in highest for module in block.modules()}
            for module in net.modules():
                if hasattr(module, "gradient_checkpointing") and module not in kept:
                    module.gradient_checkpointing = False
