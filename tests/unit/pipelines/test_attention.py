"""Attention kernels: which shapes a run has, which kernel is chosen for them, and that the choice is remembered."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName as Backend

from tests.unit.models.test_naive import small_denoiser
from xdyna.config.infer import ATTENTION, InferConfig
from xdyna.core.errors import ConfigError, UsageError
from xdyna.models import attention as layers
from xdyna.models import controls
from xdyna.models.denoiser import Tokens
from xdyna.models.kernels import KERNELS, is_exact, obstacle, require_kernel
from xdyna.pipelines import attention as choice
from xdyna.pipelines.attention import Call, Run, in_use, layer_groups, settle
from xdyna.pipelines.denoise import predict_noise
from xdyna.pipelines.residuals import Condition, ControlResidualCache

CPU, RUN = torch.device("cpu"), Run(size=(12, 8), frames=4, branches=2, text_tokens=5)
GROUPS = {"self 2x4", "tokens 2x4", "time 2x4", "self 2x8", "tokens 2x8", "time 2x8"}


def networks(**changes):
    denoiser = small_denoiser(attention_levels=(True, True), **changes)
    return SimpleNamespace(
        unet=denoiser.unet, pose_controlnet=denoiser.pose_controlnet, face_controlnet=denoiser.face_controlnet,
        vae_scale_factor=2, _execution_device=CPU, denoiser=denoiser,
    )  # fmt: skip


@torch.no_grad()
def one_step(nets):
    torch.manual_seed(1)
    latents, reference = torch.randn(1, 4, 4, 6, 4), torch.randn(1, 4, 1, 6, 4)
    tokens = Tokens(torch.randn(1, 5, 6).expand(2, -1, -1), torch.randn(2, 3, 6))
    conditions = [
        Condition(net, torch.randint(0, 200, (4, channels, 12, 8), dtype=torch.uint8))
        for net, channels in ((nets.pose_controlnet, 3), (nets.face_controlnet, 6))
    ]
    cache = ControlResidualCache(conditions, tokens)
    windows, timestep = [[0, 1, 2, 3]], torch.tensor(500)
    return predict_noise(nets.denoiser, latents, reference, timestep, windows=windows, tokens=tokens, controls=cache)


def test_every_setting_is_a_kernel_and_every_kernel_a_setting():
    assert set(ATTENTION) == {"auto", *KERNELS}
    assert not is_exact(["native", "sage"])
    assert is_exact(["auto", *(name for name in KERNELS if name != "sage")])


def test_the_calls_are_those_of_a_step(monkeypatch):
    nets, seen = networks(), set()
    monkeypatch.setattr(choice, "IMAGE_TOKENS", 3)
    groups = layer_groups(nets, RUN)

    def noting(q, k, v, *, heads, backend=None):
        seen.add((Call(q.shape[0], q.shape[1], k.shape[1]), heads, q.shape[2] // heads))
        return original(q, k, v, heads=heads, backend=backend)

    original = layers.attend
    monkeypatch.setattr(layers, "attend", noting)
    monkeypatch.setattr(controls, "attend", noting)
    one_step(nets)
    planned = {(call, group.heads, group.width) for group in groups.values() for call in group.calls}
    assert set(groups) == GROUPS
    assert planned <= seen
    assert len(planned) == 2 * 7  # of each grid: ControlNets 2, self-attention and adapter, text and image, time


def test_another_prompt_ablations_and_single_branches_have_other_calls():
    def calls(nets, key, **changes):
        return set(layer_groups(nets, replace(RUN, **changes))[key].calls)

    nets = networks()
    assert Call(1, 2 * 5 * 24, 5) in calls(nets, "tokens 2x4")
    assert Call(2, 5 * 24, 5) in calls(nets, "tokens 2x4", text_rows=2)
    assert Call(1, 5 * 24, 24) in calls(nets, "self 2x4", branches=1)
    assert Call(2, 5 * 24, 24) not in calls(networks(dynamics_adapter=False), "self 2x4")
    without = networks(image_tokens=False)
    assert Call(2, 5 * 24, choice.IMAGE_TOKENS) not in calls(without, "tokens 2x4")


def test_large_calls_are_timed_in_part():
    assert Call(100, 10, 10).part(4 * 10 * 10 * 8 * 7.0, 8) == Call(7, 10, 10)
    assert Call(100, 10, 10).part(4 * 3 * 10 * 8.0, 8) == Call(1, 3, 10)
    assert Call(3, 10, 10).part(1e12, 8) == Call(3, 10, 10)


@pytest.fixture
def watch_by_hand(monkeypatch):
    """Kernels take the ms that `cost` says by (kernel, keys), else 10; `timed` counts the calls."""
    state = SimpleNamespace(now=0.0, cost={}, timed=0)

    def run(name, group, inputs):
        state.now += state.cost.get((name, inputs[1].shape[1]), 10) / 1000
        state.timed += 1
        return original(name, group, inputs)

    original = choice._attend
    monkeypatch.setattr(choice, "_attend", run)
    state.clock = lambda: state.now
    return state


def test_the_fastest_is_chosen_and_remembered(watch_by_hand, tmp_path):
    nets, path = networks(), tmp_path / "folder" / "attention.json"
    watch_by_hand.cost = {("native_math", 4): 5, ("native_math", 24): 9.5}  # over time; self-attention: no clear gain
    chosen = settle(nets, "auto", RUN, path=path, clock=watch_by_hand.clock)
    assert set(chosen) == GROUPS
    assert {key for key, name in chosen.items() if name == "native_math"} == {"time 2x4", "time 2x8"}
    for key, group in layer_groups(nets, RUN).items():
        assert all(m.processor._attention_backend == KERNELS[chosen[key]].backend for m in group.modules)
    assert in_use(nets) == chosen
    (entry,) = (value for key, value in json.loads(path.read_text()).items() if "time 2x4" in key)
    assert entry["kernel"] == "native_math"
    assert entry["ms"] == {"native": pytest.approx(10), "native_math": pytest.approx(5)}

    watch_by_hand.cost, watch_by_hand.timed = {}, 0  # what is remembered is not measured
    assert settle(networks(), "auto", RUN, path=path, clock=watch_by_hand.clock) == chosen
    assert watch_by_hand.timed == 0
    other = settle(networks(), "auto", replace(RUN, frames=3), path=path, clock=watch_by_hand.clock)
    assert watch_by_hand.timed > 0  # other shapes are
    assert set(other.values()) == {"native"}
    assert settle(networks(), "auto", RUN, path=path, clock=watch_by_hand.clock) == chosen
    path.write_text("{damaged")
    assert set(settle(networks(), "auto", RUN, path=path, clock=watch_by_hand.clock).values()) == {"native"}


def test_what_an_interrupted_run_used_is_kept_where_it_can_run(watch_by_hand, tmp_path):
    nets, path = networks(), tmp_path / "attention.json"
    kept = {**settle(nets, "auto", RUN, path=path), "time 2x4": "native_math", "self 2x8": "flex"}
    watch_by_hand.timed = 0
    assert settle(nets, "auto", RUN, kept=kept, path=path) == kept == in_use(nets)
    gone = {**kept, "time 2x4": "sage"}
    assert "sage" not in settle(nets, "auto", RUN, kept=gone, path=path).values()
    assert "flex" not in settle(nets, "auto", RUN, kept={"self 2x8": "flex"}, path=path).values()  # another model's


def test_auto_leaves_out_what_is_not_exact(watch_by_hand, tmp_path, monkeypatch):
    """Sage is no candidate where it is installed; and a kernel whose values differ is none, however fast."""
    monkeypatch.setattr(choice, "obstacle", lambda name, device, dtype: None)
    asked = set()

    def slightly_wrong(name, group, inputs):
        asked.add(name)
        watch_by_hand.now += 10 if name == "native" else 1
        out = layers.attend(*inputs, heads=group.heads)
        return out if name == "native" else out + 3e-5 * out.abs().max()

    monkeypatch.setattr(choice, "_attend", slightly_wrong)
    chosen = settle(networks(), "auto", RUN, path=tmp_path / "a.json", clock=watch_by_hand.clock)
    assert set(chosen.values()) == {"native"}
    assert "native_math" in asked
    assert not {"sage", "flex"} & asked


def test_a_kernel_that_refuses_some_head_widths_leaves_these_to_native(monkeypatch):
    original = choice._attend

    def refusing(name, group, inputs):
        if name == "flex" and group.width > 4:
            raise ValueError("head dimension 8 is not supported")
        return original(name, group, inputs)

    monkeypatch.setattr(choice, "_attend", refusing)
    chosen = settle(networks(), "flex", RUN)
    assert chosen == {key: "flex" if key.endswith("x4") else "native" for key in GROUPS}
    monkeypatch.setattr(choice, "_attend", lambda name, group, inputs: refusing(name, replace(group, width=9), inputs))
    with pytest.raises(UsageError, match=r"runs none of this model's layers on cpu .head dimension 8 is not supported"):
        settle(networks(), "flex", RUN)


@pytest.mark.parametrize("name", ["native_math", "native_flash", "flex"])
def test_named_kernels_give_the_same_noise(name):
    nets = networks()
    settle(nets, "native", RUN)
    expected = one_step(nets)
    assert set(settle(nets, name, RUN).values()) == {name}
    out = one_step(nets)
    assert float((out - expected).abs().max()) < 3e-6 * float(expected.abs().max())
    assert name != "native_math" or not torch.equal(out, expected)  # another kernel did run


def test_controlnets_use_the_chosen_kernel_too(monkeypatch):
    nets, used = networks(), set()
    settle(nets, "native_math", RUN)
    original = controls.attend

    def noting(q, k, v, *, heads, backend=None):
        used.add((backend, k.shape[1]))
        return original(q, k, v, heads=heads, backend=backend)

    monkeypatch.setattr(controls, "attend", noting)
    one_step(nets)
    assert used == {(Backend._NATIVE_MATH, keys) for keys in (24, 6, 5)}  # two grids, and the text


@pytest.mark.parametrize(
    ("name", "device", "dtype", "said"),
    [
        ("sage", "cpu", torch.float32, "the package sageattention is not installed"),
        ("flash", "cuda", torch.float16, r"the package flash-attn is not installed .pip install flash-attn."),
        (
            "xformers",
            "cuda",
            torch.float16,
            r"xformers is not installed \(.* -m pip install .*\[xformers\]",
        ),
        ("native_cudnn", "cpu", torch.float32, "CUDA GPUs alone, and the device is cpu"),
        ("native_cudnn", "cuda", torch.float32, "computes in float16 or bfloat16, and the dtype is float32"),
        ("native_flash", "cuda", torch.float32, "computes in float16 or bfloat16, and the dtype is float32"),
    ],
)
def test_what_cannot_run_is_one_sentence(name, device, dtype, said, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(UsageError, match=f"attention={name} was asked for, but .*{said}.*use auto, or one of native"):
        require_kernel(name, torch.device(device), dtype)


def test_the_dtype_that_is_asked_for_is_kept():
    """No 16-bit kernel is a candidate in float32 on a GPU, and the others are."""
    gpu = torch.device("cuda")
    assert obstacle("native_flash", gpu, torch.float32) is not None
    assert obstacle("native_flash", gpu, torch.bfloat16) is None
    assert obstacle("native_efficient", gpu, torch.float32) is None
    assert obstacle("native_flash", CPU, torch.float32) is None


def test_wrong_names():
    with pytest.raises(ConfigError, match="attention: got 'sdpa', expected one of auto, native"):
        InferConfig(attention="sdpa")
