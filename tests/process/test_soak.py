"""`make soak` in small, and that it sees what it is for."""

from pathlib import Path

import pytest

from tests.process import soak


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    soak.make_inputs(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", list(soak.PROGRAMS))
def test_killed_programs_end_with_the_same_bytes(inputs: Path, tmp_path: Path, name: str) -> None:
    tally = soak.Soak(name, inputs, tmp_path, seed=1).run(2, print)
    assert tally.problems == []
    assert tally.kills == {"SIGKILL": 1, "SIGTERM": 1}
    assert tally.ended >= 1


CARELESS = """
import os, pathlib, sys, time
out = pathlib.Path(sys.argv[1])
known = (out / "begun").exists()
(out / "begun").touch()
time.sleep(1)
(out / "result").write_text("again" if known else "at once")
"""
DEAF = """
import pathlib, signal, subprocess, sys, time
if not pathlib.Path(sys.argv[1], "begun").exists():
    pathlib.Path(sys.argv[1], "begun").touch()
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    time.sleep(SECONDS)
pathlib.Path(sys.argv[1], "result").touch()
"""


@pytest.mark.long
def test_other_bytes_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "program.py").write_text(CARELESS)
    program = soak.Program(f"{tmp_path}/program.py {{out}}", ("result",), "result")
    monkeypatch.setitem(soak.PROGRAMS, "careless", program)
    tally = soak.Soak("careless", tmp_path, tmp_path, seed=0).run(2, print)
    assert any("other bytes than undisturbed: result" in problem for problem in tally.problems)


@pytest.mark.long
def test_processes_left_behind_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "program.py").write_text(DEAF.replace("SECONDS", "2"))
    program = soak.Program(f"{tmp_path}/program.py {{out}}", ("result",), "result")
    monkeypatch.setitem(soak.PROGRAMS, "deaf", program)
    monkeypatch.setattr(soak, "GRACE", 0.5)
    tally = soak.Soak("deaf", tmp_path, tmp_path, seed=0).run(1, print)
    assert any("outlived it" in problem for problem in tally.problems)
