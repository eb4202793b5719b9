"""Programs that do what none may, to see that it is seen: each case names what must be said of it."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.hostile import watch
from tests.hostile.case import Case

GIVEN = "HOSTILE_GIVEN"


def _root() -> Path:
    return Path(os.environ[GIVEN]).parent


def _say(text: str, code: int = 1) -> int:
    print(text, file=sys.stderr)
    return code


def _memory() -> int:
    held = bytearray(1700 * 2**20)
    held[::4096] = b"x" * len(held[::4096])
    return _fails()


def _spins() -> int:
    watch.SECONDS = 3.0  # of this worker: a busy machine takes minutes for the usual bound
    start = time.process_time()
    while time.process_time() - start < 4:
        pass
    return _fails()


def _fails() -> int:
    return _say("error: the file 'given.txt' is no file that can be read; give another one")


def _and_fails(work: Callable[[], object]) -> Callable[[], int]:
    def both() -> int:
        work()
        return _fails()

    return both


DEEDS: dict[str, tuple[Callable[[], int], str]] = {
    "raises": (lambda: 1 // 0, "words of Python"),
    "exits with 3": (lambda: 3, "exit code 3"),
    "succeeds": (lambda: 0, "exit code 0"),
    "says nothing": (lambda: 1, "no message"),
    "says little": (lambda: _say("error: no"), "says nothing"),
    "says too much": (lambda: _say("error: " + "x" * 5000), "a message of"),
    "says it twice": (lambda: _fails() and _fails(), "2 messages"),
    "does not name the file": (lambda: _say("error: something cannot be read; give another one"), "does not name"),
    "runs code": (_and_fails(lambda: (_root() / "secret" / "hacked").touch()), "CODE WAS RUN"),
    "unpickles": (_and_fails(lambda: pickle.loads(pickle.dumps(os.getpid))), "a pickle was given posix.getpid"),
    "starts a shell": (_and_fails(lambda: os.system("true")), "it started a process"),
    "reads the secret": (_and_fails(lambda: (_root() / "secret" / "word.txt").read_text()), "it read"),
    "reads the secret unseen": (_and_fails(lambda: os.readv(_unseen(), [bytearray(4)])), "the secret was read"),
    "writes outside": (_and_fails(lambda: (_root() / "beside").write_text("x")), "it wrote outside"),
    "changes what was given": (_and_fails(lambda: (_root() / "given" / "given.txt").write_text("x")), "what was given was changed"),
    "removes what was there": (_and_fails(lambda: (_root() / "out" / "own.txt").unlink()), "was changed"),
    "leaves half a file": (_and_fails(lambda: (_root() / "out" / ".x.part").write_text("x")), "half files"),
    "leaves a file": (_and_fails(lambda: (_root() / "out" / "x.mp4").write_text("x")), "files of a failed run"),
    "leaves a temporary file": (_and_fails(lambda: Path(os.environ["TMPDIR"], "x").touch()), "left in the temporary folder"),
    "takes memory": (_memory, "MiB of memory"),
    "takes time": (_spins, "s of the processor"),
    "crashes": (lambda: os.kill(os.getpid(), signal.SIGSEGV) or 1, "it ended the process (SIGSEGV)"),  # type: ignore[func-returns-value]
    "hangs": (lambda: time.sleep(10_000) or 1, "it ended the process (SIGKILL)"),  # type: ignore[func-returns-value]
}  # fmt: skip


def _unseen() -> int:
    """The secret, opened as a library in C would: no event of Python tells of it."""
    import ctypes

    return ctypes.CDLL(None).open(str(_root() / "secret" / "word.txt").encode(), os.O_RDONLY)


def main(argv: Sequence[str]) -> int:
    """Do it. Args: argv: the name of the deed."""
    return DEEDS[argv[0]][0]()


def all_cases() -> list[Case]:
    """One for each deed."""

    def case(name: str) -> Case:
        def make(place) -> Sequence[str]:  # type: ignore[no-untyped-def]
            place.put("given.txt", b"given")
            (place.out / "own.txt").write_text("a user's own")
            return [name]

        return Case("careless", name, make, program="tests.hostile.careless", names="given.txt")

    return [case(name) for name in DEEDS]
