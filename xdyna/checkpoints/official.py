"""Published files -> this project's modules. Every name map is a function dict -> dict; nothing here reads a file.

The UNet and both ControlNets keep the published names, so their maps only take care of what differs between files:
- X-Dyna `unet-checkpoint-*.ckpt`, `controlnet-checkpoint-*.ckpt`, `controlnet-face-checkpoint-*.ckpt`: as they are.
- Stable Diffusion 1.5 UNet (diffusers layout): its 2-D weights serve each frame; adapter, image-token and motion
  weights are not in it.
- AnimateDiff motion modules (v1 `mm_sd_v15.ckpt`, `mm_sd_v14.ckpt`; v2 `mm_sd_v15_v2.ckpt`; v3 `v3_sd15_mm.ckpt`).
- IP-Adapter plus (`ip-adapter-plus_sd15.bin` / `.safetensors`): Resampler + key / value weights for image tokens.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from xdyna.checkpoints.io import load_strict
from xdyna.core.errors import WeightsError
from xdyna.models.image_tokens import ImageTokenResampler
from xdyna.models.motion import sinusoidal_positions
from xdyna.models.unet import XDynaUNet

StateDict = Mapping[str, Tensor]

# What a file of only one part leaves to the others (regular expressions on names).
ADAPTER = r"\.attn1\.to_(q_ff|out_ff)\."
IMAGE_TOKENS = r"\.attn2\.to_[kv]_ip\."
MOTION = r"\.motion_modules\."
POSITIONS = r"\.pos_encoder\.pe$"


def resampler_names(state: StateDict) -> dict[str, Tensor]:
    """IP-Adapter plus `image_proj` names -> `ImageTokenResampler` names; the fused `to_kv` is split.

    Layer i of the published file holds (attention, feed-forward) as `layers.i.0` and `layers.i.1`.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"layers\.(\d+)\.([01])\.(.+)", name)
        if match is None:
            renamed[f"projection.{name}"] = tensor
            continue
        layer, part, rest = f"projection.layers.{match[1]}.", match[2], match[3]
        if part == "1":
            new = {"0.weight": "ff.0.weight", "0.bias": "ff.0.bias", "1.weight": "ff.1.net.0.proj.weight"}
            new["3.weight"] = "ff.1.net.2.weight"
            renamed[layer + new.get(rest, rest)] = tensor
        elif rest == "to_kv.weight":
            renamed[layer + "attn.to_k.weight"], renamed[layer + "attn.to_v.weight"] = tensor.chunk(2, dim=0)
        else:
            new = {"to_q.weight": "attn.to_q.weight", "to_out.weight": "attn.to_out.0.weight"}
            rest = re.sub(r"^norm1\.", "ln0.", re.sub(r"^norm2\.", "ln1.", rest))
            renamed[layer + new.get(rest, rest)] = tensor
    return renamed


def ip_adapter_attention_names(state: StateDict, unet: XDynaUNet) -> dict[str, Tensor]:
    """IP-Adapter `ip_adapter` names ("1.to_k_ip.weight", "3.to_k_ip.weight", ...) -> UNet names.

    The numbers count Stable Diffusion's attention layers in the order down blocks, up blocks, middle block; odd numbers
    are the cross-attentions.

    Raises:
        WeightsError: when the file does not hold exactly this UNet's cross-attentions.
    """
    layers = [name for name, module in unet.named_modules() if name.endswith(".attn2") and module.image_tokens]
    order = {"down_blocks": 0, "up_blocks": 1, "mid_block": 2}
    layers.sort(key=lambda name: order[name.split(".")[0]])  # stable: keeps the order within each part
    expected = {
        f"{2 * i + 1}.{kind}.weight": f"{layer}.{kind}.weight"
        for i, layer in enumerate(layers)
        for kind in ("to_k_ip", "to_v_ip")
    }
    _require_same_names(state, expected, "IP-Adapter attention weights")
    return {expected[name]: tensor for name, tensor in state.items()}


def motion_names(state: StateDict, unet: XDynaUNet) -> dict[str, Tensor]:
    """AnimateDiff motion checkpoint -> UNet names, position tables checked and left out.

    Position tables are computed, not learned; a file for 32 positions (v2, v3) thus serves a model for 24 and the other
    way round.

    Raises:
        WeightsError: when a table in the file is not the sinusoidal one, or when names do not fit this UNet (v2 files
            have a motion module in the middle block: build the UNet with `motion_mid_block=True`).
    """
    tables = {name: tensor for name, tensor in state.items() if re.search(POSITIONS, name)}
    for name, table in tables.items():
        computed = sinusoidal_positions(table.shape[1], table.shape[2])
        if not torch.allclose(table.float(), computed, atol=2e-3):  # the files may hold half precision
            raise WeightsError(f"{name} is not the sinusoidal position table; this is not an AnimateDiff v1-v3 file")
    rest = {name: tensor for name, tensor in state.items() if name not in tables}
    expected = [name for name in unet.state_dict() if re.search(MOTION, name) and not re.search(POSITIONS, name)]
    if any(name.startswith("mid_block.") for name in rest) and unet.mid_block.motion_modules is None:
        raise WeightsError(
            "the motion checkpoint has a motion module in the middle block (AnimateDiff v2), this UNet has none; "
            "build the UNet with motion_mid_block=True, or use a v1 or v3 checkpoint"
        )
    _require_same_names(rest, expected, "AnimateDiff motion weights")
    return rest


def widen_condition(state: StateDict, channels: int) -> dict[str, Tensor]:
    """ControlNet weights for a 3-channel condition -> for `channels` condition channels (3 -> 6 for the face net).

    The first convolution is repeated over groups of 3 channels and divided by their number: the same image given in
    every group gets the response it had.

    Raises:
        WeightsError: when `channels` is no multiple of the file's.
    """
    name = "controlnet_cond_embedding.conv_in.weight"
    weight = state[name]
    groups, left = divmod(channels, weight.shape[1])
    if left or not groups:
        raise WeightsError(f"{name} has {weight.shape[1]} input channels; cannot widen it to {channels}")
    return {**state, name: weight.repeat(1, groups, 1, 1) / groups}


def load_unet(unet: XDynaUNet, state: StateDict, *, what: str) -> None:
    """Fill the UNet from an X-Dyna checkpoint, which must hold every weight. Position tables may be absent."""
    load_strict(unet, state, allow_missing=(POSITIONS,), what=what)


def load_sd15_unet(unet: XDynaUNet, state: StateDict, *, what: str) -> None:
    """Fill the 2-D part of the UNet from Stable Diffusion 1.5 and put the adapter into its initial state.

    Image-token and motion weights stay as they are: load `load_ip_adapter` and `load_motion` after this.
    """
    load_strict(unet, state, allow_missing=(ADAPTER, IMAGE_TOKENS, MOTION), what=what)
    unet.init_adapter()


def load_motion(unet: XDynaUNet, state: StateDict, *, what: str) -> None:
    """Fill the motion modules from an AnimateDiff checkpoint (v1, v2 or v3)."""
    renamed = motion_names(state, unet)
    load_strict(unet, renamed, allow_missing=(rf"^(?!.*{MOTION})", POSITIONS), what=what)


def load_ip_adapter(
    state: Mapping[str, StateDict], *, resampler: ImageTokenResampler, unet: XDynaUNet | None = None, what: str
) -> None:
    """Fill the Resampler, and the UNet's image-token weights where a UNet is given.

    Args:
        state: {"image_proj": ..., "ip_adapter": ...}.
        resampler: gets `image_proj`.
        unet: gets `ip_adapter`; None when its weights come from an X-Dyna checkpoint.
        what: the file's name for messages.

    Raises:
        WeightsError: on missing or unexpected names.
    """
    _require_same_names(state, ("image_proj", "ip_adapter"), what)
    load_strict(resampler, resampler_names(state["image_proj"]), what=f"{what} (image_proj)")
    if unet is not None:
        renamed = ip_adapter_attention_names(state["ip_adapter"], unet)
        load_strict(unet, renamed, allow_missing=(rf"^(?!.*{IMAGE_TOKENS})",), what=f"{what} (ip_adapter)")


def split_ip_adapter(flat: StateDict) -> dict[str, dict[str, Tensor]]:
    """Flat names "image_proj.x", "ip_adapter.y" (safetensors files) -> the nested form of the .bin files."""
    nested: dict[str, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        part, _, rest = name.partition(".")
        nested.setdefault(part, {})[rest] = tensor
    return nested


def load_controlnet(controlnet: nn.Module, state: StateDict, *, what: str) -> None:
    """Fill a ControlNet from an X-Dyna or a diffusers ControlNet checkpoint; every name must fit."""
    load_strict(controlnet, state, what=what)


def _require_same_names(given: Iterable[str], expected: Iterable[str], what: str) -> None:
    missing, unexpected = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
    if missing or unexpected:
        raise WeightsError(
            f"{what}: the names do not fit. Missing ({len(missing)}): {missing[:10]}; "
            f"unexpected ({len(unexpected)}): {unexpected[:10]}"
        )
