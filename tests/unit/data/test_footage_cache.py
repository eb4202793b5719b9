"""A cache of real videos gives what reading and encoding them gives."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.data.footage_sets import build_set, record
from tests.unit.data.test_cache import VAE, assert_same_maps, encode
from xdyna.config.data import DataConfig, DataError, DataWarning
from xdyna.data.cache import write_cache
from xdyna.data.cached import CachedVideo
from xdyna.data.clips import ClipDataset, build_dataset
from xdyna.data.footage_video import FootageVideo
from xdyna.training.validation import validation_data

PLAIN = {"height": 64, "width": 64, "frames": 3, "stride": [1, 2], "scene_ratio": 0.5, "crop_scale": [0.6, 1.0]}


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clips = [record("human0"), record("human1", width=80, frames=6), record("human2"), record("scene0", kind="scene")]
    return build_set(tmp_path_factory.mktemp("sets") / "one", clips)


@pytest.fixture(scope="module")
def writer(footage: Path) -> ClipDataset:
    return build_dataset(DataConfig(source="footage", manifests=[str(footage)], **PLAIN), seed=8)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def written(writer: ClipDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "cache"
    write_cache(folder, writer, clips=4, encode=encode, vae=VAE)
    return folder


def options(folder: Path, **changes: object) -> DataConfig:
    return DataConfig(source="cache", cache=str(folder), **{**PLAIN, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("face", ["self", "none"])
def test_latents_are_those_of_encoding_in_line(writer: ClipDataset, written: Path, face: str) -> None:
    """Every sample of the cache against the same frames of the same crop, decoded and encoded here."""
    videos = [writer.take(index).video for index in range(4)]
    dataset = build_dataset(options(written, face=face), seed=3, vae=VAE)
    plain = ClipDataset(dataclasses.replace(writer.config, face=face), writer.source, seed=3)
    seen = set()
    for index in range(10):
        take, sample = dataset.take(index), dataset[index]
        assert isinstance(take.video, CachedVideo)
        for video in (video for video in videos if video.clip_id == take.video.clip_id):  # one, or two crops of one
            assert isinstance(video, FootageVideo)
            shot = video.window(take.rows, reference=take.reference)
            assert shot.frames is not None
            frames = torch.from_numpy(np.concatenate([shot.reference[None], shot.frames])).permute(0, 3, 1, 2)
            if not torch.equal(sample.pixels, frames[:1]):
                continue
            mean, std = encode(frames)
            assert sample.latents_mean is not None and torch.equal(sample.latents_mean, mean)  # noqa: PT018 (mypy)
            assert sample.latents_std is not None and torch.equal(sample.latents_std, std)  # noqa: PT018 (mypy)
            pose, patches = plain._conditions(dataclasses.replace(take, video=video), shot)
            assert_same_maps(sample.pose, pose)
            assert_same_maps(sample.face, patches)
            assert sample.caption == video.caption
            seen.add(video.clip_id)
            break
        else:
            pytest.fail(f"sample {index} shows no frame of any clip that was cached")
    assert len(seen) >= 3


def test_clips_that_are_too_short_for_the_reader_are_left_out(written: Path) -> None:
    dataset = build_dataset(options(written, frames=8, stride=[1, 1], scene_ratio=0), seed=3, vae=VAE)
    assert {dataset.take(index).video.length for index in range(20)} == {10}
    with pytest.raises(DataError, match="there are no human videos"):
        build_dataset(options(written, frames=20, stride=[1, 1], scene_ratio=0), seed=3, vae=VAE)


def test_validation_reads_the_data_sets_that_the_cache_is_of(written: Path, footage: Path) -> None:
    config = validation_data(options(written))
    assert (config.source, config.cache, config.split) == ("footage", None, "validation")
    assert config.manifests == [{"folder": str(footage), "weight": None}]
    with pytest.warns(DataWarning, match="those of split 'train' stand in"):
        dataset = build_dataset(config, seed=0)
    _, mask = dataset.masked(0)
    assert mask.shape == (3, 64, 64)


def test_what_a_cache_cannot_hold(written: Path, writer: ClipDataset, tmp_path: Path) -> None:
    sized = dataclasses.replace(writer.config, buckets=[[64, 64], [64, 128]])
    with pytest.raises(DataError, match="a cache has images of one size"):
        write_cache(tmp_path / "new", ClipDataset(sized, writer.source, seed=0), clips=2, encode=encode, vae=VAE)
    with pytest.raises(DataError, match=r"data.face is 'cross', but cache .* holds no other faces"):
        build_dataset(options(written, face="cross"), seed=0, vae=VAE)
    with pytest.raises(DataError, match=r"data.crop_scale is .*was written with \[0.6, 1.0\]"):
        build_dataset(options(written, crop_scale=[1, 1]), seed=0, vae=VAE)
