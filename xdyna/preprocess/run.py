"""Preprocessing as a whole: every video that is not finished yet goes to an engine, then the data set is put together.

What is finished lies in `.work` (see `work.py`): a run may be killed at any moment, and the same command ends with the
same bytes. Several runs can share the work (`shard`); one more puts the data set together.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import platform
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import fsspec

import xdyna
from xdyna.config.data import DataError
from xdyna.config.preprocess import FinishOptions, PreprocessOptions
from xdyna.core.errors import FileError
from xdyna.data.addresses import file_size, is_remote, local_copy
from xdyna.data.records import VideoOutcome, VideoSource
from xdyna.data.store import write_if_changed
from xdyna.media import MediaWarning
from xdyna.perception import PerceptionWarning
from xdyna.preprocess.engines import Engine, Failure
from xdyna.preprocess.finish import finish
from xdyna.preprocess.report import Summary
from xdyna.preprocess.work import WORK, WorkFolder, digest, read_failure

Process = Callable[[VideoSource, Path, PreprocessOptions, Path], VideoOutcome]

# Not the video's fault but the machine's or the settings': going on would fail with every other video as well.
_ENDS_THE_RUN = ("DataError", "MediaError", "PerceptionError", "ImportError", "ModuleNotFoundError", "OSError")
_PACKAGES = ("av", "decord", "mediapipe", "numpy", "opencv-python", "pyarrow", "scenedetect")


@dataclass(frozen=True)
class Job:
    """What is asked for.

    Attributes:
        sources: all videos, in the order of the input; ids are unique.
        folder: the data set.
        footage: options of the processing of videos.
        shard: (index, count): only videos whose position modulo count is the index.
        retry_errors: process videos again whose processing failed.
        process: makes an outcome of a video; None: `video.process_video`.
    """

    sources: Sequence[VideoSource]
    folder: Path
    footage: PreprocessOptions
    shard: tuple[int, int] = (0, 1)
    retry_errors: bool = False
    process: Process | None = None

    def mine(self) -> list[VideoSource]:
        """The videos of the shard."""
        index, count = self.shard
        return list(self.sources[index::count])


@dataclass(frozen=True)
class Step:
    """A video was finished.

    Attributes:
        outcome: what came of it.
        size: bytes of the video.
    """

    outcome: VideoOutcome
    size: int


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        done: outcomes that are there already.
        pending: videos to process with their sizes in bytes, the largest first.
    """

    done: list[VideoOutcome]
    pending: list[tuple[VideoSource, int]]


@dataclass(frozen=True)
class VideoWork:
    """What a worker does with a video: fetch it, recognise it, process it, keep the outcome."""

    memory: WorkFolder
    retry_errors: bool = False
    process: Process | None = None

    def __call__(self, source: VideoSource) -> VideoOutcome:
        """The outcome of a video; one that was there before is handed back as it is."""
        try:
            # Of thousands of videos some are cut off: a warning each would bury the progress bar.
            with local_copy(source.path) as local, warnings.catch_warnings():
                warnings.simplefilter("ignore", MediaWarning)
                warnings.simplefilter("ignore", PerceptionWarning)
                outcome = self._processed(source, local)
        except (OSError, FileError) as error:
            if _is_ours(error):
                raise
            outcome = read_failure(source, f"{str(error).splitlines()[0] if str(error) else type(error).__name__}")
        self.memory.save(source, outcome)
        return outcome

    def _processed(self, source: VideoSource, local: Path) -> VideoOutcome:
        sha256 = self.memory.identify(source, local)
        before = self.memory.load(source, sha256)
        if before is not None and not (self.retry_errors and has_error(before)):
            return before
        if self.process is not None:
            return self.process(source, local, self.memory.options, self.memory.folder)
        from xdyna.preprocess.video import process_video  # loads the detectors' libraries, in workers alone

        return process_video(source, local, self.memory.options, self.memory.folder)


def _is_ours(error: Exception) -> bool:
    """Whether an error arose from writing (a full disk), not from reading a video."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    return "cannot be written" in str(error)


def has_error(outcome: VideoOutcome) -> bool:
    """Whether the processing of a video failed, which says nothing about the video."""
    return any(skip.reason == "error" for skip in outcome.skips)


def check_addresses(sources: Sequence[VideoSource]) -> None:
    """Refuse remote addresses that no installed package can read.

    Raises:
        DataError: an unknown kind of address, or a package is missing.
    """
    for protocol in sorted({source.path.split("://")[0] for source in sources if is_remote(source.path)}):
        try:
            fsspec.get_filesystem_class(protocol)
        except (ImportError, ValueError) as error:
            raise DataError(f"addresses '{protocol}://...' cannot be read: {error}") from error


def plan(job: Job) -> Plan:
    """Find out what is finished, without reading a video."""
    memory, done, pending = WorkFolder(job.folder, job.footage), [], []
    for source in job.mine():
        outcome = memory.known(source)
        if outcome is not None and not (job.retry_errors and has_error(outcome)):
            done.append(outcome)
        else:
            pending.append((source, file_size(source.path)))
    # The largest first: no worker begins a long video when the others are nearly done. Ties in a fixed order.
    return Plan(done, sorted(pending, key=lambda pair: (-pair[1], pair[0].id)))


def process_all(job: Job, engine: Engine, progress: Callable[[Plan | Step], None] = lambda event: None) -> Plan:
    """Process the videos of the shard that are not finished yet.

    Args:
        job: what is asked for.
        engine: who does it.
        progress: told the plan, and every finished video.

    Returns:
        The plan that was carried out.

    Raises:
        DataError: the folder holds something else or was made with other options, another run works there, an address
            cannot be read; or what would fail with every video: a full disk, a missing package.
        MediaError: the folder cannot be written.
    """
    check_addresses(job.sources)
    memory = WorkFolder(job.folder, job.footage)
    memory.open()
    with memory.lock(shared=job.shard[1] > 1):
        found = plan(job)
        progress(found)
        work = VideoWork(memory, job.retry_errors, job.process)
        tasks = [source for source, _ in found.pending]
        with contextlib.closing(engine.run(tasks, work)) as results:
            for number, result in results:
                source, size = found.pending[number]
                outcome = _failed(memory, source, result) if isinstance(result, Failure) else result
                progress(Step(outcome, size))
    return found


def _failed(memory: WorkFolder, source: VideoSource, failed: Failure) -> VideoOutcome:
    """Keep that the work on a video ended without an outcome."""
    if failed.kind in _ENDS_THE_RUN:
        raise DataError(failed.reason)
    if failed.trace:
        place = memory.folder / WORK / "errors" / f"{digest(source.id)[:16]}.txt"
        write_if_changed(place, f"{source.id}\n{source.path}\n\n{failed.trace}".encode())
    detail = f"{failed.kind}: {failed.reason}" if failed.kind else failed.reason
    outcome = read_failure(source, detail, reason="error", sha256=memory.seen(source) or "")
    memory.save(source, outcome)
    return outcome


def finish_all(job: Job, options: FinishOptions) -> Summary:
    """Put the data set together from the outcomes of all videos.

    Args:
        job: what is asked for; its shard is of no account.
        options: see `FinishOptions`.

    Returns:
        What is in the data set.

    Raises:
        DataError: videos that are not processed yet; nothing was kept; another run works there.
        MediaError: a file cannot be written.
    """
    memory = WorkFolder(job.folder, job.footage)
    memory.open()
    with memory.lock(shared=False):
        outcomes, missing = [], []
        for source in job.sources:
            outcome = memory.known(source) or memory.unread(source)
            if outcome is None:
                missing.append(source)
            else:
                outcomes.append(outcome)
        if missing:
            raise DataError(
                f"{len(missing)} of {len(job.sources)} videos are not processed yet, the first is '{missing[0].path}'; "
                f"run the same command without --finish, or the shards that are missing"
            )
        summary = finish(job.folder, outcomes, footage=job.footage, options=options, versions=versions())
        for leftover in job.folder.rglob(".*.part*"):  # of runs that were killed while they wrote
            leftover.unlink(missing_ok=True)
    return summary


def versions() -> dict[str, str]:
    """Versions of Python, this project and the packages whose results are in a data set."""
    found = {"python": platform.python_version(), "xdyna": xdyna.__version__}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
