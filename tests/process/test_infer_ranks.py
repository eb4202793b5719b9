"""`scripts/infer.py` in several processes: one video together, a list of videos apart, and how they end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.process.runs import ROOT
from tests.process.small import standing_figure
from tests.unit.training.processes import environments, together
from xdyna.pipelines.animate import Frames

FRAMES = 13  # of windows of 4 with an overlap of 1: five windows, or one of 16


def infer(checkpoint: Path, media: Path, folder: Path, *more: str, processes: int) -> tuple[int, str, str]:
    standing_figure(frames=FRAMES).save(folder / "driving.npz", overwrite=True)
    command = [
        ROOT / "scripts" / "infer.py", "--checkpoint", checkpoint, "--steps", "2", "--save", "ffv1", "--device", "cpu",
        "--ref", media / "ref.png", "--drive", folder / "driving.npz", *more,
    ]  # fmt: skip
    if "--batch" in more:
        command = [ROOT / "scripts" / "infer.py", "--checkpoint", checkpoint, "--steps", "2", *more]
    return together([str(word) for word in command], processes=processes, timeout=120)


@pytest.mark.long
def test_processes_make_the_video_of_one(checkpoint, media, tmp_path, monkeypatch) -> None:
    """Five windows for two; one window for three, so that the branches are shared."""
    monkeypatch.setenv("XDYNA_CACHE", str(tmp_path / "cache"))
    for name, sizes in {"many": ["context_frames=4", "context_overlap=1"], "one": ["context_frames=16"]}.items():
        made = {}
        for processes in (1, 2) if name == "many" else (1, 3):
            out = tmp_path / f"{name}-{processes}.mkv"
            code, told, errors = infer(checkpoint, media, tmp_path, "--out", str(out), *sizes, processes=processes)
            assert code == 0, told + errors
            made[processes] = Frames(out).numpy().astype(int)
            assert json.loads(out.with_suffix(".run.json").read_text())["processes"] == processes
        alone, shared = made.values()
        assert alone.shape == shared.shape == (FRAMES, 32, 32, 3)
        assert np.abs(alone - shared).max() <= (0 if name == "many" else 1)


@pytest.mark.long
def test_a_process_that_fails_ends_all_with_one_message(checkpoint, media, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDYNA_CACHE", str(tmp_path / "cache"))
    start = time.monotonic()
    code, told, errors = infer(checkpoint, media, tmp_path, "--steps", "1000", "--out", "x.mkv", processes=2)
    assert code == 1
    assert (told + errors).count("1000 steps are more than this checkpoint's scheduler has") == 1
    assert "another process" not in told + errors
    assert time.monotonic() - start < 300  # the others would wait for hours


@pytest.mark.long
def test_a_list_is_shared_by_video(checkpoint, media, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDYNA_CACHE", str(tmp_path / "cache"))
    entry = {"ref": str(media / "ref.png"), "drive": str(media / "driving.npz")}
    pairs = [{**entry, "out": str(tmp_path / f"{number}.mp4")} for number in range(3)]
    (tmp_path / "pairs.json").write_text(json.dumps([*pairs, {**entry, "ref": "missing.png"}]))
    code, told, errors = infer(checkpoint, media, tmp_path, "--batch", str(tmp_path / "pairs.json"), processes=2)
    assert code == 1, errors
    assert told.count("3 of 4 animations made") == 1
    assert errors.count("missing.png: no such file") == 1
    assert len({(tmp_path / f"{number}.mp4").read_bytes() for number in range(3)}) == 1


@pytest.mark.long
def test_a_list_outlives_a_process_that_is_killed(checkpoint, media, tmp_path, monkeypatch) -> None:
    """The other one makes all that the killed one had not begun, and ends; the same command makes what is missing."""
    monkeypatch.setenv("XDYNA_CACHE", str(tmp_path / "cache"))
    standing_figure(frames=FRAMES).save(tmp_path / "driving.npz")
    entry = {"ref": str(media / "ref.png"), "drive": str(tmp_path / "driving.npz")}
    names = [tmp_path / f"{number}.mp4" for number in range(4)]
    (tmp_path / "pairs.json").write_text(json.dumps([{**entry, "out": str(name)} for name in names]))
    command = [sys.executable, ROOT / "scripts" / "infer.py", "--checkpoint", checkpoint, "--steps", "40"]
    command += ["--batch", tmp_path / "pairs.json"]
    logs = [tmp_path / f"{rank}.txt" for rank in range(2)]
    running = []
    for environment, log in zip(environments(2), logs, strict=True):
        environment["PYTHONUNBUFFERED"] = "1"
        with log.open("w") as file:
            running.append(subprocess.Popen([str(c) for c in command], env=environment, stdout=file, stderr=file))
    try:
        while not list(tmp_path.glob(".*.lock")) or "/4] " not in logs[1].read_text():
            assert all(process.poll() is None for process in running), [log.read_text() for log in logs]
            time.sleep(0.02)
        while "denoising" not in logs[1].read_text():
            time.sleep(0.02)
        os.kill(running[1].pid, signal.SIGKILL)
        assert running[0].wait(300) == 1
    finally:
        for process in running:
            process.kill()
            process.wait()
    told = logs[0].read_text()
    assert told.count("another process of this run ended") == 1, told
    assert "Traceback" not in told
    made = [name for name in names if name.exists()]
    assert len(made) == 3
    before = {name: name.stat().st_mtime_ns for name in made}
    assert subprocess.run([str(c) for c in command], capture_output=True, timeout=300).returncode == 0
    assert {name: name.stat().st_mtime_ns for name in made} == before
    assert len({name.read_bytes() for name in names}) == 1
