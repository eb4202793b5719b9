"""infer.py on checkpoints of the paper's ablations."""

import dataclasses
import json

import pytest

from tests.process.small import SMALL
from tests.tiers import long
from xdyna.models.reference_net import ReferenceNet
from xdyna.pipelines.folder import save_pipeline
from xdyna.pipelines.untrained import build_pipeline

MODEL = dataclasses.replace(SMALL, unet={**SMALL.unet, "dynamics_adapter": False, "transformer_layers": 2})


@pytest.mark.parametrize("appearance", ["reference_net", *long("ip_adapter")])
def test_infer_runs_it(appearance, infer, tmp_path, capsys):
    pipeline = build_pipeline(MODEL, seed=0)
    if appearance == "reference_net":
        pipeline.register_modules(reference_net=ReferenceNet.from_unet(pipeline.unet))
    folder = tmp_path / "checkpoint"
    save_pipeline(pipeline, folder)
    assert infer("--checkpoint", folder, "--out", "out.mp4", "--frames", "3") == 0, capsys.readouterr().err
    weights = json.loads((tmp_path / "out.run.json").read_text())["weights"]
    assert any("reference_net" in name for name in weights) == (appearance == "reference_net")


def test_a_damaged_reference_net_is_told(infer, tmp_path, capsys):
    pipeline = build_pipeline(MODEL, seed=0)
    pipeline.register_modules(reference_net=ReferenceNet.from_unet(pipeline.unet))
    folder = tmp_path / "checkpoint"
    save_pipeline(pipeline, folder)
    config = json.loads((folder / "reference_net" / "config.json").read_text())
    (folder / "reference_net" / "config.json").write_text(json.dumps({**config, "layers_per_block": 2}))
    assert infer("--checkpoint", folder, "--out", "out.mp4") == 1
    assert "reference_net" in capsys.readouterr().err
