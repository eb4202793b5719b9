"""What trains when. Groups of parameters have names; a stage trains some of them, everything else is frozen.

| stage    | trains                                                                     | paper          |
|----------|----------------------------------------------------------------------------|----------------|
| vae      | autoencoder                                                                | (tiny only)    |
| base     | 2-D UNet with image tokens, image encoder, Resampler                       | (tiny only)    |
| dynamics | Dynamics-Adapter (W'q, W'o), motion modules, pose ControlNet               | stage 1        |
| face     | face ControlNet                                                            | stage 2        |

Ablations change the first group of `dynamics`: `reference_net` trains the ReferenceNet instead of the adapter,
`ip_adapter` neither.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from diffusers import AutoencoderKL, ControlNetModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from xdyna.checkpoints.official import ADAPTER, MOTION
from xdyna.core.errors import ConfigError
from xdyna.models.image_tokens import ImageTokenResampler
from xdyna.models.unet import XDynaUNet

# Group -> (component, pattern of parameter names). The first pattern that matches wins, in this order.
GROUPS: dict[str, tuple[str, str]] = {
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

# Groups that the loss of a stage reaches: others would be given to the optimizer and never move.
_CLIP = ("adapter", "motion", "unet", "image_encoder", "resampler", "pose_controlnet", "reference_net")
REACHED: dict[str, tuple[str, ...]] = {
    "vae": ("vae_encoder", "vae_decoder"),
    "base": ("adapter", "unet", "image_encoder", "resampler"),
    "dynamics": _CLIP,
    "face": (*_CLIP, "face_controlnet"),
}

# Penultimate hidden states are read: what lies behind them gets no gradient (names hold a layer number for %d).
_BEHIND_THE_IMAGE_FEATURES = r"(^|\.)(post_layernorm|visual_projection)\.|\.layers\.%d\."


@dataclass
class Components:
    """The networks of a pipeline as training sees them.

    Attributes:
        vae: autoencoder.
        unet: video UNet.
        pose_controlnet: C_P.
        face_controlnet: C_F; None where the ablation has none.
        text_encoder: CLIP text model, always frozen.
        tokenizer: its tokenizer.
        image_encoder: CLIP vision model.
        feature_extractor: its preprocessing, on pictures.
        image_projection: the Resampler.
        reference_net: of the ablation `w/RefNet`; else None.
        scheduler: its config holds the noise schedule.
    """

    vae: AutoencoderKL
    unet: XDynaUNet
    pose_controlnet: ControlNetModel
    face_controlnet: ControlNetModel | None
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    image_encoder: CLIPVisionModelWithProjection
    feature_extractor: Any
    image_projection: ImageTokenResampler
    scheduler: Any
    reference_net: nn.Module | None = None

    def modules(self) -> dict[str, nn.Module]:
        """The networks that are there, by name."""
        return {name: module for name, module in vars(self).items() if isinstance(module, nn.Module)}

    def beside_unet(self) -> list[nn.Module]:
        """The networks that feed the UNet in every step: ControlNets and ReferenceNet, those that are there."""
        nets = (self.pose_controlnet, self.face_controlnet, self.reference_net)
        return [net for net in nets if net is not None]


def stage_groups(stage: str, appearance: str) -> tuple[str, ...]:
    """Groups that a stage trains.

    Args:
        stage: "vae", "base", "dynamics" or "face".
        appearance: "dynamics_adapter", "reference_net" or "ip_adapter".
    """
    looks = {"dynamics_adapter": ("adapter",), "reference_net": ("reference_net",), "ip_adapter": ()}[appearance]
    return {
        "vae": ("vae_encoder", "vae_decoder"),
        "base": ("unet", "image_encoder", "resampler"),
        "dynamics": (*looks, "motion", "pose_controlnet"),
        "face": ("face_controlnet",),
    }[stage]


def training_groups(stage: str, appearance: str, chosen: Sequence[str] | None) -> tuple[str, ...]:
    """Groups that a run trains.

    Args:
        stage: "vae", "base", "dynamics" or "face".
        appearance: see `stage_groups`.
        chosen: names from `GROUPS`; None for those of the stage.

    Raises:
        ConfigError: a group that does not exist or that the stage does not run, or no group.
    """
    if chosen is None:
        return stage_groups(stage, appearance)
    choices = f"choose from {', '.join(REACHED[stage])}"
    if not chosen:
        raise ConfigError(f"train: no group was given; {choices}, or leave it out")
    for group in chosen:
        if group not in GROUPS:
            raise ConfigError(f"train: unknown group {group!r}; {choices}")
        if group not in REACHED[stage]:
            raise ConfigError(f"train: the loss of stage {stage} does not reach {group}; {choices}")
    return tuple(chosen)


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
    """Freeze everything, then thaw the given groups.

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
