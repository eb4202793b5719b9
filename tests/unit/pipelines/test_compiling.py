"""`compile=regional`: the same noise from compiled blocks, and one sentence where nothing can be compiled."""

import pytest
import torch

from tests.unit.models.test_naive import filled
from tests.unit.pipelines.test_attention import networks, one_step
from xdyna.config.infer import InferConfig
from xdyna.core.errors import ConfigError, UsageError
from xdyna.models.layers import ClipContext
from xdyna.models.unet import XDynaUNet
from xdyna.pipelines.compiling import compile_networks, require_compiler, restore_networks


@pytest.fixture(autouse=True)
def compiler(tmp_path, monkeypatch):
    """Nothing that was compiled before counts."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def test_the_repeated_blocks_of_all_networks_are_compiled_and_restored():
    nets = networks()
    parts = [nets.unet, nets.pose_controlnet, nets.face_controlnet]
    names = [set(net.state_dict()) for net in parts]
    compile_networks(parts)  # each block by its first call, which does not come
    compiled = [type(m).__name__ for net in parts for m in net.modules() if m._compiled_call_impl is not None]
    assert {name: compiled.count(name) for name in set(compiled)} == {
        "ResnetBlock": 8, "SpatialTransformerBlock": 7, "TemporalTransformerBlock": 6, "BasicTransformerBlock": 4,
        "ResnetBlock2D": 8,
    }  # fmt: skip
    assert [set(net.state_dict()) for net in parts] == names
    restore_networks(parts)
    assert all(module._compiled_call_impl is None for net in parts for module in net.modules())
    one_step(nets)
    assert not torch._dynamo.utils.counters["frames"]


@pytest.mark.slow
@torch.no_grad()
def test_compiled_blocks_give_the_same_features():
    """One of each kind, with the features of both branches of guidance."""
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8,), "attention_levels": (True,), "layers_per_block": 1, "norm_num_groups": 4}
    unet = filled(XDynaUNet(**sizes, cross_attention_dim=6, num_attention_heads=2, motion_heads=2))
    text, image = torch.randn(2, 5, 6), torch.randn(2, 3, 6)
    context = ClipContext(num_frames=4, time_BC=torch.randn(2, 32), text_BSC=text, image_BSC=image)
    down = unet.down_blocks[0]
    spatial = down.attentions[0].transformer_blocks[0]
    keys = spatial.token_keys(context)
    temporal = down.motion_modules[0].temporal_transformer.transformer_blocks[0]
    calls = [
        (down.resnets[0], (torch.randn(8, 8, 6, 4), context)),
        (spatial, (torch.randn(8, 24, 8), context, keys)),
        (temporal, (torch.randn(48, 3, 8),)),
    ]
    expected = [block(*inputs) for block, inputs in calls]
    require_compiler(torch.device("cpu"))
    compile_networks([unet])
    for _ in range(2):
        for (block, inputs), before in zip(calls, expected, strict=True):
            torch.testing.assert_close(block(*inputs), before, atol=1e-5, rtol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1 + len(calls)  # and nothing the second time


def test_without_a_compiler_it_is_one_sentence(monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))
    with pytest.raises(UsageError, match=r"compile=regional was asked for, but .* install a C\+\+ compiler") as told:
        require_compiler(torch.device("cpu"))
    assert "\n" not in str(told.value)


def test_compiling_and_low_memory_contradict_each_other():
    with pytest.raises(ConfigError, match="compile=regional and low_memory=true contradict each other"):
        InferConfig(compile="regional", low_memory=True)
