import pytest

from xdyna.config.data import DataError
from xdyna.config.preprocess import PreprocessOptions


def test_defaults_leave_room_for_training_clips():
    options = PreprocessOptions()
    assert options.min_frames >= 16 + 1, "16 frames and a reference beside them"
    assert options.max_frames >= 16 * 4, "stride 4"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kinds": []}, "kinds"),
        ({"kinds": ["human", "human"]}, "each once"),
        ({"kinds": ["humans"]}, "did you mean 'human'"),
        ({"backend": "dwpos"}, "did you mean 'dwpose'"),
        ({"min_frames": 1}, "min_frames"),
        ({"min_frames": 2.5}, "whole number"),
        ({"min_frames": 30, "max_frames": 20}, "must not be larger"),
        ({"max_clips": 0}, "max_clips"),
        ({"min_side": 0}, "min_side"),
        ({"person_share": 0.3}, "more than 0.5"),
        ({"min_face": 1.5}, "0 to 1"),
        ({"max_camera": float("nan")}, "max_camera"),
        ({"cut_ratio": -1}, "cut_ratio"),
    ],
)
def test_bad_values_are_named(changes: dict, says: str):
    with pytest.raises(DataError, match=r"preprocess\.") as caught:
        PreprocessOptions(**changes)
    assert says in str(caught.value)


def test_one_kind_may_be_given_as_text():
    assert PreprocessOptions(kinds="scene").kinds == ["scene"]
