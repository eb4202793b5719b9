import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from xdyna.core.stop import StopSignal
from xdyna.training.errors import NonFiniteLossError, TrainingError
from xdyna.training.guards import LossGuard, Verdict


def guard(tmp_path: Path, **changes: Any) -> LossGuard:
    return LossGuard(tmp_path, **({"policy": "stop", "spike_factor": 3.0, "window": 10} | changes))


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_stop(tmp_path: Path, loss: float) -> None:
    one = guard(tmp_path)
    assert one.check(0.5, step=6, ids=["a"]) is Verdict.OK
    with pytest.raises(NonFiniteLossError, match=r"loss of step 7 is -?(nan|inf).*clip-3, clip-9.*step-7\.json"):
        one.check(loss, step=7, ids=["clip-3", "clip-9"])
    dumped = json.loads((tmp_path / "bad_batches" / "step-7.json").read_text())
    assert dumped == {
        "step": 7, "rank": 0, "loss": str(loss), "ids": ["clip-3", "clip-9"], "median": None, "losses_before": [0.5],
    }  # fmt: skip


def test_skip_until_it_is_hopeless(tmp_path: Path) -> None:
    one = guard(tmp_path, policy="skip", rank=3)
    for step in range(9):
        assert one.check(math.nan, step=step, ids=[step]) is Verdict.SKIP
    assert one.check(1.0, step=9, ids=[9]) is Verdict.OK
    for step in range(10, 19):
        assert one.check(math.nan, step=step, ids=[step]) is Verdict.SKIP
    with pytest.raises(NonFiniteLossError, match="losses of 10 steps in a row up to step 19 are not finite"):
        one.check(math.nan, step=19, ids=[19])
    assert len(list((tmp_path / "bad_batches").glob("step-*-rank-3.json"))) == 19


def test_spike(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = guard(tmp_path)
    losses = [1.0, 5.0, 1.2, 0.8, 1.1, 0.9, 1.0, 1.0]  # the 5 comes before there is a median to compare with
    assert [one.check(loss, step=i, ids=[]) for i, loss in enumerate(losses)] == [Verdict.OK] * 8
    with caplog.at_level(logging.WARNING):
        assert one.check(3.0, step=8, ids=[]) is Verdict.OK, "three times the median of 1 is not more than that"
        assert one.check(3.1, step=9, ids=[]) is Verdict.SPIKE
    assert [record.getMessage() for record in caplog.records] == ["step 9: loss 3.1 is more than 3 x the median 1"]


def test_new_level_is_no_spike_for_ever(tmp_path: Path) -> None:
    one = guard(tmp_path)
    for step in range(10):
        one.check(1.0, step=step, ids=[])
    verdicts = [one.check(10.0, step=step, ids=[]) for step in range(10)]
    assert verdicts[0] is Verdict.SPIKE
    assert verdicts[-1] is Verdict.OK


def test_memory_comes_back(tmp_path: Path) -> None:
    one, other = guard(tmp_path), guard(tmp_path)
    for step in range(9):
        one.check(1.0, step=step, ids=[])
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert other.check(4.0, step=9, ids=[]) is Verdict.SPIKE


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"policy": "ignore"}, "'ignore', expected one of stop, skip"),
        ({"spike_factor": 1.0}, "expected more than 1"),
        ({"spike_factor": math.nan}, "expected more than 1"),
        ({"window": 3}, "expected 8 or more"),
    ],
)
def test_wrong_settings(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        guard(tmp_path, **wrong)


def test_bad_batch_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "bad_batches").write_text("")
    with pytest.raises(TrainingError, match=r"loss of step 1 is nan.*cannot be written"):
        guard(tmp_path).check(math.nan, step=1, ids=[])


# Signals

LOOP = """
import sys, time
from xdyna.core.stop import StopSignal
with StopSignal() as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("saving", stop.signal, flush=True)
    time.sleep(float(sys.argv[1]))
print("left", flush=True)
"""


def start(seconds: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", LOOP, str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_lets_the_loop_finish(number: signal.Signals) -> None:
    process = start(0.2)
    process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert out == f"saving {number.name}\nleft\n"
    assert process.returncode == 0


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_second_ctrl_c_interrupts(first: signal.Signals) -> None:
    process = start(60)
    process.send_signal(first)
    assert process.stdout is not None
    assert process.stdout.readline() == f"saving {first.name}\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert out == ""
    assert "KeyboardInterrupt" in err


def test_second_sigterm_does_not() -> None:
    process = start(0.5)
    process.terminate()
    assert process.stdout is not None
    assert process.stdout.readline() == "saving SIGTERM\n"
    process.terminate()
    out, _ = process.communicate(timeout=20)
    assert out == "left\n"


def test_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyError), StopSignal() as stop:  # noqa: PT012
        assert signal.getsignal(signal.SIGTERM) != before[0]
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        raise KeyError
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_outside_the_main_thread() -> None:
    flags = []

    def work() -> None:
        with StopSignal() as stop:
            flags.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert flags == [False]
