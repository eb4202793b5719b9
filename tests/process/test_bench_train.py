"""Time and memory of training steps: the program at a small size."""

import re
from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from tests.tiers import long
from xdyna.cli import bench
from xdyna.config.loader import compose
from xdyna.config.train import TrainConfig
from xdyna.core.program import run
from xdyna.training import bench as bench_train
from xdyna.training.plan import make_plan
from xdyna.training.trainer import Trainer

SMALL = ["model=tiny8", "data.height=64", "data.width=64", "data.frames=2", "data.stride=[1,2]", "batch=1"]
LINE = re.compile(r"^(none|selective|full) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+) GB +([\d.]+) GB$", re.M)


@pytest.fixture(autouse=True)
def accelerate_forgets() -> Iterator[None]:
    """accelerate keeps precision and accumulation for the whole process: neither other tests' nor for them."""

    def forget() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    forget()
    yield
    forget()


@pytest.mark.parametrize("config", [*long("tiny/dynamics"), "tiny/vae"])
def test_every_policy_has_its_line(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(bench.main, ["train", f"experiment={config}", "--steps", "2", "--device", "cpu", *SMALL]) == 0
    output = capsys.readouterr().out
    plan = make_plan(compose(TrainConfig, "train", [f"experiment={config}", *SMALL]).config)
    rows = {name: [float(x) for x in numbers] for name, *numbers in LINE.findall(output)}
    assert list(rows) == ["full", "selective", "none"]
    for policy, (median, least, most, rate, peak, estimate) in rows.items():
        assert 0 < least <= median <= most
        assert rate == pytest.approx(1 / median, rel=0.02)
        assert peak > 0.1, "GB of this process"
        assert estimate == pytest.approx(plan.peak(policy) / 1e9, abs=0.006)
    ratios = [float(x) for x in re.findall(r" ([\d.]+)x", output)]
    assert len(ratios) == 3
    assert min(ratios) == 1.0


@pytest.mark.long
def test_a_full_memory_is_said_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[bool] = []

    def step(trainer: Trainer, batches: object) -> dict[str, float]:
        steps.append(trainer.objective.components.unet.is_gradient_checkpointing)
        if not steps[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {}

    monkeypatch.setattr(Trainer, "step", step)
    argv = ["train", "experiment=tiny/dynamics", "--steps", "3", "--device", "cpu", *SMALL]
    assert run(bench.main, [*argv, "--policies", "none,full"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"^none +the memory of the GPU is full", output, re.M)
    assert [name for name, *_ in LINE.findall(output)] == ["full"]
    assert steps == [False] + [True] * (bench_train.WARM_UP + 3)
    assert run(bench.main, [*argv, "--policies", "none"]) == 1
    assert "no policy fits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "--steps 0: expected 1 or more"),
        (["--policies", "none,some"], "'some' is none of none, selective, full"),
        (["experiment=tiny/dynamic"], "did you mean tiny/dynamics"),
        (["optim.rate=1"], "optim.rate"),
    ],
)
def test_wrong_usage(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = run(bench.main, ["train", *options])
    except SystemExit as end:  # argparse's own
        code = end.code
    assert code == 2
    assert re.search(message, capsys.readouterr().err, re.S)
