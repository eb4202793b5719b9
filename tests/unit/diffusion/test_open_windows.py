"""The open-ended schedule: the offset of each step moves the windows' seams."""

import pytest

from xdyna.diffusion.windows import open_windows


def starts(frames: int, offset: int) -> list[int]:
    return [window[0] for window in open_windows(frames, context=16, overlap=4, offset=offset)]


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (0, [0, 12, 24, 34]),
        (1, [0, 1, 13, 25, 34]),
        (5, [0, 5, 17, 29, 34]),
        (10, [0, 10, 22, 34]),
        (11, [0, 11, 23, 34]),
        (12, [0, 12, 24, 34]),
        (15, [0, 3, 15, 27, 34]),
    ],
)
def test_windows_by_hand(offset, expected):
    assert starts(50, offset) == expected


def test_every_offset_of_a_step_has_seams_of_its_own():
    """What one step joins at a seam another step denoises together: 12 offsets, 12 sets of interior windows."""
    plans = [tuple(starts(100, offset)[1:-1]) for offset in range(12)]
    assert len(set(plans)) == 12
    for offset, interior in enumerate(plans):
        assert {start % 12 for start in interior} == {offset}
