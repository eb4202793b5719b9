"""The code blocks of the documents, and what `make docs-test` is told to do with each.

A comment stands directly above each block of a language in `TESTED`:

    <!-- docs-test: run --frames 4 --steps 1 -->     run it with these arguments behind its own
    <!-- docs-test: dry-run -->                      run it with --dry-run (and what else is said)
    <!-- docs-test: skip needs a camera -->          leave it out; the summary shows the reason
    <!-- docs-test: write my/config.yaml -->         no command: put it into this file

One directive counts for all commands of a block; several lines, one for each command. `@NAME` behind `run` or `dry-run`
prepares something first (`tests/docs/sandbox.py`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from docs.site.hooks import FENCE

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "configs/README.md", "pretrained/**/README.md")
TESTED = {"bash", "sh", "console", "python", "yaml"}
UNTESTED = {"text", "json", "bibtex"}
KINDS = {"run", "dry-run", "skip", "write"}
_NOTE = re.compile(r"<!-- docs-test:\s*(.*?)\s*-->", re.DOTALL)


@dataclass(frozen=True)
class Directive:
    """What is done with one command: kind of `KINDS`, words behind it, names behind `@`."""

    kind: str
    words: str = ""
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: path from the root.
        line: number of its fence.
        language: "" where none is given.
        code: what is in it.
        directives: as written, unless there are none.
    """

    page: str
    line: int
    language: str
    code: str
    directives: tuple[Directive, ...]

    def commands(self) -> list[str]:
        """Of a shell block, its commands, comments left out; else the code as a whole."""
        if self.language not in ("bash", "sh", "console"):
            return [self.code]
        text = re.sub(r"\\\n\s*", "", self.code)
        lines = [line.strip().removeprefix("$ ") for line in text.splitlines()]
        return [without_comment(line) for line in lines if line and not line.startswith("#")]

    def jobs(self) -> list[tuple[str, Directive]]:
        """Every command with its directive.

        Raises:
            ValueError: the numbers do not fit.
        """
        commands, given = self.commands(), self.directives
        if len(given) == 1:
            given = given * len(commands)
        if len(given) != len(commands):
            raise ValueError(f"{self.page}:{self.line}: {len(commands)} commands, {len(given)} directives")
        return list(zip(commands, given, strict=True))


def without_comment(line: str) -> str:
    """A command without the comment behind it."""
    quote = ""
    for k, char in enumerate(line):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == "#" and (k == 0 or line[k - 1].isspace()):
            return line[:k].rstrip()
    return line


def parse_directive(text: str) -> Directive:
    """One line of a note. Raises: ValueError: it is none."""
    kind, _, words = text.strip().partition(" ")
    if kind not in KINDS:
        raise ValueError(f"'{text}': expected one of {', '.join(sorted(KINDS))}")
    if kind in ("skip", "write"):
        if not words.strip():
            raise ValueError(f"'{text}': say {'why' if kind == 'skip' else 'which file'}")
        return Directive(kind, words.strip())
    split = words.split(" ")
    needs = tuple(word[1:] for word in split if word.startswith("@"))
    return Directive(kind, " ".join(word for word in split if not word.startswith("@")).strip(), needs)


def pages() -> list[str]:
    """Paths of the tested documents, from the root."""
    return sorted({p.relative_to(ROOT).as_posix() for pattern in PAGES for p in ROOT.glob(pattern) if ours(p)})


def ours(path: Path) -> bool:
    """Whether a page is a document of the project and not of downloaded weights."""
    parts = path.relative_to(ROOT).parts
    return not (parts[0] == "pretrained" and len(parts) > 2 and not re.match(r"puppet-|xdyna-tiny", parts[1]))


def blocks(page: str, text: str | None = None) -> Iterator[Block]:
    """The fenced blocks of a page.

    Args:
        page: path from the root.
        text: its text; None: it is read.

    Raises:
        ValueError: a note that is none.
    """
    lines = (text if text is not None else (ROOT / page).read_text(encoding="utf-8")).splitlines()
    fence, begin, language = "", 0, ""
    for number, line in enumerate(lines, start=1):
        mark = FENCE.match(line)
        if not fence and mark:
            fence, begin, language = mark[1], number, line.strip().strip("`~").split(" ")[0]
        elif fence and mark and mark[1].startswith(fence) and not line.strip().strip("`~"):
            code = "\n".join(lines[begin : number - 1]) + "\n"
            yield Block(page, begin, language, code, _note_above(lines[: begin - 1], f"{page}:{begin}"))
            fence = ""
    if fence:
        raise ValueError(f"{page}:{begin}: the block does not end")


def _note_above(lines: list[str], where: str) -> tuple[Directive, ...]:
    if not lines or not lines[-1].rstrip().endswith("-->"):
        return ()
    start = max((k for k, line in enumerate(lines) if line.lstrip().startswith("<!--")), default=len(lines))
    note = _NOTE.fullmatch("\n".join(lines[start:]).strip())
    if note is None:
        return ()
    try:
        return tuple(parse_directive(line) for line in note[1].splitlines())
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
