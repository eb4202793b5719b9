"""The evaluation of the tiny model, with a smaller one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.process.small import SMALL
from xdyna.config.loader import compose
from xdyna.core.program import FAILURE, run
from xdyna.core.resources import resource
from xdyna.evaluation.masks import Masker
from xdyna.media.image import read_image
from xdyna.pipelines.folder import save_pipeline
from xdyna.pipelines.untrained import build_pipeline
from xdyna.puppets import eval_tiny
from xdyna.puppets import evaluate as puppet_eval
from xdyna.puppets.eval_tiny import ROOT_CONFIG, ROWS, TinyEvalConfig
from xdyna.puppets.evaluate import PuppetNets, puppet_metrics
from xdyna.puppets.heldout import load_held_out, self_driven
from xdyna.puppets.variants import Bench

MODEL = replace(SMALL, unet={**SMALL.unet, "sample_size": [8, 8]})
METRICS = "metrics=[psnr,dtfvd_puppet,dtfvd_puppet_bg,face_cos_puppet,temporal_ratio]"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "small"
    save_pipeline(build_pipeline(MODEL, seed=0), folder, untrained=True)
    return folder


def arguments(checkpoint: Path, folder: Path, *more: str) -> list[str]:
    given = ["--set", "clips=2", "--set", "steps=1", "--set", METRICS, "--out", str(folder / "out")]
    return [str(checkpoint), *given, "--doc", str(folder / "doc.md"), "--clips", str(folder / "clips"), *more]


def test_untrained_weights_are_not_measured(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(eval_tiny.main, arguments(checkpoint, tmp_path)) == FAILURE
    assert "is not final: the weights are untrained" in capsys.readouterr().err
    monkeypatch.setattr(eval_tiny, "TINY", tmp_path / "xdyna-tiny")
    assert run(eval_tiny.main, arguments(tmp_path / "xdyna-tiny", tmp_path)) == FAILURE
    message = capsys.readouterr().err
    assert "not trained yet" in message
    assert "make tiny" in message
    assert list(tmp_path.iterdir()) == []


def test_all_rows_are_measured_and_kept(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(eval_tiny.main, arguments(checkpoint, tmp_path, "--allow-untrained")) == 0
    text = (tmp_path / "doc.md").read_text()
    assert "**Not final: the weights are untrained" in text
    assert "| | " + " | ".join(ROWS.values()) + " |" in text
    assert "`dtfvd_puppet` (2 clips, 64 channels)" in text
    found = {
        row: json.loads((tmp_path / "out" / "reports" / row / "report.json").read_text())["metrics"] for row in ROWS
    }
    assert found["copy"]["temporal_ratio"]["values"]["temporal_ratio"] == 0
    assert found["late"]["face_cos_puppet"]["values"]["face_cos_puppet"] > 0.5

    # By hand: the reference copied, and the truth one frame late.
    psnr: dict[str, list[float]] = {"copy": [], "late": []}
    for entry in load_held_out()[:2]:
        task = self_driven(entry, frames=16, size=(64, 64))
        late = replace(entry, start=entry.start + 1).clip(frames=16, size=(64, 64))
        assert np.array_equal(late.frames[:-1], task.truth.frames[1:])
        for name, frames in (("copy", np.repeat(task.reference[None], 16, 0)), ("late", late.frames)):
            error = ((task.truth.frames.astype(float) - frames) ** 2).mean(axis=(1, 2, 3))
            psnr[name] += (10 * np.log10(255**2 / error)).tolist()
    for name, values in psnr.items():
        assert found[name]["psnr"]["values"]["psnr"] == pytest.approx(np.mean(values), abs=1e-6)
        assert f"{np.mean(values):.2f}" in text

    first = self_driven(load_held_out()[0], frames=16, size=(64, 64)).truth
    assert np.array_equal(read_image(tmp_path / "out" / "truth" / "00" / "005.png"), first.frames[5])
    mask = read_image(tmp_path / "out" / "masks" / "00" / "005.png")[..., 0] >= 128
    assert np.array_equal(mask, first.mask[5])

    def never(*args: object) -> None:
        raise AssertionError("generated again")

    monkeypatch.setattr(Bench, "make", never)
    assert run(eval_tiny.main, arguments(checkpoint, tmp_path, "--allow-untrained")) == 0


def test_unknown_settings_are_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for setting, message in (("metrics=[psn]", "got ['psn'], expected some of l1"), ("clips=65", "lists 64")):
        assert run(eval_tiny.main, arguments(checkpoint, tmp_path, "--allow-untrained", "--set", setting)) != 0
        assert message in capsys.readouterr().err


def test_shipped_protocol_names_all_metrics() -> None:
    config = compose(TinyEvalConfig, ROOT_CONFIG).config
    assert config.clips == len(load_held_out())
    nets = PuppetNets.load(resource("pretrained"))
    assert sorted(nets.hashes) == sorted(
        f"{name}/{path.name}"
        for name in puppet_eval.FOLDERS
        for path in (resource("pretrained") / name).glob("*.safetensors")
    )
    metrics = puppet_metrics(nets, lambda case: np.zeros((0, 68, 3)), Masker(None))
    assert config.metrics == [metric.name for metric in metrics]
