"""`scripts/eval.py --generate LIST`: run inference over a test list, then measure the results."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xdyna.core.errors import UsageError
from xdyna.evaluation.inputs import VIDEOS, Entry, Inputs
from xdyna.pipelines.plan import Request

KEYS = ("id", "ref", "drive", "truth", "face_video", "prompt", "drive_kind")


def read_tests(path: Path) -> list[dict[str, str]]:
    """Read a test list.

    Args:
        path: JSON, a list of {"ref": image, "drive": video, pose video or keypoints, "id"?, "truth"?, "face_video"?,
            "prompt"?, "drive_kind"?}; paths relative to the list.

    Returns:
        Entries with absolute paths and an id each ("REF_DRIVE" where none is given).

    Raises:
        UsageError: a missing or malformed list, an unknown key, a missing file, an id twice.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"--generate {path}: no such file") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"--generate {path} is not readable as JSON: {error}") from error
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError(f'--generate {path}: expected a list like [{{"ref": "a.jpg", "drive": "b.mp4"}}, ...]')
    tests: dict[str, dict[str, str]] = {}
    for number, entry in enumerate(entries, start=1):
        where = f"--generate {path}, entry {number}"
        if unknown := sorted(set(entry) - set(KEYS)):
            raise UsageError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(KEYS)}")
        if missing := [key for key in ("ref", "drive") if not entry.get(key)]:
            raise UsageError(f"{where}: no {missing[0]!r}")
        test = {key: str(value) for key, value in entry.items() if value is not None}
        for key in ("ref", "drive", "truth", "face_video"):
            if key in test:
                file = (path.parent / test[key]).resolve()
                if not file.exists():
                    raise UsageError(f"{where}: {key} '{file}' does not exist")
                test[key] = str(file)
        name = test.setdefault("id", f"{Path(test['ref']).stem}_{Path(test['drive']).stem}")
        if name in tests:
            raise UsageError(f"{where}: the id '{name}' occurs twice; give each entry its own id")
        tests[name] = test
    return [tests[name] for name in sorted(tests)]


def generate(path: Path, folder: Path, make: Callable[[list[Request]], Any]) -> Inputs:
    """Make the videos of a test list that are not there yet.

    Args:
        path: the list.
        folder: gets ID.mp4 for each entry.
        make: makes the animations that are asked for; one that fails does not stop the others.

    Returns:
        Inputs: the generated videos with their truth and driving videos.

    Raises:
        UsageError: a bad list, or several processes.
        ValueError: a video could not be made.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("--generate runs in one process; run it alone first, then measure its folder with several")
    tests = read_tests(path)
    folder.mkdir(parents=True, exist_ok=True)
    missing = [test for test in tests if not _video(folder, test).exists()]
    if missing:
        make([_request(folder, test) for test in missing])
        if lost := [test["id"] for test in missing if not _video(folder, test).exists()]:
            raise ValueError(
                f"{len(lost)} of {len(tests)} videos could not be made ({', '.join(lost[:5])}); see the messages "
                "above, and run the command again: what was made is kept"
            )
    return Inputs([_entry(folder, test) for test in tests])


def _video(folder: Path, test: dict[str, str]) -> Path:
    return folder / f"{test['id']}.mp4"


def _request(folder: Path, test: dict[str, str]) -> Request:
    return Request(
        Path(test["ref"]),
        Path(test["drive"]),
        out=_video(folder, test),
        kind=test.get("drive_kind", "auto"),
        face_video=Path(test["face_video"]) if "face_video" in test else None,
        prompt=test.get("prompt"),
    )


def _entry(folder: Path, test: dict[str, str]) -> Entry:
    driving = test.get("face_video") or test["drive"]
    truth = test.get("truth")
    return Entry(
        test["id"],
        _video(folder, test),
        None if truth is None else Path(truth),
        Path(driving) if Path(driving).suffix.lower() in VIDEOS else None,
    )
