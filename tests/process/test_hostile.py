"""Hostile inputs (`make hostile`): a part of them here; and that the one who watches sees what it is for."""

from pathlib import Path

import pytest

from tests.hostile import careless
from tests.hostile.generate import all_cases, some_cases
from tests.hostile.run import run_cases, table


def test_there_are_many_of_each_kind_and_they_are_the_same_every_time() -> None:
    cases = all_cases()
    assert len(cases) >= 500
    assert min(sum(case.kind == kind for case in cases) for kind in {case.kind for case in cases}) >= 50
    assert [case.id for case in some_cases(40, 7)] == [case.id for case in some_cases(40, 7)]
    assert [case.seed(3) for case in cases] == [case.seed(3) for case in all_cases()]


def test_forty_hostile_inputs_are_answered_in_a_sentence(tmp_path: Path) -> None:
    cases = some_cases(40, seed=7)
    found = run_cases(cases, tmp_path, seed=7, tell=print)
    print(table(cases, found))
    assert {name: row["problems"] for name, row in found.items() if row["problems"]} == {}
    assert len(found) == 40


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_all_hostile_inputs_are_answered_in_a_sentence(tmp_path: Path) -> None:
    cases = all_cases()
    found = run_cases(cases, tmp_path, tell=print)
    print(table(cases, found))
    assert {name: row["problems"] for name, row in found.items() if row["problems"]} == {}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_careless_programs_are_seen(tmp_path: Path) -> None:
    cases = careless.all_cases()
    found = run_cases(cases, tmp_path, catalogue="tests.hostile.careless", patience=100)
    for name, (_, said) in careless.DEEDS.items():
        problems = found[f"careless:{name}"]["problems"]
        assert any(said in problem for problem in problems), (name, problems)
