"""How programs end: one message and an exit code, whatever is raised."""

import importlib.metadata
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import pytest

from xdyna.core import program, stop
from xdyna.core.errors import UsageError
from xdyna.core.program import INTERRUPTED, LARGE_PAGES, run


def raising(error: BaseException):
    def main(argv: Sequence[str]) -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("give --ref"), 2, "error: give --ref\n"),
        (ValueError("no video"), 1, "error: no video\n"),
        (OSError(36, "File name too long", "a.mp4"), 1, "error: 'a.mp4': File name too long\n"),
        (OSError(12, "Cannot allocate memory"), 1, "error: the memory is full"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "error: the memory is full"),
        (ValueError("\udcff is no name"), 1, "error: \\udcff is no name\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (ZeroDivisionError("x"), 1, "unexpected error: ZeroDivisionError: x\nRun again with --debug for details.\n"),
        (ImportError("No module named 'x'"), 1, "unexpected error: ImportError: No module named 'x'\nRun again with"),
        (ImportError("libGL.so.1: cannot open shared object file"), 1, "error: libGL.so.1: cannot open"),
    ],
)
def test_one_message(error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(error), []) == code
    told = capsys.readouterr().err
    assert told.startswith(message)
    assert "Traceback" not in told


def test_a_long_message_is_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    run(raising(ValueError(f"'{'x' * 9000}' is no name; choose another")), [])
    told = capsys.readouterr().err
    assert len(told) < 2100
    assert told.endswith("x' is no name; choose another\n")


def test_a_missing_library_comes_with_its_mend(capsys: pytest.CaptureFixture[str]) -> None:
    run(raising(ImportError("libgthread-2.0.so.0: cannot open shared object file")), [])
    told = capsys.readouterr().err
    version = importlib.metadata.version("opencv-contrib-python-headless")
    assert f"{sys.executable} -m pip uninstall -y opencv-python opencv-contrib-python && " in told
    assert told.endswith(f"pip install --force-reinstall --no-deps opencv-contrib-python-headless=={version}\n")
    run(raising(ImportError("libtorch.so.2: cannot open shared object file")), [])
    told = capsys.readouterr().err
    assert "OpenCV" not in told
    assert "`xdyna doctor` tells more" in told


def test_debug_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(ValueError("no video")), ["--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("former", "code"), [(signal.SIG_DFL, INTERRUPTED), (signal.SIG_IGN, 0)])
def test_a_closed_terminal_ends_a_program_like_ctrl_c(
    former: signal.Handlers, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for nohup, which has SIGHUP ignored; the loop of a training run leaves in the same case."""
    cleaned, left = [], []
    for module in (program, stop):
        monkeypatch.setattr(module, "leave_terminal", lambda: left.append(True))

    def main(argv: Sequence[str]) -> int:
        with stop.StopSignal() as heard:
            os.kill(os.getpid(), signal.SIGHUP)
        assert heard.signal == (None if former == signal.SIG_IGN else "SIGHUP")
        try:
            os.kill(os.getpid(), signal.SIGHUP)
        finally:
            cleaned.append(True)
        return 0

    before = signal.signal(signal.SIGHUP, former)
    try:
        assert run(main, []) == code
        assert signal.getsignal(signal.SIGHUP) == former
    finally:
        signal.signal(signal.SIGHUP, before)
    assert cleaned
    assert len(left) == (0 if former == signal.SIG_IGN else 2), "nothing is written to the terminal that is gone"


@pytest.mark.parametrize("own", [None, "0"])
def test_large_pages_unless_somebody_chose(own: str | None) -> None:
    """A process of its own: PyTorch reads it once."""
    environment = {name: value for name, value in os.environ.items() if name != LARGE_PAGES}
    code = f"import os; from xdyna.core.program import run; run(lambda _: print(os.environ['{LARGE_PAGES}']), [])"
    environment |= {} if own is None else {LARGE_PAGES: own}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == (own or "1")
