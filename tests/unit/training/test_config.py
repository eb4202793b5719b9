"""Training configurations: what ships is valid, ablations are one line, what is wrong is said."""

import re
from pathlib import Path

import pytest

from xdyna.config.loader import compose_config
from xdyna.config.train import TrainConfig
from xdyna.core.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
SHIPPED = sorted(p for p in (CONFIGS / "train").rglob("*.yaml") if not p.name.startswith("_"))


def load(name: str, *overrides: str) -> TrainConfig:
    return compose_config(TrainConfig, CONFIGS / "train" / f"{name}.yaml", overrides, groups=CONFIGS)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_shipped(path: Path) -> None:
    config = compose_config(TrainConfig, path, groups=CONFIGS)
    assert config.model.scheduler
    stages = {"clips": "face", "footage_tiny": "dynamics"}
    if path.parent.name == "gpu":  # where the face ControlNet trains from the start
        stages["dynamics"] = "face"
    assert config.stage == stages.get(path.stem, path.stem)


def test_groups_can_be_chosen() -> None:
    assert "block_out_channels" not in load("dynamics").model.unet
    assert load("dynamics", "model=tiny").model.unet["block_out_channels"][0] == 64


def test_lists_and_sections_are_no_files_of_a_group() -> None:
    """configs/train is a folder, and `train` a setting."""
    assert load("dynamics", "train=[adapter,motion]").train == ["adapter", "motion"]
    assert load("dynamics", "train=null").train is None
    assert load("dynamics", "data={frames: 4}").data.frames == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("defaults: 3\n", "defaults must be a list"),
        ("stage: ${nothing}\n", "Interpolation key 'nothing' not found"),
        ("stage: ${x\n", "cannot be read"),
        ("defaults: [/model: hugo]\n", "Could not find 'model/hugo'"),
    ],
)
def test_what_hydra_refuses_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        compose_config(TrainConfig, tmp_path / "mine.yaml", groups=CONFIGS)
    assert "mine.yaml" in str(caught.value)
    assert "search path" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hydra_reads_yaml_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.yml").write_text("stage: dynamics\n")
    with pytest.raises(ConfigError, match=r"a name that ends in \.yaml"):
        compose_config(TrainConfig, tmp_path / "mine.yml", groups=CONFIGS)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("appearance=reference_net", "appearance", "reference_net"),
        ("appearance=ip_adapter", "appearance", "ip_adapter"),
        ("face=landmarks", "face", "landmarks"),
        ("face=none", "face", "none"),
    ],
)
def test_ablations_are_one_line(line: str, name: str, value: str) -> None:
    assert getattr(load("dynamics", line), name) == value


def test_wo_fusion_is_one_line() -> None:
    assert load("dynamics", "data.scene_ratio=0").data.scene_ratio == 0


@pytest.mark.parametrize(
    ("stage", "line", "face"),
    [
        ("dynamics", "face=sface", "none"),
        ("dynamics", "face=landmarks", "landmarks"),
        ("face", "face=sface", "cross"),
        ("dynamics", "face=none", "none"),
    ],
)
def test_the_face_pictures_follow_from_the_stage(stage: str, line: str, face: str) -> None:
    assert load(stage, line).data.face == face


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.learning_rate=1", "unknown key 'optim.learning_rate'"),
        ("optim.schedul=cosine", "did you mean 'optim.schedule'"),
        ("data.scene_ration=0", "did you mean 'data.scene_ratio'"),
        ("max_stepz=3", "did you mean 'max_steps'"),
        ("max_steps=many", "max_steps: got 'many'"),
        ("max_steps=0", "max_steps: got 0, expected 1 or more"),
        ("optim.lr=-1", "optim.lr: got -1"),
        ("optim.ema=1.0", "optim.ema: got 1.0"),
        ("appearance=adapter", "appearance: got 'adapter'"),
        ("model=huge", "model=huge: there is no"),
        ("data=3", "data: got 3"),
        ("infer=fast", "unknown key 'infer'"),
        ("data.face=cross", "data.face: got 'cross', but stage=dynamics with face=sface needs 'none'"),
        ("precision=fp8", "precision: got 'fp8'"),
        ("loss.min_snr=0", "loss.min_snr: got 0"),
    ],
)
def test_what_is_wrong_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("dynamics", override)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_autoencoder_does_not_train_on_latents() -> None:
    with pytest.raises(ConfigError, match="stage=vae trains on pictures"):
        load("tiny/vae", "data.source=cache", "data.cache=somewhere")


def test_stage_face_without_face() -> None:
    with pytest.raises(ConfigError, match="stage=face trains the face ControlNet, but face=landmarks"):
        load("face", "face=landmarks")


def test_a_file_of_the_users_own(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("defaults:\n  - /train/tiny/dynamics@_global_\n  - _self_\nmax_steps: 7\ndata: {frames: 4}\n")
    config = compose_config(TrainConfig, own, groups=CONFIGS)
    assert (config.max_steps, config.data.frames, config.stage) == (7, 4, "dynamics")
    assert config.model.unet["block_out_channels"][0] == 64


def test_missing_parent(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("defaults:\n  - nothing_here\n")
    with pytest.raises(ConfigError, match="nothing_here"):
        compose_config(TrainConfig, own, groups=CONFIGS)
