"""Bars of letterbox are found to a few px, dark images are left whole."""

from pathlib import Path

import numpy as np
import pytest

from tests.unit.preprocess.figures import backdrop, write_video
from xdyna.media import MediaError, probe, read_frames
from xdyna.preprocess.frames import ANALYSIS_SIDE, analysis_size, bars_off, find_crop, sampled, small_frames


@pytest.mark.parametrize("bars", [(0, 0, 0, 0), (30, 30, 0, 0), (0, 0, 41, 17), (25, 12, 9, 33), (1, 3, 0, 2)])
def test_bars_of_made_up_images(bars: tuple[int, int, int, int]):
    top, bottom, left, right = bars
    image = np.pad(backdrop((120, 180))[..., 0], [(top, bottom), (left, right)])
    box = bars_off(image)
    # Inside of the image, at most 2 px of safety and 1 px of evenness less than all of it.
    assert left <= box[0] <= left + 2
    assert top <= box[1] <= top + 2
    assert left + 180 - 3 <= box[0] + box[2] <= left + 180
    assert top + 120 - 3 <= box[1] + box[3] <= top + 120
    assert box[2] % 2 == box[3] % 2 == 0


def test_darkness_is_no_bar():
    night = np.zeros((120, 180), np.uint8)
    night[40:60, 80:100] = 200
    assert bars_off(night) == (0, 0, 180, 120), "a lamp in the dark is not all of the image"
    assert bars_off(np.zeros((121, 181), np.uint8)) == (0, 0, 180, 120)


def test_bars_must_stay(tmp_path: Path):
    """An image that is dark at its edge for a while keeps its edge; a bar that is always there goes."""
    frames = [np.pad(backdrop((90, 120), k), [(16, 0), (0, 0), (0, 0)]) for k in range(8)]
    for frame in frames[:4]:
        frame[-20:] = 0
    path = write_video(tmp_path / "a.mp4", frames)
    left, top, width, height = find_crop(path, count=8, letterbox=True)
    assert (left, width) == (0, 120)
    assert 16 <= top <= 20
    assert top + height == 106
    assert find_crop(path, count=8, letterbox=False) == (0, 0, 120, 106)


def test_real_letterbox(shared_dir: Path):
    """Bars measured by eye: 153 px above and 104 px at the right of dance_1, about 4, 92 and 27 px around dance_2."""
    path = shared_dir / "data" / "dance_1.mp4"
    left, top, width, height = find_crop(path, count=60, letterbox=True)
    assert left == 0
    assert 153 <= top <= 157
    assert 888 <= top + height <= 895, "a dark line of 2 px below it goes as well"
    assert 404 <= width <= 408


def test_small_frames_show_the_crop(tmp_path: Path):
    frames = [backdrop((200, 700), k) for k in range(3)]
    path = write_video(tmp_path / "a.mp4", frames)
    small = list(small_frames(path, (100, 20, 600, 150)))
    assert [f.shape for f in small] == [(80, ANALYSIS_SIDE, 3)] * 3
    whole = next(read_frames(path))
    assert np.abs(small[0].mean() - whole[20:170, 100:700].mean()) < 1


def test_sizes():
    assert analysis_size((1080, 1920)) == (180, 320)
    assert analysis_size((1920, 1080)) == (320, 180)
    assert analysis_size((100, 120)) == (100, 120), "never larger"
    assert sampled(100, 3).tolist() == [0, 50, 99] or sampled(100, 3).tolist() == [0, 49, 99]
    assert sampled(2, 8).tolist() == [0, 1]


def test_too_small_to_crop():
    with pytest.raises(MediaError, match="1 x 5"):
        bars_off(np.full((5, 1), 200, np.uint8))


def test_probe_counts_what_is_streamed(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", [backdrop((64, 96), k) for k in range(7)])
    assert probe(path).frame_count == len(list(small_frames(path, (0, 0, 96, 64)))) == 7
