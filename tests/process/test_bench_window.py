"""`scripts/bench.py window`: what a window-step costs, in several ways."""

import json
from pathlib import Path

import torch

from xdyna.config.loader import load_model
from xdyna.core.program import run
from xdyna.pipelines.bench_window import window_steps


def test_rows_and_the_same_prediction_by_both_ways(tmp_path: Path) -> None:
    """One run of the ControlNets serves both branches: fewer FLOPs, the same numbers."""
    file = tmp_path / "rows.json"
    words = ["window", "--sizes", "tiny", "--ways", "naive,eager", "--json", str(file), "device=cpu", "pairs=1"]
    assert run("xdyna.cli.bench", [*words, "frames=2", "height=64", "width=64"]) == 0
    naive, eager = json.loads(file.read_text())
    assert (naive["way"], eager["way"], len(eager["ms"])) == ("naive", "eager", 1)
    assert 0 < eager["tflop"] < naive["tflop"]
    with torch.no_grad():
        steps = window_steps(
            load_model("tiny"), frames=2, size=(64, 64), device=torch.device("cpu"), dtype=torch.float32
        )
        first, second = steps.naive(), steps.eager()
    assert first.shape == (2, 4, 2, 16, 16)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
