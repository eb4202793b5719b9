"""A file that lacks a single tensor is refused, whichever part of the model the tensor belongs to."""

import re

import pytest
import torch
from diffusers import ControlNetModel

from xdyna.checkpoints import official
from xdyna.core.errors import WeightsError
from xdyna.models.image_tokens import ImageTokenResampler
from xdyna.models.unet import XDynaUNet

SIZES = {"block_out_channels": (8, 16), "layers_per_block": 1, "cross_attention_dim": 6, "norm_num_groups": 4}

# What the names look like, written down apart from the patterns of xdyna.checkpoints.official.
GROUPS = {
    "adapter queries": r"attn1\.to_q_ff\.weight$",
    "adapter output": r"attn1\.to_out_ff\.(weight|bias)$",
    "image keys": r"attn2\.to_k_ip\.weight$",
    "image values": r"attn2\.to_v_ip\.weight$",
    "motion attention": r"motion_modules\.\d+\.temporal_transformer\.transformer_blocks\..*attention_blocks.*to_[qkv]",
    "motion projection": r"motion_modules\.\d+\.temporal_transformer\.proj_(in|out)\.(weight|bias)$",
    "convolutions": r"(^conv_(in|out)|resnets\.\d+\.conv[12])\.(weight|bias)$",
    "spatial attention": r"attn[12]\.to_([qkv]|out\.0)\.(weight|bias)$",
    "time embedding": r"time_embedding\.linear_[12]\.(weight|bias)$",
}


def make_unet() -> XDynaUNet:
    return XDynaUNet(**SIZES, attention_levels=(True, False), num_attention_heads=2, motion_heads=2)


def zeros(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(tensor.shape) for name, tensor in module.state_dict().items()}


def thinned(names: list[str]) -> list[str]:
    """At most a dozen of a group: first, last and some between."""
    return names[:: max(1, len(names) // 10)] + names[-1:]


def refused(name: str, load) -> None:
    with pytest.raises(WeightsError, match=re.escape(name)):
        load()


@pytest.mark.parametrize("group", GROUPS)
def test_unet_without_a_tensor(group):
    unet = make_unet()
    state = zeros(unet)
    names = [name for name in state if re.search(GROUPS[group], name)]
    assert names
    for name in thinned(names):
        rest = {n: t for n, t in state.items() if n != name}
        refused(name, lambda rest=rest: official.load_unet(unet, rest, what="file"))
    official.load_unet(unet, state, what="file")  # the whole file is taken


def test_only_position_tables_may_be_missing():
    unet = make_unet()
    state = zeros(unet)
    tables = [name for name in state if name.endswith(".pos_encoder.pe")]
    assert tables
    official.load_unet(unet, {n: t for n, t in state.items() if n not in tables}, what="file")
    assert not unet.conv_in.weight.any()
    assert all(unet.state_dict()[name].any() for name in tables)


def test_stable_diffusion_file_without_a_2d_tensor():
    """Such a file leaves adapter, image tokens and motion out; nothing else."""
    unet = make_unet()
    later = re.compile(r"_ff\.|_ip\.|motion_modules")
    state = {name: tensor for name, tensor in zeros(unet).items() if not later.search(name)}
    for name in thinned(list(state)):
        rest = {n: t for n, t in state.items() if n != name}
        refused(name, lambda rest=rest: official.load_sd15_unet(unet, rest, what="file"))
    official.load_sd15_unet(unet, state, what="file")


def test_motion_file_without_a_tensor():
    unet = make_unet()
    state = {n: t for n, t in zeros(unet).items() if "motion_modules" in n and not n.endswith(".pe")}
    for name in thinned(list(state)):
        rest = {n: t for n, t in state.items() if n != name}
        refused(name, lambda rest=rest: official.load_motion(unet, rest, what="file"))
    official.load_motion(unet, state, what="file")


@pytest.mark.parametrize("channels", [3, 6])
def test_controlnet_without_a_tensor(channels):
    net = ControlNetModel(
        **SIZES,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        attention_head_dim=2,
        conditioning_embedding_out_channels=(4, 4),
        conditioning_channels=channels,
    )
    state = zeros(net)
    groups = (
        "controlnet_cond_embedding.",
        "controlnet_down_blocks.",
        "controlnet_mid_block.",
        "conv_in.",
        "mid_block.",
    )
    for prefix in (*groups, "down_blocks.", "time_embedding."):
        names = [name for name in state if name.startswith(prefix)]
        assert names, prefix
        for name in thinned(names):
            rest = {n: t for n, t in state.items() if n != name}
            refused(name, lambda rest=rest: official.load_controlnet(net, rest, what="file"))
    refused("extra.weight", lambda: official.load_controlnet(net, {**state, "extra.weight": torch.zeros(1)}, what="f"))
    official.load_controlnet(net, state, what="file")


def image_proj() -> dict[str, torch.Tensor]:
    """The Resampler's tensors under the names of the published file."""
    shapes = {
        "latents": (1, 2, 8),
        "proj_in.weight": (8, 5),
        "proj_in.bias": (8,),
        "proj_out.weight": (6, 8),
        "proj_out.bias": (6,),
        "norm_out.weight": (6,),
        "norm_out.bias": (6,),
        "layers.0.0.norm1.weight": (8,),
        "layers.0.0.norm1.bias": (8,),
        "layers.0.0.norm2.weight": (8,),
        "layers.0.0.norm2.bias": (8,),
        "layers.0.0.to_q.weight": (8, 8),
        "layers.0.0.to_kv.weight": (16, 8),
        "layers.0.0.to_out.weight": (8, 8),
        "layers.0.1.0.weight": (8,),
        "layers.0.1.0.bias": (8,),
        "layers.0.1.1.weight": (32, 8),
        "layers.0.1.3.weight": (8, 32),
    }
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("lost", image_proj())
def test_resampler_without_a_tensor(lost):
    resampler = ImageTokenResampler(dim=8, depth=1, dim_head=4, heads=2, num_queries=2, embedding_dim=5, output_dim=6)
    whole = image_proj()
    rest = {name: tensor for name, tensor in whole.items() if name != lost}
    with pytest.raises(WeightsError, match=r"missing \([12]\): projection\."):
        official.load_ip_adapter({"image_proj": rest, "ip_adapter": {}}, resampler=resampler, what="ip")
    extra = {**whole, "layers.1.1.3.weight": torch.zeros(8, 32)}
    refused(
        "projection.layers.1.ff.1.net.2.weight",
        lambda: official.load_ip_adapter({"image_proj": extra, "ip_adapter": {}}, resampler=resampler, what="ip"),
    )
    official.load_ip_adapter({"image_proj": whole, "ip_adapter": {}}, resampler=resampler, what="ip")


@pytest.mark.parametrize("lost", ["image_proj", "ip_adapter"])
def test_ip_adapter_file_without_a_part(lost):
    resampler = ImageTokenResampler(dim=8, depth=1, dim_head=4, heads=2, num_queries=2, embedding_dim=5, output_dim=6)
    parts = {"image_proj": image_proj(), "ip_adapter": {}}
    del parts[lost]
    refused(lost, lambda: official.load_ip_adapter(parts, resampler=resampler, what="ip"))


@pytest.mark.parametrize("kind", ["to_k_ip", "to_v_ip"])
def test_ip_adapter_file_without_an_attention_tensor(kind):
    unet = make_unet()
    resampler = ImageTokenResampler(dim=8, depth=1, dim_head=4, heads=2, num_queries=2, embedding_dim=5, output_dim=6)
    layers = [n.removesuffix(".to_k_ip.weight") for n in unet.state_dict() if n.endswith("to_k_ip.weight")]
    layers.sort(key=lambda name: ("down", "up", "mid").index(name.split("_")[0]))
    attention = {
        f"{2 * i + 1}.{k}.weight": torch.zeros(unet.state_dict()[f"{layer}.{k}.weight"].shape)
        for i, layer in enumerate(layers)
        for k in ("to_k_ip", "to_v_ip")
    }
    official.load_ip_adapter(
        {"image_proj": image_proj(), "ip_adapter": attention}, resampler=resampler, unet=unet, what="ip"
    )
    del attention[f"3.{kind}.weight"]
    parts = {"image_proj": image_proj(), "ip_adapter": attention}
    refused(f"3.{kind}.weight", lambda: official.load_ip_adapter(parts, resampler=resampler, unet=unet, what="ip"))
