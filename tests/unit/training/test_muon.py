from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType
from torch import Tensor, nn

from xdyna.config.train import OptimConfig, TrainConfig
from xdyna.core.errors import ConfigError
from xdyna.training.muon import Muon, is_matrix, orthogonalised
from xdyna.training.optim import build_optimizer, set_rates
from xdyna.training.trainer import Trainer


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
def test_orthogonalised_against_the_singular_value_decomposition(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape)
    found = orthogonalised(matrices).float()
    for matrix, result in zip(matrices, found, strict=True):
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        singular = torch.linalg.svdvals(result)  # only what was far from 0 is brought near 1
        assert float(singular.max()) < 1.3
        assert float(singular.sort().values[2]) > 0.6
        assert float(nn.functional.cosine_similarity(result.flatten(), (u @ vh).flatten(), dim=0)) > 0.96


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
@pytest.mark.parametrize("shape", [(16, 40), (40, 16)])
def test_steps_of_matrices_equal_those_of_pytorch(shape: tuple[int, int]) -> None:
    ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    optimizers = [
        Muon([{"params": [ours], "muon": True}], lr=0.01, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(3):
        gradient = torch.randn(shape)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    moved = (theirs - 1).detach().abs().mean()
    assert float((ours - theirs).detach().abs().mean()) < 0.02 * float(moved)  # both compute in bfloat16


def test_a_convolution_is_the_matrix_of_its_filters_and_alike_shapes_share_a_product() -> None:
    gradients = [torch.randn(8, 4, 3, 3) for _ in range(2)]
    together = [nn.Parameter(torch.zeros(8, 4, 3, 3)) for _ in gradients]
    alone = [nn.Parameter(torch.zeros(8, 36)) for _ in gradients]
    for parameter, gradient in zip(together, gradients, strict=True):
        parameter.grad = gradient.clone()
    Muon([{"params": together, "muon": True}], lr=0.01, weight_decay=0.0).step()
    for parameter, gradient in zip(alone, gradients, strict=True):
        parameter.grad = gradient.reshape(8, 36).clone()
        Muon([{"params": [parameter], "muon": True}], lr=0.01, weight_decay=0.0).step()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.reshape(8, 36), other, rtol=0.05, atol=1e-5)
        assert float(one.detach().abs().max()) > 0


def _network() -> nn.ModuleDict:
    return nn.ModuleDict({"conv": nn.Conv2d(3, 8, 3), "linear": nn.Linear(8, 12), "out": nn.Linear(12, 3)})


def _gradients(network: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_vectors_and_thin_matrices_are_stepped_by_adamw() -> None:
    network, reference = _network(), _network()
    reference.load_state_dict(network.state_dict())
    config = OptimConfig(name="muon", lr=1e-2, weight_decay=0.02)
    mixed = build_optimizer({"unet": dict(network.named_parameters())}, config)
    plain = build_optimizer({"unet": dict(reference.named_parameters())}, OptimConfig(lr=1e-2, weight_decay=0.02))
    assert {group["name"] for group in mixed.param_groups} == {"unet"}
    for seed in range(3):
        for net, optimizer in ((network, mixed), (reference, plain)):
            _gradients(net, seed)
            set_rates(optimizer, 0.5)
            optimizer.step()
    expected = dict(reference.named_parameters())
    for name, parameter in network.named_parameters():
        same = torch.allclose(parameter, expected[name], atol=1e-7)
        assert same == (not is_matrix(parameter)), name
    assert not is_matrix(network["out"].weight)
    assert is_matrix(network["linear"].weight)


def test_its_state_goes_through_a_checkpoint() -> None:
    def run(steps: list[int], state: dict | None, weights: dict[str, Tensor]) -> tuple[dict, dict[str, Tensor]]:
        network = _network()
        network.load_state_dict(weights)
        optimizer = build_optimizer({"unet": dict(network.named_parameters())}, OptimConfig(name="muon", lr=1e-2))
        if state is not None:
            optimizer.load_state_dict(state)
        for seed in steps:
            _gradients(network, seed)
            optimizer.step()
        return optimizer.state_dict(), {name: w.clone() for name, w in network.state_dict().items()}

    start = _network().state_dict()
    _, whole = run([0, 1, 2, 3], None, start)
    state, half = run([0, 1], None, start)
    _, resumed = run([2, 3], state, half)
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_divided_matrices_are_refused(kind: DistributedType) -> None:
    config, accelerator = TrainConfig(optim=OptimConfig(name="muon")), SimpleNamespace(distributed_type=kind)
    with pytest.raises(ConfigError, match=r"optim\.name=muon needs whole matrices"):
        Trainer(config, None, {}, accelerator=accelerator, run_dir=Path())  # type: ignore[arg-type]
