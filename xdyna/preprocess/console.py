"""What preprocessing shows on a terminal: bars, the summary of a data set, and how much there is to do."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from xdyna.config.data import DataError
from xdyna.config.preprocess import PreprocessConfig
from xdyna.core.errors import FileError, UsageError
from xdyna.data.addresses import is_remote
from xdyna.data.records import REASONS
from xdyna.data.store import validate
from xdyna.media import probe
from xdyna.preprocess import engines
from xdyna.preprocess.engines import Engine, available_cores
from xdyna.preprocess.faces.cross_faces import add_faces
from xdyna.preprocess.faces.reenact import get_reenactor
from xdyna.preprocess.inspect import inspect_clip
from xdyna.preprocess.listing import read_sources
from xdyna.preprocess.report import Summary, duration
from xdyna.preprocess.run import Job, Plan, Step, check_addresses, plan, process_all
from xdyna.preprocess.shards import write_shards
from xdyna.preprocess.work import WorkFolder

_PROBED = 40  # videos that a dry run looks into; the others are estimated by their size
_CORE_SECONDS = 0.2  # of one core per frame of 512 x 896 px with a person, measured


def make_job(
    inputs: Sequence[str], out: Path, config: PreprocessConfig, *, shard: str | None, retry_errors: bool, begin: bool
) -> Job:
    """What is asked for; whatever is wrong with it is wrong usage.

    Args:
        inputs: folders, globs, videos, lists.
        out: the data set.
        config: settings.
        shard: "I/N" for part I (from 0) of N; None for all.
        retry_errors: process again what failed by an error.
        begin: make the folder, or see that the one that is there was begun with the same settings.

    Raises:
        UsageError: no inputs, or settings, videos or a folder that do not fit.
        FileError: a file cannot be read or written.
    """
    if not inputs:
        raise UsageError("give at least one folder, glob, video or list")
    try:
        sources = read_sources(inputs, kind=config.kind)
        check_addresses(sources)
        job = Job(sources, out, config.preprocess, _part(shard), retry_errors)
        if begin:
            WorkFolder(job.folder, job.footage).open()
    except FileError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error
    return job


def _part(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 1
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UsageError(f"--shard {text}: expected I/N with I from 0 to N - 1, for example 0/8")
    return int(index), int(count)


def make_engine(config: PreprocessConfig, *, ray_address: str | None) -> Engine:
    """Who does the work.

    Args:
        config: settings.
        ray_address: of an existing Ray cluster.

    Raises:
        UsageError: it is not to be had.
    """
    try:
        if config.engine == "local":
            return engines.LocalEngine(config.workers)
        from xdyna.preprocess.engine_ray import RayEngine

        return RayEngine(ray_address, workers=config.workers)
    except DataError as error:
        raise UsageError(str(error)) from error


def process_with_bar(job: Job, engine: Engine) -> None:
    """Process all videos behind a bar whose length is their size, since that is what time follows.

    Args:
        job: what is asked for.
        engine: who does it.
    """
    counts: Counter[str] = Counter()
    with tqdm(desc="videos", unit="B", unit_scale=True, unit_divisor=1024, dynamic_ncols=True) as bar:

        def progress(event: Plan | Step) -> None:
            if isinstance(event, Plan):
                outcomes, size = event.done, 0
                counts["all"] = len(event.done) + len(event.pending)
                bar.reset(total=sum(size for _, size in event.pending))
            else:
                outcomes, size = [event.outcome], event.size
            for outcome in outcomes:
                counts.update(done=1, kept=len(outcome.clips), skipped=len(outcome.skips))
            bar.set_postfix_str(
                f"{counts['done']}/{counts['all']} videos, {counts['kept']} clips, {counts['skipped']} skips"
            )
            bar.update(size)

        process_all(job, engine, progress)


def describe_dataset(summary: Summary, out: Path) -> str:
    """What a data set holds, in a few lines. Args: summary: of its making; out: its folder."""
    records = summary.records
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(Counter(record.kind for record in records).items()))
    splits = ", ".join(f"{n} {split}" for split, n in sorted(Counter(record.split for record in records).items()))
    lines = [
        f"{summary.videos} videos ({duration(summary.seconds)}): {len(records)} clips "
        f"({duration(summary.kept_seconds)}; {kinds}; {splits}), {len(summary.skips)} skipped"
    ]
    for reason, count in Counter(skip.reason for skip in summary.skips).most_common():
        lines.append(f"  {count:6d}  {REASONS[reason]}")
    return "\n".join([*lines, f"data set: {out}; what was skipped and why: {out / 'report.html'}"])


def describe_work(job: Job, *, workers: int | None) -> str:
    """How many videos and hours there are to do, and about how long it takes.

    Args:
        job: what is asked for.
        workers: tasks at a time; None: the cores.
    """
    found = plan(job)
    local = [(source, size) for source, size in found.pending if not is_remote(source.path)]
    looked, seconds, frames = 0, 0.0, 0
    for source, size in local[:: max(1, len(local) // _PROBED)]:
        try:
            info = probe(source.path)
        except FileError:
            continue
        looked, seconds, frames = looked + size, seconds + info.duration, frames + info.frame_count
    total = sum(size for _, size in found.pending)
    cores = workers or available_cores()
    text = f"{len(found.done)} videos are done, {len(found.pending)} to do, {total / 2**30:.2f} GiB"
    if found.pending and not looked:
        return f"{text}\ntheir duration is not known: none of those that were looked at can be read as a local video"
    if not found.pending:
        return text
    work = frames * total / looked * _CORE_SECONDS / cores
    return (
        f"{text}\nabout {duration(seconds * total / looked)} of footage, roughly {duration(work)} with {cores} workers "
        f"({_CORE_SECONDS:g} s of one core per frame, as with half a megapixel and a person; scenes take less)"
    )


def faces_with_bar(dataset: Path, reenactor: str, *, models: Path | None, seed: int) -> str:
    """Give human clips another identity's face.

    Args:
        dataset: a finished data set.
        reenactor: "mesh-warp" or "liveportrait".
        models: weights of the second.
        seed: of who lends the face.

    Returns:
        How many were made, and why others were not.
    """
    with tqdm(desc="faces", unit="clip") as bar:
        summary = add_faces(
            dataset,
            get_reenactor(reenactor, models_dir=models),
            seed=seed,
            progress=lambda done: bar.update(done - bar.n) and None,
        )
    without = ", ".join(f"{reason}: {count}" for reason, count in summary.reasons.items())
    return f"faces: {summary.made} made, {summary.kept} were there{f', without: {without}' if without else ''}"


def inspect(dataset: str, clip: str, out: Path | None, *, overwrite: bool) -> str:
    """Draw a clip with pose, face and mask.

    Args:
        dataset: folder of the data set.
        clip: its id.
        out: an .mp4 or .png; None: CLIP.mp4.
        overwrite: whether a file may be replaced.

    Returns:
        What is in it.
    """
    return str(inspect_clip(Path(dataset), clip, out or Path(f"{clip}.mp4"), overwrite=overwrite))


def check(dataset: Path, *, videos: bool) -> tuple[bool, str]:
    """Whether everything of a data set is there and fits, and what is not.

    Args:
        dataset: its folder.
        videos: compare the videos' bytes, too.
    """
    problems = validate(dataset, videos=videos)
    told = f"{dataset}: {len(problems)} problems" if problems else f"{dataset}: everything is there and fits"
    return not problems, "\n".join([*problems, told])


def export_with_bar(dataset: Path, out: Path, engine: Engine, *, clips: int) -> str:
    """Export a finished data set as WebDataset tar files.

    Args:
        dataset: its folder.
        out: folder of the tar files.
        engine: who does it.
        clips: at most so many in a file.

    Returns:
        How many files there are.
    """
    with tqdm(desc="clips", unit="clip") as bar:
        count = write_shards(
            dataset, out, engine, clips_per_shard=clips, progress=lambda done: bar.update(done) and None
        )
    return f"{count} shards in {out}"
