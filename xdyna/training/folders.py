"""The folders of checkpoints: complete or not there, verified when read, rotated.

    RUN/checkpoints/step-00001000/
        ...          what the caller writes
        state.json   progress, and whether this was the best when written
        SHA256SUMS   of all other files; `sha256sum -c` understands it

A folder is filled under a hidden name, flushed and renamed, so that a crash at any moment leaves the former ones and no
half one. `latest` is the highest step; `best` the last one that was written as the best.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

from xdyna.core.atomic import PART, flush, temporary_name, write_file
from xdyna.core.errors import WeightsError
from xdyna.core.files import file_sha256
from xdyna.training.errors import CheckpointError, TrainingWarning
from xdyna.training.state import Progress

FOLDER, SUMS, STATE = "checkpoints", "SHA256SUMS", "state.json"
_STEP = re.compile(r"step-(\d{8,})")
_REPLACED = ".replaced"  # a checkpoint that one of the same step takes the place of, until that is there


@contextlib.contextmanager
def writing(run_dir: Path, *, progress: Progress, keep_last: int, is_best: bool) -> Iterator[tuple[Path, Path]]:
    """A hidden folder to fill; it becomes the checkpoint when the block ends well and is removed when it does not.

    Args:
        run_dir: folder of the run.
        progress: how far the run is.
        keep_last: checkpoints to keep, >= 1.
        is_best: whether this is the best so far.

    Yields:
        tuple[Path, Path]: the hidden folder and its final name.

    Raises:
        CheckpointError: the disk is full, the folder is not writable, or keep_last is below 1. The former checkpoints
            stay.
    """
    if keep_last < 1:
        raise CheckpointError(f"keep_last is {keep_last}, expected 1 or more: a run needs a checkpoint to resume from")
    final = run_dir / FOLDER / f"step-{progress.step:08d}"
    temporary = temporary_name(final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _tidy(final.parent)
        temporary.mkdir()
        yield temporary, final
        state = {"progress": dataclasses.asdict(progress), "is_best": is_best}
        write_file(temporary / STATE, (json.dumps(state, indent=1) + "\n").encode())
        files = sorted(path.relative_to(temporary).as_posix() for path in temporary.rglob("*") if path.is_file())
        sums = "".join(f"{file_sha256(temporary / name)}  {name}\n" for name in files)
        write_file(temporary / SUMS, sums.encode())
        _publish(temporary, final)
    except (OSError, WeightsError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        raise CheckpointError(
            f"checkpoint {final} cannot be written ({error}); the former checkpoints are as they were. "
            "Make room on the disk, or choose a folder that you may write to"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _rotate(final, keep_last=keep_last)


def steps(run_dir: Path) -> list[int]:
    """Steps of the complete checkpoints, ascending."""
    folder = run_dir / FOLDER
    if not folder.is_dir():
        return []
    _put_back(folder)
    found = ((path, _STEP.fullmatch(path.name)) for path in folder.iterdir())
    return sorted(int(match[1]) for path, match in found if match and path.is_dir())


def find(run_dir: Path, which: str | int = "latest") -> Path | None:
    """The folder of a checkpoint.

    Args:
        run_dir: folder of the run.
        which: "latest" (the highest step), "best", or a step.

    Returns:
        Path | None: None where there is none. It is not verified.

    Raises:
        CheckpointError: another word.
    """
    there = steps(run_dir)
    if which == "best":
        there = [step for step in there if _is_best(path_of(run_dir, step))]
    elif isinstance(which, int):
        there = [step for step in there if step == which]
    elif which != "latest":
        raise CheckpointError(f"checkpoint {which!r} is unknown; give latest, best or the number of a step")
    return path_of(run_dir, there[-1]) if there else None


def path_of(run_dir: Path, step: int) -> Path:
    """Where the checkpoint of a step lies, whether there is one or not."""
    return run_dir / FOLDER / f"step-{step:08d}"


def verify(path: Path) -> list[str]:
    """What is wrong with a checkpoint, by its list of hashes: reads every byte of it.

    Returns:
        list[str]: empty when every file is there and is what was written.
    """
    try:
        text = (path / SUMS).read_text()
    except FileNotFoundError:
        return [f"{SUMS} is missing"]
    except (OSError, UnicodeDecodeError) as error:
        return [f"{SUMS} cannot be read ({error})"]
    entries = [re.fullmatch(r"([0-9a-f]{64})  (\S.*)", line) for line in text.splitlines()]
    if not entries or None in entries or not text.endswith("\n"):
        return [f"{SUMS} is damaged"]
    problems = []
    for entry in entries:
        assert entry is not None
        file = path / entry[2]
        try:
            if not file.is_file():
                problems.append(f"{entry[2]} is missing")
            elif file_sha256(file) != entry[1]:
                problems.append(f"{entry[2]} is damaged (its SHA-256 is not the one in {SUMS})")
        except OSError as error:
            problems.append(f"{entry[2]} cannot be read ({error.strerror})")
    return problems


def usable(run_dir: Path, which: str | int = "latest") -> Path | None:
    """The folder of a checkpoint that is as it was written.

    Args:
        run_dir: folder of the run.
        which: see `find`.

    Returns:
        Path | None: for "latest" the highest step that is undamaged, None when the run has no checkpoint.

    Raises:
        CheckpointError: all are damaged; or the best, or the step asked for, is missing or damaged.

    Warns:
        TrainingWarning: names each damaged checkpoint that was passed over.
    """
    if which != "latest":
        path = find(run_dir, which)
        problems = verify(path) if path else [f"there is none; steps: {', '.join(map(str, steps(run_dir))) or 'none'}"]
        if problems:
            what = path or f"{which} of {run_dir}"
            raise CheckpointError(f"checkpoint {what}: {'; '.join(problems)}. Choose another one, or latest")
        return path
    damaged: list[str] = []
    for step in reversed(steps(run_dir)):
        path = path_of(run_dir, step)
        problems = verify(path)
        if not problems:
            for message in damaged:
                warnings.warn(f"{message}; going on from step {step}", TrainingWarning, stacklevel=3)
            return path
        damaged.append(f"checkpoint {path} is damaged: {'; '.join(problems)}")
    if damaged:
        raise CheckpointError(
            f"all checkpoints of {run_dir} are damaged. {'. '.join(damaged)}. Restore one from a copy, or start again "
            "in another folder"
        )
    return None


def read_progress(path: Path) -> Progress:
    """The progress in a checkpoint's folder.

    Raises:
        CheckpointError: the file is missing or not as written.
    """
    try:
        return Progress(**json.loads((path / STATE).read_text())["progress"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / STATE} is missing or damaged ({error}); choose another checkpoint") from error


def _is_best(path: Path) -> bool:
    try:
        return bool(json.loads((path / STATE).read_text())["is_best"])
    except (OSError, ValueError, KeyError, TypeError):
        return False  # damaged: verify tells


def _publish(temporary: Path, final: Path) -> None:
    for folder in [path for path in temporary.rglob("*") if path.is_dir()]:
        flush(folder)
    flush(temporary)
    aside = final.with_name(f".{final.name}{_REPLACED}")
    if final.exists():  # a folder cannot be replaced in one go; `_put_back` undoes this one after a crash
        os.rename(final, aside)
    try:
        os.rename(temporary, final)
    except OSError:
        _put_back(final.parent)
        raise
    flush(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _put_back(folder: Path) -> None:
    for aside in folder.glob(f".step-*{_REPLACED}"):
        final = folder / aside.name.removeprefix(".").removesuffix(_REPLACED)
        if not final.exists():
            os.rename(aside, final)


def _tidy(folder: Path) -> None:
    """Remove what an interrupted save left."""
    _put_back(folder)
    for pattern in (f".step-*{PART}", f".step-*{_REPLACED}"):
        for leftover in folder.glob(pattern):
            shutil.rmtree(leftover, ignore_errors=True)


def _rotate(newest: Path, *, keep_last: int) -> None:
    run_dir, step = newest.parent.parent, int(newest.name.removeprefix("step-"))
    there = steps(run_dir)
    later = [s for s in there if s > step]
    best_later = [s for s in later if _is_best(path_of(run_dir, s))][-1:]
    for old in best_later:
        path = path_of(run_dir, old)
        target = path.with_name(f"superseded-{path.name}")
        shutil.rmtree(target, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rename(path, target)
    past = [s for s in there if s <= step]
    kept = set(past[-keep_last:])
    kept.update([s for s in past if _is_best(path_of(run_dir, s))][-1:])
    for old in there:
        if old not in kept:
            path = path_of(run_dir, old)
            # Renamed first: a crash while removing must not leave a half checkpoint under its name.
            doomed = temporary_name(path)
            with contextlib.suppress(OSError):
                os.rename(path, doomed)
                shutil.rmtree(doomed, ignore_errors=True)
