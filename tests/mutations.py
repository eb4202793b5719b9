"""Mutations of evaluation and training: small mistakes (mutations.yaml, mutations_training.yaml), put into a copy of
the tree one by one. For each a test must fail.

    python tests/mutations.py [--group evaluation|training] [--only TEXT] [--workers N]

prints which were killed, and the count.
"""

import argparse
import concurrent.futures
import os
import queue
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
# Group -> its list beside this file, and the folder its tests are below.
GROUPS = {
    "evaluation": ("mutations.yaml", "tests/unit/evaluation"),
    "training": ("mutations_training.yaml", "tests/unit"),
}
COPIED = ("xdyna", "tests", "configs", "scripts", "pyproject.toml")
SECONDS = 300  # of one run; a mutation that hangs is killed, too


@dataclass(frozen=True)
class Mutation:
    """One mistake.

    Attributes:
        group: see `GROUPS`.
        name: what is wrong.
        file: below the root.
        old: text that occurs once.
        new: what it becomes.
        tests: files, one of whose tests must fail.
    """

    group: str
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _load(group: str) -> list[Mutation]:
    table, unit = GROUPS[group]
    rows = yaml.safe_load((Path(__file__).parent / table).read_text(encoding="utf-8"))

    def path(test: str) -> str:
        folder, _, name = test.rpartition("/")
        return (Path(unit) / folder / f"test_{name}.py").as_posix()

    return [
        Mutation(group, row["name"], f"xdyna/{row['file']}", row["old"], row["new"], tuple(map(path, row["tests"])))
        for row in rows
    ]


MUTATIONS = tuple(mutation for group in GROUPS for mutation in _load(group))


def _copy(folder: Path) -> Path:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "pretrained"))
        else:
            shutil.copy(source, folder / name)
    (folder / "pretrained").symlink_to(ROOT / "pretrained")
    return folder


def killed(mutation: Mutation, tree: Path) -> bool:
    """Whether a test fails with the mistake in it. Args: mutation; tree: a copy, which is as before afterwards.

    Raises:
        ValueError: the text to replace is not there once.
    """
    path = tree / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        raise ValueError(f"{mutation.name}: {mutation.file} has {mutation.old!r} {text.count(mutation.old)} times")
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu"]
    try:
        done = subprocess.run(
            [*command, *mutation.tests], cwd=tree, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return True
    finally:
        path.write_text(text, encoding="utf-8")
    if done.returncode not in (0, 1):
        raise ValueError(
            f"{mutation.name}: the tests did not run (exit code {done.returncode}):\n{done.stdout[-2000:]}"
        )
    return done.returncode == 1


def run(mutations: Sequence[Mutation], *, workers: int = 1) -> list[Mutation]:
    """Try all. Args: mutations; workers: copies of the tree. Returns: the survivors."""
    with tempfile.TemporaryDirectory(prefix="xdyna-mutations-") as folder:
        trees: queue.Queue[Path] = queue.Queue()
        for number in range(workers):
            (tree := Path(folder) / str(number)).mkdir()
            trees.put(_copy(tree))

        def attempt(mutation: Mutation) -> bool:
            tree = trees.get()
            try:
                dead = killed(mutation, tree)
            finally:
                trees.put(tree)
            print(f"{'killed  ' if dead else 'SURVIVED'} {mutation.name}", flush=True)
            return dead

        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            dead = list(pool.map(attempt, mutations))
    survivors = [mutation for mutation, gone in zip(mutations, dead, strict=True) if not gone]
    print(f"{len(mutations) - len(survivors)} of {len(mutations)} mutations killed")
    return survivors


def main() -> int:
    """Run from the command line. Returns: 1 where one survived."""
    p = argparse.ArgumentParser(description="Mutations of evaluation and training.")
    p.add_argument("--group", choices=GROUPS, help="those of one group")
    p.add_argument("--only", default="", metavar="TEXT", help="those with this text in their name")
    p.add_argument("--workers", type=int, default=1, metavar="N")
    args = p.parse_args()
    chosen = [m for m in MUTATIONS if args.group in (None, m.group) and args.only in m.name]
    return int(bool(run(chosen, workers=args.workers)))


if __name__ == "__main__":
    sys.exit(main())
