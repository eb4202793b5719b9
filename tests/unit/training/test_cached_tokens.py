"""Image tokens that a cache keeps stand for those that training would compute."""

import dataclasses
from pathlib import Path

import pytest
import torch

from xdyna.cli import preprocess, train
from xdyna.config.data import DataConfig, DataError
from xdyna.config.train import LossConfig, TrainConfig
from xdyna.core import program as guard
from xdyna.data.cache import token_digest, vae_digest
from xdyna.data.clips import build_dataset
from xdyna.data.samples import collate
from xdyna.training.components import Components
from xdyna.training.groups import select_trainable
from xdyna.training.logs import read_metrics
from xdyna.training.objective import DiffusionObjective
from xdyna.training.stages import STAGES

SMALL = ["data.height=64", "data.width=64", "data.frames=2", "data.stride=[1,1]", "data.video_frames=6"]


def build(settings: TrainConfig) -> Components:
    return STAGES[settings.stage].build(settings)


@pytest.fixture(scope="module")
def folder(start: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokens") / "cache"
    assert preprocess.main(["cache", "--vae", start, "--tokens", "--out", str(out), "--clips", "4", *SMALL]) == 0
    return out


@pytest.fixture
def parts(start: str) -> Components:
    return build(TrainConfig(init=start))


def data(folder: Path, **changes: object) -> DataConfig:
    settings = {"height": 64, "width": 64, "frames": 2, "stride": [1, 1], "video_frames": 6, "scene_ratio": 0.25}
    return DataConfig(source="cache", cache=str(folder), **{**settings, **changes})  # type: ignore[arg-type]


def test_the_loss_is_that_of_computed_tokens(folder: Path, parts: Components) -> None:
    select_trainable(parts, STAGES["dynamics"].groups("dynamics_adapter"))
    digest = token_digest(parts.image_encoder, parts.image_projection)
    dataset = build_dataset(data(folder, drop_image=0.3), seed=1, vae=vae_digest(parts.vae), tokens=digest)
    batch = collate([dataset[index] for index in range(8)])
    assert batch.image_tokens is not None
    assert 0 < int(batch.drop_image.sum()) < 8
    objective = STAGES["dynamics"].objective(parts, LossConfig(), seed=0)
    assert isinstance(objective, DiffusionObjective)
    computed = dataclasses.replace(batch, image_tokens=None)
    with torch.no_grad():
        kept, expected = objective._image_tokens(batch), objective._image_tokens(computed)
        torch.testing.assert_close(kept, expected, atol=2e-3, rtol=2e-3)  # kept in float16
        torch.testing.assert_close(kept[batch.drop_image], expected[batch.drop_image])
        torch.testing.assert_close(objective(batch), objective(computed), rtol=1e-3, atol=1e-4)
    assert float((expected[0] - expected[1]).abs().max()) > 0.01  # images differ, and so would wrong tokens


def test_without_the_digest_they_are_computed(folder: Path, parts: Components) -> None:
    dataset = build_dataset(data(folder), seed=1, vae=vae_digest(parts.vae))
    assert dataset[0].image_tokens is None


def test_those_of_another_encoder_are_refused(folder: Path, parts: Components) -> None:
    with torch.no_grad():
        next(parts.image_projection.parameters()).add_(0.1)
    digest = token_digest(parts.image_encoder, parts.image_projection)
    with pytest.raises(DataError, match="image tokens of another image encoder"):
        build_dataset(data(folder), seed=1, vae=vae_digest(parts.vae), tokens=digest)


def test_a_cache_is_continued_with_the_same_parts_only(folder: Path, start: str, capsys) -> None:
    assert guard.run(preprocess.main, ["cache", "--vae", start, "--out", str(folder), "--clips", "4", *SMALL]) == 1
    assert "tokens" in capsys.readouterr().err


def test_a_plain_autoencoder_has_no_tokens(start: str, tmp_path: Path, capsys) -> None:
    given = ["--vae", str(Path(start) / "vae"), "--tokens", "--out", str(tmp_path / "cache"), "--clips", "1", *SMALL]
    assert guard.run(preprocess.main, ["cache", *given]) == guard.USAGE
    assert "is no pipeline folder" in capsys.readouterr().err


@pytest.mark.long
def test_a_run_takes_them(folder: Path, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run with kept tokens never computes any but the unconditional ones, and learns the same."""
    config = tmp_path / "experiment" / "run.yaml"
    config.parent.mkdir()
    config.write_text(
        f"# @package _global_\ndefaults: [_self_, override /data: puppet]\n"
        f"stage: dynamics\ninit: {start}\nmax_steps: 2\nbatch: 2\n"
        f"validation: {{every: 0}}\nlog_every: 1\noptim: {{ema: 0.0}}\n"
        f"data: {{source: cache, cache: {folder}, height: 64, width: 64, frames: 2, stride: [1, 1], video_frames: 6,"
        f" scene_ratio: 0.25}}\n"
    )
    losses = {}
    for name in ("kept", "computed"):
        if name == "computed":
            monkeypatch.setattr("xdyna.training.trainer.token_digest", lambda *parts: None)
        assert train.main(["--config-dir", str(tmp_path), "experiment=run", "--cpu", f"out={tmp_path / name}"]) == 0
        losses[name] = read_metrics(tmp_path / name / "metrics.csv")["train/loss"]
    assert losses["kept"] != losses["computed"]  # rounding of float16 tells them apart
    for (_, kept), (_, computed) in zip(losses["kept"], losses["computed"], strict=True):
        assert kept == pytest.approx(computed, rel=1e-2)
