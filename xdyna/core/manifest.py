"""The run manifest: everything needed to repeat a run, as JSON beside its output."""

import datetime
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import xdyna
from xdyna.core.atomic import atomic_output
from xdyna.core.resources import checkout

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "av", "decord", "opencv-python", "mediapipe")


def versions() -> dict[str, str | None]:
    """Versions of Python, this project (with git revision, where there is one) and the packages it stands on."""
    found: dict[str, str | None] = {"python": platform.python_version(), "platform": platform.platform()}
    found["xdyna"], found["git"] = xdyna.__version__, _git_revision()
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _git_revision() -> str | None:
    root = checkout()
    if root is None or not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def peak_memory(device: torch.device) -> dict[str, int]:
    """Peak memory in bytes of this process since its start, and of the GPU where one is used."""
    peak = {}
    if resource is not None:
        unit = 1 if sys.platform == "darwin" else 1024  # what ru_maxrss counts in
        peak["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device.type == "cuda":
        peak["gpu"] = torch.cuda.max_memory_allocated(device)
    return peak


def write_manifest(path: Path, entries: dict[str, Any], *, argv: Sequence[str], overwrite: bool) -> None:
    """Write a manifest, completely or not at all.

    Args:
        path: the .json file.
        entries: what this kind of run records.
        argv: arguments of the program.
        overwrite: whether an existing file may be replaced.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    manifest = {"finished": now, "command": [Path(sys.argv[0]).name, *argv], "versions": versions(), **entries}
    with atomic_output(path, overwrite=overwrite) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1, default=str) + "\n")
