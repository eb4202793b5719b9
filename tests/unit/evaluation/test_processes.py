"""Processes of an evaluation: two of them in one process, over the loopback."""

import threading
import time
from collections.abc import Callable

import pytest

from tests.unit.training.processes import free_port
from xdyna.core.errors import UsageError
from xdyna.evaluation import processes
from xdyna.evaluation.processes import ProcessError, Team


@pytest.fixture
def join(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Team]:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setattr(processes, "PAUSE", 0.01)
    monkeypatch.setattr(processes, "BEAT", 0.02)
    return lambda rank, silence=30.0: Team(rank, 2, silence=silence)


def test_they_tell_each_other_what_they_found(join: Callable[..., Team]) -> None:
    first, second = join(0), join(1)
    threading.Timer(0.2, second.gather, ["b"]).start()
    assert first.gather("a") == ["a", "b"]
    assert Team().gather("alone") == ["alone"]


def test_the_failure_of_one_ends_the_other(join: Callable[..., Team]) -> None:
    first, second = join(0), join(1)
    threading.Timer(0.2, second.fail, ["its disk is full"]).start()
    with pytest.raises(ProcessError, match=r"process 1 of 2 failed \(its disk is full\)"):
        first.gather("a")
    first.fail("that of the other")
    with pytest.raises(ProcessError, match="process 0 of 2 failed"):
        second.check()


def test_silence_ends_the_wait(join: Callable[..., Team]) -> None:
    first, second = join(0, 0.3), join(1)
    start = time.monotonic()
    threading.Timer(0.5, second._ended.set).start()  # as if it were killed: no beat, no word
    with pytest.raises(ProcessError, match="process 1 of 2 gave no sign of life"):
        first.gather("a")
    assert time.monotonic() - start > 0.7  # while it beat it was waited for


def test_nobody_waits_for_a_process_0_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    with pytest.raises(ProcessError, match="cannot be reached"):
        Team(1, 2, silence=0.3)
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(UsageError, match="use a launcher"):
        Team(0, 2)
