"""Training configurations: what ships is valid, ablations are one line, what is wrong is said."""

from pathlib import Path

import pytest

from xdyna.config.loader import compose, names
from xdyna.config.recipes import PLACEHOLDERS, stages_of
from xdyna.config.train import TrainConfig
from xdyna.core.errors import ConfigError

FOOTAGE = "data.manifests=[datasets/mine]"


def load(name: str, *overrides: str) -> TrainConfig:
    """A shipped recipe; one for footage with a data set."""
    return compose(TrainConfig, "train", [f"experiment={name}", *overrides], placeholders=PLACEHOLDERS).config


@pytest.mark.parametrize("name", names("experiment"))
def test_shipped(name: str) -> None:
    config = load(name)
    assert config.model.scheduler
    stages = {"clips": "face", "footage_tiny": "dynamics"}
    if "/gpu/" in name:  # where the face ControlNet trains from the start
        stages["dynamics"] = "face"
    last = name.rpartition("/")[2]
    assert config.stage == stages.get(last, last)
    assert config.data.source == ("puppet" if name.startswith("tiny/") else "footage")


@pytest.mark.parametrize("words", [["experiment=dynamics"], ["experiment=face"], ["experiment=footage_tiny"], []])
def test_recipes_for_footage_want_data_sets(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"must be given \(folders of data sets .*\): add 'data.manifests="):
        compose(TrainConfig, "train", words)
    given = compose(TrainConfig, "train", [*words, FOOTAGE]).config
    assert [entry["folder"] for entry in given.data.manifests] == ["datasets/mine"]


def test_the_order_of_a_recipe_follows_from_what_is_handed_on() -> None:
    assert stages_of("tiny") == [f"tiny/{name}" for name in ("vae", "base", "dynamics", "clips", "face", "distill")]
    assert stages_of("tiny/gpu") == [f"tiny/gpu/{name}" for name in ("vae", "base", "dynamics", "clips")]
    with pytest.raises(ConfigError, match="expected one of tiny, tiny/gpu"):
        stages_of("small")


def test_groups_can_be_chosen() -> None:
    assert "block_out_channels" not in load("dynamics").model.unet
    assert load("tiny/vae", "model=tiny").model.unet["block_out_channels"][0] == 64


def test_lists_and_sections_are_no_files_of_a_group() -> None:
    """configs/train is a folder, and `train` a setting."""
    assert load("dynamics", "train=[adapter,motion]").train == ["adapter", "motion"]
    assert load("dynamics", "train=null").train is None
    assert load("dynamics", "data={frames: 4}").data.frames == 4


def test_a_stage_of_the_command_line_wins_over_that_of_the_recipe() -> None:
    assert load("tiny/vae", "stage=face").stage == "face"
    assert load("tiny/vae", "stage=face", "model=tiny").model.unet["sample_size"] == [32, 32]


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("w_refnet", "appearance", "reference_net"),
        ("w_ip_adapter", "appearance", "ip_adapter"),
        ("w_lmk", "face", "landmarks"),
        ("wo_face", "face", "none"),
    ],
)
def test_ablations_are_one_word(name: str, key: str, value: str) -> None:
    changed = load("dynamics", f"ablation={name}")
    assert getattr(changed, key) == value
    assert load("dynamics", f"{key}={value}") == changed


def test_wo_fusion_is_one_word() -> None:
    assert load("dynamics", "ablation=wo_fusion").data.scene_ratio == 0
    assert load("dynamics").data.scene_ratio == 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["experiment=dynamics", "model=tiny"], "896 x 512 px.*128 x 128 px"),
        (["experiment=tiny/base", "data.height=896", "data.width=512"], "896 x 512 px"),
    ],
)
def test_a_size_that_contradicts_the_model_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(TrainConfig, "train", [*words], placeholders=PLACEHOLDERS)


@pytest.mark.parametrize(
    ("stage", "line", "face"),
    [
        ("dynamics", "face=sface", "none"),
        ("dynamics", "face=landmarks", "landmarks"),
        ("face", "face=sface", "cross"),
        ("dynamics", "face=none", "none"),
    ],
)
def test_the_face_images_follow_from_the_stage(stage: str, line: str, face: str) -> None:
    assert load(stage, line).data.face == face


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.learning_rate=1", "unknown key 'optim.learning_rate'"),
        ("optim.schedul=cosine", "did you mean 'optim.schedule'"),
        ("data.scene_ration=0", "did you mean 'data.scene_ratio'"),
        ("max_stepz=3", "did you mean 'max_steps'"),
        ("accumulation=4", "batch_size and accumulation are now batch"),
        ("max_steps=many", "max_steps: got 'many'"),
        ("max_steps=0", "max_steps: got 0, expected 1 or more"),
        ("optim.lr=-1", "optim.lr: got -1"),
        ("optim.ema=1.0", "optim.ema: got 1.0"),
        ("appearance=adapter", "appearance: got 'adapter'"),
        ("model=huge", "model=huge: there is no"),
        ("data=3", "must be a string or a list"),
        (
            "preset=preview",
            "which are model, data, stage, experiment, ablation",
        ),
        ("+preset=preview", "unknown key 'scheduler' in"),
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
    with pytest.raises(ConfigError, match="stage=vae trains on images"):
        load("tiny/vae", "data=cache", "data.cache=somewhere")


def test_stage_face_without_face() -> None:
    with pytest.raises(ConfigError, match="stage=face trains the face ControlNet, but face=landmarks"):
        load("face", "face=landmarks")


def test_a_file_of_the_users_own(tmp_path: Path) -> None:
    own = tmp_path / "experiment" / "mine.yaml"
    own.parent.mkdir()
    own.write_text(
        "# @package _global_\ndefaults:\n  - /experiment/tiny/dynamics\n  - _self_\nmax_steps: 7\ndata: {frames: 3}\n"
    )
    config = compose(TrainConfig, "train", ["experiment=mine"], config_dir=tmp_path).config
    assert (config.max_steps, config.data.frames, config.stage) == (7, 3, "dynamics")
    assert config.model.unet["block_out_channels"][0] == 64
    assert "mine" in names("experiment", tmp_path)
