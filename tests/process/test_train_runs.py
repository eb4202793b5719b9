"""Whole runs of `scripts/train.py` with a micro model: resume, kill, frozen weights, bad losses, several stages."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.process.runs import ROOT, build, config, given, go, losses, read, weights
from tests.tiers import long
from xdyna.cli import train
from xdyna.core.program import run
from xdyna.data.samples import Batch
from xdyna.training.errors import CheckpointError
from xdyna.training.logs import read_metrics
from xdyna.training.objective import DiffusionObjective
from xdyna.training.trainer import Trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, start: str) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    assert go(config(folder, "whole", init=start)) == 0
    return folder / "whole"


def test_what_a_run_leaves(whole: Path) -> None:
    for name in (
        "config.yaml",
        "run.json",
        "metrics.csv",
        "curves.png",
        "final/model_index.json",
        "final/training.json",
    ):
        assert (whole / name).is_file(), name
    names = {name for _, name, _ in losses(whole)}
    assert {"train/loss", "train/lr", "train/grad_norm", "val/loss", "val/psnr_figure"} <= names
    norms = [float(value) for _, name, value in losses(whole) if name == "train/grad_norm"]
    assert len(norms) == 6
    assert min(norms) > 0.01, "without gradients the tests below could not fail"
    assert sum(name.startswith("val/loss_t") for name in names) == 2
    assert list((whole / "samples").rglob("*.png"))


def test_a_finished_run_is_not_run_again(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted((p, p.stat().st_mtime_ns) for p in whole.rglob("*"))
    assert go(whole.parent / "experiment" / "whole.yaml", "--resume") == 0
    assert "finished" in capsys.readouterr().out
    assert before == sorted((p, p.stat().st_mtime_ns) for p in whole.rglob("*"))


def test_a_run_folder_is_not_overwritten(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path, "other")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("mine")
    assert run(train.main, [*given(path), "--cpu"]) == 1
    assert "not empty" in capsys.readouterr().err
    assert (tmp_path / "other" / "precious.txt").read_text() == "mine"


def test_the_average_is_handed_on_and_frozen_parts_are_as_they_were(whole: Path) -> None:
    final = load_file(whole / "final" / "unet" / "diffusion_pytorch_model.safetensors")
    average = load_file(sorted((whole / "checkpoints").glob("step-*"))[-1] / "ema.safetensors")
    trained = {name.removeprefix("unet."): t for name, t in average.items() if name.startswith("unet.")}
    assert all(torch.equal(final[name], t) for name, t in trained.items())
    fresh = build(read(whole.parent / "experiment" / "whole.yaml"))
    fresh = fresh.unet.state_dict()
    assert all(torch.equal(final[name], fresh[name]) for name in final if name not in trained)
    assert any(not torch.equal(final[name], fresh[name]) for name in trained)


def test_lines_are_means_since_the_last_one(whole: Path, start: str, tmp_path: Path) -> None:
    """Lines at 1, every four steps and the end, of a run that is stopped between them."""
    path = config(tmp_path, "curves", init=start)
    for minutes in (["--max-minutes", "1e-9"],) * 2 + ([],):
        assert go(path, "--resume", *minutes, "log_every=4", "validation.every=0") == 0
    every, lines = (read_metrics(folder / "metrics.csv") for folder in (whole, tmp_path / "curves"))
    for name in ("train/loss", "train/grad_norm"):
        values = [value for _, value in every[name]]
        assert [step for step, _ in lines[name]] == [1, 4, 6]
        expected = [values[0], sum(values[1:4]) / 3, sum(values[4:]) / 2]
        assert [value for _, value in lines[name]] == pytest.approx(expected, rel=1e-6)
    assert [value for step, value in lines["train/lr"] if step == 4] == [every["train/lr"][3][1]]
    assert lines["train/loss_scene"], "half of the clips are scenes"


def test_resume_is_exact(whole: Path, start: str, tmp_path: Path) -> None:
    """Stopped by the clock after every step, continued each time: losses and weights equal the uninterrupted run's."""
    path = config(tmp_path, "parts", init=start)
    for _ in range(6):
        assert go(path, "--resume", "--max-minutes", "1e-9") == 0
    assert (tmp_path / "parts" / "final").is_dir()
    assert losses(tmp_path / "parts") == losses(whole)
    one, other = weights(whole), weights(tmp_path / "parts")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.long
def test_a_run_of_some_minutes(start: str, tmp_path: Path) -> None:
    """It ends when its time is over, not at max_steps, and hands its weights on; its rate fell with the time."""
    path = config(tmp_path, "timed", init=start)
    more = ("minutes=0.02", "max_steps=100000", "validation.every=0", "optim.final_ratio=0")
    assert go(path, "--max-minutes", "1e-9", *more) == 0  # one step: the run is not over
    assert not (tmp_path / "timed" / "final").exists()
    assert go(path, "--resume", *more) == 0
    assert (tmp_path / "timed" / "final" / "model_index.json").is_file()
    rates = [float(value) for _, name, value in losses(tmp_path / "timed") if name == "train/lr"]
    assert 2 < len(rates) < 1000
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] < 0.5 * max(rates)


@pytest.mark.long
def test_a_run_with_replay_resumes_exactly(start: str, tmp_path: Path) -> None:
    more = ("replay.clips=4", "replay.fresh=1", "max_steps=5", "validation.every=0")
    whole, parts = (config(tmp_path, name, init=start) for name in ("all", "parts"))
    assert go(whole, *more) == 0
    for _ in range(5):
        assert go(parts, "--resume", "--max-minutes", "1e-9", *more) == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "all")
    one, other = weights(tmp_path / "all"), weights(tmp_path / "parts")
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.long
def test_killed_and_resumed(whole: Path, start: str, tmp_path: Path) -> None:
    """kill -9 somewhere in the middle of a run."""
    path = config(tmp_path, "killed", init=start)
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *given(path), "--cpu", "--resume"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "final").exists(), "it ended before it was killed"
    assert go(path, "--resume") == 0
    assert losses(tmp_path / "killed") == losses(whole)


@pytest.mark.parametrize("to", ["its group", *long("the process", "its children first")])
def test_terminated_saves_and_says_how_to_go_on(to: str, tmp_path: Path) -> None:
    """SIGTERM to the process, to it and all in its group (`timeout`, shells), or to each process of the job (Slurm)."""
    path = config(tmp_path, "term")
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *given(path), "--cpu"]
    command += ["max_steps=100000", "data.workers=2", "optim.schedule=constant", "validation.every=0"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "term").glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    if to == "its children first":
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        for child in children:
            child.terminate()
        time.sleep(0.5)  # were they gone, the run would have noticed
    (os.killpg if to == "its group" else os.kill)(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "continue with --resume" in error
    assert "Traceback" not in error


@pytest.mark.long
def test_a_damaged_latest_checkpoint(whole: Path, start: str, tmp_path: Path) -> None:
    path = config(tmp_path, "damaged", init=start)
    assert go(path, "--max-minutes", "1e-9", "save_every=1") == 0
    assert go(path, "--resume", "--max-minutes", "1e-9", "save_every=1") == 0
    newest = sorted((tmp_path / "damaged" / "checkpoints").glob("step-*"))[-1]
    data = bytearray((newest / "weights.safetensors").read_bytes())
    data[-1] ^= 255
    (newest / "weights.safetensors").write_bytes(data)
    with pytest.warns(UserWarning, match="step-0000000"):
        assert go(path, "--resume") == 0
    assert losses(tmp_path / "damaged") == losses(whole)


def test_another_configuration_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path, "run")
    assert go(path, "--max-minutes", "1e-9") == 0
    assert run(train.main, [*given(path), "--cpu", "--resume", "optim.lr=0.5"]) == 1
    assert "optim.lr" in capsys.readouterr().err


def test_a_cosine_is_not_resumed_with_another_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its rates depend on the end, so that the steps done would have been others."""
    path = config(tmp_path, "run")
    assert go(path, "--max-minutes", "1e-9") == 0
    assert run(train.main, [*given(path), "--cpu", "--resume", "max_steps=7"]) == 1
    assert "max_steps: 6 there, 7 now" in capsys.readouterr().err


def test_export_without_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path, "run")
    assert run(train.main, [*given(path), "--cpu", "--export", str(tmp_path / "pipeline")]) == 2
    assert "is no run folder; train first" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_export_of_a_run_under_way(tmp_path: Path) -> None:
    path = config(tmp_path, "run")
    assert go(path, "--max-minutes", "1e-9") == 0
    assert go(path, "--export", str(tmp_path / "pipeline")) == 0
    assert (tmp_path / "pipeline" / "model_index.json").is_file()
    assert not (tmp_path / "run" / "final").exists()


@pytest.mark.parametrize("of", ["loss", "gradient"])
def test_what_is_not_finite_ends_a_run(
    of: str, start: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1, the batch on file, and neither a checkpoint nor a pipeline with NaN in it."""
    forward = DiffusionObjective.forward

    def spoiled(self: DiffusionObjective, batch: Batch, **options: Any) -> torch.Tensor:
        losses = forward(self, batch, **options)
        if 4 not in batch.index.tolist():
            return losses
        if of == "loss":
            return losses * math.nan
        losses.register_hook(lambda gradient: gradient * math.nan)
        return losses

    monkeypatch.setattr(DiffusionObjective, "forward", spoiled)
    path = config(tmp_path, "run", init=start)
    assert run(train.main, [*given(path), "--cpu", "validation.every=0"]) == 1
    error = capsys.readouterr().err
    assert "in step 3, expected a finite number" in error
    assert [file.name for file in (tmp_path / "run" / "bad_batches").glob("*.json")] == ["step-3.json"]
    assert not (tmp_path / "run" / "final").exists()
    assert [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    assert all(bool(t.isfinite().all()) for t in weights(tmp_path / "run").values())


@pytest.mark.parametrize(
    "wrong", [["experiment=dynamic"], ["experiment=dynamics", "max_stepz=1"], ["--config", "dynamics"], []]
)
def test_usage_errors(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(train.main, wrong) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_missing_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config(tmp_path, "run", init=str(tmp_path / "nowhere"))
    assert run(train.main, [*given(path), "--cpu"]) == 2
    assert "run the stage before this one first" in capsys.readouterr().err


@pytest.mark.long
def test_all_stages_in_a_row(tmp_path: Path) -> None:
    """Each starts from what the one before handed on; the last folder animates."""
    init = "null"
    for stage in ("vae", "base", "dynamics", "face"):
        assert go(config(tmp_path, stage, stage=stage, init=init), "max_steps=2", "validation.every=2") == 0
        init = str(tmp_path / stage / "final")
    from xdyna.pipelines.folder import find_checkpoint, load_pipeline
    from xdyna.pipelines.untrained import build_untrained

    checkpoint = find_checkpoint(tmp_path / "face" / "final", build_untrained)
    pipeline = load_pipeline(checkpoint, device=torch.device("cpu"), dtype=torch.float32, face=True)
    assert pipeline.vae.config.scaling_factor != 0.18215
    assert not (tmp_path / "face" / "final" / "UNTRAINED").exists()


@pytest.mark.parametrize("line", ["appearance=reference_net", "appearance=ip_adapter", "face=landmarks", "face=none"])
def test_ablations_train_and_export(line: str, tmp_path: Path) -> None:
    assert go(config(tmp_path, "run"), line, "max_steps=1", "validation.every=1") == 0
    final = tmp_path / "run" / "final"
    assert (final / "reference_net").is_dir() == (line == "appearance=reference_net")
    assert (final / "face_controlnet").is_dir() == line.startswith("appearance=")
    unet = load_file(final / "unet" / "diffusion_pytorch_model.safetensors")
    assert any("to_q_ff" in name for name in unet) == line.startswith("face=")


def test_a_refused_resume_changes_nothing(tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = config(tmp_path, "run", init=start)
    assert go(path, "--max-minutes", "1e-9") == 0
    files = [tmp_path / "run" / name for name in ("config.yaml", "run.json")]
    before = [file.read_bytes() for file in files]

    def refuse(self: Trainer, memory: object) -> None:
        raise CheckpointError("refused")

    monkeypatch.setattr(Trainer, "_remember", refuse)
    assert go(path, "--resume", "--change", "optim.lr=5e-4") == 1
    assert [file.read_bytes() for file in files] == before
