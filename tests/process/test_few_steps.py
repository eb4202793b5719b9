"""`scripts/puppets.py few-steps`: a distilled model beside the undistilled one."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.process.small import SMALL
from xdyna.core.program import USAGE, run
from xdyna.evaluation.metrics.regions import RegionQuality, temporal_energy
from xdyna.perception.types import read_npz
from xdyna.pipelines.folder import save_pipeline
from xdyna.pipelines.untrained import build_pipeline
from xdyna.pipelines.xdyna import XDynaPipeline
from xdyna.puppets import few_steps
from xdyna.puppets.card import BEGIN, END
from xdyna.puppets.expression import ExpressionReader
from xdyna.puppets.heldout import load_held_out, self_driven
from xdyna.training.components import add_lora, save_lora

MODEL = replace(SMALL, unet={**SMALL.unet, "sample_size": [8, 8]})
NAMES = ["own_2", "distilled_1", "own_1"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a model, a LoRA that does something, a card, and a reader of expressions."""
    save_pipeline(build_pipeline(MODEL, seed=0), tmp_path / "model")
    student = build_pipeline(MODEL, seed=0).unet
    add_lora(student, rank=2)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    save_lora(student, tmp_path / "lora.safetensors")
    torch.manual_seed(0)
    ExpressionReader(channels=(4, 4, 4), hidden=4).eval().save(tmp_path / "reader", facts={})
    monkeypatch.setattr(few_steps, "READER", tmp_path / "reader")
    (tmp_path / "card.md").write_text(f"above\n{BEGIN}\nold\n{END}\nbelow\n")
    return tmp_path


def call(folder: Path, *more: str) -> int:
    given = [str(folder / "model"), "--lora", str(folder / "lora.safetensors"), "--clips", "2", "--own-steps", "2"]
    given += ["--each-steps", "1", "--device", "cpu", "--out", str(folder / "out"), "--card", str(folder / "card.md")]
    return run(few_steps.main, [*given, *more])


def test_rows_are_what_they_say(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row has its own scheduler, steps and weights; numbers are those of the files; kept clips are kept."""
    seen: list[tuple[str, int, float, bool, int]] = []
    original = XDynaPipeline.__call__

    def spy(self: XDynaPipeline, *args: object, **kwargs: object) -> object:
        changed = not torch.equal(*(output(n.unet) for n in (self, fresh)))
        names = ("num_inference_steps", "guidance_scale")
        facts = type(self.scheduler).__name__, *(kwargs[name] for name in names), changed, kwargs["token_downsampling"]
        seen.append(facts)  # type: ignore[arg-type]
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    def output(unet: torch.nn.Module) -> torch.Tensor:
        layer = unet.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            return layer(torch.randn(3, layer.in_features, generator=generator))  # type: ignore[arg-type]

    fresh = build_pipeline(MODEL, seed=0)
    monkeypatch.setattr(XDynaPipeline, "__call__", spy)
    assert call(folder) == 0
    guidance = 7.5
    a_clip = [
        ("DDIMScheduler", 2, guidance, False, 1),
        ("LCMScheduler", 1, 1.0, True, 1),
        ("DDIMScheduler", 1, guidance, False, 1),
    ]
    assert seen == 2 * a_clip
    report = json.loads((folder / "out" / "few_steps" / "report.json").read_text())
    assert list(report["rows"]) == NAMES
    values, logs = [], []
    for number, entry in enumerate(load_held_out()[:2]):
        truth = self_driven(entry, frames=16, size=(64, 64)).truth
        frames = read_npz(folder / "out" / "few_steps" / "distilled_1" / f"{number:02d}_full.npz", keys=("frames",))[
            "frames"
        ]
        values.append(RegionQuality.of(truth.frames, frames, truth.mask).psnr)
        everywhere = np.ones_like(truth.dynamic)
        logs.append(math.log(temporal_energy(frames, everywhere) / temporal_energy(truth.frames, everywhere)))
    row = report["rows"]["distilled_1"]
    assert row["psnr_figure"] == pytest.approx(np.mean(values), abs=1e-9)
    assert row["energy"] == pytest.approx(np.mean(np.abs(logs)), rel=1e-3)
    first = [report["clips"]["own_2"][k]["psnr_figure"] for k in ("0", "1")]
    assert row["difference"] == pytest.approx(np.mean(np.subtract(values, first)), abs=1e-9)
    assert row["distance"] > 0
    card = (folder / "card.md").read_text()
    assert f"| distilled, 1 steps | 2 | {row['psnr_figure']:.2f} |" in card
    assert "old" not in card
    assert (folder / "out" / "few_steps" / "few_steps.png").is_file()
    seen.clear()
    assert call(folder) == 0
    assert seen == []
    half = f"{folder / 'lora.safetensors'}:0.5"
    assert call(folder, "--lora", half) == 0
    assert seen == 2 * [("LCMScheduler", 1, 1.0, True, 1)]  # another scale is another model
    seen.clear()
    assert call(folder, "--lora", half, "--token-downsampling", "2") == 0
    assert seen == 2 * [("LCMScheduler", 1, 1.0, True, 2)]  # distilled rows alone are made anew
    other = json.loads((folder / "out" / "few_steps" / "report.json").read_text())
    assert other["rows"]["distilled_1"] != row
    assert other["rows"]["own_1"] == report["rows"]["own_1"]
    assert "token_downsampling=2, LoRA times 0.5" in other["made"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--clips", "1"], "--clips 1: expected 2 to"),
        (["--lora", "gone.safetensors"], "gone.safetensors"),
        (["--scheduler", "ldm"], "ldm"),
        (["--token-downsampling", "0"], "--token-downsampling: invalid choice: 0"),
        (["--each-steps", "4,4"], "expected different numbers of steps"),
        (["--card", "gone.md"], "gone.md"),
    ],
)
def test_wrong_usage(folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str) -> None:
    try:
        code = call(folder, *more)
    except SystemExit as error:  # argparse
        code = error.code  # type: ignore[assignment]
    assert code == USAGE
    assert said in capsys.readouterr().err
    assert not (folder / "out").exists()
