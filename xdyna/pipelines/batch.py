"""Many animations from one file: `--batch pairs.json`."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from xdyna.config.infer import DRIVE_KINDS
from xdyna.core.errors import UsageError
from xdyna.core.files import is_address, parse_json
from xdyna.core.ranks import Ranks
from xdyna.pipelines.plan import Request

# Our own names, and those of the published examples/example.json.
KEYS = {
    "ref": ("ref", "reference", "image_path"),
    "drive": ("drive", "driving", "target_no_head_poses"),
    "face_video": ("face_video", "target_videos"),
    "prompt": ("prompt", "caption"),
    "out": ("out",),
    "kind": ("drive_kind",),
}


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """Read a list of animations.

    Two forms: [{"ref": ..., "drive": ..., "out"?, "prompt"?, "drive_kind"?, "face_video"?}, ...], and the published
    one, [{"image_path": ..., "caption": ..., "target_no_head_poses": ..., "target_videos"?: ...}, ...], whose driving
    file is a pose video and whose `target_videos` are the videos the faces come from. Relative paths are looked for
    beside the file first, then in the current folder; addresses stay as they are.

    Args:
        path: JSON file.

    Returns:
        list: dicts with keys ref, drive (paths) and, where given, out, prompt, kind, face_video.

    Raises:
        UsageError: a missing or malformed file, or an entry without reference or driving file.
    """
    try:
        entries = parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise UsageError(f"--batch {path}: no such file") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"--batch {path} is not readable as JSON: {error}") from error
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError(f'--batch {path}: expected a list like [{{"ref": "a.jpg", "drive": "b.mp4"}}, ...]')
    pairs = [_read_entry(entry, number, path) for number, entry in enumerate(entries, start=1)]
    names = [str(Path(pair["out"]).resolve()) for pair in pairs if "out" in pair]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(f"--batch {path}: several entries write to {', '.join(twice)}; give each a name of its own")
    return pairs


def _read_entry(entry: dict[str, Any], number: int, path: Path) -> dict[str, Any]:
    known = {name for names in KEYS.values() for name in names}
    unknown = sorted(set(entry) - known)
    if unknown:
        raise UsageError(
            f"--batch {path}, entry {number}: unknown keys {unknown}; known are {', '.join(sorted(known))}"
        )
    read: dict[str, Any] = {}
    for key, names in KEYS.items():
        values = [entry[name] for name in names if entry.get(name) is not None]
        if values and not isinstance(values[0], str):
            raise UsageError(f"--batch {path}, entry {number}: {key} must be a text, given {values[0]!r}")
        if values:
            read[key] = values[0]
    for key in ("ref", "drive"):
        if key not in read:
            raise UsageError(f"--batch {path}, entry {number} names no {key} file (keys {' or '.join(KEYS[key])})")
    if read.get("kind", "auto") not in DRIVE_KINDS:
        raise UsageError(
            f"--batch {path}, entry {number}: drive_kind is {read['kind']!r}, expected one of {', '.join(DRIVE_KINDS)}"
        )
    if "target_no_head_poses" in entry:
        read.setdefault("kind", "pose")
    for key in ("ref", "drive", "face_video"):
        if key in read and not is_address(read[key]):
            beside = path.parent / read[key]
            read[key] = beside if beside.exists() else Path(read[key])
    return read


def read_requests(path: Path) -> list[Request]:
    """The animations of a list of pairs; see `read_pairs`."""
    return [
        Request(
            entry["ref"],
            entry["drive"],
            out=Path(entry["out"]) if "out" in entry else None,
            kind=entry.get("kind", "auto"),
            face_video=entry.get("face_video"),
            prompt=entry.get("prompt"),
        )
        for entry in read_pairs(path)
    ]


def run_all(jobs: Sequence[Request], run: Callable[[Request], Any], ranks: Ranks | None = None) -> int:
    """Run every job; one that fails is told and does not stop the others. Nor does a process that is killed: the others
    make all that it had not begun, and then say that it is gone.

    Args:
        jobs: in the order in which they are begun.
        run: makes one.
        ranks: processes that all call this; each takes the next job when it has none.

    Returns:
        int: exit code, 0 when all succeeded, else 1.
    """
    failures: list[str] = []
    ranks = ranks or Ranks()
    for number, job in _shared(jobs, ranks):
        print(f"[{number}/{len(jobs)}] {job.reference} + {job.driving}")
        try:
            run(job)
        except Exception as error:  # one job's failure, whatever it is, must not cost the others
            failures.append(f"[{number}] {job.reference} + {job.driving}: {error}")
            expected = isinstance(error, ValueError | OSError)
            print(f"error: {error}" if expected else f"error: {type(error).__name__}: {error}", file=sys.stderr)
    failures = sorted(failure for found in ranks.collect(failures) for failure in found)
    if ranks.rank == 0:
        _summarise(failures, len(jobs))
    return 1 if failures else 0


def _shared(jobs: Sequence[Request], ranks: Ranks) -> Iterator[tuple[int, Request]]:
    """The jobs that fall to this process, numbered from 1."""
    if ranks.world == 1:
        yield from enumerate(jobs, start=1)
        return
    while (number := ranks.take("jobs")) < len(jobs):
        yield number + 1, jobs[number]


def _summarise(failures: Iterable[str], total: int) -> None:
    lines = list(failures)
    print(f"{total - len(lines)} of {total} animations made" + (":" if lines else "."))
    for line in lines:
        print(f"  failed {line}")
