"""Learning rates and optimizers."""

import importlib.util

import pytest
import torch
from diffusers.optimization import get_scheduler
from torch import nn

from xdyna.config.train import OptimConfig
from xdyna.core.errors import ConfigError
from xdyna.training.optim import build_optimizer, rate_factor, set_rates


@pytest.mark.parametrize("name", ["constant", "cosine"])
def test_rates_against_diffusers(name: str) -> None:
    config = OptimConfig(schedule=name, warmup=10, final_ratio=0.0)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(
        "cosine" if name == "cosine" else "constant_with_warmup", optimizer, num_warmup_steps=10, num_training_steps=100
    )
    for step in range(100):
        optimizer.step()
        # Their first step has rate 0, ours begins one later in the warm-up.
        expected = theirs.get_last_lr()[0] if step >= 10 else (step + 1) / 10
        assert rate_factor(step, config, max_steps=100) == pytest.approx(expected, abs=1e-9)
        theirs.step()


def test_cosine_ends_at_the_final_ratio() -> None:
    config = OptimConfig(schedule="cosine", warmup=0, final_ratio=0.1)
    assert rate_factor(1000, config, max_steps=1000) == pytest.approx(0.1)
    assert rate_factor(5000, config, max_steps=1000) == pytest.approx(0.1)


def test_each_group_has_its_rate() -> None:
    groups = {"adapter": {"a": nn.Parameter(torch.zeros(2))}, "motion": {"b": nn.Parameter(torch.zeros(3))}}
    optimizer = build_optimizer(groups, OptimConfig(lr=1e-3, group_lr={"motion": 1e-2}))
    set_rates(optimizer, 0.5)
    assert {g["name"]: g["lr"] for g in optimizer.param_groups} == {"adapter": 5e-4, "motion": 5e-3}


def test_a_rate_for_a_group_that_does_not_train() -> None:
    with pytest.raises(ConfigError, match="motion does not train here; groups: adapter"):
        build_optimizer({"adapter": {"a": nn.Parameter(torch.zeros(2))}}, OptimConfig(group_lr={"motion": 1e-2}))


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_8_bit_adam_without_its_package() -> None:
    with pytest.raises(ConfigError, match="pip install bitsandbytes"):
        build_optimizer({"adapter": {"a": nn.Parameter(torch.zeros(2))}}, OptimConfig(name="adamw8bit"))


def test_rate_of_a_run_that_time_limits() -> None:
    config = OptimConfig(schedule="cosine", warmup=10, final_ratio=0.1)
    for share, expected in ((0.0, 1.0), (0.5, 0.55), (1.0, 0.1), (2.0, 0.1)):
        assert rate_factor(10, config, max_steps=10**6, share=share) == pytest.approx(expected, abs=1e-4)
    assert rate_factor(4, config, max_steps=10**6, share=0.5) == 0.5  # still warming up
    half = rate_factor(60, config, max_steps=110, share=0.1)
    assert half == pytest.approx(0.55)  # whichever is further
