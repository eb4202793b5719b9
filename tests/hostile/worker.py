"""Runs cases in this process, one after the other: `python -m tests.hostile.worker SHARED RESULTS SEED MODULE < ids`.

A line of JSON before each case and one after it go to RESULTS; who started this process sees which case ended it.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from tests.hostile import watch
from tests.hostile.case import Case, Place


def main() -> int:
    """Run them. Returns: exit code."""
    shared, results, base = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    wanted = [line for line in sys.stdin.read().splitlines() if line]
    scratch = Path(os.environ["HOSTILE_SCRATCH"])
    for name in ("home", "tmp", "cache", "uploads"):
        (scratch / name).mkdir(parents=True, exist_ok=True)
    os.environ.update(
        HOME=str(scratch / "home"), XDYNA_CACHE=str(scratch / "cache"), TMPDIR=str(scratch / "tmp"), COLUMNS="200",
        XDYNA_HOME=str(scratch / "home"),
    )  # fmt: skip
    tempfile.tempdir = None
    sys.dont_write_bytecode = True
    cases = {case.id: case for case in importlib.import_module(sys.argv[4]).all_cases()}
    _warm(shared, scratch)
    watch.bound(watch.ADDRESSES)
    with results.open("a", buffering=1) as log:
        for name in wanted:
            log.write(json.dumps({"id": name, "begun": True}) + "\n")
            log.write(json.dumps({"id": name, **run_case(cases[name], scratch, shared, base)}) + "\n")
    return 0


def _warm(shared: Path, scratch: Path) -> None:
    """Import everything, and animate once: what that takes is not what a case takes."""
    from tests.hostile.common import infer
    from xdyna.core.program import run

    place = Place(scratch / "warm", shared, 0)
    place.out.mkdir(parents=True)
    os.chdir(place.out)
    code, _, said = _captured(scratch, lambda: run("xdyna.cli.infer", infer(place)))
    assert code == 0, said
    for name in ("xdyna.cli.eval", "xdyna.cli.train", "xdyna.cli.convert", "xdyna.cli.preprocess", "xdyna.page.studio"):
        importlib.import_module(name)
    os.chdir(scratch)
    for folder in (place.root, scratch / "tmp"):
        shutil.rmtree(folder)
    (scratch / "tmp").mkdir()


def run_case(case: Case, scratch: Path, shared: Path, base: int) -> dict[str, Any]:
    """Run one. Returns: code, message, seconds, megabytes, problems."""
    from xdyna.core.program import run

    place = Place(scratch / "case", shared, case.seed(base))
    for folder in (place.given, place.out):
        folder.mkdir(parents=True)
    watch.make_secret(place)
    os.chdir(place.out)
    os.environ["HOSTILE_GIVEN"] = str(place.given)
    argv = [str(word) for word in case.make(place)]
    before = [watch.snapshot(folder) for folder in (place.given, place.out, place.secret)]
    free = tuple(str(os.path.realpath(f)) for f in (place.out, *(scratch / n for n in ("home", "tmp", "cache"))))
    may_read = case.kind == "path" or str(place.secret) in "".join(argv) or case.name in MAY_READ
    watch.HOOK.seen, watch.HOOK.free, watch.HOOK.may_read = [], (*free, str(scratch / "said")), may_read
    watch.HOOK.may_connect = case.fetches
    watch.forget_peak()
    used, start = watch.memory("VmRSS"), time.process_time()
    watch.HOOK.place = place
    code, told, said = _captured(scratch, lambda: run(case.program, argv))
    watch.HOOK.place = None
    seconds, grown = time.process_time() - start, watch.memory("VmHWM") - used
    problems = list(dict.fromkeys(watch.HOOK.seen))
    problems += watch.judge_words(case, code, said, told)
    problems += watch.judge_secret(place, before[2], may_read)
    problems += watch.judge_files(case, code, place.out, before[1], argv)
    if watch.snapshot(place.given) != before[0]:
        problems.append("what was given was changed")
    if left := [p for p in os.listdir(scratch / "tmp") if not p.startswith("torchinductor")]:
        problems.append(f"left in the temporary folder: {left[:3]}")
        shutil.rmtree(scratch / "tmp")
        (scratch / "tmp").mkdir()
    if grown > watch.MEMORY:
        problems.append(f"{grown / 2**20:.0f} MiB of memory")
    if seconds > watch.SECONDS:
        problems.append(f"{seconds:.0f} s of the processor")
    os.chdir(scratch)
    _remove(place.root)
    lines = [line for line in said.splitlines() if "error:" in line]
    return {"code": code, "message": (lines or said.splitlines() or [""])[-1][:600], "seconds": round(seconds, 2),
            "megabytes": grown >> 20, "problems": problems}  # fmt: skip


MAY_READ = {"a link to a secret"}  # as the caches of hubs are made of links


def _captured(scratch: Path, work: Any) -> tuple[Any, str, str]:
    """Exit code, standard output and standard error, those of C libraries included."""
    paths = [scratch / "said.out", scratch / "said.err"]
    sys.stdout.flush(), sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    for number, path in enumerate(paths, start=1):
        handle = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_RDWR)
        os.dup2(handle, number)
        os.close(handle)
    try:
        code = work()
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = "an exception"
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        for number, handle in enumerate(kept, start=1):
            os.dup2(handle, number)
            os.close(handle)
    told, said = (path.read_text(errors="replace").replace("\r", "\n") for path in paths)
    return code, told, said


def _remove(folder: Path) -> None:
    for parent, folders, _ in os.walk(folder):
        for name in folders:
            path = os.path.join(parent, name)
            if not os.path.islink(path):
                os.chmod(path, 0o755)
    shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
