import pytest

from xdyna.config import load_config
from xdyna.data.options import DataConfig, DataError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "pupet"}, "data.source: got 'pupet'.*did you mean 'puppet'"),
        ({"split": "dev"}, "data.split: got 'dev', expected one of train, validation, test"),
        ({"height": 60}, "data.height: got 60, expected a multiple of 8 from 64 on"),
        ({"width": 130}, "data.width"),
        ({"frames": 0}, "data.frames: got 0, expected 1 or more"),
        ({"stride": [2, 1]}, r"data.stride: got \[2, 1\]"),
        ({"stride": [1]}, "data.stride"),
        ({"stride": [1, 4]}, "span 61 frames.*video_frames is 48"),
        ({"reference": "last"}, "data.reference"),
        ({"reference": "outside", "frames": 48, "stride": [1, 1]}, "needs a frame beside the 48"),
        ({"scene_ratio": 1.5}, "data.scene_ratio: got 1.5, expected 0 to 1"),
        ({"scene_ratio": float("nan")}, "data.scene_ratio"),
        ({"crop_scale": [0.0, 1.0]}, "data.crop_scale"),
        ({"crop_scale": [0.5, 1.5]}, "data.crop_scale"),
        ({"drop_text": 0.6, "drop_image": 0.6}, "is 1.2; they exclude each other"),
        ({"face": "crossed"}, "data.face.*did you mean 'cross'"),
        ({"num_clips": 0}, "data.num_clips"),
        ({"workers": -1}, "data.workers: got -1, expected 0 or more"),
        ({"prefetch": 0}, "data.prefetch"),
        ({"source": "cache"}, "data.source is 'cache' and data.cache is None"),
        ({"cache": "folder"}, "data.source is 'puppet' and data.cache is 'folder'"),
    ],
)
def test_bad_options_are_named(changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        DataConfig(**changes)


def test_a_span_that_just_fits_is_accepted() -> None:
    assert DataConfig(stride=[1, 3], frames=16, video_frames=46).size == (128, 128)


def test_it_is_a_section_of_a_configuration() -> None:
    config = load_config(DataConfig, None, ["stride=[1,3]", "face=cross", "num_clips=null", "scene_ratio=0"])
    assert (config.stride, config.face, config.num_clips, config.scene_ratio) == ([1, 3], "cross", None, 0)
