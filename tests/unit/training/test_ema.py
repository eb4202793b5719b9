import pytest
import torch
from torch import nn

from xdyna.training.ema import EMA, ema_decay
from xdyna.training.errors import TrainingError


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (3, 2), "b": (5,)}
    return {n: nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for n, s in shapes.items()}


def set_all(named: dict[str, nn.Parameter], value: float) -> None:
    with torch.no_grad():
        for parameter in named.values():
            parameter.fill_(value)


def test_warmup() -> None:
    """(1 + t) / (10 + t) at some places; it reaches 0.9 at t = 80."""
    got = [ema_decay(t, decay=0.9, warmup=True) for t in (1, 9, 79, 80, 10**6)]
    assert got == pytest.approx([2 / 11, 10 / 19, 80 / 89, 0.9, 0.9])
    assert ema_decay(1, decay=0.9, warmup=False) == 0.9


def test_step_response() -> None:
    """From 0, with the parameters held at 1, the average after n updates is 1 - decay^n."""
    named = parameters()
    set_all(named, 0.0)
    ema = EMA(named, decay=0.9, warmup=False)
    set_all(named, 1.0)
    for n in range(1, 31):
        ema.update(n)
        torch.testing.assert_close(ema.state_dict()["a"], torch.full((3, 2), 1 - 0.9**n), rtol=1e-6, atol=1e-6)


def test_weights_of_the_past_with_warmup() -> None:
    """Against the explicit sum in double precision: each value has weight (1 - d_i) * product of the later d."""
    named = parameters(torch.bfloat16)
    ema = EMA(named, decay=0.8, warmup=True)
    past = [named["b"].detach().double()]
    for t in range(1, 41):
        set_all(named, t % 7 / 3)
        past.append(named["b"].detach().double())
        ema.update(t)
    decays = [min(0.8, (1 + t) / (10 + t)) for t in range(1, 41)]
    expected = torch.zeros(5, dtype=torch.float64)
    for i, value in enumerate(past):
        weight = 1.0 if i == 0 else 1 - decays[i - 1]
        for decay in decays[i:]:
            weight *= decay
        expected += weight * value
    average = ema.state_dict()["b"]
    assert average.dtype == torch.float32
    torch.testing.assert_close(average.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_applied_and_taken_back_exactly(dtype: torch.dtype) -> None:
    named = parameters(dtype)
    before = {name: parameter.detach().clone() for name, parameter in named.items()}
    ema = EMA(named, decay=0.5, warmup=False)
    ema.state_dict()["a"].fill_(7.1)
    addresses = [parameter.data_ptr() for parameter in named.values()]
    with pytest.raises(KeyError), ema.applied():  # noqa: PT012
        assert bool((named["a"] == torch.tensor(7.1).to(dtype)).all())
        assert (named["b"] * 2).requires_grad, "validation may need gradients"
        raise KeyError
    for name, parameter in named.items():
        assert torch.equal(parameter, before[name])
    assert [parameter.data_ptr() for parameter in named.values()] == addresses, "optimizers and DDP hold these"
    assert bool((ema.state_dict()["a"] == 7.1).all())


def test_misuse_while_applied() -> None:
    ema = EMA(parameters(), decay=0.5, warmup=False)
    with ema.applied():
        with pytest.raises(AssertionError):
            ema.update(1)
        with pytest.raises(AssertionError), ema.applied():
            pass


def test_state_comes_back() -> None:
    named = parameters()
    ema = EMA(named, decay=0.9, warmup=True)
    set_all(named, 2.0)
    ema.update(1)
    stored = {name: tensor.clone() for name, tensor in ema.state_dict().items()}
    other = EMA(parameters(), decay=0.9, warmup=True)
    other.load_state_dict(stored)
    other.to(torch.device("cpu"))
    stored["a"].zero_()  # the average is a copy
    assert torch.equal(other.state_dict()["a"], ema.state_dict()["a"])


def test_state_of_another_model() -> None:
    ema = EMA(parameters(), decay=0.9, warmup=True)
    before = ema.state_dict()["a"].clone()
    wrong = {"a": torch.zeros(3, 2), "c": torch.zeros(1)}
    with pytest.raises(TrainingError, match=r"2 names differ: b: absent, expected \(5,\); c: \(1,\), expected absent"):
        ema.load_state_dict(wrong)
    assert torch.equal(ema.state_dict()["a"], before)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0, float("nan")])
def test_decay_out_of_range(decay: float) -> None:
    with pytest.raises(TrainingError, match="expected 0 <= decay < 1"):
        EMA(parameters(), decay=decay, warmup=False)


def test_nothing_to_average() -> None:
    with pytest.raises(TrainingError, match="no parameters"):
        EMA({}, decay=0.9, warmup=False)
