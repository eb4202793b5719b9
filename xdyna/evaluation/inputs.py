"""Which videos are compared with which: folders or a list, paired by name; every policy is counted, nothing is dropped
silently.

A video is a file, or a folder of images (frames in the order of the numbers in their names). What `scripts/infer.py`
writes beside a video (side-by-side video, contact sheet) is no result.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from xdyna.core.files import file_sha256, parse_json
from xdyna.evaluation.frames import Decoded
from xdyna.evaluation.masks import read_masks
from xdyna.evaluation.metric import Case, Video
from xdyna.media.folder import IMAGES, frame_files
from xdyna.media.image import read_image
from xdyna.media.video import probe, read_frames

VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".gif")
FIELDS = ("id", "generated", "truth", "driving", "mask_generated", "mask_truth")


@dataclass(frozen=True)
class Entry:
    """Files of one case.

    Attributes:
        id: unique name.
        generated: video to judge.
        truth: what it is compared with; None for none.
        driving: what it follows; None: the truth.
        mask_generated: figure masks of the generated video; None: to be segmented.
        mask_truth: of the truth.
    """

    id: str
    generated: Path
    truth: Path | None = None
    driving: Path | None = None
    mask_generated: Path | None = None
    mask_truth: Path | None = None


@dataclass
class Inputs:
    """What an evaluation compares.

    Attributes:
        entries: in the order of their ids.
        unpaired: files that have no partner, by folder ("generated", "truth", "driving").
        companions: how many side-by-side videos and contact sheets were left out.
    """

    entries: list[Entry]
    unpaired: dict[str, list[str]] = field(default_factory=dict)
    companions: int = 0


def is_companion(path: Path) -> bool:
    """Whether a file is a side-by-side video or a contact sheet beside the video (or frame folder) it was made of."""
    stem = next((path.name.removesuffix(e) for e in (".grid.mp4", ".sheet.png") if path.name.endswith(e)), None)
    names = () if stem is None else (stem, f"{stem}.run.json", *(f"{stem}{suffix}" for suffix in VIDEOS))
    return any(path.with_name(name).exists() for name in names if name)


def videos_in(folder: Path) -> dict[str, Path]:
    """Videos and frame folders below a folder, by their path without suffix ("sub/name").

    Args:
        folder: searched in depth; hidden files and companions (see `is_companion`) are left out.

    Raises:
        ValueError: no folder, or two videos of one name.
    """
    if not folder.is_dir():
        raise ValueError(f"'{folder}' is {'a file' if folder.exists() else 'missing'}; expected a folder of videos")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts) or is_companion(path):
            continue
        if path.is_file() and path.suffix.lower() in VIDEOS:
            name = relative.with_suffix("").as_posix()
        elif path.is_file() and path.suffix.lower() in IMAGES and len(relative.parts) > 1:
            path, name = path.parent, relative.parent.as_posix()
        else:
            continue
        if found.setdefault(name, path) != path:
            raise ValueError(f"'{found[name]}' and '{path}' have one name; rename or remove one of them")
    return found


def from_folders(
    generated: Path, truth: Path | None = None, driving: Path | None = None, masks: Path | None = None
) -> Inputs:
    """Pair the videos of folders by name.

    Args:
        generated: folder of the videos to judge, or one video.
        truth: folder of the ground truth, or one video.
        driving: folder of the driving videos, or one video.
        masks: folder with `generated/NAME` and `truth/NAME` (videos or frame folders of masks).

    Returns:
        Inputs: all pairs; what has no partner is listed.

    Raises:
        ValueError: a folder is missing or empty, or no name fits.
    """
    given = {"generated": generated, "truth": truth, "driving": driving}
    sources = {kind: path for kind, path in given.items() if path is not None}
    companions = 0
    if all(path.is_file() for path in sources.values()):
        found = {kind: {generated.stem: path} for kind, path in sources.items()}
    else:
        found = {kind: videos_in(path) for kind, path in sources.items()}
        companions = sum(is_companion(path) for folder in set(sources.values()) for path in folder.rglob("*"))
    for kind, videos in found.items():
        if not videos:
            raise ValueError(
                f"the {kind} folder '{sources[kind]}' has no videos; expected files ({', '.join(VIDEOS)}) or folders "
                "of images"
            )
    common = sorted(set.intersection(*(set(videos) for videos in found.values())))
    unpaired = {kind: sorted(set(videos) - set(common)) for kind, videos in found.items()}
    if not common:
        examples = "; ".join(f"{kind}: {', '.join(sorted(videos)[:3])}" for kind, videos in found.items())
        raise ValueError(f"no video has the same name in all folders ({examples}); rename them, or give --pairs")
    entries = [
        Entry(
            name,
            found["generated"][name],
            found["truth"][name] if "truth" in found else None,
            found["driving"][name] if "driving" in found else None,
            *(_mask(masks, kind, name) for kind in ("generated", "truth")),
        )
        for name in common
    ]
    return Inputs(entries, {kind: names for kind, names in unpaired.items() if names}, companions)


def _mask(folder: Path | None, kind: str, name: str) -> Path | None:
    if folder is None:
        return None
    for candidate in (folder / kind / name, *((folder / kind / f"{name}{suffix}") for suffix in (*VIDEOS, *IMAGES))):
        if candidate.exists():
            return candidate
    raise ValueError(f"no masks for the {kind} video '{name}': expected '{folder / kind / name}' (a folder or video)")


def from_list(path: Path) -> Inputs:
    """Read pairs from a list.

    Args:
        path: CSV with a header or JSON lines; fields id (optional), generated, truth, driving, mask_generated,
            mask_truth; paths relative to the list.

    Raises:
        ValueError: missing or unreadable list, unknown field, missing file, an id twice.
    """
    rows = _rows(path)
    entries: dict[str, Entry] = {}
    for number, row in enumerate(rows, start=1):
        unknown = sorted(set(row) - set(FIELDS))
        if unknown:
            raise ValueError(f"{path}, row {number}: unknown field {unknown[0]!r}; known are {', '.join(FIELDS)}")
        if not row.get("generated"):
            raise ValueError(f"{path}, row {number}: no 'generated' video")
        paths = {name: path.parent / value for name, value in row.items() if name != "id" and value}
        for name, file in paths.items():
            if not file.exists():
                raise ValueError(f"{path}, row {number}: {name} '{file}' does not exist")
        entry = Entry(row.get("id") or Path(row["generated"]).with_suffix("").as_posix(), **paths)
        if entry.id in entries:
            raise ValueError(f"{path}, row {number}: the id '{entry.id}' occurs twice; give each row its own id")
        entries[entry.id] = entry
    if not entries:
        raise ValueError(f"{path} lists no pairs")
    return Inputs([entries[name] for name in sorted(entries)])


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise ValueError(f"the list of pairs '{path}' does not exist")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            return [{k: v for k, v in row.items() if k is not None} for row in csv.DictReader(text.splitlines())]
        rows = [parse_json(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); expected CSV with a header, or one JSON object per line"
        ) from error
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected one JSON object per line, with the fields {', '.join(FIELDS)}")
    return [{str(k): str(v) for k, v in row.items() if v is not None} for row in rows]


def read_video(path: Path, *, max_frames: int | None = None) -> Video:
    """Open a video; its frames are decoded when they are asked for.

    Args:
        path: a file or a folder of images of one size.
        max_frames: only the first so many.

    Raises:
        ValueError: unreadable. A `VideoError` comes later, from frames that cannot be decoded.
    """
    if not path.is_dir():
        info = probe(path)
        count = info.frame_count if max_frames is None else min(max_frames, info.frame_count)
        digest = file_sha256(path) + (f"[:{count}]" if count < info.frame_count else "")
        size = (count, info.height, info.width, 3)
        return Video(str(path), Decoded(lambda wanted: read_frames(path, wanted), size, str(path)), info.fps, digest)
    files = frame_files(path)[:max_frames]
    if not files:
        raise ValueError(f"'{path}' has no images; expected the frames of a video ({', '.join(IMAGES)})")
    shape = (len(files), *read_image(files[0]).shape)
    frames = Decoded(lambda wanted: (read_image(files[k]) for k in wanted), shape, str(path))
    names = "|".join(f"{file.name}:{file_sha256(file)}" for file in files)
    return Video(str(path), frames, math.nan, hashlib.sha256(names.encode()).hexdigest())


def check_entry(entry: Entry) -> None:
    """See that all files of a case can be opened: one frame of each video is decoded.

    Raises:
        ValueError: one cannot; the message names it.
    """
    for path in (entry.generated, entry.truth, entry.driving, entry.mask_generated, entry.mask_truth):
        if path is None or (path.is_file() and path.suffix.lower() in IMAGES):
            continue
        if not path.is_dir():
            probe(path)
        elif not (files := frame_files(path)):
            raise ValueError(f"'{path}' has no images; expected the frames of a video ({', '.join(IMAGES)})")
        else:
            read_image(files[0])


def read_case(entry: Entry, *, max_frames: int | None = None) -> tuple[Case, list[str]]:
    """Open everything of a case.

    Args:
        entry: its files.
        max_frames: only the first so many frames of each video.

    Returns:
        The case, and the policies that applied: "length" (cut to the shorter), "size" (generated resized to the truth
        by metrics that compare frames), "fps" (the rates differ; frames are compared by number).
    """
    generated = read_video(entry.generated, max_frames=max_frames)
    truth = None if entry.truth is None else read_video(entry.truth, max_frames=max_frames)
    driving = None if entry.driving is None else read_video(entry.driving, max_frames=max_frames)
    masks = None
    if entry.mask_generated is not None and entry.mask_truth is not None and truth is not None:
        pairs = ((entry.mask_truth, truth), (entry.mask_generated, generated))
        first, second = (read_masks(path, frames=len(video.frames)) for path, video in pairs)
        masks = (first, second)
    case = Case(entry.id, generated, truth, driving, masks)
    return case, _policies(case)


def _policies(case: Case) -> list[str]:
    applied = set()
    for other in (case.truth, case.driving):
        if other is None:
            continue
        if len(other.frames) != len(case.generated.frames):
            applied.add("length")
        if other is case.truth and other.frames.shape[1:3] != case.generated.frames.shape[1:3]:
            applied.add("size")
        if abs(other.fps - case.generated.fps) > 0.01 * other.fps:  # never where one is unknown (NaN)
            applied.add("fps")
    return sorted(applied)


def counted(lists: Iterable[list[str]]) -> dict[str, int]:
    """How often each policy applied."""
    counts: dict[str, int] = {}
    for names in lists:
        for name in names:
            counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))
