"""Runs the commands and Python blocks of the documents at tiny size: `make docs-test`.

One line a command: ok, dry (with --dry-run), skipped: reason, or failed with the end of what it wrote. Exit code 1
when one failed.
"""

import argparse
import json
import re
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.docs.blocks import ROOT, Block, Directive, blocks, pages
from tests.docs.sandbox import Sandbox

NOTEBOOK = "docs/quickstart.ipynb"
PROGRAM = re.compile(r"(^|[ /])(xdyna|make|(python|accelerate)\b.*\.py)\b")


def with_words(command: str, words: str) -> str:
    """A command with more arguments: behind its program's own in a pipe, inside ARGS of make."""
    if not words:
        return command
    parts = re.split(r"(\s\|\s)", command)
    place = next((k for k, part in enumerate(parts) if PROGRAM.search(part)), 0)
    tokens = shlex.split(parts[place])
    if tokens[0] == "make":
        given = next((token for token in tokens if token.startswith("ARGS=")), "ARGS=")
        rest = [token for token in tokens if not token.startswith("ARGS=")]
        parts[place] = shlex.join([*rest, f"{given} {words}"])
    else:
        parts[place] = f"{parts[place].rstrip()} {words}"
    return "".join(parts)


def notebook_block() -> Block:
    """The code cells of the notebook, as one Python block."""
    cells = json.loads((ROOT / NOTEBOOK).read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return Block(NOTEBOOK, 1, "python", code + "\n", (Directive("run"),))


def run_job(block: Block, command: str, directive: Directive, sandbox: Sandbox) -> tuple[str, str]:
    """Do what a directive says. Returns: outcome ("ok", "dry", "skipped: ...", "failed"), and what was written."""
    if directive.kind == "skip":
        return f"skipped: {directive.words}", ""
    if directive.kind == "write":
        path = sandbox.folder / directive.words
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.code)
        sandbox.provide(block.code)  # what the file names
        return f"ok: written to {directive.words}", ""
    sandbox.provide(command)
    dry = directive.kind == "dry-run"
    with sandbox.prepared(directive.needs, command) as (prepared, more, variables):
        if block.language == "python":
            code, out = sandbox.run(f"python -c {shlex.quote(prepared)}", **variables)
        else:
            words = " ".join(word for word in (more, directive.words, "--dry-run" if dry else "") if word)
            code, out = sandbox.run(with_words(prepared, words), **variables)
    return ("dry" if dry else "ok") if code == 0 else f"failed (exit code {code})", out


def run_page(page: str, sandbox: Sandbox, verbose: bool) -> dict[str, int]:
    """Run the blocks of a page in order. Returns: how many of each outcome."""
    counts: dict[str, int] = {}
    found = [notebook_block()] if page == NOTEBOOK else [block for block in blocks(page) if block.directives]
    for block in found:
        for command, directive in block.jobs():
            began = time.monotonic()
            try:
                outcome, out = run_job(block, command, directive, sandbox)
            except Exception as error:  # of a preparation: the blocks behind it are still told
                outcome, out = "failed", f"{type(error).__name__}: {error}"
            shown = command.strip().splitlines()[0] if block.language != "python" else f"({block.language})"
            print(f"{page}:{block.line}: {outcome} [{time.monotonic() - began:.0f} s] {shown[:110]}", flush=True)
            if outcome.startswith("failed") or verbose:
                print("\n".join(f"    {line}" for line in out.strip().splitlines()[-25:]), flush=True)
            kind = outcome.split(":")[0].split(" ")[0]
            counts[kind] = counts.get(kind, 0) + 1
    return counts


def main(argv: list[str]) -> int:
    """Run pages. Args: argv: without the program's name. Returns: exit code."""
    parser = argparse.ArgumentParser(prog="tests.docs.run", description=__doc__.splitlines()[0])
    parser.add_argument("pages", nargs="*", metavar="PAGE", help="such as docs/live.md (default: all)")
    parser.add_argument("--store", type=Path, help="folder for what is made once and kept for later calls")
    parser.add_argument("--verbose", action="store_true", help="show what every command writes")
    args = parser.parse_args(argv)
    known = [*pages(), NOTEBOOK]
    if wrong := [page for page in args.pages if page not in known]:
        parser.error(f"{wrong[0]} is no page; choose from {', '.join(known)}")
    total: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="xdyna-docs-") as temporary:
        store = (args.store or Path(temporary) / "store").resolve()
        store.mkdir(parents=True, exist_ok=True)
        for page in args.pages or known:
            if page != NOTEBOOK and not any(block.directives for block in blocks(page)):
                continue
            sandbox = Sandbox(Path(temporary) / "xdyna", store)
            for kind, count in run_page(page, sandbox, args.verbose).items():
                total[kind] = total.get(kind, 0) + count
            shutil.rmtree(sandbox.folder)
    print(", ".join(f"{count} {kind}" for kind, count in sorted(total.items())) or "nothing to run")
    return 1 if "failed" in total else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
