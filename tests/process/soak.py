"""Programs that are killed at random moments, again and again, end with the bytes of an undisturbed run (`make soak`).

Every program is run once undisturbed. Then it is started, killed after a random time (kill -9 and SIGTERM in turn) and
started again with the same command, until it was killed as often as asked for; whenever it comes to its end, its files
are compared with the undisturbed ones, and it begins anew. A table says what happened, and what the kills cost; exit
code 1: something differed, a program failed by itself, or left processes behind.

    python -m tests.process.soak --kills 10 --seed 0 [--only train infer] [--signals SIGKILL] [--forked] [--to-the-end]

`--forked`: programs are forked from a parent that has made their imports (`nursery`), so that kills fall into their
work; `--to-the-end`: each killed run goes on to its end, instead of being killed again on its way.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.process.nursery import Forked, Nursery
from tests.process.soak_programs import PROGRAMS, make_inputs
from xdyna.core.files import file_sha256

ROOT = Path(__file__).resolve().parents[2]
CODES = (0, 130, -signal.SIGTERM, -signal.SIGKILL)  # of a run that was killed: a flag may have let it end well, too
SIGNALS = ("SIGKILL", "SIGTERM")
BAR = re.compile(r"(denoising|decoding):[^\r\n]*?\s(\d+)/(\d+) \[")
"""What a bar of infer.py shows: windows of all steps, or frames."""
GRACE = 20  # s for processes that a program started to end after it


@dataclass
class Tally:
    """What became of a program.

    Attributes:
        seconds: of the processor, of the undisturbed run.
        work: the same without its start-up.
        kills: by signal.
        ended: runs that came to their end, and were compared.
        lost: seconds of the processor that each SIGKILL cost: since what is kept was written, or start-up was over.
        twice: window-steps and frames that each SIGKILL cost: shown as made, and not kept.
        parts: window-steps and frames of a whole run.
        problems: sentences.
    """

    seconds: float = 0.0
    work: float = 0.0
    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIGNALS, 0))
    ended: int = 0
    lost: list[float] = field(default_factory=list)
    twice: list[tuple[int, int]] = field(default_factory=list)
    parts: tuple[int, int] = (0, 0)
    problems: list[str] = field(default_factory=list)


class Soak:
    """One program, killed again and again.

    Args:
        name: of `PROGRAMS`.
        inputs: see `make_inputs`.
        scratch: an empty folder.
        seed: of the moments.
        signals: names of those that kill, in turn.
        forked: whether it is forked from a parent that has made its imports.
        to_the_end: whether a killed run goes on to its end, instead of being killed again on its way.
    """

    def __init__(self, name: str, inputs: Path, scratch: Path, seed: int, *, signals: Sequence[str] = SIGNALS,
                 forked: bool = False, to_the_end: bool = False) -> None:  # fmt: skip
        self.program, self.inputs, self.out, self.signals = PROGRAMS[name], inputs, scratch / "out", signals
        self.to_the_end = to_the_end
        self.random = random.Random(f"{name} {seed}")
        self.tally = Tally()
        self.before = self.used = self.used_when_kept = 0.0  # s of the processor: start-up, work, work that is kept
        self.log = scratch / "log.txt"
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XDYNA_CACHE": str(scratch / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        self.modules = scratch / "modules.json"
        self.nursery = Nursery(ROOT, self.environment) if forked else None

    def run(self, kills: int, tell: Callable[[str], None]) -> Tally:
        """Kill it so many times, and let it come to its end."""
        try:
            return self._run(kills, tell)
        finally:
            if self.nursery is not None:
                self.nursery.close()

    def _run(self, kills: int, tell: Callable[[str], None]) -> Tally:
        tally = self.tally
        if self.nursery is not None:  # once with the imports
            self._once(None, None)
            self._clear()
        code = self._once(None, None)
        tally.seconds, tally.work = self.before + self.used, self.used
        if code != 0 or not self._is_finished():
            tally.problems.append(f"undisturbed it ended with {code}: {self._last_words()}")
            return tally
        wanted = self._digests()
        tally.parts = self._shown()
        self._clear()
        told = 0
        while sum(tally.kills.values()) < kills and len(tally.problems) < 3:
            number = self.signals[sum(tally.kills.values()) % len(self.signals)]
            least = 0.0 if self.program.begun else 0.1
            code = self._once(self.random.uniform(least, 1.0) * tally.work, signal.Signals[number])
            if code is None:
                tally.kills[number] += 1
                if self.to_the_end and not self._is_finished():
                    self._once(None, None)
                tell(f"killed {sum(tally.kills.values())} times, ended {tally.ended} times")
            if self._is_finished():
                self._finish(wanted)
            for problem in tally.problems[told:]:  # at once: a soak may be cut off, too
                tell(problem)
            told = len(tally.problems)
        while self.out.exists() and not self._is_finished() and len(tally.problems) < 3:
            self._once(None, None)
            if not self._is_finished():
                tally.problems.append(f"it does not come to its end: {self._last_words()}")
        if self._is_finished():
            self._finish(wanted)
        return tally

    def _once(self, seconds: float | None, number: signal.Signals | None) -> int | None:
        """Run the command; None: it was killed after `seconds` of work. Otherwise its exit code."""
        command = self.program.command.format(inputs=self.inputs, out=self.out).split()
        self.out.mkdir(exist_ok=True)
        with self.log.open("w") as log:
            process = (
                self.nursery.start(command, self.log, self.modules)
                if self.nursery is not None
                else subprocess.Popen(
                    [sys.executable, *command], cwd=ROOT, env=self.environment, stdout=log, stderr=log
                )
            )
            try:
                self._wait_for_work(process)
                code = self._work(process, seconds)
                if code is not None:
                    if code != 0:
                        self.tally.problems.append(f"it failed by itself with {code}: {self._last_words()}")
                    return code
                if number is None:
                    self.tally.problems.append(f"it did not end within {self.program.seconds} s: {self._last_words()}")
                    return 1
                family = _family(process.pid)
                process.send_signal(number)
                if self.program.kept and number is signal.SIGKILL:  # the other one keeps everything
                    self.tally.lost.append(self.used - self.used_when_kept)
                    self.tally.twice.append(self._parts_lost())
                code = _end(process, 60)
                if code is None:
                    self.tally.problems.append(f"{number.name} did not end it within 60 s: {self._last_words()}")
                    return None
            finally:
                process.kill()
                process.wait()
        if code not in CODES:
            self.tally.problems.append(f"{number.name} ended it with {code}: {self._last_words()}")
        for _ in naps(GRACE):
            family = psutil.wait_procs(family, timeout=0.1)[1]
            if not family:
                break
        for child in family:
            self.tally.problems.append(f"process {' '.join(child.cmdline()[:4])} outlived it")
            child.kill()
        return 0 if code == 0 and number is signal.SIGKILL else None  # the signal came too late

    def _wait_for_work(self, process: subprocess.Popen[bytes] | Forked) -> None:
        for _ in naps(self.program.seconds):
            if self.program.begun in self.log.read_text(errors="replace") or process.poll() is not None:
                break
        self.before = _used(process.pid) if self.program.begun else 0.0
        self.used = self.used_when_kept = 0.0

    def _work(self, process: subprocess.Popen[bytes] | Forked, seconds: float | None) -> int | None:
        """Wait until it ends, or has worked for so many seconds of the processor; those of a clock pass on a machine
        that stands still, too. Returns: exit code; None: it runs."""
        kept = self._kept()
        for _ in naps(self.program.seconds):
            if (code := process.poll()) is not None:
                return code
            self.used = max(self.used, _used(process.pid) - self.before)
            if self._kept() != kept:
                kept, self.used_when_kept = self._kept(), self.used
            if seconds is not None and self.used >= seconds:
                break
        return None

    def _kept(self) -> float:
        """When what is kept was written; 0 where nothing is."""
        path = self.out / self.program.kept
        return path.stat().st_mtime if self.program.kept and path.exists() else 0.0

    def _shown(self) -> tuple[int, int]:
        """Window-steps and frames that the bars have shown last; a run that goes on shows those of its own steps."""
        found = BAR.findall(self.log.read_text(errors="replace"))
        shown = {stage: (int(done), int(total)) for stage, done, total in found}
        windows, of = shown.get("denoising", (0, 0))
        return windows + max(0, self.tally.parts[0] - of), shown.get("decoding", (0, 0))[0]

    def _parts_lost(self) -> tuple[int, int]:
        """Window-steps and frames that were shown and are not kept."""
        (windows, frames), all_windows = self._shown(), self.tally.parts[0]
        try:
            state = json.loads((self.out / self.program.kept).read_text())
        except FileNotFoundError:
            return windows, frames
        each = all_windows // self.program.steps
        return max(0, windows - state["steps"] * each - len(state["parts"])), max(0, frames - state["frames"])

    def _finish(self, wanted: dict[str, str]) -> None:
        found = self._digests()
        differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        if differing:
            self.tally.problems.append(f"other bytes than undisturbed: {', '.join(differing[:4])}")
        self.tally.ended += 1
        self._clear()

    def _is_finished(self) -> bool:
        return (self.out / self.program.finished).is_file()

    def _digests(self) -> dict[str, str]:
        files = [path for pattern in self.program.results for path in sorted(self.out.glob(pattern))]
        assert files, self.program.results
        return {str(path.relative_to(self.out)): file_sha256(path) for path in files}

    def _clear(self) -> None:
        shutil.rmtree(self.out)
        shutil.rmtree(Path(self.environment["XDYNA_CACHE"]), ignore_errors=True)

    def _last_words(self) -> str:
        return " | ".join(self.log.read_text(errors="replace").strip().splitlines()[-3:])[-500:]


def naps(seconds: float) -> Iterator[None]:
    """Naps that last so long together; a machine that stands still meanwhile costs one of them."""
    left = seconds
    while left > 0:
        start = time.monotonic()
        yield
        time.sleep(0.03)  # looking costs some milliseconds
        left -= min(time.monotonic() - start, 1.0)


def _end(process: subprocess.Popen[bytes] | Forked, seconds: float) -> int | None:
    """How it ends within some seconds; None: not at all."""
    for _ in naps(seconds):
        if (code := process.poll()) is not None:
            return code
    return None


def _used(pid: int) -> float:
    """Seconds of the processor of a process and of all that it has started; 0: it has ended."""
    total = 0.0
    try:
        whole = psutil.Process(pid)
        for process in (whole, *whole.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:4])
    except psutil.NoSuchProcess:
        return 0.0
    return total


def _family(pid: int) -> list[psutil.Process]:
    """What a process has started."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:  # it has just ended
        return []


def main() -> int:
    """Run the soak. Returns: exit code."""
    parser = argparse.ArgumentParser(description="Kill programs at random moments and compare what they end with.")
    parser.add_argument("--kills", type=int, default=10, help="of each program (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    parser.add_argument("--signals", nargs="+", choices=SIGNALS, default=SIGNALS, help="in turn (both)")
    parser.add_argument("--forked", action="store_true", help="kills fall into the work, not into imports")
    parser.add_argument("--to-the-end", action="store_true", help="each killed run goes on to its end")
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), help="which programs (all)")
    args = parser.parse_args()
    tallies = {}
    with tempfile.TemporaryDirectory(prefix="xdyna-soak-") as folder:
        inputs = Path(folder, "inputs")
        inputs.mkdir()
        make_inputs(inputs)
        for name in args.only:
            scratch = Path(folder, name)
            scratch.mkdir()
            soak = Soak(name, inputs, scratch, args.seed, signals=args.signals, forked=args.forked,
                        to_the_end=args.to_the_end)  # fmt: skip
            tallies[name] = soak.run(args.kills, lambda text, name=name: print(f"{name}: {text}", flush=True))
    heads = ("program", "processor time undisturbed", "of it work", *SIGNALS, "ended and compared",
             "work lost a SIGKILL", "window-steps and frames made twice, of", "problems")  # fmt: skip
    print("\n| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
    for name, tally in tallies.items():
        cells = [
            name,
            f"{tally.seconds:.1f} s",
            f"{tally.work:.1f} s",
            *(str(tally.kills[number]) for number in SIGNALS),
            str(tally.ended),
        ]
        mean = sum(tally.lost) / max(len(tally.lost), 1)
        cells += [f"{mean:.2f} s ({mean / tally.work:.1%})" if tally.lost else "-"]
        cells += [f"{', '.join(f'{w} + {f}' for w, f in tally.twice)}; {tally.parts}" if tally.twice else "-"]
        print("| " + " | ".join([*cells, str(len(tally.problems) or "none")]) + " |")
    for name, tally in tallies.items():
        for problem in tally.problems:
            print(f"{name}: {problem}")
    return int(any(tally.problems for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
