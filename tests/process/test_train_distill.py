"""Runs of stage `distill` with a micro model: resume, kill -9, and what they hand on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers import LCMScheduler
from safetensors.torch import load_file

from tests.process.runs import ROOT, config, given, go, losses, weights
from xdyna.cli import train
from xdyna.config.contract import read_contract
from xdyna.config.infer import InferConfig
from xdyna.core.program import run
from xdyna.pipelines.model import load

SHAPE = (
    "data.frames=3",
    "lora_rank=2",
    "loss.distill.points=4",
    "loss.distill.windows=0.5",
    "loss.distill.window_frames=2",
    "loss.distill.held_frames=1",
    "guidance=3",  # of the teacher's folder, not of the result
)


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory, start: str) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("distilled")
    assert go(config(folder, "run", stage="distill", init=start), *SHAPE) == 0
    return folder / "run"


def test_what_is_handed_on(distilled: Path, start: str) -> None:
    """A folder that is sampled in few steps by itself, and a LoRA that makes the teacher the same."""
    final, contract = distilled / "final", read_contract(distilled / "final")
    assert (contract.steps, contract.guidance, contract.frames) == (4, 1.0, read_contract(Path(start)).frames or 3)
    assert json.loads((final / "training.json").read_text())["stage"] == "distill"
    student = load(final).pipeline
    assert isinstance(student.scheduler, LCMScheduler)
    settings = InferConfig(lora=[str(final / "lora.safetensors")], scheduler="lcm")
    teacher, plain = load(start, settings).pipeline, load(start).pipeline
    assert type(teacher.scheduler) is LCMScheduler
    x, text, image = torch.randn(1, 4, 3, 8, 8), torch.randn(1, 77, 16), torch.randn(1, 4, 16)
    with torch.no_grad():
        one, other, before = (p.unet(x, 500, text, image).sample for p in (student, teacher, plain))
    torch.testing.assert_close(other, one, rtol=1e-2, atol=1e-3)
    assert float((before - one).abs().max()) > 3 * float((other - one).abs().max())
    trained = load_file(sorted((distilled / "checkpoints").glob("step-*"))[-1] / "weights.safetensors")
    assert trained
    assert all(".lora_" in name for name in trained)


def test_resume_is_exact(distilled: Path, start: str, tmp_path: Path) -> None:
    path = config(tmp_path, "parts", stage="distill", init=start)
    for _ in range(3):
        assert go(path, "--resume", "--max-minutes", "1e-9", *SHAPE) == 0
    assert go(path, "--resume", *SHAPE) == 0
    assert losses(tmp_path / "parts") == losses(distilled)
    one, other = weights(distilled), weights(tmp_path / "parts")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.long
def test_killed_and_resumed(distilled: Path, start: str, tmp_path: Path) -> None:
    path = config(tmp_path, "killed", stage="distill", init=start)
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *given(path), "--cpu", "--resume", *SHAPE]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "final").exists(), "it ended before it was killed"
    assert go(path, "--resume", *SHAPE) == 0
    assert losses(tmp_path / "killed") == losses(distilled)
    one, other = weights(distilled), weights(tmp_path / "killed")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_teacher_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(train.main, [*given(config(tmp_path, "run", stage="distill")), "--cpu"]) == 2
    assert "stage=distill needs a teacher; give init=FOLDER" in capsys.readouterr().err
