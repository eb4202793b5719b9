"""A model is sampled with the control images and settings that it was trained with."""

import dataclasses
import json
from pathlib import Path
from unittest.mock import MagicMock

import cv2
import numpy as np
import pytest

from tests.process.runs import config, go
from xdyna.config.contract import ConditionContract, PoseStyle, read_contract
from xdyna.config.infer import InferConfig
from xdyna.core.errors import UsageError, WeightsError
from xdyna.perception.types import PoseTrack
from xdyna.pipelines.animate import sample
from xdyna.pipelines.controls import perceive, prepare
from xdyna.pipelines.folder import find_checkpoint
from xdyna.pipelines.plan import Plan, Request, plan_animation
from xdyna.pipelines.untrained import build_untrained
from xdyna.pipelines.xdyna import XDynaPipeline


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
    assert (contract.reference, contract.fps) == ("fitted", None)


@pytest.mark.parametrize("of", ["fitted", "whole"])
def test_the_image_encoder_sees_what_it_saw_in_training(of: str, trained: Path, driving: Path, tmp_path: Path) -> None:
    """The reference is wider than the video: models trained here are given the part that is animated, others all."""
    cv2.imwrite(str(tmp_path / "wide.png"), np.random.default_rng(0).integers(256, size=(64, 160, 3), dtype=np.uint8))
    checkpoint = find_checkpoint(trained, build_untrained)
    checkpoint = dataclasses.replace(checkpoint, contract=dataclasses.replace(checkpoint.contract, reference=of))
    request = Request(tmp_path / "wide.png", driving / "face.npz", tmp_path / "out.mp4")
    plan = plan_animation(request, InferConfig(height=64, width=64), checkpoint)
    pipeline = MagicMock(side_effect=StopIteration)
    with pytest.raises(StopIteration):
        sample(pipeline, plan, plan.fitted(), prepare(perceive(plan, cache_dir=tmp_path), plan))
    expected = plan.fitted() if of == "fitted" else plan.reference
    assert expected.shape == ((64, 64, 3) if of == "fitted" else (64, 160, 3))
    assert np.array_equal(pipeline.call_args.args[0], expected)


def test_a_run_writes_the_frame_rates_that_it_showed(tmp_path: Path) -> None:
    data = ["data.video_frames=12", "data.fps=[4,12]"]
    assert go(config(tmp_path, "run"), *data, "max_steps=1", "validation.every=0") == 0
    assert read_contract(tmp_path / "run" / "final").fps == (4.0, 12.0)


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


def test_the_pipeline_itself_follows_it(trained: Path, tmp_path: Path) -> None:
    """Guidance where none is given; the file goes with `save_pretrained`."""
    pipeline = XDynaPipeline.from_pretrained(trained)
    assert pipeline.contract == read_contract(trained)
    image, pose = np.full((64, 64, 3), 90, np.uint8), np.zeros((2, 64, 64, 3), np.uint8)

    pipeline(image, pose, output_type="latent")
    assert (pipeline.guidance_scale, pipeline.num_timesteps) == (3.0, 25)
    pipeline(image, pose, num_inference_steps=2, guidance_scale=1.5, output_type="latent")
    assert (pipeline.guidance_scale, pipeline.num_timesteps) == (1.5, 2)
    pipeline.save_pretrained(tmp_path / "saved")
    assert read_contract(tmp_path / "saved") == read_contract(trained)


def test_a_call_of_the_pipeline_shows_the_image_encoder_the_same(trained: Path) -> None:
    pipeline = XDynaPipeline.from_pretrained(trained)
    assert pipeline.contract.reference == "fitted"
    wide = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    middle = wide[:, 32:96]

    def tokens(image: np.ndarray) -> np.ndarray:
        seen = []
        encode = type(pipeline).encode_image
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(pipeline), "encode_image", lambda self, each: seen.append(each) or encode(self, each))
            pipeline(image, np.zeros((2, 64, 64, 3), np.uint8), num_inference_steps=1, output_type="latent")
        return np.asarray(seen[0])

    np.testing.assert_array_equal(tokens(wide), middle)
    pipeline.contract = dataclasses.replace(pipeline.contract, reference="whole")
    np.testing.assert_array_equal(tokens(wide), wide)
