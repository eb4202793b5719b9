"""Processes that wait for each other for long."""

from pathlib import Path

import pytest

from tests.unit.training.processes import together

SCRIPT = str(Path(__file__).with_name("leisurely.py"))


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("works", 0, ""),
        pytest.param("alone", 1, "imed out", marks=pytest.mark.long),  # a collective waits for who is at work
        pytest.param("dies", 1, "process 1 of 2 gave no sign of life for 0.05 minutes", marks=pytest.mark.long),
        pytest.param("fails", 1, "no data here", marks=pytest.mark.long),
    ],
)
def test_work_may_take_longer_than_a_collective_waits(how: str, code: int, said: str) -> None:
    got, out, errors = together([SCRIPT, how], processes=2, timeout=60)
    assert got == code, errors[-2000:]
    assert said in errors
    assert out.split() == (["1", "1"] if how == "works" else [])
