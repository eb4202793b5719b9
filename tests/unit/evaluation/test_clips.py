"""Choice of frames: cases by hand, and what holds for all of them."""

import numpy as np
import pytest

from xdyna.config.eval import CLIP_CHOICES, ClipProtocol
from xdyna.evaluation.clips import clip_indices


@pytest.mark.parametrize(
    ("protocol", "length", "expected"),
    [
        (ClipProtocol(4), 9, [[0, 1, 2, 3]]),
        (ClipProtocol(4, stride=2), 9, [[0, 2, 4, 6]]),
        (ClipProtocol(4, "centre"), 9, [[2, 3, 4, 5]]),
        (ClipProtocol(4, "uniform"), 10, [[0, 3, 6, 9]]),
        (ClipProtocol(3, "windows"), 8, [[0, 1, 2], [3, 4, 5]]),
        (ClipProtocol(5), 2, [[0, 1, 0, 1, 0]]),
        (ClipProtocol(4, short="repeat_last"), 2, [[0, 1, 1, 1]]),
        (ClipProtocol(3, stride=2), 4, [[0, 2, 0]]),
        (ClipProtocol(3, "uniform"), 1, [[0, 0, 0]]),
    ],
)
def test_by_hand(protocol: ClipProtocol, length: int, expected: list[list[int]]) -> None:
    assert [list(map(int, clip)) for clip in clip_indices(protocol, length)] == expected


@pytest.mark.parametrize("choice", CLIP_CHOICES)
@pytest.mark.parametrize("length", [1, 5, 16, 17, 100])
def test_every_clip_is_whole_and_inside(choice: str, length: int) -> None:
    for stride in (1, 3):
        protocol = ClipProtocol(16, choice, stride=stride)
        clips = clip_indices(protocol, length)
        assert clips
        for clip in clips:
            assert len(clip) == 16
            assert clip.min() >= 0
            assert clip.max() < length
        again = clip_indices(protocol, length)
        assert all(np.array_equal(a, b) for a, b in zip(clips, again, strict=True))


def test_seeds_choose_other_starts() -> None:
    starts = {int(clip_indices(ClipProtocol(4, "seeded", seed=seed), 1000)[0][0]) for seed in range(20)}
    assert len(starts) > 10


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="10 frames, the protocol needs 16"):
        clip_indices(ClipProtocol(16, short="error"), 10)
    with pytest.raises(ValueError, match="without frames"):
        clip_indices(ClipProtocol(), 0)
    with pytest.raises(ValueError, match="middle"):
        ClipProtocol(choice="middle")
    with pytest.raises(ValueError, match="short"):
        ClipProtocol(short="cut")
    with pytest.raises(ValueError, match="1 or more"):
        ClipProtocol(stride=0)
