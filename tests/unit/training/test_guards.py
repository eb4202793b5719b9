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
from xdyna.training.guards import StepGuard, Verdict


def guard(tmp_path: Path, **changes: Any) -> StepGuard:
    return StepGuard(tmp_path, **({"policy": "stop", "spike_factor": 3.0, "window": 10} | changes))


def through(one: StepGuard, loss: float, *, step: int, norm: float = 1.0, ids: list[Any] | None = None) -> Verdict:
    """One step: judged, and remembered where it is taken."""
    verdict = one.check([loss], norm, step=step, ids=[ids or []])
    return verdict if verdict is Verdict.SKIP else one.taken(loss, norm, step=step)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("of", ["loss", "gradient norm"])
def test_stop(tmp_path: Path, of: str, bad: float) -> None:
    one = guard(tmp_path)
    assert through(one, 0.5, step=6, norm=2.0) is Verdict.OK
    losses, norm = ([0.1, bad], 1.0) if of == "loss" else ([0.1, 0.2], abs(bad))
    ids = ["b"] if of == "loss" else ["a", "b"]
    with pytest.raises(NonFiniteLossError, match=rf"the {of} is -?(nan|inf) in step 7.*{', '.join(ids)}.*step-7\.json"):
        one.check(losses, norm, step=7, ids=[["a"], ["b"]])
    dumped = json.loads((tmp_path / "bad_batches" / "step-7.json").read_text())
    what = f"{of} is {bad if of == 'loss' else norm}"
    assert dumped == {
        "step": 7, "rank": 0, "what": what, "ids": ids, "losses_before": [0.5], "norms_before": [2.0],
    }  # fmt: skip


def test_skip_until_it_is_hopeless(tmp_path: Path) -> None:
    """Ten bad steps in a row, whether loss or gradients are bad; a finite loss alone is no good step."""
    one = guard(tmp_path, policy="skip", rank=3)
    for step in range(9):
        assert through(one, math.nan, step=step) is Verdict.SKIP
    assert through(one, 1.0, step=9) is Verdict.OK
    for step in range(10, 19):
        assert through(one, 1.0, step=step, norm=math.nan) is Verdict.SKIP
    with pytest.raises(NonFiniteLossError, match="10 steps in a row up to step 19 had losses or gradients"):
        through(one, 1.0, step=19, norm=math.inf)
    assert len(list((tmp_path / "bad_batches").glob("step-*-rank-3.json"))) == 19


def test_gradients_of_scaled_losses_may_overflow(tmp_path: Path) -> None:
    """float16 begins with a scale that is too high: no error, no file, but not for ever; losses are judged as ever."""
    one = guard(tmp_path, scaled=True)
    for step in range(39):
        assert one.check([1.0], math.inf, step=step, ids=[["a"]]) is Verdict.SKIP
    assert not (tmp_path / "bad_batches").exists()
    with pytest.raises(NonFiniteLossError, match="gradient norm is inf in step 39"):
        one.check([1.0], math.inf, step=39, ids=[["a"]])
    with pytest.raises(NonFiniteLossError, match="loss is nan"):
        guard(tmp_path, scaled=True).check([math.nan], math.nan, step=0, ids=[["a"]])


def test_cap_of_the_norm(tmp_path: Path) -> None:
    """`norm_ratio` times the value that nine of ten norms do not exceed; nothing before there are eight."""
    one = guard(tmp_path, norm_ratio=2.0)
    for step, norm in enumerate([5, 1, 2, 3, 4, 6, 7, 8, 9, 100]):
        if step == 7:
            assert one.largest_norm(1.5) == 1.5
            assert one.largest_norm(0) == math.inf
        through(one, 1.0, step=step, norm=float(norm))
    assert one.largest_norm(0) == 2 * 9.0
    assert one.largest_norm(3.0) == 3.0
    again = guard(tmp_path, norm_ratio=2.0)
    again.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert again.largest_norm(50) == 18.0
    assert guard(tmp_path).largest_norm(0) == math.inf


def test_spike(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = guard(tmp_path)
    losses = [1.0, 5.0, 1.2, 0.8, 1.1, 0.9, 1.0, 1.0]  # the 5 comes before there is a median to compare with
    assert [through(one, loss, step=i) for i, loss in enumerate(losses)] == [Verdict.OK] * 8
    with caplog.at_level(logging.WARNING):
        assert through(one, 3.0, step=8) is Verdict.OK, "three times the median of 1 is not more than that"
        assert through(one, 3.1, step=9) is Verdict.SPIKE
    assert [record.getMessage() for record in caplog.records] == ["step 9: loss 3.1 is more than 3 x the median 1"]


def test_new_level_is_no_spike_for_ever(tmp_path: Path) -> None:
    one = guard(tmp_path)
    for step in range(10):
        through(one, 1.0, step=step)
    verdicts = [through(one, 10.0, step=step) for step in range(10)]
    assert verdicts[0] is Verdict.SPIKE
    assert verdicts[-1] is Verdict.OK


def test_memory_comes_back(tmp_path: Path) -> None:
    one, other = guard(tmp_path), guard(tmp_path)
    for step in range(9):
        through(one, 1.0, step=step)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert through(other, 4.0, step=9) is Verdict.SPIKE


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
    with pytest.raises(TrainingError, match=r"loss is nan in step 1.*cannot be written"):
        guard(tmp_path).check([math.nan], 1.0, step=1, ids=[[]])


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
