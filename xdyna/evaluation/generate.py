"""`scripts/eval.py --generate LIST`: run inference over a test list, then measure the results.

A video that is there already is taken only where its run manifest says that it was made with the same options, inputs
and weights (`xdyna.pipelines.reuse`).
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xdyna.config.infer import InferConfig
from xdyna.core.errors import UsageError
from xdyna.core.files import parse_json
from xdyna.evaluation.inputs import VIDEOS, Entry, Inputs
from xdyna.pipelines.model import Model
from xdyna.pipelines.outputs import ENDINGS, OutputFiles
from xdyna.pipelines.plan import Request
from xdyna.pipelines.reuse import difference

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
        entries = parse_json(path.read_bytes())
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
        if not _is_name(name):
            raise UsageError(
                f"{where}: the id {name[:60]!r} is no name of a file inside of a folder; expected for example "
                "'dance' or 'people/dance'"
            )
        if name in tests:
            raise UsageError(f"{where}: the id '{name}' occurs twice; give each entry its own id")
        tests[name] = test
    return [tests[name] for name in sorted(tests)]


def _is_name(name: str) -> bool:
    """Whether a video of that id stays in its folder: lists come from others, and files are replaced."""
    parts = name.split("/")
    return name.isprintable() and all(part not in ("", ".", "..") and len(os.fsencode(part)) <= 200 for part in parts)


def generate(
    path: Path,
    folder: Path,
    make: Callable[[list[Request]], Any],
    *,
    model: Model,
    settings: InferConfig,
    first: int | None = None,
) -> Inputs:
    """Make the videos of a test list that are not there yet, or were made differently.

    Args:
        path: the list.
        folder: gets ID.mkv (or what `settings.save` says) for each entry.
        make: makes the animations that are asked for, replacing files; one that fails does not stop the others.
        model: the weights.
        settings: of the animations.
        first: only the first so many entries by id; None: all.

    Returns:
        Inputs: the generated videos with their truth and driving videos.

    Raises:
        UsageError: a bad list, or several processes.
        ValueError: a video could not be made.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("--generate runs in one process; run it alone first, then measure its folder with several")
    tests = read_tests(path)[:first]
    folder.mkdir(parents=True, exist_ok=True)
    files = {test["id"]: OutputFiles(folder / f"{test['id']}{ENDINGS[settings.save]}", settings.save) for test in tests}
    requests = {test["id"]: _request(files[test["id"]], test) for test in tests}
    differs = {name: difference(files[name], requests[name], model, settings) for name in files}
    wanted = [name for name, why in differs.items() if why is not None]
    for name in wanted:
        if differs[name] != "missing":
            print(f"making {name} anew: {differs[name]}")
    if wanted:
        make([requests[name] for name in wanted])
        if lost := [name for name in wanted if difference(files[name], requests[name], model, settings) is not None]:
            raise ValueError(
                f"{len(lost)} of {len(tests)} videos could not be made ({', '.join(lost[:5])}); see the messages "
                "above, and run the command again: what was made is kept"
            )
    return Inputs([_entry(files[test["id"]], test) for test in tests])


def _request(files: OutputFiles, test: dict[str, str]) -> Request:
    return Request(
        Path(test["ref"]),
        Path(test["drive"]),
        out=files.video,
        kind=test.get("drive_kind", "auto"),
        face_video=Path(test["face_video"]) if "face_video" in test else None,
        prompt=test.get("prompt"),
        force=True,  # the list decides what is measured; what does not suit is said
    )


def _entry(files: OutputFiles, test: dict[str, str]) -> Entry:
    driving = test.get("face_video") or test["drive"]
    truth = test.get("truth")
    return Entry(
        test["id"],
        files.video,
        None if truth is None else Path(truth),
        Path(driving) if Path(driving).suffix.lower() in VIDEOS else None,
    )
