"""Figure masks of puppets: against rendered ones, and what metrics of regions make of them."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from xdyna.core.resources import resource
from xdyna.evaluation.masks import BACKGROUND, FIGURE, Masker
from xdyna.evaluation.metric import Case, Video
from xdyna.evaluation.metrics.dynamics import AppearanceDrift, TemporalRatio
from xdyna.puppets.heldout import load_held_out
from xdyna.puppets.segmenter import PuppetSegmenter
from xdyna.puppets.train_segmenter import main

SIZE = (128, 128)


@pytest.fixture(scope="module")
def segmenter() -> PuppetSegmenter:
    return PuppetSegmenter.load(resource("pretrained") / "puppet-segmenter")


@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_masks_are_those_of_the_renderer(segmenter: PuppetSegmenter, sigma: float) -> None:
    both = either = 0
    for entry in load_held_out()[:6]:
        clip = entry.clip(frames=2, size=SIZE)
        for frame, mask in zip(clip.frames, clip.mask, strict=True):
            found = segmenter.segment(cv2.GaussianBlur(frame, (0, 0), sigma) if sigma else frame) >= 0.5
            both, either = both + (found & mask).sum(), either + (found | mask).sum()
    assert both / either > 0.9


def test_each_side_has_its_own_masks(segmenter: PuppetSegmenter) -> None:
    """A video one frame late is as lively as the truth, in figure and background; by the truth's masks it is not."""
    ratios: dict[tuple[str, bool], list[float]] = {}
    for entry in load_held_out()[:4]:
        clip = entry.clip(frames=9, size=SIZE)
        if not clip.dynamic.any():
            continue
        truth, late = (Video(name, clip.frames[k : k + 8], 8.0, f"{entry}{name}") for k, name in enumerate("tl"))
        for own in (True, False):
            case = Case("a", late, truth, None, None if own else (clip.mask[:8], clip.mask[:8]))
            for region in (FIGURE, BACKGROUND):
                metric = TemporalRatio(region, Masker(segmenter))
                ratios.setdefault((region, own), []).append(metric.per_video(metric.measure(case))[metric.name])
    medians = {key: float(np.median(values)) for key, values in ratios.items()}
    assert medians[FIGURE, True] == pytest.approx(1, abs=0.15)
    assert medians[BACKGROUND, True] == pytest.approx(1, abs=0.15)
    assert medians[BACKGROUND, False] > 1.3


def test_a_still_video_does_not_drift(segmenter: PuppetSegmenter) -> None:
    still = np.repeat(load_held_out()[0].clip(frames=1, size=SIZE).frames, 6, axis=0)
    metric = AppearanceDrift(Masker(segmenter))
    assert metric.reduce([metric.measure(Case("a", Video("g", still, 8.0, "g")))])["appearance_drift"] == 0


@pytest.mark.long
def test_training_writes_what_is_loaded(tmp_path: Path) -> None:
    assert main(["--clips", "3", "--test-clips", "1", "--steps", "2", "--out", str(tmp_path)]) == 0
    network = PuppetSegmenter.load(tmp_path)
    assert "Overlap with the true masks" in (tmp_path / "README.md").read_text()
    assert network.segment(np.zeros((33, 47, 3), np.uint8)).shape == (33, 47)  # any size
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match="train-segmenter makes"):
        PuppetSegmenter.load(tmp_path)
