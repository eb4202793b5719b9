"""Give every program what no honest user would, and see that it says so in a sentence (`make hostile`).

    python -m tests.hostile.run [--kinds image video] [--only TEXT] [--count 40 --seed 7] [--messages]

A table says what happened; exit code 1: a program failed by itself, ran code, read or wrote what it must not, took too
much memory or time, left half a file, or said something that is no clear sentence.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.hostile.case import Case
from tests.hostile.generate import KINDS, chosen_cases, some_cases
from tests.hostile.prepare import make_shared

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 400.0  # s of one case, and of a worker's start; machines are busy


def run_cases(cases: Sequence[Case], folder: Path, *, seed: int = 0, tell: Callable[[str], None] = lambda text: None,
              catalogue: str = "tests.hostile.generate", patience: float = PATIENCE) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Run cases in processes of their own; one that dies or hangs costs the case it was at, and another goes on.

    Args:
        cases: which.
        folder: an empty one.
        seed: of the damage.
        tell: gets a line for each problem.
        catalogue: module whose `all_cases` has them.
        patience: s without news after which a worker is killed.

    Returns:
        What came of each, by id: code, message, seconds, megabytes, problems.
    """
    shared, found, left = folder / "shared", {}, [case.id for case in cases]
    shared.mkdir()
    make_shared(shared)
    starts = 0
    while left:
        starts += 1
        results = folder / f"results-{starts}.jsonl"
        code = _work(left, folder / f"scratch-{starts}", shared, results, seed, catalogue, patience)
        lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
        for line in lines:
            if not line.get("begun"):
                found[line["id"]] = line
                for problem in line["problems"]:
                    tell(f"{line['id']}: {problem}")
        done = [line["id"] for line in lines]
        if not done and code != 0:
            raise RuntimeError(
                f"the worker did not begin: {(folder / f'scratch-{starts}' / 'log').read_text()[-2000:]}"
            )
        for name in set(done) - found.keys():
            how = f"it ended the process ({signal.Signals(-code).name if code < 0 else code})"
            found[name] = {"code": code, "message": "", "seconds": 0, "megabytes": 0, "problems": [how]}
            tell(f"{name}: {how}")
        left = [name for name in left if name not in found]
    return found


def _work(
    ids: Sequence[str], scratch: Path, shared: Path, results: Path, seed: int, catalogue: str, patience: float
) -> int:
    """One worker. Returns: how it ended."""
    scratch.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOSTILE_SCRATCH": str(scratch),
                   "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
    command = [sys.executable, "-m", "tests.hostile.worker", str(shared), str(results), str(seed), catalogue]
    with (scratch / "log").open("w") as log, (scratch / "ids").open("w+") as given:
        given.write("\n".join(ids))
        given.seek(0)
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=given, stdout=log, stderr=log)
        silent, size = 0.0, -1  # s, counted by naps: a machine that stands still is no program that hangs
        while process.poll() is None:
            time.sleep(0.2)
            now = results.stat().st_size if results.exists() else 0
            silent, size = (0.0, now) if now != size else (silent + 0.2, size)
            if silent > patience:
                process.kill()
        return process.wait()


def table(cases: Sequence[Case], found: dict[str, dict[str, Any]]) -> str:
    """What happened, by kind."""
    lines = ["| kind | inputs | refused as wrong usage | refused | worked | most memory | most time | problems |",
             "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for kind in (*KINDS, "all"):
        rows = [found[case.id] for case in cases if kind in (case.kind, "all")]
        if rows:
            codes = Counter(row["code"] for row in rows)
            bad = sum(bool(row["problems"]) for row in rows)
            cells = [kind, len(rows), codes[2], codes[1], codes[0], f"{max(row['megabytes'] for row in rows)} MiB",
                     f"{max(row['seconds'] for row in rows):.1f} s", bad]  # fmt: skip
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run them all, or some. Returns: exit code."""
    parser = argparse.ArgumentParser(description="Give programs hostile inputs.")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="which (all)")
    parser.add_argument("--only", default="", metavar="TEXT", help="those whose name holds this")
    parser.add_argument("--count", type=int, help="only so many, chosen by --seed")
    parser.add_argument("--seed", type=int, default=0, help="of the damage and the choice (%(default)s)")
    parser.add_argument("--messages", action="store_true", help="print what each program said")
    args = parser.parse_args()
    cases = some_cases(args.count, args.seed) if args.count else chosen_cases(args.kinds, args.only)
    with tempfile.TemporaryDirectory(prefix="xdyna-hostile-") as folder:
        found = run_cases(cases, Path(folder), seed=args.seed, tell=lambda text: print(text, flush=True))
    if args.messages:
        for case in cases:
            print(f"{case.id}: {found[case.id]['code']}: {found[case.id]['message']}")
    print("\n" + table(cases, found))
    return int(any(row["problems"] for row in found.values()))


if __name__ == "__main__":
    sys.exit(main())
