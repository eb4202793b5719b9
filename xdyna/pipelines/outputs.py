"""Names of the files of one animation: the video, a side-by-side video, a contact sheet and the run manifest."""

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdyna.core.atomic import atomic_output, check_output
from xdyna.core.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


ENDINGS = {"mp4": ".mp4", "ffv1": ".mkv", "frames": ""}
_KINDS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".gif", ".webp", ".png", ".jpg", ".jpeg", ".mpg", ".ts")


@dataclass(frozen=True)
class OutputFiles:
    """Names of the files of one animation, all beside each other.

    Attributes:
        video: the video; with `save` "frames" a folder.
        save: how it is saved, one of `xdyna.config.infer.SAVES`.
    """

    video: Path
    save: str = "mp4"

    @classmethod
    def named(cls, path: Path, save: str) -> "OutputFiles":
        """The files of a video, whose ending is added where it is missing.

        Raises:
            UsageError: the name has the ending of another kind of file.
            FileError: what is there is no plain file or folder.
        """
        check_output(path)
        ending = ENDINGS[save]
        if path.suffix.lower() in _KINDS and path.suffix.lower() != ending:
            makes = f"{ending} files" if ending else "folders"
            raise UsageError(
                f"--out '{path}' names another kind of file: save={save} makes {makes}; give "
                f"'{path.with_suffix(ending)}', and convert that"
            )
        return cls(path if path.suffix.lower() == ending or not ending else path.with_name(path.name + ending), save)

    @property
    def stem(self) -> str:
        """What all names begin with."""
        return self.video.stem if ENDINGS[self.save] else self.video.name

    @property
    def grid(self) -> Path:
        """Side-by-side video."""
        return self.video.with_name(f"{self.stem}.grid.mp4")

    @property
    def sheet(self) -> Path:
        """Contact sheet."""
        return self.video.with_name(f"{self.stem}.sheet.png")

    @property
    def manifest(self) -> Path:
        """Run manifest."""
        return self.video.with_name(f"{self.stem}.run.json")

    @property
    def keypoints(self) -> Path:
        """Keypoints of the driving video, as `--drive` takes them; written when perception ran."""
        return self.video.with_name(f"{self.stem}.keypoints.npz")

    def all(self, *, keypoints: bool) -> tuple[Path, ...]:
        """Every file of a run, the manifest last."""
        points = (self.keypoints,) if keypoints else ()
        return (self.video, self.grid, self.sheet, *points, self.manifest)

    def taken(self) -> list[Path]:
        """Those names that exist already (or are links that lead nowhere)."""
        return [path for path in self.all(keypoints=True) if os.path.lexists(path)]

    def check_free(self, *, overwrite: bool, inputs: Sequence[Path]) -> None:
        """See whether the names may be written.

        Raises:
            ValueError: a file exists and may not be overwritten, or is one of the run's own inputs.
        """
        for path in self.taken():
            if any(path.exists() and path.samefile(source) for source in inputs):
                raise UsageError(f"{path} is an input of this run and would be overwritten; choose another --out")
            if not overwrite:
                raise ValueError(f"{path} exists already; choose another --out, or give --overwrite to replace it")

    def check_writable(self) -> None:
        """See before hours of work whether the folder can be written to; makes it where it is missing.

        Raises:
            ValueError: it cannot.
        """
        try:
            with atomic_output(self.manifest, overwrite=True):
                raise _OnlyProbing
        except _OnlyProbing:
            pass


class _OnlyProbing(Exception):
    """Leaves `atomic_output` without writing."""


def output_names(
    out: Path | None, *, reference: Path, driving: Path, folder: Path, save: str = "mp4"
) -> Iterator[OutputFiles]:
    """Where the results may go, in order of preference.

    Args:
        out: the video's name (its ending is added where it is missing), or None for REFERENCE_DRIVING.mp4 in `folder`,
            then REFERENCE_DRIVING_2.mp4, and so on.
        reference: image, for the name.
        driving: driving file, for the name.
        folder: for `out` = None.
        save: how the video is saved.

    Raises:
        UsageError: `out` is a folder, empty, or has the ending of another kind of video.
    """
    if out is None:
        stem = f"{reference.stem}_{driving.stem}"
        yield OutputFiles.named(folder / f"{stem}{ENDINGS[save]}", save)
        yield from (OutputFiles(folder / f"{stem}_{number}{ENDINGS[save]}", save) for number in itertools.count(2))
    elif not out.name or (out.is_dir() and ENDINGS[save]):
        raise UsageError(f"--out '{out}' is a folder; give a file name, for example '{out / 'out.mp4'}'")
    else:
        yield OutputFiles.named(out, save)


def free_names(out: Path | None, **names: Any) -> OutputFiles:
    """The names a run would take now; arguments as in `output_names`."""
    return next(files for files in output_names(out, **names) if out is not None or not files.taken())


@contextmanager
def reserve(out: Path | None, *, overwrite: bool, inputs: Sequence[Path], **names: Any) -> Iterator[OutputFiles]:
    """Names that no other run takes while the block runs, checked to be free and writable.

    Args:
        out: as in `output_names`.
        overwrite: whether existing files may be replaced.
        inputs: files that must not be replaced in any case.
        names: further arguments of `output_names`.

    Raises:
        ValueError: files in the way, a folder that cannot be written to, or another run that writes the same files.
    """
    for files in output_names(out, **names):
        if out is None and files.taken():
            continue
        files.check_free(overwrite=overwrite, inputs=inputs)
        files.check_writable()
        with _lock(files.video.with_name(f".{files.stem}.lock")) as held:
            if held:
                yield files
                return
        if out is not None:
            raise ValueError(f"another run is writing {files.video} now; wait for it, or choose another --out")


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Hold a lock file for the block; tells whether it could be had. The system frees it when the process dies."""
    if fcntl is None:  # no such locks on this system: the final names are still never overwritten
        yield True
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = path.exists() and os.fstat(file.fileno()).st_ino == path.stat().st_ino
        except OSError:
            held = False
        try:
            yield held
        finally:
            if held:
                path.unlink(missing_ok=True)
