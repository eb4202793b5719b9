"""Groups of parameters: what can train, by names that configurations use."""

import re
from collections.abc import Iterable, Mapping
from typing import cast

from torch import nn
from transformers import CLIPVisionModelWithProjection

from xdyna.checkpoints.official import ADAPTER, MOTION
from xdyna.core.errors import ConfigError
from xdyna.training.components import Components

# Group -> (component, pattern of parameter names). The first pattern that matches wins, in this order.
GROUPS: dict[str, tuple[str, str]] = {
    "lora": ("unet", r"\.lora_[AB]\."),
    "adapter": ("unet", ADAPTER),
    "motion": ("unet", MOTION),
    "unet": ("unet", r""),
    "vae_encoder": ("vae", r"^\.(encoder|quant_conv)\."),
    "vae_decoder": ("vae", r"^\.(decoder|post_quant_conv)\."),
    "image_encoder": ("image_encoder", r""),
    "resampler": ("image_projection", r""),
    "pose_controlnet": ("pose_controlnet", r""),
    "face_controlnet": ("face_controlnet", r""),
    "reference_net": ("reference_net", r""),
}

# Penultimate hidden states are read: what lies behind them gets no gradient (names hold a layer number for %d).
_BEHIND_THE_IMAGE_FEATURES = r"(^|\.)(post_layernorm|visual_projection)\.|\.layers\.%d\."


def group_of(component: str, name: str) -> str | None:
    """Group of a parameter; None for components that never train (the text encoder).

    Args:
        component: name of the component, e.g. "unet".
        name: parameter name inside it.
    """
    for group, (owner, pattern) in GROUPS.items():  # the order matters: the first match wins
        if owner == component and re.search(pattern, f".{name}"):
            return group
    return None


def select_trainable(components: Components, groups: Iterable[str]) -> dict[str, dict[str, nn.Parameter]]:
    """Freeze everything, then unfreeze the given groups.

    Args:
        components: the networks; `requires_grad` and train / eval mode are set on them.
        groups: names from `GROUPS`.

    Returns:
        group -> {"component.parameter": parameter}, in a fixed order, parameters that the loss cannot reach left out.

    Raises:
        ConfigError: an unknown group, a group without parameters here, or no group at all.
    """
    wanted = list(groups)
    for group in wanted:
        if group not in GROUPS:
            raise ConfigError(f"train: unknown group {group!r}; choose from {', '.join(GROUPS)}")
    if not wanted:
        raise ConfigError(f"train: no group was given; choose from {', '.join(GROUPS)}")
    chosen: dict[str, dict[str, nn.Parameter]] = {group: {} for group in wanted}
    for component, module in components.modules().items():
        module.requires_grad_(False).eval()
        unreachable = _unreachable(component, module)
        for name, parameter in module.named_parameters():
            owner = group_of(component, name)
            if owner in chosen and not re.search(unreachable, name):
                parameter.requires_grad_(True)
                chosen[owner][f"{component}.{name}"] = parameter
        if any(group_of(component, name) in chosen for name, _ in module.named_parameters()):
            module.train()
    empty = [group for group, parameters in chosen.items() if not parameters]
    if empty:
        raise ConfigError(
            f"train: the model has no parameters in {', '.join(empty)} (component {GROUPS[empty[0]][0]!r}); "
            "leave the group out, or start from a model that has it"
        )
    return chosen


def _unreachable(component: str, module: nn.Module) -> str:
    if component != "image_encoder":
        return r"(?!)"  # matches nothing
    layers = cast(CLIPVisionModelWithProjection, module).config.num_hidden_layers
    return _BEHIND_THE_IMAGE_FEATURES % (layers - 1)


def count(groups: Mapping[str, Mapping[str, nn.Parameter]]) -> dict[str, int]:
    """Number of trainable values per group."""
    return {group: sum(p.numel() for p in parameters.values()) for group, parameters in groups.items()}
