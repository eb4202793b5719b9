"""A run is defined by its batch, however that is shared among processes and micro-steps; what is changed on purpose."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.process.runs import ROOT, config, given, go, weights
from tests.unit.training.processes import together
from xdyna.cli import train
from xdyna.config.train import Share, TrainConfig
from xdyna.core.errors import ConfigError
from xdyna.core.files import file_sha256
from xdyna.core.program import run
from xdyna.training import checkpoint
from xdyna.training.logs import read_metrics

PLAIN = ("batch=4", "max_steps=6", "validation.every=0", "optim.lr=3e-5")


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "share"),
    [
        (64, None, 64, Share(1, 1)),
        (64, None, 32, Share(2, 1)),
        (64, 2, 8, Share(2, 4)),
        (64, 2, 1, Share(2, 32)),
        (6, None, 4, "batch=6 cannot be shared evenly among 4 processes"),
        (2, None, 4, "batch=2 cannot be shared evenly among 4 processes"),
        (12, 4, 6, "micro_batch=4 does not divide the 2 clips"),
    ],
)
def test_share_of_a_batch(batch: int, micro: int | None, processes: int, share: Share | str) -> None:
    settings = TrainConfig(batch=batch, micro_batch=micro)
    if isinstance(share, Share):
        assert settings.share(processes) == share
        return
    with pytest.raises(ConfigError, match=share):
        settings.share(processes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, start: str) -> Path:
    """An uninterrupted run in one process."""
    folder = tmp_path_factory.mktemp("whole")
    assert go(config(folder, "whole", init=start), *PLAIN) == 0
    return folder / "whole"


def assert_same_run(folder: Path, whole: Path) -> None:
    """Weights to 1e-6; losses, by kind and timestep too, to rounding; rates exactly."""
    one, other = weights(folder), weights(whole)
    assert one.keys() == other.keys()
    apart = max(float((one[name] - other[name]).abs().max()) for name in one)
    assert apart < 1e-6
    lines, expected = (read_metrics(run / "metrics.csv") for run in (folder, whole))
    assert lines.keys() == expected.keys()
    assert lines["train/lr"] == expected["train/lr"]
    for name, points in expected.items():
        assert [step for step, _ in lines[name]] == [step for step, _ in points]
        assert [v for _, v in lines[name]] == pytest.approx([v for _, v in points], rel=1e-4), name


def test_micro_steps_change_nothing(whole: Path, start: str, tmp_path: Path) -> None:
    """Four micro-steps, then two, then one, as fewer and fewer processes would have."""
    first = load_file(Path(start) / "unet" / "diffusion_pytorch_model.safetensors")
    ended = {name.removeprefix("unet."): t for name, t in weights(whole).items() if name.startswith("unet.")}
    assert max(float((t - first[name]).abs().max()) for name, t in ended.items()) > 5e-5, "they trained"
    path = config(tmp_path, "parts", init=start)
    for micro, minutes in (("1", ["--max-minutes", "1e-9"]), ("2", ["--max-minutes", "1e-9"]), ("null", [])):
        assert go(path, "--resume", *PLAIN, f"micro_batch={micro}", *minutes) == 0
    assert_same_run(tmp_path / "parts", whole)
    assert any(not torch.equal(t, weights(whole)[name]) for name, t in weights(tmp_path / "parts").items())


def in_processes(number: int, path: Path, *more: str) -> str:
    """`scripts/train.py` in several processes. Returns: what it said, where it failed."""
    command = [str(ROOT / "scripts" / "train.py"), *given(path), "--cpu", "--resume", *PLAIN, *more]
    code, _, errors = together(command, processes=number)
    return errors[-3000:] if code else ""


@pytest.mark.slow
def test_four_processes_then_two_then_one(whole: Path, start: str, tmp_path: Path) -> None:
    path = config(tmp_path, "fewer", init=start)
    assert "batch=4 cannot be shared evenly among 3 processes" in in_processes(3, path)
    for number, more in ((4, ["--max-minutes", "1e-9"]), (2, ["--max-minutes", "1e-9"]), (1, [])):
        assert in_processes(number, path, *more) == ""
    assert_same_run(tmp_path / "fewer", whole)
    starts = json.loads((tmp_path / "fewer" / "run.json").read_text())["starts"]
    assert [s["processes"]["world_size"] for s in starts] == [4, 2, 1]
    assert [s["from"] for s in starts] == [None, "step-00000001", "step-00000002"]
    assert starts[0]["processes"]["devices"] == ["cpu"] * 4


def test_another_number_of_processes_with_replay_is_refused(
    start: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is shown again are a process's own clips."""
    path = config(tmp_path, "run", init=start)
    replay = (*PLAIN, "replay.clips=4", "--resume")
    assert go(path, *replay, "--max-minutes", "1e-9") == 0
    saved = checkpoint.find(tmp_path / "run")
    assert saved is not None
    tree = torch.load(saved / "optimizer.pt", weights_only=True)
    assert tree["extra"]["processes"] == 1
    tree["extra"]["processes"] = 2
    torch.save(tree, saved / "optimizer.pt")
    sums = (saved / "SHA256SUMS").read_text().splitlines()
    digest = file_sha256(saved / "optimizer.pt")
    sums = [f"{digest}  optimizer.pt" if line.endswith("optimizer.pt") else line for line in sums]
    (saved / "SHA256SUMS").write_text("\n".join(sums) + "\n")
    assert run(train.main, [*given(path), "--cpu", *replay]) == 1
    assert "was trained by 2 processes and this start has 1, but replay" in capsys.readouterr().err


def test_changes_on_purpose(start: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A learning rate and a batch: recorded, in force from there on, and refused without the word."""
    path = config(tmp_path, "run", init=start)
    words = [*given(path), "--cpu", "optim.schedule=constant", "optim.warmup=0", "validation.every=0"]
    assert run(train.main, [*words, "--max-minutes", "1e-9"]) == 0
    assert run(train.main, [*words, "--resume", "optim.lr=0.0005"]) == 1
    assert "--change optim.lr=0.0005" in capsys.readouterr().err
    changes = ["--change", "optim.lr=0.0005", "--change", "batch=4", "--change", "+optim.group_lr.motion=0.002"]
    assert run(train.main, [*words, "--resume", "--max-minutes", "1e-9", *changes]) == 0
    assert run(train.main, [*words, "--resume", *changes]) == 0
    rates = read_metrics(tmp_path / "run" / "metrics.csv")["train/lr"]
    assert [rate for _, rate in rates] == [1e-3] + [5e-4] * 5
    starts = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
    assert [s.get("changed", {}) for s in starts] == [
        {},
        {"batch": [2, 4], "optim.lr": [0.001, 0.0005], "optim.group_lr.motion": ["(absent)", 0.002]},
        {},
    ]
    final = json.loads((tmp_path / "run" / "final" / "training.json").read_text())
    assert final["progress"]["samples"] == 2 + 5 * 4
    tree = torch.load(checkpoint.find(tmp_path / "run") / "optimizer.pt", weights_only=True)  # type: ignore[operator]
    rates_of = {group["name"]: group["base_lr"] for group in tree["optimizer"]["param_groups"]}
    assert rates_of == {"adapter": 5e-4, "motion": 2e-3, "pose_controlnet": 5e-4}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--change", "optim.lr=1"], 2, "give --resume"),
        (["--resume", "--change", "optim.lr"], 2, "expected key=value"),
        (["--resume", "--change", "stage=face"], 1, "--change stage: the checkpoint's parameters follow from it"),
        (["--resume", "--change", "optim.name=muon"], 1, "--change optim.name"),
    ],
)
def test_changes_that_cannot_be(
    words: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(train.main, [*given(config(tmp_path, "run")), "--cpu", *words]) == code
    assert message in capsys.readouterr().err
