"""`scripts/bench.py modes`: every mode on the same clip, of a checkpoint or of random weights."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.process.small import SMALL
from xdyna.cli import bench
from xdyna.core.program import run
from xdyna.pipelines import bench_modes
from xdyna.pipelines.xdyna import XDynaPipeline


def test_modes_of_random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of their layers is zero, as output layers are at first: all that is left out would be seen."""
    sizes = replace(SMALL, unet={**SMALL.unet, "sample_size": [8, 8]})
    monkeypatch.setattr(bench_modes, "load_model", lambda name: {"proxy": sizes}[name])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    save = bench_modes.save_pipeline

    def noting(pipeline: XDynaPipeline, *args: Any, **kwargs: Any) -> None:
        nets = (pipeline.unet, pipeline.pose_controlnet, pipeline.face_controlnet)
        assert all(parameter.any() for net in nets for parameter in net.parameters())
        save(pipeline, *args, **kwargs)

    monkeypatch.setattr(bench_modes, "save_pipeline", noting)
    words = ["frames=2", "pairs=1", "device=cpu", "dtype=float32", f"out={tmp_path / 'out'}"]
    assert run(bench.main, ["modes", "--random", "proxy", *words]) == 0
    made = json.loads((tmp_path / "out" / "modes.json").read_text())
    assert made["checkpoint"] == "random weights, proxy"
    assert [row["mode"] for row in made["modes"]] == ["exact", "fast", "preview", "lowmem"]
    exact, fast, preview, lowmem = made["modes"]
    assert (exact["of_exact"], exact["psnr_to_exact"]) == (1, None)
    assert fast["psnr_to_exact"] < 60 < lowmem["psnr_to_exact"]
    assert preview["psnr_to_exact"] < 60
    assert all(row["seconds"] > 0 and row["tensor_bytes"] > 0 for row in made["modes"])
    assert list((tmp_path / "temporary").iterdir()) == []
