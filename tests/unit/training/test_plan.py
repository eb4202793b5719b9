"""The plan of a run: published counts; saved bytes against arithmetic and against what the allocator says."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.tiers import long
from xdyna.config.data import DataConfig
from xdyna.config.loader import load_model
from xdyna.config.train import OptimConfig, TrainConfig
from xdyna.training import plan as planning
from xdyna.training.optim import build_optimizer
from xdyna.training.plan import SavedBytes, describe, make_plan

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def config_of(name: str, **changes) -> TrainConfig:
    data = {"height": 896, "width": 512} if name == "sd15" else {"height": 128, "width": 128}
    model = load_model(name)
    return TrainConfig(model=model, data=DataConfig(**data, frames=16), **changes)


@pytest.fixture(scope="module")
def full_size() -> planning.Plan:
    return make_plan(config_of("sd15", precision="bf16"))


def test_trainable_counts_are_the_papers(full_size):
    """X-Dyna: 417 M motion modules, 25 M adapter, 361 M pose ControlNet."""
    assert set(full_size.trainable) == {"motion", "adapter", "pose_controlnet"}
    assert full_size.trainable["motion"] == pytest.approx(417e6, rel=0.01)
    assert full_size.trainable["adapter"] == pytest.approx(25e6, rel=0.01)
    assert full_size.trainable["pose_controlnet"] == pytest.approx(361e6, rel=0.01)
    published = 1321.5e6 + 361.3e6 + 29.9e6 + 83_653_863 + 123_060_480 + 632_076_800  # with VAE, CLIP text and image
    positions = 1321.5e6 - 1321.3e6  # the file's position tables are no parameters
    assert full_size.frozen + sum(full_size.trainable.values()) == pytest.approx(published - positions, rel=1e-3)


@pytest.mark.long
def test_state_is_bytes_per_value(full_size):
    trained = sum(full_size.trainable.values())
    assert full_size.weights == 4 * (trained + full_size.frozen)
    assert (full_size.gradients, full_size.optimizer, full_size.ema) == (4 * trained, 8 * trained, 4 * trained)
    lean = make_plan(config_of("tiny", optim=OptimConfig(name="adamw8bit", ema=0)))
    assert (lean.optimizer, lean.ema) == (2 * sum(lean.trainable.values()), 0)
    assert lean.peak("full") == lean.state + lean.activations["full"].saved + lean.activations["full"].layer


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_optimizers_state_is_what_it_holds_after_a_step(name):
    """Counted on a real optimizer of tiny's ControlNet; its counters of steps (4 bytes a tensor) are left out."""
    config = config_of("tiny8", optim=OptimConfig(name=name))
    net = planning.sized_components(config, device="cpu").pose_controlnet
    groups = {"pose_controlnet": dict(net.named_parameters())}
    optimizer = build_optimizer(groups, config.optim, fused=False)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor) and t.ndim]
    assert planning._optimizer_bytes(name, groups) == sum(t.nbytes for t in kept)


def test_checkpointing_shrinks_activations(full_size):
    none, selective, full = (full_size.activations[p] for p in ("none", "selective", "full"))
    assert full.saved < 0.1 * none.saved
    assert full.saved < selective.saved < 0.6 * none.saved
    assert none.layer == 0 < full.layer < 0.1 * none.saved


@pytest.mark.long
def test_full_size_unet_in_half_precision():
    """Independent count for the UNet alone, all of it trained, in 16 bit: 52.8 GB, with per-layer checkpointing 3.4."""
    with torch.device("meta"):
        config = config_of("sd15")
        unet = planning.sized_components(config).unet.to(torch.bfloat16)
        half = {"dtype": torch.bfloat16}
        inputs = (torch.empty(1, 4, 17, 112, 64, **half), torch.empty(1, **half))
        tokens = (torch.empty(1, 77, 768, **half), torch.empty(1, 16, 768, **half))
    for policy, expected in (("none", 52.8e9), ("full", 3.4e9)):
        planning.set_checkpointing(unet, [], policy)
        saved = SavedBytes(unet.parameters())
        with torch.device("meta"), planning._AsOnGPU(torch.float32), saved.counting():
            out = unet(*inputs, *tokens)
        print(f"{policy}: {saved.total / 1e9:.1f} GB")
        assert saved.total == pytest.approx(expected, rel=0.07), policy
        del out


def test_saved_bytes_by_arithmetic():
    """LayerNorm -> Linear -> GELU in bfloat16: what PyTorch's formulas keep, counted by hand."""
    rows, width = 6, 8
    with torch.device("meta"):
        norm, linear = torch.nn.LayerNorm(width), torch.nn.Linear(width, width)
        x = torch.empty(rows, width, requires_grad=True)
    saved = SavedBytes(t for m in (norm, linear) for t in m.parameters())
    with planning._AsOnGPU(torch.bfloat16), saved.counting():
        hidden = linear(norm(x))
        out = F.gelu(hidden)
    assert hidden.dtype == out.dtype == torch.bfloat16
    x_and_statistics = 4 * rows * width + 2 * 4 * rows
    linear_in_16_bit = 2 * rows * width + 2 * width * width
    assert saved.total == x_and_statistics + linear_in_16_bit + 2 * rows * width
    frozen = SavedBytes(t for m in (norm, linear) for t in m.parameters())
    with planning._AsOnGPU(torch.float32), frozen.counting():
        again = linear.requires_grad_(False)(x)
    assert frozen.total == 0  # a frozen layer keeps its weight alone, which is no activation
    del again


def test_attention_keeps_no_map():
    q = torch.empty(1, 2, 64, 16, device="meta", requires_grad=True)
    saved = SavedBytes(iter([q]))
    with planning._AsOnGPU(torch.float32), saved.counting():
        out = F.scaled_dot_product_attention(q, q, q)
    assert out.shape == q.shape
    assert 4 * 64 * 16 * 2 <= saved.total < 4 * 64 * 16 * 2 + 4 * 64 * 2 + 64  # output and log-sum-exp, not 64 x 64


def test_meta_count_is_what_the_allocator_holds():
    """The tiny UNet for real, on the CPU: bytes alive after the forward pass, by PyTorch's memory profiler."""
    unet = planning.sized_components(config_of("tiny")).unet
    real = unet.to_empty(device="cpu")
    for parameter in real.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    arguments = (torch.randn(1, 4, 5, 16, 16), torch.zeros(1), torch.randn(1, 77, 64), torch.randn(1, 16, 64))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        out = real(*arguments)
    events = profile.profiler.kineto_results.events()
    alive = sum(event.nbytes() for event in events if event.name() == "[memory]")
    meta = real.to("meta")
    expected = SavedBytes(meta.parameters())
    with torch.device("meta"), planning._AsOnGPU(torch.float32), expected.counting():
        again = meta(*(x.to("meta") for x in arguments))
    assert expected.total == pytest.approx(alive, rel=0.02)
    del out, again


@pytest.mark.parametrize(
    ("stage", "appearance", "groups"),
    [
        ("vae", "dynamics_adapter", {"vae_encoder", "vae_decoder"}),
        *long(
            ("base", "dynamics_adapter", {"unet", "image_encoder", "resampler"}),
            ("dynamics", "reference_net", {"reference_net", "motion", "pose_controlnet"}),
            ("dynamics", "ip_adapter", {"motion", "pose_controlnet"}),
            ("face", "dynamics_adapter", {"face_controlnet"}),
        ),
    ],
)
def test_every_stage_has_a_plan(stage, appearance, groups):
    config = config_of("tiny", stage=stage, appearance=appearance, checkpointing="full", batch=2)
    plan = make_plan(config)
    assert set(plan.trainable) == groups
    assert 0 < plan.activations["full"].saved <= plan.activations["none"].saved
    if stage == "face":
        single = make_plan(config_of("tiny", stage=stage, appearance=appearance))
        assert plan.activations["none"].saved == pytest.approx(2 * single.activations["none"].saved, rel=0.05)


def test_the_table(full_size, monkeypatch):
    monkeypatch.setattr(planning, "make_plan", lambda _: full_size)
    text = describe(config_of("sd15", precision="bf16", checkpointing="selective"))
    assert "motion                417.14 M" in text
    assert "1 x (1 + 16) frames of 896 x 512 px, precision bf16" in text
    marked = [line for line in text.splitlines() if "<- this run" in line]
    assert len(marked) == 1
    assert marked[0].split()[0] == "selective"
    assert f"{full_size.peak('selective') / 1e9:.2f} GB" in marked[0]
