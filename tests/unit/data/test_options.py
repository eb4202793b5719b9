import dataclasses

import pytest

from xdyna.config.bench import BenchConfig
from xdyna.config.data import DataConfig, DataError
from xdyna.config.loader import compose
from xdyna.data.clips import build_dataset


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "pupet"}, "data.source: got 'pupet'.*did you mean 'puppet'"),
        ({"split": "dev"}, "data.split: got 'dev', expected one of train, validation, test"),
        ({"height": 60}, "data.height: got 60, expected a multiple of 8 from 64 on"),
        ({"width": 130}, "data.width"),
        ({"frames": 0}, "data.frames: got 0, expected 1 to 10000"),
        ({"frames": 10**12}, "data.frames: got 1000000000000, expected 1 to 10000"),
        ({"video_frames": 10**12}, "data.video_frames"),
        ({"stride": [2, 1]}, r"data.stride: got \[2, 1\]"),
        ({"stride": [1]}, "data.stride"),
        ({"reference": "last"}, "data.reference"),
        ({"scene_ratio": 1.5}, "data.scene_ratio: got 1.5, expected 0 to 1"),
        ({"scene_ratio": float("nan")}, "data.scene_ratio"),
        ({"drop_face": -0.1}, "data.drop_face: got -0.1, expected 0 to 1"),
        ({"crop_scale": [0.0, 1.0]}, "data.crop_scale"),
        ({"crop_scale": [0.5, 1.5]}, "data.crop_scale"),
        ({"face": "crossed"}, "data.face.*did you mean 'cross'"),
        ({"num_clips": 0}, "data.num_clips"),
        ({"workers": -1}, "data.workers: got -1, expected 0 or more"),
        ({"prefetch": 0}, "data.prefetch"),
        ({"source": "cache"}, "data.source is 'cache' and data.cache is None"),
        ({"cache": "folder"}, "data.source is 'puppet' and data.cache is 'folder'"),
        ({"source": "footage"}, r"data.source is 'footage' and data.manifests is \[\]; give the data set folders"),
        ({"manifests": ["folder"]}, "data.source is 'puppet' and data.manifests is"),
        ({"source": "footage", "manifests": [3]}, "data.manifests: got 3, expected the folder"),
        ({"source": "footage", "manifests": [{"folder": "a", "weight": 0}]}, "weight above 0"),
        ({"source": "footage", "manifests": [{"folder": "a", "share": 1}]}, "expected the folder of a data set, or"),
        ({"source": "footage", "manifests": ["a", {"folder": "b", "weight": 1}]}, "some have a weight and some have"),
        ({"source": "footage", "manifests": ["a"], "buckets": [[64, 60]]}, r"data.buckets: got \[64, 60\]"),
        ({"source": "footage", "manifests": ["a"], "buckets": [[64, 64], [128, 128]]}, "sizes of different aspects"),
        ({"buckets": [[64, 64]]}, "data.buckets is for sources 'footage' and 'shards'"),
        ({"pose_width": 0.0}, "data.pose_width: got 0.0, expected more than 0"),
    ],
)
def test_bad_options_are_named(changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        DataConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": [1, 4]}, "span 61 frames.*video_frames is 48"),
        ({"reference": "outside", "frames": 48, "stride": [1, 1]}, "needs a frame beside the 48"),
    ],
)
def test_clips_longer_than_rendered_videos_are_named(changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_dataset(DataConfig(**changes), seed=0)


def test_a_span_that_just_fits_is_accepted() -> None:
    assert DataConfig(stride=[1, 3], frames=16, video_frames=46).size == (128, 128)


def test_footage_has_lengths_of_its_own() -> None:
    config = DataConfig(source="footage", manifests=["a"], frames=100, video_frames=1)
    assert (config.shortest(30.0), config.manifests) == (100, [{"folder": "a", "weight": None}])
    outside = DataConfig(source="footage", manifests=["a"], frames=4, stride=[1, 2], reference="outside")
    assert outside.shortest(30.0) == 5
    assert dataclasses.replace(config, frames=5).manifests == config.manifests


def test_sizes_stand_for_the_largest() -> None:
    config = DataConfig(source="footage", manifests=["a"], buckets=[[64, 128], [128, 72], [64, 64]])
    assert config.size == (128, 72)


def read(*overrides: str) -> DataConfig:
    return compose(BenchConfig, "bench", overrides).config.data


def test_manifests_can_be_given_on_a_command_line() -> None:
    weighted = "data.manifests=[{folder: a, weight: 3}, {folder: b, weight: 1}]"
    config = read("data.source=footage", weighted)
    assert [entry["weight"] for entry in config.manifests] == [3, 1]
    config = read("data.source=footage", "data.manifests=[a, b]", "data.buckets=[[64,128],[128,64]]")
    assert [entry["folder"] for entry in config.manifests] == ["a", "b"]


def test_it_is_a_section_of_a_configuration() -> None:
    config = read("data.stride=[1,3]", "data.face=cross", "data.num_clips=null", "data.scene_ratio=0")
    assert (config.stride, config.face, config.num_clips, config.scene_ratio) == ([1, 3], "cross", None, 0)


@pytest.mark.parametrize(
    ("rate", "strides"),
    [
        (60.0, (4, 10)),
        (30.0, (2, 5)),
        (30000 / 1001, (2, 5)),
        (25.0, (2, 4)),
        (24.0, (2, 4)),
        (15.0, (1, 2)),
        (6.0, (1, 1)),
        (5.0, (1, 1)),  # slower than asked for: every frame
    ],
)
def test_strides_of_a_frame_rate(rate: float, strides: tuple[int, int]) -> None:
    """All steps, and only those, that show from 6 to 15 frames a second."""
    config = DataConfig(fps=[6, 15])
    assert config.strides(rate) == strides
    shown = [step for step in range(1, 30) if 5.99 <= rate / step <= 15.01]
    assert not shown or (shown[0], shown[-1]) == strides
    assert config.shortest(rate) == 15 * strides[0] + 1


def test_a_rate_between_two_steps() -> None:
    """24 / 2 = 12 and 24 / 3 = 8: neither is within 9.5 to 11; 12 is nearer."""
    assert DataConfig(fps=[9.5, 11]).strides(24.0) == (2, 2)
    assert DataConfig(fps=[8.2, 11]).strides(24.0) == (3, 3)


def test_frame_rate_and_stride_contradict() -> None:
    with pytest.raises(DataError, match=r"data\.fps=\[6, 15\] and data\.stride=\[1, 2\]"):
        DataConfig(fps=[6, 15], stride=[1, 2])
    assert DataConfig().strides(12.0) == (1, 2)
    with pytest.raises(DataError, match=r"data\.fps: got \[15, 6\]"):
        DataConfig(fps=[15, 6])
