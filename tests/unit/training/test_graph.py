"""Steps as CUDA graphs: equal to plain ones (on a GPU), and refused where they cannot be."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from xdyna.config.data import DataConfig
from xdyna.config.train import OptimConfig, ReplayConfig, TrainConfig
from xdyna.core.errors import ConfigError
from xdyna.data.samples import Batch
from xdyna.training.components import Components
from xdyna.training.graph import make_capturable
from xdyna.training.groups import select_trainable
from xdyna.training.objective import DiffusionObjective
from xdyna.training.optim import build_optimizer, set_rates
from xdyna.training.trainer import Trainer

SETTINGS = {"stage": "face", "cuda_graph": True, "replay": ReplayConfig(clips=8, fresh=1)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stage": "vae"}, "stage=vae has none"),
        ({"train": ["motion", "resampler"]}, "must be frozen"),
        ({"replay": ReplayConfig()}, r"replay\.clips above 0"),
        ({"batch": 2, "micro_batch": 1}, "micro_batch=1 adds gradients up"),
        ({"precision": "fp16"}, "use bf16"),
        (
            {"data": DataConfig(source="footage", manifests=["a"], buckets=[[64, 64], [64, 128]])},
            "several sizes",
        ),
    ],
)
def test_refused(wrong: dict[str, object], message: str) -> None:
    TrainConfig(**SETTINGS)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**{**SETTINGS, **wrong})  # type: ignore[arg-type]


def test_rates_that_a_graph_reads_anew() -> None:
    """The same tensor keeps holding the rate; undone, an optimizer is as it was."""
    parameter = nn.Parameter(torch.ones(8, 8))
    optimizer = build_optimizer({"motion": {"p": parameter}}, OptimConfig(lr=0.5, weight_decay=0.0), fused=False)
    make_capturable(optimizer, torch.device("cpu"))
    rate = optimizer.param_groups[0]["lr"]
    set_rates(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == 0.125
    make_capturable(optimizer, None)
    assert optimizer.param_groups[0]["lr"] == 0.125
    parameter.grad = torch.ones(8, 8)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.full((8, 8), 0.875))


@pytest.mark.parametrize("name", ["muon", "adamw"])
@pytest.mark.gpu
def test_equal_to_plain_steps(
    components: Components, make_batch: Callable[..., Batch], tmp_path: Path, name: str
) -> None:
    """Ten steps with changing batches, rates and warm-up, by losses, gradient norms and weights."""
    generator = torch.Generator().manual_seed(1)
    for module in components.modules().values():
        for p in module.parameters():
            if not p.any():
                p.data = 0.1 * torch.randn(p.shape, generator=generator)
    start = {key: value.clone() for key, value in components.unet.state_dict().items()}
    results = []
    for graph in (False, True):
        components.unet.load_state_dict(start)
        config = TrainConfig(
            **{**SETTINGS, "cuda_graph": graph},  # type: ignore[arg-type]
            batch=2,
            optim=OptimConfig(name=name, lr=1e-3, warmup=5, ema=0.9),
        )
        groups = select_trainable(components, ["motion", "adapter"])
        objective = DiffusionObjective(components, config.loss, seed=1, face=True)
        trainer = Trainer(config, objective, groups, accelerator=Accelerator(), run_dir=tmp_path)
        assert (trainer.graph is not None) == graph
        values = []
        for step in range(10):
            batch = trainer._prepare(make_batch([2 * step, 2 * step + 1]))
            values.append(trainer.step(iter([batch])))
            trainer.progress.step += 1
        results.append((values, {key: p.detach().clone() for key, p in trainer.parameters.items()}))
    (plain, weights), (graphed, others) = results
    for ours, expected in zip(graphed, plain, strict=True):
        assert ours["lr"] == pytest.approx(expected["lr"])
        assert ours["loss"] == pytest.approx(expected["loss"], rel=1e-3)
        assert ours["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-2)
    moved = max(float((p - start[key.removeprefix("unet.")].to(p)).abs().max()) for key, p in weights.items())
    apart = max(float((others[key] - p).abs().max()) for key, p in weights.items())
    assert apart < 0.05 * moved


def test_without_a_gpu_the_setting_has_no_effect(
    components: Components, make_batch: Callable[..., Batch], tmp_path: Path
) -> None:
    config = TrainConfig(**SETTINGS)  # type: ignore[arg-type]
    groups = select_trainable(components, ["motion"])
    objective = DiffusionObjective(components, config.loss, seed=1, face=True)
    trainer = Trainer(config, objective, groups, accelerator=Accelerator(cpu=True), run_dir=tmp_path)
    assert trainer.graph is None
    assert trainer.step(iter([make_batch([1])]))["loss"] > 0
