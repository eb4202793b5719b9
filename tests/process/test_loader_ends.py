"""Programs end: no process waits for ever for workers of a training loader, and no worker outlives its program."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiers import long

BEGIN = """
import multiprocessing, os, sys
from tests.tiers import long
from xdyna.config.data import DataConfig
from xdyna.data.loader import build_loader

def main():
    config = DataConfig(height=64, width=64, frames=2, video_frames=8, workers=2, num_clips=4)
    batches = iter(build_loader(config, seed=0, batch_size=1, start_method=sys.argv[1]))
    first, _ = next(batches), next(batches)  # one of each worker: both have started
    print(first.index.tolist(), *[w.pid for w in multiprocessing.active_children()], flush=True)
"""
ENDS = {
    "in use": "",
    "lost in an exception": """
    global kept
    def fails(batches):
        next(batches)
        raise RuntimeError("lost")
    try:
        fails(batches)
    except RuntimeError as error:
        kept = error  # its traceback holds the iterator until the interpreter ends
""",
    "dropped": "    del batches\n",
    "in a cycle": "    cycle = [batches]; cycle.append(cycle)\n",
}
METHODS = ["fork", "spawn", "forkserver"]
QUICK = [("in a cycle", "fork"), ("in use", "forkserver")]
CALL = """
if __name__ == "__main__":
    main()
"""


def alive(pid: int) -> bool:
    """Whether a process runs (one that nobody waited for does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids: list[int], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while any(map(alive, pids)):
        assert time.monotonic() < end, f"still there: {[pid for pid in pids if alive(pid)]}"
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("how", "method"),
    [
        *QUICK,
        *long(*[case for case in itertools.product(ENDS, METHODS) if case not in QUICK]),
    ],
)
def test_a_program_ends(tmp_path: Path, how: str, method: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(BEGIN + ENDS[how] + CALL)
    done = subprocess.run([sys.executable, str(script), method], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    first, *pids = done.stdout.split()
    assert first == "[0]"
    assert len(pids) == 2
    wait_until_gone([int(pid) for pid in pids])


@pytest.fixture(params=["fork", "forkserver"])
def running(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A program that takes batches without end, and its workers."""
    script = tmp_path / "script.py"
    script.write_text(BEGIN + "    for _ in batches: pass\n" + CALL)
    command = [sys.executable, str(script), request.param]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as program:
        assert program.stdout is not None
        pids = [int(pid) for pid in program.stdout.readline().split()[1:]]
        assert len(pids) == 2
        yield program, pids
        program.kill()
    for pid in filter(alive, pids):
        os.kill(pid, signal.SIGKILL)


def test_workers_end_with_a_killed_program(running: tuple[subprocess.Popen[str], list[int]]) -> None:
    program, pids = running
    program.kill()
    program.wait(10)
    wait_until_gone(pids)


def test_workers_in_use_leave_signals_to_their_program(running: tuple[subprocess.Popen[str], list[int]]) -> None:
    program, pids = running
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    time.sleep(1)
    assert all(map(alive, pids))
    assert program.poll() is None
