"""`scripts/puppets.py long` on a network of nothing: what it writes, and that a second call makes nothing anew."""

import json
from pathlib import Path

import pytest
import yaml

from tests.process.runs import MICRO
from xdyna.cli import puppets
from xdyna.config.model import ModelConfig
from xdyna.core.program import run
from xdyna.pipelines.folder import save_pipeline
from xdyna.pipelines.untrained import build_pipeline
from xdyna.puppets import long


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("micro") / "pipeline"
    save_pipeline(build_pipeline(ModelConfig(**yaml.safe_load(MICRO.read_text())), seed=0), folder)
    return folder


@pytest.mark.long
def test_two_schedules_are_measured(micro, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("XDYNA_CACHE", str(tmp_path / "cache"))
    command = ["long", str(micro), "--frames", "40", "--steps", "1", "--out", str(tmp_path / "out")]
    assert run(puppets.main, command) == 0
    found = json.loads((tmp_path / "out" / "long.json").read_text())
    assert set(found["summary"]) == {"uniform", "uniform_open"}
    for name, series in found["over_time"].items():
        assert [len(series[key]) for key in ("psnr", "change", "flicker", "borders")] == [40, 39, 39, 39], name
        assert 0 < sum(series["borders"]) < 20
        row = found["summary"][name]
        assert 0 < row["psnr"] < 40
        assert row["psnr"] == pytest.approx(sum(series["psnr"]) / 40)
        assert f"{row['psnr']:.2f} | {row['first']:.2f}" in (tmp_path / "out" / "long.md").read_text()
    assert found["over_time"]["uniform"]["psnr"] != found["over_time"]["uniform_open"]["psnr"]
    monkeypatch.setattr(long, "make", None)  # calling it would fail
    assert run(puppets.main, command) == 0
    assert run(puppets.main, [*command, "--steps", "2"]) == 1
    assert "making" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clip", "64"], "--clip 64: expected 0 to 63"),
        (["--frames", "32"], "--frames 32: expected more than two windows, 32"),
        (["--schedules", "uniform,closed"], "got 'closed', expected some of uniform,uniform_open"),
    ],
)
def test_wrong_usage_is_said_before_anything_is_made(arguments, message, tmp_path, capsys) -> None:
    assert run(puppets.main, ["long", "--out", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
