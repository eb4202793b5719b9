"""What one case does: files it writes or reads where it must not, processes, connections, memory, time, words."""

from __future__ import annotations

import json
import os
import re
import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hostile.case import SECRET, Case, Place

MEMORY = 1600 * 2**20  # bytes that a case may take beyond what was in use
ADDRESSES = 6 * 2**30  # bytes of address space beyond what was in use
SECONDS = 60.0  # of the processor, of one case
LONGEST = 3000  # letters of a message
# What no user should be told: words of Python, not of ours.
_WORDS = re.compile(
    r"Traceback|unexpected error|NoneType|has no attribute|unhashable|not subscriptable|object is not|<class '|"
    r"\b(?!Error\b)[A-Z]\w+(Error|Exception)\b|\b0x[0-9a-f]{8,}|positional argument|keyword argument|"
    r"index \d+ is out of bounds|list index|codec can't|dtype\('|integer string conversion|recursion|_ARRAY_API|"
    r"to unpack|cannot reshape|broadcast"
)
_WRITES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.truncate", "os.utime",
           "os.chown", "os.setxattr", "shutil.rmtree", "shutil.move"}  # fmt: skip
_STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn"}
_LOOKUPS = {"git", "fc-list", "ldconfig", "gcc", "cc", "ld", "objdump"}  # the version; fonts and shared libraries
_UNSAFE = re.compile(r"^(os|posix|nt|subprocess|builtins|__builtin__|shutil|sys|importlib|runpy)\.")
_PLAIN = {"builtins.set", "builtins.list", "builtins.dict", "builtins.tuple", "builtins.bytearray", "builtins.int",
          "__builtin__.set", "builtins.getattr", "builtins.object"}  # fmt: skip


@dataclass
class Watcher:
    """Sees what Python does, by its audit events, while a case runs; one for the process: hooks stay for ever.

    Attributes:
        place: of the running case; None: nothing is watched.
        free: folders that may be written.
        may_read: whether the case may read the secret.
        may_connect: whether it may ask an address.
        seen: sentences.
    """

    place: Place | None = None
    free: tuple[str, ...] = ()
    may_read: bool = False
    may_connect: bool = False
    seen: list[str] = field(default_factory=list)

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        """For `sys.addaudithook`."""
        place = self.place
        if place is None:
            return
        if event == "open":
            path, _, flags = args
            if isinstance(path, str | bytes):
                self._opened(os.fsdecode(path), int(flags or 0))
        elif event in _WRITES:
            for path in args[:2] if event in ("os.rename", "os.link", "shutil.move") else args[:1]:
                if isinstance(path, str | bytes | os.PathLike):
                    self._written(os.fsdecode(path), event)
        elif event in _STARTS and os.path.basename(str(args[0])) not in _LOOKUPS:
            self.seen.append(f"it started a process: {str(args)[:100]}")
        elif event == "socket.connect" and not self.may_connect:
            self.seen.append(f"it connected to {str(args[1:])[:100]}")
        elif event == "pickle.find_class":
            name = f"{args[0]}.{args[1]}"
            if _UNSAFE.match(name) and name not in _PLAIN:
                self.seen.append(f"a pickle was given {name}")

    def _opened(self, path: str, flags: int) -> None:
        assert self.place is not None
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND):
            self._written(path, "open")
        elif not self.may_read and _real(path).startswith(str(self.place.secret)):
            self.seen.append(f"it read {path}")

    def _written(self, path: str, event: str) -> None:
        real = _real(path)
        nowhere = real.startswith("/proc") or (real == "/dev/null" and event == "open")  # but nothing in its place
        if nowhere or any(real.startswith(f) for f in self.free):
            return
        self.seen.append(f"it wrote outside ({event} {path})")


def _real(path: str) -> str:
    # The last part is what a removal or a rename acts on: only folders are followed.
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(folder), name)


def snapshot(folder: Path) -> dict[str, tuple[int, ...]]:
    """What lies below a folder; nothing is opened."""
    found: dict[str, tuple[int, ...]] = {}
    for path in _below(folder):
        status = os.lstat(path)
        size = status.st_size if not os.path.isdir(path) else 0
        found[os.path.relpath(path, folder)] = (status.st_mode, size, 0 if os.path.isdir(path) else status.st_mtime_ns)
    return found


def _below(folder: Path) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        yield from (os.path.join(parent, name) for name in (*folders, *files))


def memory(name: str) -> int:
    """Bytes of this process: VmSize, VmRSS, VmHWM."""
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+)", text)[1]) * 1024  # type: ignore[index]


def forget_peak() -> None:
    """Let VmHWM begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def bound(more: int) -> None:
    """Bound the address space to what is in use and `more` bytes."""
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + more, resource.RLIM_INFINITY))


def judge_words(case: Case, code: int, said: str, told: str) -> list[str]:
    """What is wrong with what the program said.

    Args:
        case: of the run.
        code: exit code.
        said: on the standard error.
        told: on the standard output.
    """
    problems = []
    if code not in ((0, 1, 2) if case.works else (1, 2)):
        problems.append(f"exit code {code}")
    if found := _WORDS.search(said):
        problems.append(f"words of Python: {said[max(0, found.start() - 150) : found.end() + 80]!r}")
    if code == 0:
        return problems
    lines = [line for line in said.splitlines() if re.match(r"(\S+ )?(\S+: )?error: ", line)]
    several = case.program == "xdyna.cli.eval" or "list" in case.name
    if not lines and not (several and told.strip()):
        problems.append(f"no message: {said[-200:]!r}")
    if len(lines) > 1 and not several:
        problems.append(f"{len(lines)} messages")
    if max(map(len, lines), default=0) > LONGEST:
        problems.append(f"a message of {max(map(len, lines))} letters")
    if lines and len(said[said.rindex(lines[-1]) :].strip()) < 25:
        problems.append(f"a message that says nothing: {lines[-1]!r}")
    unsuitable = "do not suit each other" in "".join(lines)  # damage that made another picture of it
    if case.names and code == 1 and lines and case.names not in "".join(lines) and not unsuitable:
        problems.append(f"the message does not name {case.names!r}: {lines[-1][:200]!r}")
    return problems


def judge_files(case: Case, code: int, out: Path, before: dict[str, tuple[int, ...]], argv: Sequence[str]) -> list[str]:
    """What is wrong with what lies in the working folder."""
    from xdyna.media.video import probe

    problems, after = [], snapshot(out)
    for name, state in before.items():
        if after.get(name) != state:
            problems.append(f"{name}, which was there, was changed")
    new = [name for name in after if name not in before and not (out / name).is_dir()]
    new = [name for name in new if ".partial/" not in name]  # kept on purpose: the same command goes on
    if half := [name for name in new if ".part" in name]:
        problems.append(f"half files: {half[:3]}")
    several = case.program in ("xdyna.cli.eval", "xdyna.cli.preprocess") or "list" in case.name
    if code != 0 and new and not several:
        problems.append(f"files of a failed run: {new[:4]}")
    if code == 0 and case.program == "xdyna.cli.infer" and "--dry-run" not in argv:
        if not any(name.endswith(".mp4") for name in new):
            problems.append("success without a video")
        for name in new:
            if name.endswith(".mp4") and probe(out / name).frame_count < 1:
                problems.append(f"{name} has no frames")
            if name.endswith(".json"):
                json.loads((out / name).read_text())
    return problems


def make_secret(place: Place) -> None:
    """A word, last read long ago."""
    place.secret.mkdir(parents=True)
    word = place.secret / "word.txt"
    word.write_text(SECRET + "\n")
    os.utime(word, (1_000_000_000, 1_500_000_000))


def judge_secret(place: Place, before: dict[str, tuple[int, ...]], may_read: bool) -> list[str]:
    """What is wrong with the folder that is nobody's business."""
    problems = []
    if place.canary.exists():
        problems.append("CODE WAS RUN: the canary is there")
    if not may_read and os.lstat(place.secret / "word.txt").st_atime > 1_000_000_001:
        problems.append("the secret was read")
    if snapshot(place.secret) != before:
        problems.append("the secret's folder was changed")
    return problems


HOOK = Watcher()
if "HOSTILE_SCRATCH" in os.environ:
    sys.addaudithook(HOOK.hook)
