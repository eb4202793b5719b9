"""`xdyna page` in a process of its own, for tests."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 900  # s; machines of continuous integration are busy


class Served:
    """A page that runs while the block does.

    Attributes:
        url: its address.
        temporary: folder that its own folder is in.
        said: what it has printed.
        code: how it ended, once `end` was called.
    """

    def __init__(self, folder: Path, *words: str | Path) -> None:
        self.temporary, self.said, self.url, self.code = folder / "tmp", "", "", 0
        self.temporary.mkdir(parents=True)
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TMPDIR": str(self.temporary),
            "XDYNA_CACHE": str(folder / "cache"),
        }  # fmt: skip
        command = [sys.executable, "-m", "xdyna", "page", "port=0", *map(str, words)]
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._there = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said += line
            if found := re.search(r"http://[\w.]+:\d+", line):
                self.url = found[0]
                self._there.set()
        self._there.set()

    def __enter__(self) -> "Served":
        self._reader.start()
        if not self._there.wait(PATIENCE) or not self.url:
            self.__exit__(None, None, None)
            raise AssertionError(f"the page did not begin: {self.said}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def folders(self) -> list[Path]:
        """Folders that the page made for itself."""
        return sorted(self.temporary.glob("xdyna-page-*"))

    def end(self, number: int = signal.SIGTERM) -> int:
        """Tell it to end. Returns: exit code."""
        self.process.send_signal(number)
        self.code = self.process.wait(PATIENCE)
        self._reader.join(10)
        return self.code


def until(asked: object, what: str, patience: float = PATIENCE) -> object:
    """What `asked` returns once it is true."""
    assert callable(asked)
    end = time.monotonic() + patience
    while not (found := asked()):
        assert time.monotonic() < end, f"waited {patience:g} s for {what}"
        time.sleep(0.2)
    return found


def blocks(document: Path, language: str) -> Sequence[str]:
    """Blocks of code of a document."""
    return re.findall(rf"```{language}\n(.*?)```", document.read_text(), re.DOTALL)
