"""`make soak` in small, and that it sees what it is for."""

from pathlib import Path

import pytest

from tests.process import soak
from tests.process.soak_programs import Program


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


WORK = """
def work(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass
"""
CARELESS = (
    WORK
    + """
import os, pathlib, sys, time
out = pathlib.Path(sys.argv[1])
known = (out / "begun").exists()
(out / "begun").touch()
work(0.6)
(out / "result").write_text("again" if known else "at once")
"""
)
DEAF = (
    WORK
    + """
import pathlib, signal, subprocess, sys, time
if not pathlib.Path(sys.argv[1], "begun").exists():
    pathlib.Path(sys.argv[1], "begun").touch()
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    work(SECONDS)
pathlib.Path(sys.argv[1], "result").touch()
"""
)


@pytest.mark.long
@pytest.mark.parametrize("forked", [False, True])
def test_other_bytes_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked: bool) -> None:
    (tmp_path / "program.py").write_text(CARELESS)
    program = Program(f"{tmp_path}/program.py {{out}}", ("result",), "result")
    monkeypatch.setitem(soak.PROGRAMS, "careless", program)
    tally = soak.Soak("careless", tmp_path, tmp_path, seed=0, forked=forked).run(2, print)
    assert any("other bytes than undisturbed: result" in problem for problem in tally.problems)


@pytest.mark.long
@pytest.mark.parametrize("forked", [False, True])
def test_processes_left_behind_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forked: bool) -> None:
    (tmp_path / "program.py").write_text(DEAF.replace("SECONDS", "2"))
    program = Program(f"{tmp_path}/program.py {{out}}", ("result",), "result")
    monkeypatch.setitem(soak.PROGRAMS, "deaf", program)
    monkeypatch.setattr(soak, "GRACE", 0.5)
    tally = soak.Soak("deaf", tmp_path, tmp_path, seed=0, forked=forked).run(1, print)
    assert any("outlived it" in problem for problem in tally.problems)


COUNTS = (
    WORK
    + """
import json, pathlib, sys, time
sys.stderr.write("denoising:  0%|   | 0/8 [00:00<?, ?window/s]\\n")
out = pathlib.Path(sys.argv[1])
kept = json.loads((out / "kept").read_text()) if (out / "kept").exists() else {"steps": 0, "parts": []}
last = 4 * kept["steps"] + len(kept["parts"])
for number in range(last, 8):
    work(0.1)
    if number == 4:
        (out / "kept").write_text(json.dumps({"steps": 1, "parts": [], "frames": 0}))
    done, of = number + 1 - 4 * kept["steps"], 8 - 4 * kept["steps"]
    sys.stderr.write(f"\\rdenoising: 10%|#  | {done}/{of} [00:00<00:09, 1.0window/s]")
    sys.stderr.flush()
    work(0.1)
(out / "result").touch()
"""
)


@pytest.mark.long
def test_work_that_is_done_twice_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 window-steps the first 4 are kept once the fifth is made: a kill costs at most 4."""
    (tmp_path / "program.py").write_text(COUNTS)
    program = Program(f"{tmp_path}/program.py {{out}}", ("result",), "result", begun="denoising", kept="kept")
    monkeypatch.setitem(soak.PROGRAMS, "counts", program)
    made = soak.Soak("counts", tmp_path, tmp_path, seed=0, signals=["SIGKILL"], to_the_end=True)
    tally = made.run(6, print)
    assert tally.problems == []
    assert tally.parts == (8, 0)
    assert (tally.kills["SIGKILL"], tally.ended) == (6, 6)
    assert all(0 <= windows <= 4 for windows, _ in tally.twice), tally.twice
    assert sum(windows for windows, _ in tally.twice) > 0
