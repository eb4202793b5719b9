"""Whole runs of `scripts/train.py` on real videos: resumed within an epoch, with several sizes, from a cache."""

from pathlib import Path

import pytest
import torch
import yaml

from tests.process.runs import config, given, go, losses, weights
from tests.unit.data.footage_sets import build_set, record
from xdyna.cli import preprocess, train
from xdyna.config.loader import compose
from xdyna.config.train import TrainConfig
from xdyna.core.program import run

QUICK = ["max_steps=3", "optim.schedule=constant", "validation.every=3", "data.frames=3", "data.scene_ratio=0.25"]


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clips = [record(f"human{k}") for k in range(3)] + [record("wide", width=128), record("scene", kind="scene")]
    held = [record("held", split="validation"), record("heldscene", kind="scene", split="validation")]
    return build_set(tmp_path_factory.mktemp("sets") / "one", [*clips, *held])


def on(footage: Path, *more: str) -> list[str]:
    return ["data.source=footage", f"data.manifests=[{footage}]", *QUICK, *more]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:no (scene|human) clip has the aspect")
def test_a_run_continues_exactly_within_an_epoch(footage: Path, start: str, tmp_path: Path) -> None:
    """Two sizes, stopped after every step: losses and weights of an uninterrupted run."""
    more = on(footage, "data.buckets=[[64,64],[64,128]]")
    assert go(config(tmp_path, "whole", init=start), *more) == 0
    values = {(name, step): float(value) for step, name, value in losses(tmp_path / "whole")}
    assert {"val/loss", "val/psnr", "val/psnr_figure"} <= {name for name, _ in values}
    path = config(tmp_path, "parts", init=start)
    for _ in range(3):
        assert go(path, *more, "--resume", "--max-minutes", "1e-9") == 0
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    one, other = (weights(tmp_path / name) for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert list((tmp_path / "whole" / "samples").rglob("*.png"))


@pytest.mark.slow
def test_a_cache_trains_as_its_videos_do(start: str, tmp_path: Path) -> None:
    """One clip, whole and without a crop: latents of the cache, in 16 bit, give nearly the losses of encoding."""
    folder = build_set(tmp_path / "one", [record("human", frames=4)])
    data = ["height=64", "width=64", "frames=4", "stride=[1,1]", "crop_scale=[1,1]", "scene_ratio=0", "reference=first"]
    data = [f"data.{text}" for text in data]
    source = ["data.source=footage", f"data.manifests=[{folder}]"]
    written = ["--vae", start, "--out", str(tmp_path / "cache"), "--clips", "1", "--device", "cpu"]
    assert preprocess.main(["cache", *written, *source, *data]) == 0
    cached = ["data.source=cache", f"data.cache={tmp_path / 'cache'}"]
    found = {}
    for name, more in (("videos", source), ("cached", cached)):
        plain = [*data, *more, "max_steps=4", "optim.schedule=constant", "validation.every=0"]
        assert go(config(tmp_path, name, init=start), *plain) == 0
        found[name] = [float(value) for _, what, value in losses(tmp_path / name) if what == "train/loss"]
    assert len(found["videos"]) == 4
    assert found["cached"] == pytest.approx(found["videos"], rel=2e-3)
    assert len({round(value, 3) for value in found["videos"]}) > 1


@pytest.mark.long
def test_settings_that_came_later_do_not_end_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run whose configuration was written before a setting existed goes on with its default, and no other value."""
    path = config(tmp_path, "run")
    assert go(path, "--max-minutes", "1e-9") == 0
    written = tmp_path / "run" / "config.yaml"
    tree = yaml.safe_load(written.read_text())
    for name in ("pose_width", "buckets"):
        del tree["data"][name]
    written.write_text(yaml.safe_dump(tree, sort_keys=False))
    assert run(train.main, [*given(path), "--cpu", "--resume", "data.pose_width=2.0"]) == 1
    assert "data.pose_width: (absent) there, 2.0 now" in capsys.readouterr().err
    assert go(path, "--resume", "--max-minutes", "1e-9") == 0
    assert yaml.safe_load(written.read_text())["data"]["pose_width"] == 1.0


@pytest.mark.parametrize("changes", [[], ["stage=face", "data.scene_ratio=0"]])
def test_the_example_configuration_can_be_read(changes: list[str]) -> None:
    here = "data.manifests=[datasets/footage]"
    settings = compose(TrainConfig, "train", ["experiment=footage_tiny", here, *changes]).config
    assert (settings.data.source, settings.data.size, settings.data.buckets) == ("footage", (128, 128), [])
    full = compose(TrainConfig, "train", ["experiment=dynamics", here]).config
    assert full.data.buckets == [[896, 512], [512, 896]]
