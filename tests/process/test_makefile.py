"""`make venv` where something is missing: one sentence at the end, and nothing that a later call takes for done."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# An interpreter and its pip: VERSION says which it is; pip writes LOG and fails where there is one.
PYTHON = """#!/bin/bash
case "$*" in
  --version) echo "Python $VERSION" ;;
  "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
  *SUPPORTED* | *"sys.version_info[:2]"*) [ "$VERSION" != 3.9.2 ] ;;
  *ensurepip*) [ -z "$NO_VENV" ] ;;
  *EGL*) [ -z "$NO_EGL" ] ;;
  *"pip --log "*) echo "$*" >> calls; [ -z "$LOG" ] || { echo "$LOG" > "$4"; exit 1; } ;;
  *xdyna.core.install*) exec "$REAL" "$@" ;;
  *demo.py*) echo "the demo runs" ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "xdyna").symlink_to(ROOT / "xdyna")
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path


def make(folder: Path, target: str = "demo", *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    import sys

    environment = {"PATH": os.environ["PATH"], "REAL": sys.executable, "VERSION": "3.12.1", **variables}
    command = ["make", target, f"PYTHON={folder / 'python'}", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_the_environment_is_made_once(folder):
    done = make(folder, "demo", "PIP_ARGS=--find-links /wheels")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "the demo runs")
    calls = (folder / "calls").read_text().splitlines()
    assert calls[0] == "-m pip --log .venv/pip.log install --find-links /wheels torch==2.13.0 -c constraints.txt"
    assert calls[1].endswith("install --find-links /wheels -e .[perception,data,dev,eval,train] -c constraints.txt")
    assert "--no-deps opencv-contrib-python-headless" in calls[2]
    again = make(folder)
    assert again.stdout == ".venv/bin/python scripts/demo.py \nthe demo runs\n"
    assert len((folder / "calls").read_text().splitlines()) == len(calls)


def test_an_environment_whose_python_is_gone_is_made_anew(folder):
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "old").touch()
    assert make(folder).returncode == 0
    assert not (folder / ".venv" / "old").exists()


def test_a_python_that_is_too_old(folder):
    done = make(folder, VERSION="3.9.2")
    assert done.returncode == 2
    assert f"'{folder / 'python'}' is: Python 3.9.2" in done.stderr
    assert "make demo PYTHON=/path/to/python3.12" in done.stderr
    assert not (folder / ".venv").exists()


def test_a_python_without_venv(folder):
    done = make(folder, NO_VENV="1")
    assert done.returncode == 2
    assert "apt install python3-venv" in done.stderr
    assert not (folder / ".venv").exists()


def test_libraries_for_mediapipe_are_named_before_anything_is_downloaded(folder):
    done = make(folder, NO_EGL="1")
    assert done.returncode == 0
    assert done.stdout.index("apt install libegl1 libgles2") < done.stdout.index("pip install")


def test_what_pip_cannot_do_is_one_sentence_at_the_end(folder):
    done = make(folder, LOG="ERROR: No matching distribution found for decord>=0.6")
    assert done.returncode == 2
    told = [line for line in done.stderr.splitlines() if not line.startswith("make:")]
    assert len(told) == 1
    assert told[0].startswith("error: the package index has no decord>=0.6 for Python 3.")
    assert "the demo runs" not in done.stdout
    assert make(folder).stdout.endswith("the demo runs\n")  # what failed is not taken for done
