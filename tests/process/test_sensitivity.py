"""Known damage, and the verdicts on how metrics react to it."""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xdyna.core.program import USAGE, run
from xdyna.evaluation.metric import HIGHER, LOWER, ONE, Case, Column, Metric, Record, pooled, pooled_means
from xdyna.evaluation.store import Store
from xdyna.puppets.damage import DAMAGES, FRAMES, LEVELS, Puppet, case_of, render
from xdyna.puppets.heldout import HeldOut
from xdyna.puppets.sensitivity import conditions, main, study, verdict, verdicts
from xdyna.puppets.sensitivity_report import draw, markdown

FIRE, WALL = (HeldOut(2_000_001, 2_000_002, scene, other=2_000_004, start=2) for scene in (2_000_001, 2_000_002))


@pytest.fixture(scope="module")
def clip() -> Puppet:
    return render(0, FIRE)


def test_clips_of_the_tests_differ_in_their_scenes(clip: Puppet) -> None:
    moves = [np.ptp(render(0, entry).scene, axis=0).max() > 0 for entry in (FIRE, WALL)]
    assert moves == [True, False]


def test_four_levels_each() -> None:
    assert all(len(damage.levels) == LEVELS for damage in DAMAGES.values())
    assert len(list(conditions())) == 1 + LEVELS * len(DAMAGES)


@pytest.mark.parametrize("name", list(DAMAGES))
def test_damage_grows_and_fits_the_clip(clip: Puppet, name: str) -> None:
    sizes = []
    for level in DAMAGES[name].levels:
        frames, masks = DAMAGES[name].make(clip, level)
        assert frames.dtype == np.uint8
        assert frames.shape == clip.frames.shape
        assert masks.dtype == bool
        assert masks.shape == clip.masks.shape
        sizes.append(np.abs(frames.astype(int) - clip.frames).mean())
    assert sizes[0] > 0
    assert sizes == sorted(sizes)
    again, _ = DAMAGES[name].make(clip, DAMAGES[name].levels[0])
    assert np.array_equal(again, DAMAGES[name].make(clip, DAMAGES[name].levels[0])[0])


def test_frozen_scenes_keep_the_figure_and_spare_static_ones(clip: Puppet) -> None:
    frames, _ = DAMAGES["frozen"].make(clip, 0.5)
    assert np.array_equal(frames[: FRAMES // 2], clip.frames[: FRAMES // 2])
    assert np.array_equal(frames[clip.masks], clip.frames[clip.masks])
    never = ~clip.masks.any(axis=0)
    far = never & ~np.roll(never ^ True, 3, 0) & ~np.roll(never ^ True, -3, 0) & ~np.roll(never ^ True, 3, 1)
    far &= ~np.roll(never ^ True, -3, 1)
    assert (frames[FRAMES // 2 :, far] == frames[FRAMES // 2, far]).all()
    still = render(1, WALL)
    assert np.array_equal(DAMAGES["frozen"].make(still, 1)[0], still.frames)


def test_moved_figures_are_where_they_should_be(clip: Puppet) -> None:
    frames, masks = DAMAGES["offset"].make(clip, 8)
    assert np.array_equal(masks[:, :, 8:], clip.masks[:, :, :-8])
    kept = clip.masks[:, :, :-8]
    assert np.array_equal(frames[:, :, 8:][kept], clip.frames[:, :, :-8][kept])
    assert np.array_equal(frames[~masks], clip.scene[~masks])


def test_other_identities_and_noise(clip: Puppet) -> None:
    frames, masks = DAMAGES["identity"].make(clip, 0.25)
    assert np.array_equal(frames[:12], clip.frames[:12])
    assert np.array_equal(frames[12:], clip.other[12:])
    assert np.array_equal(masks[12:], clip.other_masks[12:])
    noisy, _ = DAMAGES["noise"].make(clip, 5)
    middle = (clip.frames > 30) & (clip.frames < 225)  # where nothing is cut off
    assert (noisy.astype(float) - clip.frames)[middle].std() == pytest.approx(5, rel=0.02)


@pytest.mark.parametrize(
    ("values", "better", "expected"),
    [
        ([0, 1, 2, 3, 4], LOWER, "yes"),
        ([0, 1, 2, 3, 4], HIGHER, "wrong"),
        ([9, 7, 5, 3, 1], HIGHER, "yes"),
        ([0, 1, 1, 3, 4], LOWER, "partly"),
        ([0, 5, 4, 3, 2], LOWER, "partly"),
        ([0, 5, 4, 3, 0], LOWER, "wrong"),
        ([0, 0.01, 0.02, 0.03, 0.04], LOWER, "no"),
        ([1, 0.8, 0.6, 0.4, 0], ONE, "yes"),
        ([1, 1.2, 1.4, 1.6, 2], ONE, "yes"),
        ([1, 1, 1, 1, 1], ONE, "no"),
        ([0, 1, math.nan, 3, 4], LOWER, "-"),
    ],
)
def test_verdicts_by_hand(values: list[float], better: str, expected: str) -> None:
    assert verdict(values, better, largest=4 if better != ONE else 0.7) == expected


class Distance(Metric):
    """Mean absolute difference; has nothing to say on the second clip."""

    name, version, needs = "distance", "1", frozenset({"truth"})
    columns = (Column("distance", "Distance", LOWER),)

    def __init__(self) -> None:
        self.measured = 0

    def measure(self, case: Case) -> Record:
        if case.id == "01":
            raise ValueError("not this one")
        self.measured += 1
        truth, generated = (frames[:] for frames in case.paired)
        return Record(pooled("distance", np.abs(truth.astype(float) - generated).mean(axis=(1, 2, 3))))

    def reduce(self, records: Iterable[Record]) -> dict[str, float]:
        return {"distance": math.nan, **pooled_means(records)}


def test_study_measures_every_condition_once(clip: Puppet, tmp_path: Path) -> None:
    clips, metric, store = [clip, render(1, WALL)], Distance(), Store(tmp_path)
    values = study(clips, [metric], store)
    assert metric.measured == 1 + LEVELS * len(DAMAGES)
    for name, row in values["distance"].items():
        assert row[0] == 0
        for found, level in zip(row[1:], DAMAGES[name].levels, strict=True):
            made, _ = DAMAGES[name].make(clip, level)
            assert found == pytest.approx(np.abs(made.astype(float) - clip.frames).mean())
    assert study(clips, [metric], store) == values
    assert metric.measured == 1 + LEVELS * len(DAMAGES)  # all from the store
    assert set(verdicts(values, metric.columns)["distance"].values()) == {"yes"}


def test_report_has_every_number(tmp_path: Path) -> None:
    columns = [Column("a", "Alpha", LOWER), Column("b", "Beta", HIGHER), Column("c", "Gamma", ONE)]
    values = {
        "a": {name: [0, 1.5, 2, 3, 4.25] for name in DAMAGES},
        "b": {name: [0, 1, 2, 3, 4] for name in DAMAGES},
        "c": {name: [math.nan] * 5 for name in DAMAGES},
    }
    table = verdicts(values, columns)
    text = markdown(values, columns, table, {"a": 24, "b": 24, "c": 6})
    assert "| Alpha ↓ | " + " | ".join(["**yes**"] * 6) + " |" in text
    assert "| Beta ↑ | " + " | ".join(["mixed"] * 6) + " |" in text
    assert "| Gamma → 1 | - | - |" in text
    assert text.count("| Alpha ↓ | 0 | 1.5 | 2 | 3 | 4.25 | **yes** |") == len(DAMAGES)
    assert "on the first 6 clips only" in text
    draw(values, columns, table, tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").size[0] > 1000


def test_cases_bring_their_masks(clip: Puppet) -> None:
    frames, masks = DAMAGES["offset"].make(clip, 4)
    case = case_of(clip, (frames, masks))
    assert case.masks is not None
    assert np.array_equal(case.masks[0], clip.masks)
    assert np.array_equal(case.masks[1], masks)
    assert case.digest != case_of(clip, (clip.frames, clip.masks)).digest


def test_wrong_numbers_of_clips_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--clips", "1"], ["--clips", "65"], ["--clips", "4", "--people-clips", "5"]):
        assert run(main, wrong) == USAGE
        assert "expected 2 to 64" in capsys.readouterr().err
