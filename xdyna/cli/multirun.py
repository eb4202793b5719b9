"""`--multirun`: the jobs of a sweep, one after the other, each a process of its own with an output of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from xdyna.core.errors import UsageError


def refuse_several_processes() -> None:
    """See that this is the only process: sweeps run jobs one after the other.

    Raises:
        UsageError: a launcher has started several.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            f"--multirun: a launcher has started {os.environ['WORLD_SIZE']} processes, which cannot run jobs one after "
            "the other; start --multirun without it, or launch each job by itself"
        )


def run(
    program: str,
    jobs: Sequence[Sequence[str]],
    commands: Sequence[Any],
    words: Sequence[str],
    *,
    numbered: Callable[[Any, int], list[str]] | None,
) -> int:
    """Run the jobs, and say at the end how each went.

    Args:
        program: sub-command of `xdyna`.
        jobs: settings of each job; they are known to compose.
        commands: what each job asks for.
        words: flags that all jobs have.
        numbered: words that give job number k an output of its own; None where nothing is written.

    Returns:
        The largest exit code.
    """
    lines, worst = [], 0
    same = set(jobs[0]).intersection(*jobs) if len(jobs) > 1 else set()
    for number, (job, command) in enumerate(zip(jobs, commands, strict=True)):
        own = numbered(command, number) if numbered is not None else []
        told = " ".join([*(word for word in job if word not in same), *own])
        print(f"[job {number} of {len(jobs)}] {told}", flush=True)
        code = _wait([sys.executable, "-m", "xdyna", *program.split(), *words, *job, *own])
        worst = max(worst, code)
        lines.append(f"job {number}: {'done' if code == 0 else f'exit code {code}'}: {told}")
    print("\n".join(["", *lines]))
    return worst


def _wait(command: list[str]) -> int:
    """Exit code of a process. Interrupted, it ends before we do; Ctrl-C reaches it by itself, SIGTERM through us."""
    with subprocess.Popen(command) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt as stop:
            if stop.args:
                process.send_signal(signal.SIGTERM)
            process.wait()
            raise
    return code if code >= 0 else 128 - code
