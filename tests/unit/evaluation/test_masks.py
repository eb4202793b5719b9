"""Masks: cutting, where they come from, what does not fit."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from xdyna.evaluation.masks import Masker, cut, read_masks
from xdyna.evaluation.metric import Case, Video


def video(seed: int, digest: str, *, frames: int = 3) -> Video:
    rng = np.random.default_rng(seed)
    return Video(digest, rng.integers(1, 256, (frames, 10, 12, 3), dtype=np.uint8), 8.0, digest)


class Threshold:
    """A segmenter that calls red people, and counts its calls."""

    name, version = "threshold", "3"

    def __init__(self) -> None:
        self.calls = 0

    def segment(self, frame: np.ndarray) -> np.ndarray:
        self.calls += 1
        return (frame[..., 0] > 128).astype(np.float32)


def test_cutting() -> None:
    frames = video(0, "a").frames
    masks = np.random.default_rng(1).random((3, 10, 12)) < 0.5
    figure, background = cut(frames, masks, "figure"), cut(frames, masks, "background")
    assert np.array_equal(figure, frames * masks[..., None])
    assert np.array_equal(figure.astype(int) + background, frames)
    assert cut(frames, masks, "full") is frames
    assert np.array_equal(cut(frames, np.ones_like(masks), "figure"), frames)
    with pytest.raises(ValueError, match="one mask per frame"):
        cut(frames, masks[:2], "figure")
    with pytest.raises(ValueError, match="foreground"):
        cut(frames, masks, "foreground")


def test_each_video_is_segmented_by_itself_and_once() -> None:
    segmenter = Threshold()
    masker, case = Masker(segmenter), Case("c", video(1, "g"), video(2, "t"))
    for _ in range(2):
        for which, source in (("truth", case.truth), ("generated", case.generated)):
            assert source is not None
            assert np.array_equal(masker.masks(case, which), source.frames[..., 0] > 128)
    assert segmenter.calls == 6
    assert "threshold-3" in masker.version


def test_given_masks_win() -> None:
    masks = (np.ones((3, 10, 12), bool), np.zeros((3, 10, 12), bool))
    case = Case("c", video(1, "g"), video(2, "t"), masks=masks)
    assert Masker(Threshold()).masks(case, "truth") is masks[0]
    assert Masker(None).masks(case, "generated") is masks[1]
    bad = Case("c", video(1, "g", frames=2), video(2, "t"), masks=masks)
    with pytest.raises(ValueError, match="generated video are 3 x 10 x 12"):
        Masker(None).masks(bad, "generated")
    with pytest.raises(ValueError, match="no masks"):
        Masker(None).masks(Case("c", video(1, "g")), "generated")


def test_masks_from_files(tmp_path: Path) -> None:
    expected = np.random.default_rng(0).random((4, 36, 44)) < 0.4
    folder = tmp_path / "clip"
    folder.mkdir()
    for k, mask in enumerate(expected):
        cv2.imwrite(str(folder / f"{k:03d}.png"), np.where(mask, 128, 127).astype(np.uint8))
    assert np.array_equal(read_masks(folder, frames=4), expected)
    assert np.array_equal(read_masks(folder / "001.png", frames=2), expected[[1, 1]])
    with pytest.raises(ValueError, match="4 images for a video of 5"):
        read_masks(folder, frames=5)
    cv2.imwrite(str(folder / "002.png"), np.zeros((40, 40), np.uint8))
    with pytest.raises(ValueError, match="several sizes"):
        read_masks(folder, frames=4)
    with pytest.raises(ValueError, match="do not exist"):
        read_masks(tmp_path / "none", frames=1)
