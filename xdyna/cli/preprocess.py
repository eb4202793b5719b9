"""From raw footage to a training set: `scripts/preprocess.py`."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from xdyna.config.data import KINDS, DataError
from xdyna.config.loader import load_config
from xdyna.config.preprocess import ENGINES, REENACTORS, FinishOptions, PreprocessConfig
from xdyna.core.errors import FileError, UsageError
from xdyna.data.addresses import is_remote
from xdyna.data.records import REASONS
from xdyna.data.store import validate
from xdyna.media import probe
from xdyna.preprocess.engines import Engine, LocalEngine, available_cores
from xdyna.preprocess.listing import read_sources
from xdyna.preprocess.report import Summary, duration
from xdyna.preprocess.run import Job, Plan, Step, check_addresses, finish_all, plan, process_all
from xdyna.preprocess.work import WorkFolder

_PROBED = 40  # videos that a dry run looks into; the others are estimated by their size
_CORE_SECONDS = 0.2  # of one core per frame of 512 x 896 px with a person, measured


def parser() -> argparse.ArgumentParser:
    """The argument parser."""
    p = argparse.ArgumentParser(
        prog="preprocess.py",
        description="Make a training set of raw videos. Interrupted, it goes on with the same command.",
        epilog="example: scripts/preprocess.py footage list.csv --out data/mine; then scripts/preprocess.py --inspect "
        "data/mine CLIP_ID",
    )
    p.add_argument("inputs", nargs="*", metavar="INPUT", help="folder, glob, video, or list (CSV, JSONL, Parquet, txt)")
    p.add_argument("--out", type=Path, metavar="DIR", help="the data set; of --inspect: an .mp4 or .png")
    p.add_argument("--kind", choices=KINDS, help="of all videos whose list does not say it (default: found out)")
    p.add_argument("--config", type=Path, metavar="YAML", help="settings, see configs/preprocess")
    p.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting: preprocess.min_frames=48"
    )
    p.add_argument("--dry-run", action="store_true", help="say how much there is to do, and do nothing")
    who = p.add_argument_group("who does the work")
    who.add_argument("--engine", choices=ENGINES, default="local", help="processes of this machine, or a Ray cluster")
    who.add_argument("--workers", type=int, metavar="N", help="tasks at a time (default: the cores)")
    who.add_argument("--ray-address", metavar="A", help="of an existing cluster: auto, HOST:PORT or ray://HOST:PORT")
    who.add_argument("--shard", metavar="I/N", help="only part I (from 0) of N, without putting the data set together")
    who.add_argument("--finish", action="store_true", help="put the data set together after all parts are done")
    who.add_argument("--retry-errors", action="store_true", help="process again what failed by an error")
    faces = p.add_argument_group("other identities' faces")
    faces.add_argument("--faces", choices=REENACTORS, help="give human clips another identity's face afterwards")
    faces.add_argument("--faces-models", type=Path, metavar="DIR", help="weights of liveportrait")
    faces.add_argument("--faces-seed", type=int, default=0, metavar="N", help="of who lends the face (%(default)s)")
    other = p.add_argument_group("with a finished data set")
    other.add_argument("--inspect", nargs=2, metavar=("DATASET", "CLIP"), help="draw a clip with pose, face and mask")
    other.add_argument("--overwrite", action="store_true", help="--inspect may replace a file")
    other.add_argument("--check", type=Path, metavar="DATASET", help="look whether everything is there and fits")
    other.add_argument("--check-videos", action="store_true", help="with --check: compare the videos' bytes too")
    other.add_argument("--shards", type=Path, metavar="OUT", help="export the data set --out as WebDataset tar files")
    other.add_argument("--clips-per-shard", type=int, default=256, metavar="N", help="(%(default)s)")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p


def main(argv: Sequence[str]) -> int:
    """Run `scripts/preprocess.py`.

    Args:
        argv: arguments without the program's name.

    Returns:
        int: 0 when done, also with skipped videos; 1 when `--check` found something.
    """
    args = parser().parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the workers: one core each
    os.environ.setdefault("GLOG_minloglevel", "2")  # mediapipe's chatter
    if args.inspect is not None:
        return _inspect(args)
    if args.check is not None:
        return _check(args.check, videos=args.check_videos)
    if args.out is None:
        raise UsageError("give --out DIR, the folder of the data set")
    if args.shards is not None:
        return _export(args)
    job, finish = _job(args)
    if args.dry_run:
        return _dry_run(job, workers=args.workers)
    try:
        if not args.finish:
            _process(job, _engine(args))
            if args.shard is not None:
                return 0
        _tell(finish_all(job, finish), args.out)
        if args.faces is not None:
            _add_faces(args)
    except KeyboardInterrupt:
        print("\nrun the same command again to continue", file=sys.stderr)
        raise
    return 0


def _job(args: argparse.Namespace) -> tuple[Job, FinishOptions]:
    """What is asked for; whatever is wrong with it is wrong usage."""
    if not args.inputs:
        raise UsageError("give at least one folder, glob, video or list")
    if args.ray_address and args.engine != "ray":
        raise UsageError("--ray-address needs --engine ray")
    if args.shard is not None and (args.finish or args.faces):
        raise UsageError("--shard processes a part; give --finish and --faces in a call of its own, after all parts")
    try:
        config = load_config(PreprocessConfig, args.config, args.set)
        sources = read_sources(args.inputs, kind=args.kind)
        check_addresses(sources)
        job = Job(sources, args.out, config.preprocess, _shard(args.shard), args.retry_errors)
        if not args.dry_run:
            WorkFolder(job.folder, job.footage).open()
    except FileError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error
    return job, config.finish


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 1
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise UsageError(f"--shard {text}: expected I/N with I from 0 to N - 1, for example 0/8")
    return int(index), int(count)


def _engine(args: argparse.Namespace) -> Engine:
    try:
        if args.engine == "local":
            return LocalEngine(args.workers)
        from xdyna.preprocess.engine_ray import RayEngine

        return RayEngine(args.ray_address, workers=args.workers)
    except DataError as error:
        raise UsageError(str(error)) from error


def _process(job: Job, engine: Engine) -> None:
    """Process all videos behind a bar whose length is their size, since that is what time follows."""
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


def _tell(summary: Summary, out: Path) -> None:
    """What the data set holds, in a few lines."""
    records = summary.records
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(Counter(record.kind for record in records).items()))
    splits = ", ".join(f"{n} {split}" for split, n in sorted(Counter(record.split for record in records).items()))
    print(f"{summary.videos} videos ({duration(summary.seconds)}): {len(records)} clips "
          f"({duration(summary.kept_seconds)}; {kinds}; {splits}), {len(summary.skips)} skipped")  # fmt: skip
    for reason, count in Counter(skip.reason for skip in summary.skips).most_common():
        print(f"  {count:6d}  {REASONS[reason]}")
    print(f"data set: {out}; what was skipped and why: {out / 'report.html'}")


def _dry_run(job: Job, *, workers: int | None) -> int:
    """Say how many videos and hours there are, and about how long it takes."""
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
    print(f"{len(found.done)} videos are done, {len(found.pending)} to do, {total / 2**30:.2f} GiB")
    if found.pending and not looked:
        print("their duration is not known: none of those that were looked at can be read as a local video")
    elif found.pending:
        work = frames * total / looked * _CORE_SECONDS / cores
        print(
            f"about {duration(seconds * total / looked)} of footage, roughly {duration(work)} with {cores} workers "
            f"({_CORE_SECONDS:g} s of one core per frame, as with half a megapixel and a person; scenes take less)"
        )
    return 0


def _add_faces(args: argparse.Namespace) -> None:
    from xdyna.preprocess.faces.cross_faces import add_faces
    from xdyna.preprocess.faces.reenact import get_reenactor

    with tqdm(desc="faces", unit="clip") as bar:
        summary = add_faces(
            args.out,
            get_reenactor(args.faces, models_dir=args.faces_models),
            seed=args.faces_seed,
            progress=lambda done: bar.update(done - bar.n) and None,
        )
    without = ", ".join(f"{reason}: {count}" for reason, count in summary.reasons.items())
    print(f"faces: {summary.made} made, {summary.kept} were there{f', without: {without}' if without else ''}")


def _inspect(args: argparse.Namespace) -> int:
    from xdyna.preprocess.inspect import inspect_clip

    dataset, clip = Path(args.inspect[0]), args.inspect[1]
    print(inspect_clip(dataset, clip, args.out or Path(f"{clip}.mp4"), overwrite=args.overwrite))
    return 0


def _check(dataset: Path, *, videos: bool) -> int:
    problems = validate(dataset, videos=videos)
    for problem in problems:
        print(problem)
    print(f"{dataset}: {len(problems)} problems" if problems else f"{dataset}: everything is there and fits")
    return 1 if problems else 0


def _export(args: argparse.Namespace) -> int:
    from xdyna.preprocess.shards import write_shards

    if args.inputs:
        raise UsageError("--shards exports the finished data set --out; leave the inputs out")
    with tqdm(desc="clips", unit="clip") as bar:
        count = write_shards(
            args.out,
            args.shards,
            _engine(args),
            clips_per_shard=args.clips_per_shard,
            progress=lambda clips: bar.update(clips) and None,
        )
    print(f"{count} shards in {args.shards}")
    return 0
