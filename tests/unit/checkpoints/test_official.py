import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.embeddings import IPAdapterPlusImageProjection

from xdyna.checkpoints import official
from xdyna.checkpoints.io import load_state_dict
from xdyna.core.errors import WeightsError
from xdyna.models.image_tokens import ImageTokenResampler
from xdyna.models.motion import sinusoidal_positions
from xdyna.models.unet import XDynaUNet

SIZES = {"block_out_channels": (8, 16), "layers_per_block": 1, "cross_attention_dim": 6, "norm_num_groups": 4}


def make_unet(**more) -> XDynaUNet:
    return XDynaUNet(**SIZES, attention_levels=(True, False), num_attention_heads=2, motion_heads=2, **more)


def make_sd15() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        **SIZES,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
    )


def motion_file(unet: XDynaUNet, positions: int) -> dict[str, torch.Tensor]:
    """A motion checkpoint as AnimateDiff writes them: motion names alone, position tables included."""
    state = {k: torch.randn_like(v) for k, v in unet.state_dict().items() if "motion_modules" in k}
    for name, tensor in state.items():
        if name.endswith(".pe"):
            state[name] = sinusoidal_positions(positions, tensor.shape[-1])
    return state


def test_xdyna_checkpoint(tmp_path):
    """Flat or under "state_dict", with "module." prefixes: read, and loaded whole."""
    source = make_unet()
    wrapped = {"state_dict": {f"module.{name}": tensor for name, tensor in source.state_dict().items()}}
    for number, tree in enumerate((source.state_dict(), wrapped)):
        path = tmp_path / f"unet-checkpoint-epoch-{number}.ckpt"
        torch.save(tree, path)
        target = make_unet()
        official.load_unet(target, load_state_dict(path), what=path.name)
        for name, tensor in source.state_dict().items():
            assert torch.equal(target.state_dict()[name], tensor)


def test_incomplete_xdyna_checkpoint_is_refused():
    state = make_unet().state_dict()
    del state["conv_in.bias"]
    state["conv_inn.bias"] = torch.zeros(8)
    with pytest.raises(WeightsError, match=r"missing \(1\): conv_in.bias; unexpected \(1\): conv_inn.bias"):
        official.load_unet(make_unet(), state, what="file.ckpt")


def test_full_size_shapes_load_on_meta(official_shapes):
    """The published names and shapes go through our maps into full-size modules, nothing allocated."""
    with torch.device("meta"):
        state = {part: {n: torch.empty(s) for n, s in entries.items()} for part, entries in official_shapes.items()}
        official.load_unet(XDynaUNet(), state["unet"], what="unet")
        for kind, channels in (("pose", 3), ("face", 6)):
            net = ControlNetModel(cross_attention_dim=768, conditioning_channels=channels)
            official.load_controlnet(net, state[f"controlnet_{kind}"], what=kind)
        resampler = ImageTokenResampler()
    renamed = official.resampler_names(state["image_proj"])
    assert {n: t.shape for n, t in renamed.items()} == {n: t.shape for n, t in resampler.state_dict().items()}


def test_stable_diffusion_is_inflated_and_adapter_initialised():
    source, unet = make_sd15(), make_unet()
    untouched = unet.down_blocks[0].motion_modules[0].temporal_transformer.proj_in.weight.clone()
    official.load_sd15_unet(unet, source.state_dict(), what="sd15")
    ours = unet.state_dict()
    for name, tensor in source.state_dict().items():
        assert torch.equal(ours[name], tensor), name
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    assert torch.equal(attention.to_q_ff.weight, attention.to_q.weight)
    assert not attention.to_out_ff.weight.any()
    assert not attention.to_out_ff.bias.any()
    assert torch.equal(unet.down_blocks[0].motion_modules[0].temporal_transformer.proj_in.weight, untouched)


@pytest.mark.parametrize(
    ("positions", "options"),
    [(24, {}), (32, {}), (32, {"motion_max_frames": 32}), (32, {"motion_mid_block": True})],
    ids=["v1", "v3 into 24", "v3 into 32", "v2"],
)
def test_animatediff(positions, options):
    unet = make_unet(**options)
    spatial = unet.conv_in.weight.clone()
    state = motion_file(make_unet(**options), positions)
    official.load_motion(unet, state, what="mm.ckpt")
    ours = unet.state_dict()
    for name, tensor in state.items():
        if not name.endswith(".pe"):
            assert torch.equal(ours[name], tensor), name
    assert torch.equal(unet.conv_in.weight, spatial)


def test_animatediff_v2_needs_a_middle_motion_module():
    state = motion_file(make_unet(motion_mid_block=True), 32)
    with pytest.raises(WeightsError, match=r"AnimateDiff v2.*motion_mid_block=True"):
        official.load_motion(make_unet(), state, what="mm_v2.ckpt")


def test_animatediff_tables_and_names_are_checked():
    state = motion_file(make_unet(), 24)
    table = next(name for name in state if name.endswith(".pe"))
    with pytest.raises(WeightsError, match="is not the sinusoidal position table"):
        official.load_motion(make_unet(), {**state, table: state[table] + 0.1}, what="mm.ckpt")
    name = next(name for name in state if name.endswith("proj_in.weight"))
    with pytest.raises(WeightsError, match=r"Missing \(1\).*proj_in.weight.*unexpected \(1\).*other"):
        official.load_motion(make_unet(), {("other" if n == name else n): t for n, t in state.items()}, what="mm.ckpt")


def test_ip_adapter_order_is_that_of_diffusers():
    """IP-Adapter numbers the attention processors of diffusers' UNet; cross-attentions have the odd numbers."""
    unet = make_unet()
    order = [name.removesuffix(".processor") for name in make_sd15().attn_processors]
    state, expected = {}, {}
    for number, layer in enumerate(order):
        if layer.endswith("attn2"):
            for kind in ("to_k_ip", "to_v_ip"):
                weight = torch.randn_like(unet.state_dict()[f"{layer}.{kind}.weight"])
                state[f"{number}.{kind}.weight"] = expected[f"{layer}.{kind}.weight"] = weight
    renamed = official.ip_adapter_attention_names(state, unet)
    assert renamed.keys() == expected.keys()
    assert all(torch.equal(renamed[name], expected[name]) for name in expected)
    with pytest.raises(WeightsError, match="do not fit"):
        official.ip_adapter_attention_names({**state, "99.to_k_ip.weight": torch.zeros(1)}, unet)


@pytest.mark.parametrize("nested", [True, False], ids=[".bin", ".safetensors"])
def test_ip_adapter_file(tmp_path, nested):
    from safetensors.torch import save_file

    unet = make_unet()
    layers = [n.removesuffix(".to_k_ip.weight") for n in unet.state_dict() if n.endswith("to_k_ip.weight")]
    assert len(layers) == 4
    image_proj = {
        "latents": torch.randn(1, 2, 8),
        "proj_in.weight": torch.randn(8, 5),
        "proj_in.bias": torch.randn(8),
        "proj_out.weight": torch.randn(6, 8),
        "proj_out.bias": torch.randn(6),
        "norm_out.weight": torch.randn(6),
        "norm_out.bias": torch.randn(6),
        "layers.0.0.norm1.weight": torch.randn(8),
        "layers.0.0.norm1.bias": torch.randn(8),
        "layers.0.0.norm2.weight": torch.randn(8),
        "layers.0.0.norm2.bias": torch.randn(8),
        "layers.0.0.to_q.weight": torch.randn(8, 8),
        "layers.0.0.to_kv.weight": torch.randn(16, 8),
        "layers.0.0.to_out.weight": torch.randn(8, 8),
        "layers.0.1.0.weight": torch.randn(8),
        "layers.0.1.0.bias": torch.randn(8),
        "layers.0.1.1.weight": torch.randn(32, 8),
        "layers.0.1.3.weight": torch.randn(8, 32),
    }
    attention = {
        f"{2 * i + 1}.{kind}.weight": torch.randn(unet.state_dict()[f"{layer}.{kind}.weight"].shape)
        for i, layer in enumerate(sorted(layers, key=lambda n: ("down", "up", "mid").index(n.split("_")[0])))
        for kind in ("to_k_ip", "to_v_ip")
    }
    tree = {"image_proj": image_proj, "ip_adapter": attention}
    path = tmp_path / "ip-adapter-plus"
    if nested:
        torch.save(tree, path)
    else:
        save_file({f"{part}.{n}": t for part, entries in tree.items() for n, t in entries.items()}, path)
    resampler = ImageTokenResampler(dim=8, depth=1, dim_head=4, heads=2, num_queries=2, embedding_dim=5, output_dim=6)
    parts = official.split_ip_adapter(load_state_dict(path))
    official.load_ip_adapter(parts, resampler=resampler, unet=unet, what="ip")
    assert torch.equal(unet.state_dict()[f"{layers[0]}.to_k_ip.weight"], attention["1.to_k_ip.weight"])
    assert isinstance(resampler.projection, IPAdapterPlusImageProjection)
    assert torch.equal(resampler.projection.layers[0].attn.to_v.weight, image_proj["layers.0.0.to_kv.weight"][8:])


@torch.no_grad()
def test_widened_condition_answers_alike():
    options = {
        **SIZES,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "attention_head_dim": 2,
        "conditioning_embedding_out_channels": (4, 4),
    }
    pose, face = ControlNetModel(**options), ControlNetModel(**options, conditioning_channels=6)
    for parameter in pose.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    official.load_controlnet(face, official.widen_condition(pose.state_dict(), 6), what="widened")
    sample, text, image = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 6), torch.rand(1, 3, 16, 16)
    a = pose(sample, 1, text, image, return_dict=False)
    b = face(sample, 1, text, torch.cat([image, image], 1), return_dict=False)
    torch.testing.assert_close(b[1], a[1], atol=1e-5, rtol=1e-4)
    with pytest.raises(WeightsError, match="cannot widen it to 5"):
        official.widen_condition(pose.state_dict(), 5)
