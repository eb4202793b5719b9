"""`compile=regional`: the same noise from compiled blocks, and one sentence where nothing can be compiled."""

import pytest
import torch

from tests.unit.pipelines.test_attention import networks, one_step
from xdyna.config.infer import InferConfig
from xdyna.core.errors import ConfigError, UsageError
from xdyna.pipelines.compiling import compile_networks, require_compiler, restore_networks


@pytest.fixture(autouse=True)
def compiler(tmp_path, monkeypatch):
    """Nothing that was compiled before counts."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def parts(nets):
    return [nets.unet, nets.pose_controlnet, nets.face_controlnet]


def test_every_network_has_blocks_to_compile():
    """With a stand-in for the compiler: all repeated blocks run through it, and none any more afterwards."""
    nets, ran = networks(), []
    expected, names = one_step(nets), {n for net in parts(nets) for n, _ in net.named_parameters()}

    def noting(graph, inputs):
        ran.append(graph)
        return graph.forward

    for net in parts(nets):
        net.compile = None  # not the network as a whole
    original = torch.nn.Module.compile
    try:
        torch.nn.Module.compile = lambda self, **options: original(self, backend=noting, **options)
        compile_networks(parts(nets))
    finally:
        torch.nn.Module.compile = original
    compiled = [type(m).__name__ for net in parts(nets) for m in net.modules() if m._compiled_call_impl is not None]
    assert {name: compiled.count(name) for name in set(compiled)} == {
        "ResnetBlock": 8, "SpatialTransformerBlock": 7, "TemporalTransformerBlock": 6, "BasicTransformerBlock": 4,
        "ResnetBlock2D": 8,
    }  # fmt: skip
    torch.testing.assert_close(one_step(nets), expected, atol=1e-5, rtol=1e-4)
    assert ran
    assert {n for net in parts(nets) for n, _ in net.named_parameters()} == names
    restore_networks(parts(nets))
    ran.clear()
    torch._dynamo.reset()
    assert torch.equal(one_step(nets), expected)
    assert not ran


@pytest.mark.slow
def test_compiled_blocks_give_the_same_noise():
    nets = networks()
    expected = one_step(nets)
    require_compiler(torch.device("cpu"))
    compile_networks(parts(nets))
    out = one_step(nets)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 10
    assert float((out - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    assert float((one_step(nets) - expected).abs().max()) < 1e-5 * float(expected.abs().max())


def test_without_a_compiler_it_is_one_sentence(monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))
    with pytest.raises(UsageError, match=r"compile=regional was asked for, but .* install a C\+\+ compiler") as told:
        require_compiler(torch.device("cpu"))
    assert "\n" not in str(told.value)


def test_compiling_and_low_memory_contradict_each_other():
    with pytest.raises(ConfigError, match="compile=regional and low_memory=true contradict each other"):
        InferConfig(compile="regional", low_memory=True)
