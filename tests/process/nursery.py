"""Starts programs without their imports: a parent that has made them forks a process for each program, for `soak`.

What is forked is a process like any other: it has its own number, files and children, and is killed by real signals.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path


class Forked:
    """A forked program; as much of `subprocess.Popen` as `soak` needs. Made by `Nursery.start`."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.nursery, self.pid, self.returncode = nursery, pid, None

    def poll(self) -> int | None:
        """How it ended; None: it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """How it ended. Raises: subprocess.TimeoutExpired: it runs still."""
        if self.returncode is None:
            line = self.nursery.answer(timeout)
            if line is None:
                raise subprocess.TimeoutExpired("a forked program", timeout or 0)
            self.returncode = int(line)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal; the parent keeps an ended process's number until the next one, so that no other gets it."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The parent, one program at a time. Args: folder: the working folder; environment: of it and of all programs."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__], cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._read = b""

    def start(self, command: Sequence[str], log: Path, modules: Path) -> Forked:
        """Fork a program.

        Args:
            command: a script and its arguments.
            log: what it says is written here.
            modules: where its modules are; a program that ends by itself writes those it has used.
        """
        assert self.process.stdin is not None
        asked = {"command": list(command), "log": str(log), "modules": str(modules)}
        self.process.stdin.write(json.dumps(asked).encode() + b"\n")
        self.process.stdin.flush()
        return Forked(self, int(self.answer(None) or 0))

    def answer(self, timeout: float | None) -> str | None:
        """The next line; None: there was none in time. Raises: RuntimeError: the parent has ended."""
        assert self.process.stdout is not None
        end = None if timeout is None else time.monotonic() + timeout
        while b"\n" not in self._read:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not select.select([self.process.stdout], [], [], left)[0]:
                return None
            more = os.read(self.process.stdout.fileno(), 4096)
            if not more:
                raise RuntimeError("the parent of forked programs has ended")
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()

    def close(self) -> None:
        """End the parent."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def _run(command: Sequence[str], log: str, modules: str) -> int:
    """Be the program. Returns: its exit code."""
    code = 1
    try:
        with open(log, "wb") as said, open(os.devnull, "rb") as nothing:
            for number, file in enumerate((nothing, said, said)):
                os.dup2(file.fileno(), number)
        sys.argv = list(command)
        try:
            runpy.run_path(command[0], run_name="__main__")
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        unfinished = Path(f"{modules}.{os.getpid()}")  # it may be killed here, too
        unfinished.write_text(json.dumps(list(sys.modules)))
        unfinished.replace(modules)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):  # as an interpreter does at its end
            importlib.import_module("multiprocessing.util")._exit_function()
            sys.stdout.flush()
            sys.stderr.flush()
    return code


def main() -> None:
    """Fork what is asked for until the input ends."""
    sys.path.insert(0, os.getcwd())
    tried: set[str] = set()
    pid = 0
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        if os.path.exists(asked["modules"]):
            for name in json.loads(Path(asked["modules"]).read_text()):
                if not name.startswith("__") and name not in tried:
                    tried.add(name)
                    with contextlib.suppress(BaseException):  # some are made by others, and have no file
                        importlib.import_module(name)
        if pid:
            os.waitpid(pid, 0)
        pid = os.fork()
        if pid == 0:
            os._exit(_run(**asked))
        print(pid, flush=True)
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        print(ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status, flush=True)


if __name__ == "__main__":
    main()
