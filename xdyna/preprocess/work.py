"""What a run remembers below `DATASET/.work`, so that the same command goes on where it was interrupted.

    run.json               options of the footage's processing; another run with others is refused
    files/ab/TOKEN.json    SHA-256 of a video's bytes, by its path, size and time: it is not read again to be recognised
    videos/ab/KEY.json     outcome of a video; KEY follows from its bytes, the options, its id and its given kind
    unread/NAME.json       outcome of a video whose bytes could not be read; tried again by the next run

All are written completely or not at all, by whoever finished the video.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xdyna.config.data import DataError
from xdyna.config.preprocess import PreprocessOptions
from xdyna.core.files import file_sha256
from xdyna.data.addresses import token_of
from xdyna.data.records import FORMAT, Skip, VideoOutcome, VideoSource, clip_record
from xdyna.data.store import write_if_changed
from xdyna.media.errors import check_input_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

WORK = ".work"
_RUN, _LOCK = "run.json", "lock"


def digest(*parts: object) -> str:
    """SHA-256 of some values, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class WorkFolder:
    """The memory of one data set folder.

    Args:
        folder: the data set.
        options: of the processing of videos.
    """

    def __init__(self, folder: Path, options: PreprocessOptions) -> None:
        self.folder = folder
        self.options = options
        self._options_digest = digest(FORMAT, dataclasses.asdict(options))

    def open(self) -> None:
        """Begin or continue a data set.

        Raises:
            DataError: the folder holds something else, or was made with other options.
            MediaError: it cannot be written.
        """
        path, options = self.folder / WORK / _RUN, dataclasses.asdict(self.options)
        if path.is_file():
            before = _read_json(path)
            if before is None or before.get("format") != FORMAT:
                raise DataError(f"'{path}' is damaged or of another version; choose another output folder")
            changed = [
                f"{name} was {before['options'].get(name)!r}, now {value!r}"
                for name, value in options.items()
                if before["options"].get(name) != value
            ]
            if changed:
                raise DataError(
                    f"'{self.folder}' was made with other options ({'; '.join(changed)}): give the same ones to go on, "
                    f"or another output folder"
                )
            return
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise DataError(
                f"'{self.folder}' holds something else than a data set of this program; choose an empty or new folder"
            )
        write_if_changed(path, _json({"format": FORMAT, "options": options}))

    @contextlib.contextmanager
    def lock(self, *, shared: bool) -> Iterator[None]:
        """Keep a second run away from the folder; runs of parts (`shared`) may be many at a time.

        Raises:
            DataError: another run works there.
        """
        path = self.folder / WORK / _LOCK
        with path.open("a") as file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise DataError(
                        f"another run works on '{self.folder}' at this moment; wait until it ends, or share the work "
                        f"with --shard I/N"
                    ) from error
                except OSError:
                    pass  # a file system without locks
            yield

    def known(self, source: VideoSource) -> VideoOutcome | None:
        """The outcome of a video that was finished before and did not change since; it is not read for that."""
        sha256 = self.seen(source)
        return None if sha256 is None else self.load(source, sha256)

    def seen(self, source: VideoSource) -> str | None:
        """SHA-256 of the bytes of a video that was read before and did not change since."""
        token = token_of(source.path)
        seen = _read_json(self._seen_path(token)) if token is not None else None
        sha256 = seen.get("sha256") if seen is not None else None
        return sha256 if isinstance(sha256, str) else None

    def identify(self, source: VideoSource, local: Path) -> str:
        """SHA-256 of a video's bytes, remembered for `known`.

        Raises:
            MediaError: it cannot be read.
        """
        token, sha256 = token_of(source.path), file_sha256(check_input_file(local, what="video"))
        if token is not None and token_of(source.path) == token:
            write_if_changed(self._seen_path(token), _json({"path": source.path, "sha256": sha256}))
        return sha256

    def load(self, source: VideoSource, sha256: str) -> VideoOutcome | None:
        """The outcome kept for these bytes; None where there is none, it is damaged, or files of its clips are missing.

        Path, caption, license and group are those of `source`: to change them costs no work.
        """
        outcome = _parse(_read_json(self._path(source, sha256)))
        if outcome is None or outcome.sha256 != sha256 or outcome.source_id != source.id:
            return None
        files = [clip.arrays for clip in outcome.clips] + [skip.thumbnail for skip in outcome.skips if skip.thumbnail]
        if not all((self.folder / name).is_file() for name in files):
            return None
        clips = [
            dataclasses.replace(
                clip,
                path=source.path,
                caption=source.caption,
                license=source.license,
                group=source.group or source.id,
            )
            for clip in outcome.clips
        ]
        skips = [dataclasses.replace(skip, path=source.path) for skip in outcome.skips]
        return dataclasses.replace(outcome, clips=tuple(clips), skips=tuple(skips))

    def save(self, source: VideoSource, outcome: VideoOutcome) -> None:
        """Keep an outcome.

        Raises:
            MediaError: it cannot be written.
        """
        content = _json({"format": FORMAT, "path": source.path, "outcome": dataclasses.asdict(outcome)})
        path = self._path(source, outcome.sha256) if outcome.sha256 else self._unread_path(source)
        write_if_changed(path, content)

    def unread(self, source: VideoSource) -> VideoOutcome | None:
        """What the last run found of a video that could not be read."""
        outcome = _parse(_read_json(self._unread_path(source)))
        return outcome if outcome is not None and outcome.source_id == source.id else None

    def _path(self, source: VideoSource, sha256: str) -> Path:
        return self._place("videos", digest(sha256, self._options_digest, source.id, source.kind))

    def _seen_path(self, token: str) -> Path:
        return self._place("files", token)

    def _unread_path(self, source: VideoSource) -> Path:
        return self._place("unread", digest(source.id, source.path))

    def _place(self, kind: str, name: str) -> Path:
        return self.folder / WORK / kind / name[:2] / f"{name}.json"


def read_failure(source: VideoSource, detail: str, *, reason: str = "unreadable", sha256: str = "") -> VideoOutcome:
    """The outcome of a video of which nothing could be made."""
    stage = "read" if reason == "unreadable" else "error"
    sentence = f"{detail[:1].upper()}{detail[1:].removesuffix('.')}."
    return VideoOutcome(source.id, sha256, 0.0, (), (Skip(source.id, source.path, stage, reason, sentence),))


def _json(tree: dict[str, Any]) -> bytes:
    return (json.dumps(tree, indent=1, sort_keys=True) + "\n").encode()


def _read_json(path: Path) -> dict[str, Any] | None:
    """The content of a small file; None where it is missing or damaged (the work is then done again)."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return tree if isinstance(tree, dict) else None


def _parse(tree: dict[str, Any] | None) -> VideoOutcome | None:
    try:
        if tree is None or tree["format"] != FORMAT:
            return None
        outcome = tree["outcome"]
        return VideoOutcome(
            source_id=outcome["source_id"],
            sha256=outcome["sha256"],
            seconds=float(outcome["seconds"]),
            clips=tuple(clip_record(clip) for clip in outcome["clips"]),
            skips=tuple(Skip(**skip) for skip in outcome["skips"]),
        )
    except (KeyError, TypeError, ValueError):
        return None
