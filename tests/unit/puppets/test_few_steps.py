"""The table of few steps, by hand."""

import argparse
import math

import pytest

from xdyna.puppets.few_steps import _steps, rows, summarise, tables

CLIPS = {
    "own_10": {0: {"psnr_figure": 18.0}, 1: {"psnr_figure": 20.0}},
    "distilled_2": {0: {"psnr_figure": 19.0}, 1: {"psnr_figure": 18.0}},
    "own_2": {0: {"psnr_figure": 18.0}, 1: {"psnr_figure": 20.0}},
}
RATIOS = {"own_10": [1.0, 1.0], "distilled_2": [2.0, 0.5], "own_2": [2.0, 1.0]}
DISTANCES = {"own_10": 15.0, "distilled_2": 14.0, "own_2": 21.5}


def test_the_summary_by_hand() -> None:
    """Too lively and too still do not make up for each other; differences are paired, from the first row."""
    table = rows([2], 10)
    assert [row.key for row in table] == list(CLIPS)
    found = summarise(table, CLIPS, DISTANCES, RATIOS)
    mine = found["distilled_2"]
    assert (mine["clips"], mine["psnr_figure"], mine["difference"]) == (2, 18.5, -0.5)
    assert mine["standard_error"] == pytest.approx(1.5)  # of +1 and -2: their deviation 2.12, over the root of 2
    assert mine["energy"] == pytest.approx(math.log(2))
    assert found["own_2"]["energy"] == pytest.approx(math.log(2) / 2)
    assert [entry["distance"] for entry in found.values()] == [15.0, 14.0, 21.5]
    lines = tables(table, found).splitlines()
    assert lines[2] == "| undistilled, 10 steps | 2 | 19.00 | - | 0.000 | 15.00 |"
    assert lines[3] == "| distilled, 2 steps | 2 | 18.50 | -0.50 ± 1.50 | 0.693 | 14.00 |"
    assert lines[4] == "| undistilled, 2 steps | 2 | 19.00 | +0.00 ± 0.00 | 0.347 | 21.50 |"


@pytest.mark.parametrize("text", ["", "0", "4,0", "4,,2", "-2", "2.5", "4,4", "a"])
def test_numbers_of_steps(text: str) -> None:
    assert _steps("4,2,1") == [4, 2, 1]
    with pytest.raises(argparse.ArgumentTypeError, match="expected different numbers of steps"):
        _steps(text)
