"""How programs end: one message and an exit code, whatever is raised."""

from collections.abc import Sequence

import pytest

from xdyna.core.errors import UsageError
from xdyna.core.program import run


def raising(error: BaseException):
    def main(argv: Sequence[str]) -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("give --ref"), 2, "error: give --ref\n"),
        (ValueError("no video"), 1, "error: no video\n"),
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


def test_a_missing_library_comes_with_its_mend(capsys: pytest.CaptureFixture[str]) -> None:
    run(raising(ImportError("libgthread-2.0.so.0: cannot open shared object file")), [])
    assert "pip install --no-deps opencv-contrib-python-headless" in capsys.readouterr().err


def test_debug_shows_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(ValueError("no video")), ["--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
