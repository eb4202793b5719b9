"""A model is sampled with the control images and settings that it was trained with."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.process.runs import config, go
from xdyna.config.contract import ConditionContract, PoseStyle, read_contract
from xdyna.config.infer import InferConfig
from xdyna.core.errors import UsageError, WeightsError
from xdyna.perception.types import PoseTrack
from xdyna.pipelines.controls import perceive, prepare
from xdyna.pipelines.folder import find_checkpoint
from xdyna.pipelines.plan import Plan, Request, plan_animation
from xdyna.pipelines.untrained import build_untrained


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the ablation w/lmk, drawn with thicker lines and with eyes and ears."""
    folder = tmp_path_factory.mktemp("lmk")
    lines = ["face=landmarks", "data.pose_head=true", "data.pose_width=2", "guidance=3", "max_steps=1"]
    assert go(config(folder, "run"), *lines, "validation.every=0") == 0
    return folder / "run" / "final"


def plan_of(folder: Path, media: Path, out: Path, **settings: object) -> Plan:
    checkpoint = find_checkpoint(folder, build_untrained)
    request = Request(media / "ref.png", media / "face.npz", out / "out.mp4")
    return plan_animation(request, InferConfig(**settings), checkpoint)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def driving(media: Path) -> Path:
    """The folder of driving files, with one whose face landmarks are seen."""
    track = PoseTrack.load(media / "driving.npz")
    angles = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    track.face[:] = np.stack([32 + 6 * np.cos(angles), 14 + 8 * np.sin(angles), np.ones(68)], axis=-1)
    track.save(media / "face.npz")
    return media


def test_a_run_writes_what_it_trained_with(trained: Path) -> None:
    contract = read_contract(trained)
    assert contract.pose == PoseStyle(landmarks=True, hands=True, head=True, width=2.0)
    assert (contract.face, contract.frames, contract.size) == ("none", 2, (64, 64))
    assert (contract.guidance, contract.prediction_type) == (3.0, "epsilon")


def test_inference_draws_by_it(trained: Path, driving: Path, tmp_path: Path) -> None:
    """Landmarks are white in the pose maps of w/lmk, and nothing is white in the published ones."""
    plan = plan_of(trained, driving, tmp_path)
    assert (plan.settings.guidance, plan.settings.steps, plan.face) == (3.0, 25, False)
    assert any("trained on 2" in note for note in plan.notes)
    maps = prepare(perceive(plan, cache_dir=tmp_path), plan).pose
    white = (maps == 255).all(axis=-1).sum(axis=(1, 2))
    assert (white > 15).all()
    contract = json.loads((trained / "conditions.json").read_text())
    (trained / "conditions.json").rename(trained / "kept")
    published = plan_of(trained, driving, tmp_path)
    assert published.settings.guidance == 7.5
    thin = prepare(perceive(published, cache_dir=tmp_path), published).pose
    assert not (thin == 255).all(axis=-1).any()
    assert (thin > 0).sum() < (maps > 0).sum()
    (trained / "kept").rename(trained / "conditions.json")
    assert contract["pose"]["width"] == 2


def test_contradictions_are_refused(
    trained: Path, driving: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(UsageError, match=r"head=false, but .* was trained with eyes and ears"):
        plan_of(trained, driving, tmp_path, head=False)
    assert plan_of(trained, driving, tmp_path, head=True, guidance=2.0, steps=3).settings.guidance == 2.0
    kept = (trained / "conditions.json").read_text()
    ConditionContract(prediction_type="v_prediction").write(trained)
    with pytest.raises(WeightsError, match="prediction_type=v_prediction, its scheduler epsilon"):
        find_checkpoint(trained, build_untrained)
    (trained / "conditions.json").write_text(kept)
    again = config(tmp_path, "again", init=str(trained))
    assert go(again, "face=landmarks", "train=[motion]", "max_steps=1") == 2
    assert "its pose ControlNet does not train here" in capsys.readouterr().err


def test_a_run_inherits_it(trained: Path, tmp_path: Path) -> None:
    """Guidance is that of the folder that a run starts from."""
    again = config(tmp_path, "again", init=str(trained))
    assert (
        go(again, "face=landmarks", "data.pose_head=true", "data.pose_width=2", "max_steps=1", "validation.every=0")
        == 0
    )
    assert read_contract(tmp_path / "again" / "final") == read_contract(trained)
