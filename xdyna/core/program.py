"""How programs end: one clear message instead of a traceback, exit code 2 for wrong usage and 1 for failure."""

import errno
import importlib
import os
import signal
import stat
import sys
import traceback
from collections.abc import Callable, Sequence

from xdyna.core.errors import UsageError
from xdyna.core.install import DESKTOP, headless_command

USAGE, FAILURE, INTERRUPTED = 2, 1, 130
_LONGEST = 2000  # letters of a message
FULL_MEMORY = "error: the memory is full; use a smaller --size or fewer --frames"
LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""Lets PyTorch ask Linux for large pages for tensors on the CPU; read at its first allocation. 0: without them."""


def ending_signals() -> tuple[signal.Signals, ...]:
    """SIGTERM, and SIGHUP (the terminal was closed) where there is one that is not ignored (nohup)."""
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is None or signal.getsignal(hangup) == signal.SIG_IGN:
        return (signal.SIGTERM,)
    return (signal.SIGTERM, hangup)


def leave_terminal() -> None:
    """Write to nowhere from now on where output goes to a terminal: it is gone, and writing to it would be an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        if stat.S_ISCHR(os.fstat(output).st_mode):
            os.dup2(nowhere, output)
    os.close(nowhere)


def _terminate(signum: int, frame: object) -> None:
    if signal.Signals(signum).name == "SIGHUP":
        leave_terminal()
    raise KeyboardInterrupt("terminated")


def run(main: str | Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run a program's main function and turn whatever it raises into a message and an exit code.

    SIGTERM and SIGHUP (but for nohup) end the program like Ctrl-C, so that unfinished files are removed and partial
    work is kept.

    Args:
        main: takes the arguments, returns the exit code; or the module that holds a function `main`, which is imported
            here, so that Ctrl-C during the imports ends as cleanly as later.
        argv: arguments without the program's name; default: those of the process. `--debug` shows tracebacks.

    Returns:
        int: 0 success, 1 failure, 2 wrong usage, 130 interrupted.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    os.environ.setdefault(LARGE_PAGES, "1")
    previous = {number: signal.signal(number, _terminate) for number in ending_signals()}
    try:
        program = importlib.import_module(main).main if isinstance(main, str) else main
        return program(arguments)
    except KeyboardInterrupt:
        return _report("interrupted", INTERRUPTED, arguments)
    except UsageError as error:
        return _report(f"error: {error}", USAGE, arguments)
    except MemoryError:
        return _report(FULL_MEMORY, FAILURE, arguments)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads our output any more
        return FAILURE
    except OSError as error:
        if error.errno == errno.ENOMEM:
            return _report(FULL_MEMORY, FAILURE, arguments)
        told = (
            str(error) if error.strerror is None or error.filename is None else f"'{error.filename}': {error.strerror}"
        )
        return _report(f"error: {told}", FAILURE, arguments)
    except ValueError as error:
        return _report(f"error: {error}", FAILURE, arguments)
    except Exception as error:
        return _report(_unexpected(error), FAILURE, arguments)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _unexpected(error: Exception) -> str:
    """A sentence about what is no message of ours: still no wall of text unless it is asked for."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
        hint = "use a smaller --size, fewer context frames, or --dtype float16"
        return f"error: the GPU's memory is full ({str(error).splitlines()[0]}); {hint}"
    if "can't allocate memory" in str(error):  # torch's, for the CPU
        return FULL_MEMORY
    if isinstance(error, ImportError) and ".so" in str(error):
        if DESKTOP.search(str(error)):
            return (
                f"error: {error}; that is a build of OpenCV that wants the libraries of a desktop. Put the one without "
                f"them in its place: {headless_command()}"
            )
        return f"error: {error}; a library of the system is missing or does not fit; `xdyna doctor` tells more"
    return f"unexpected error: {type(error).__name__}: {error}\nRun again with --debug for details."


def _report(message: str, code: int, arguments: Sequence[str]) -> int:
    if "--debug" in arguments:
        traceback.print_exc()
    if len(message) > _LONGEST:  # what was given may be a name of any length
        message = f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 3 :]}"
    print(message.encode(errors="backslashreplace").decode(), file=sys.stderr)
    return code
