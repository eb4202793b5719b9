"""What to preprocess: folders, globs, files and lists become `VideoSource`s.

Lists are CSV, JSONL, JSON, Parquet or plain text. HumanVid publishes its videos as plain text with one URL a line
(`pexels-...-urls.txt`) and, for its own programs, as JSON with `video_path` (whole videos, or segments of them); both
are read here. A URL stands for the file of the same name below the list's folder: nothing is downloaded.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from xdyna.config.data import KINDS, DataError
from xdyna.data.records import VideoSource
from xdyna.media import MediaWarning
from xdyna.preprocess.tables import COLUMNS, LIST_SUFFIXES, VIDEO_SUFFIXES, read_rows

_ID = re.compile(r"[A-Za-z0-9_.-]{1,120}")
_LONGEST = 100  # characters of an id made from a file name
_WEB = ("http://", "https://")


@dataclass(frozen=True)
class _Entry:
    """A source that may have no id yet; `place` is where it was given, for messages."""

    source: VideoSource
    place: str


def read_sources(inputs: Sequence[str], *, kind: str | None = None) -> list[VideoSource]:
    """Collect the videos of some inputs, in their order.

    An input is a folder (all videos below it, by suffix), a glob, a video file, an fsspec address (`s3://...`), or a
    list: `.csv`, `.tsv`, `.jsonl`, `.json`, `.parquet` with the columns id, path, kind, caption, license, group (only
    path is required), or `.txt` with a path or URL a line. Relative paths of a list belong to its folder. Ids that are
    not given are made of file names. A file that comes up twice without ids of its own is taken once.

    Args:
        inputs: what the user gave.
        kind: "human" or "scene" for all videos whose list does not say; None: to be found out.

    Returns:
        The videos; ids are unique and safe as file names.

    Raises:
        DataError: no inputs, an empty folder, a glob without matches, a missing file, a list that cannot be read or has
            no column of paths, an id given twice or with unsafe characters, an unknown kind.

    Warns:
        MediaWarning: columns that are not used; URLs of which no file was downloaded.
    """
    if kind is not None and kind not in KINDS:
        raise DataError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    if isinstance(inputs, str):
        inputs = [inputs]
    if not inputs:
        raise DataError("no videos were given; give folders, video files, globs or lists")
    entries: list[_Entry] = []
    seen: set[str] = set()
    for entry in (entry for given in inputs for entry in _read_input(str(given))):
        key = entry.source.path if "://" in entry.source.path else os.path.realpath(entry.source.path)
        if key in seen and not entry.source.id:
            continue
        seen.add(key)
        entries.append(entry)
    sources = _with_ids(entries)
    return [replace(s, kind=s.kind or kind, group=s.group or s.id) for s in sources]


def _read_input(given: str) -> Iterator[_Entry]:
    """The videos of one input."""
    if "://" in given:
        yield _Entry(VideoSource("", given), f"'{given}'")
        return
    path = Path(given).expanduser()
    if path.is_dir():
        yield from _read_folder(path)
    elif path.is_file():
        if path.suffix.lower() in LIST_SUFFIXES:
            yield from _read_list(path)
        else:
            yield _Entry(VideoSource("", str(path)), f"'{path}'")
    elif glob.has_magic(given):
        matches = sorted(glob.glob(str(path), recursive=True))
        if not matches:
            raise DataError(f"'{given}' matches no file; check the pattern (working folder: '{Path.cwd()}')")
        files = [match for match in matches if Path(match).is_file()] if "**" in given else matches
        videos = [match for match in files if Path(match).is_dir() or Path(match).suffix.lower() in VIDEO_SUFFIXES]
        for match in videos or files:  # what lies beside the videos is left out, as in folders
            yield from _read_input(match)
    else:
        raise DataError(f"'{given}' does not exist; check the path (working folder: '{Path.cwd()}')")


def _read_folder(folder: Path) -> list[_Entry]:
    """All videos below a folder in the order of their paths; hidden files and folders are left out."""
    found = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in VIDEO_SUFFIXES and not hidden and path.is_file():
            found.append(_Entry(VideoSource("", str(path)), f"'{path}'"))
    if not found:
        raise DataError(
            f"folder '{folder}' holds no video (files that end in {', '.join(VIDEO_SUFFIXES)}); give another folder, "
            f"or name the files"
        )
    return found


# Lists


def _read_list(path: Path) -> list[_Entry]:
    """The videos of a list."""
    rows, unused = read_rows(path)
    if unused:
        warnings.warn(
            f"list '{path}': columns {', '.join(unused)} are not used; used are {', '.join(COLUMNS)}",
            MediaWarning,
            stacklevel=4,
        )
    downloaded = _Downloaded(path.parent)
    entries, lost = [], []
    for number, row in rows:
        place = f"list '{path}', row {number}"
        if not row.get("path"):
            raise DataError(f"{place} has no path; expected one in every row")
        kind = row.get("kind", "").lower()
        if kind not in ("", *KINDS):
            raise DataError(f"{place}: kind is {row['kind']!r}, expected {' or '.join(KINDS)}, or nothing")
        where = _locate(row["path"], path.parent, downloaded, place=place)
        if where is None:
            lost.append(row["path"])
            continue
        texts = {name: row.get(name, "") for name in ("id", "caption", "license", "group")}
        entries.append(_Entry(VideoSource(path=where, kind=kind or None, **texts), place))
    if not entries:
        what = f"none of its {len(lost)} URLs was downloaded to '{path.parent}'" if lost else "it is empty"
        raise DataError(f"list '{path}' names no video: {what}; expected at least one")
    if lost:
        warnings.warn(
            f"list '{path}': {len(lost)} of {len(lost) + len(entries)} URLs have no file of their name below "
            f"'{path.parent}' and are left out (the first: {lost[0]})",
            MediaWarning,
            stacklevel=4,
        )
    return entries


def _locate(text: str, folder: Path, downloaded: _Downloaded, *, place: str) -> str | None:
    """Where the video of a row lies; None for a URL that was not downloaded."""
    if text.lower().startswith(_WEB):
        return downloaded.find(unquote(PurePosixPath(urlsplit(text).path).name))
    if "://" in text:
        return text
    path = folder / Path(text).expanduser()
    if path.is_file():
        return str(path)
    found = downloaded.find(Path(text).name)  # the list was made where the folders were others
    if found is None:
        raise DataError(f"{place}: video '{path}' does not exist, nor is there a '{Path(text).name}' below '{folder}'")
    return found


class _Downloaded:
    """Files below a folder by their base name; looked up when it is first asked for one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, list[Path]] | None = None

    def find(self, name: str) -> str | None:
        """The file of a base name, None if there is none.

        Raises:
            DataError: several files have it.
        """
        if self._files is None:
            self._files = {}
            for path in sorted(self._folder.rglob("*")):
                if path.is_file():
                    self._files.setdefault(path.name, []).append(path)
        found = self._files.get(name, [])
        if len(found) > 1:
            raise DataError(
                f"'{name}' is asked for by its name alone, and both '{found[0]}' and '{found[1]}' have it; remove one, "
                f"or give paths that say which"
            )
        return str(found[0]) if found else None


# Ids


def _with_ids(entries: Sequence[_Entry]) -> list[VideoSource]:
    """The sources with an id each: the given ones checked, the others made of their file names."""
    given: dict[str, str] = {}
    for entry in entries:
        name = entry.source.id
        if not name:
            continue
        if not _ID.fullmatch(name) or name.startswith("."):
            raise DataError(
                f"{entry.place}: id {name!r} cannot be part of a file name; expected up to 120 letters, digits, '-', "
                f"'_' and '.', not beginning with '.'"
            )
        if name.lower() in given:
            raise DataError(f"{entry.place}: id '{name}' was already given in {given[name.lower()]}; ids must differ")
        given[name.lower()] = entry.place
    made = _made_ids([entry.source.path for entry in entries if not entry.source.id], taken=given)
    return [entry.source if entry.source.id else replace(entry.source, id=next(made)) for entry in entries]


def _made_ids(paths: Sequence[str], *, taken: Iterable[str]) -> Iterator[str]:
    """Ids of files: the stem; where several would have one, with as many parent folders as tell them apart.

    Upper and lower case count as equal, since some file systems do not tell them apart.
    """
    used = set(taken)
    depths = [0] * len(paths)
    names = [_safe_name(path, 0) for path in paths]
    for depth in range(1, 4):
        groups: dict[str, list[int]] = {}
        for k, name in enumerate(names):
            groups.setdefault(name.lower(), []).append(k)
        for name, members in groups.items():
            if len(members) > 1 or name in used:
                for k in members:
                    depths[k] = depth
                    names[k] = _safe_name(paths[k], depth)
    for name in names:
        unique, number = name, 2
        while unique.lower() in used:
            unique, number = f"{name}-{number}", number + 1
        used.add(unique.lower())
        yield unique


def _safe_name(path: str, parents: int) -> str:
    """The stem of a file behind some of its parent folders, with safe characters alone."""
    pure = PurePosixPath(path.split("://", 1)[-1].replace(os.sep, "/"))
    parts = [part for part in pure.parts if part.strip("/.")]
    parts = [*parts[:-1][len(parts) - 1 - parents :], PurePosixPath(parts[-1]).stem] if parts else []
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", "-".join(parts)).strip("._-") or "video"
    if len(name) > _LONGEST:
        name = f"{name[: _LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name
