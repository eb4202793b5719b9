"""From raw footage to a training set: `scripts/preprocess.py`; `cache` and `face-sheet` are actions with such a set."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from xdyna.cli.arguments import Command, Program
from xdyna.config.preprocess import CacheConfig, PreprocessConfig
from xdyna.core.atomic import output_path
from xdyna.core.errors import UsageError
from xdyna.core.program import FAILURE

PROGRAM = Program(
    name="preprocess",
    root="preprocess",
    schema=PreprocessConfig,
    description="Make a training set of raw videos. Interrupted, it goes on with the same command. `preprocess cache` "
    "keeps clips with their latents, `preprocess face-sheet` shows other identities' faces.",
    example="xdyna preprocess footage list.csv --out data/mine preprocess.min_frames=48",
    inputs=True,
)
CACHE = Program(
    name="preprocess cache",
    root="cache",
    schema=CacheConfig,
    description="Make training clips and encode them once. Interrupted, it continues with the same command.",
    example="xdyna preprocess cache --vae xdyna-tiny --clips 64 --out cache data=puppet data.face=cross",
)


def parser() -> argparse.ArgumentParser:
    """The argument parser."""
    p = PROGRAM.parser()
    p.add_argument("inputs", nargs="*", metavar="INPUT", help="folder, glob, video, or list (CSV, JSONL, Parquet, txt)")
    p.add_argument("--out", type=output_path, metavar="DIR", help="the data set; of --inspect: an .mp4 or .png")
    p.add_argument("--set", dest="overrides", action="override", metavar="KEY=VALUE", help="as KEY=VALUE alone")
    p.add_argument("--dry-run", action="store_true", help="say how much there is to do, and do nothing")
    p.add_argument("--ray-address", metavar="A", help="of an existing cluster: auto, HOST:PORT or ray://HOST:PORT")
    p.add_argument("--shard", metavar="I/N", help="only part I (from 0) of N, without putting the data set together")
    p.add_argument("--finish", action="store_true", help="put the data set together after all parts are done")
    p.add_argument("--retry-errors", action="store_true", help="process again what failed by an error")
    p.add_argument("--faces-models", type=Path, metavar="DIR", help="weights of liveportrait")
    other = p.add_argument_group("with a finished data set")
    other.add_argument("--inspect", nargs=2, metavar=("DATASET", "CLIP"), help="draw a clip with pose, face and mask")
    other.add_argument("--overwrite", action="store_true", help="--inspect may replace a file")
    other.add_argument("--check", type=Path, metavar="DATASET", help="look whether everything is there and fits")
    other.add_argument("--check-videos", action="store_true", help="with --check: compare the videos' bytes too")
    other.add_argument(
        "--shards", type=output_path, metavar="OUT", help="export the data set --out as WebDataset tar files"
    )
    other.add_argument("--clips-per-shard", type=int, default=256, metavar="N", help="(%(default)s)")
    return p


def main(argv: Sequence[str]) -> int:
    """Run `scripts/preprocess.py`.

    Args:
        argv: arguments without the program's name.

    Returns:
        int: 0 when done, also with skipped videos; 1 when `--check` found something.
    """
    if argv and argv[0] == "cache":
        return CACHE.main(_cache_parser(), argv[1:], _cache)
    if argv and argv[0] == "face-sheet":
        from xdyna.preprocess.faces import sheet

        return sheet.main(argv[1:])
    return PROGRAM.main(parser(), argv, work, numbered=_numbered)


def _numbered(command: Command[PreprocessConfig], number: int) -> list[str]:
    if command.flags.out is None:
        raise UsageError("give --out DIR, the folder of the data sets")
    return ["--out", str(command.flags.out / str(number))]


def work(command: Command[PreprocessConfig]) -> int:
    """Make the data set, or do what is asked for with one. Args: command: what is asked for. Returns: exit code."""
    args, config = command.flags, command.config
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the workers: one core each
    os.environ.setdefault("GLOG_minloglevel", "2")  # mediapipe's chatter
    from xdyna.preprocess import console
    from xdyna.preprocess.run import finish_all

    if args.inspect is not None:
        print(console.inspect(args.inspect[0], args.inspect[1], args.out, overwrite=args.overwrite))
        return 0
    if args.check is not None:
        fits, told = console.check(args.check, videos=args.check_videos)
        print(told)
        return 0 if fits else FAILURE
    if args.out is None:
        raise UsageError("give --out DIR, the folder of the data set")
    if args.shards is not None:
        if args.inputs:
            raise UsageError("--shards exports the finished data set --out; leave the inputs out")
        engine = console.make_engine(config, ray_address=args.ray_address)
        print(console.export_with_bar(args.out, args.shards, engine, clips=args.clips_per_shard))
        return 0

    if args.ray_address and config.engine != "ray":
        raise UsageError("--ray-address needs --engine ray")
    if args.shard is not None and (args.finish or config.faces):
        raise UsageError("--shard processes a part; give --finish and --faces in a call of its own, after all parts")
    job = console.make_job(
        args.inputs, args.out, config, shard=args.shard, retry_errors=args.retry_errors, begin=not args.dry_run
    )
    if args.dry_run:
        print(console.describe_work(job, workers=config.workers))
        return 0
    try:
        if not args.finish:
            console.process_with_bar(job, console.make_engine(config, ray_address=args.ray_address))
            if args.shard is not None:
                return 0
        print(console.describe_dataset(finish_all(job, config.finish), args.out))
        if config.faces is not None:
            print(console.faces_with_bar(args.out, config.faces, models=args.faces_models, seed=config.faces_seed))
    except KeyboardInterrupt:
        print("\nrun the same command again to continue", file=sys.stderr)
        raise
    return 0


def _cache_parser() -> argparse.ArgumentParser:
    p = CACHE.parser()
    p.add_argument("--vae", type=Path, metavar="DIR", help="autoencoder or pipeline folder")
    p.add_argument("--tokens", action="store_true", help="keep the image tokens of every frame, too (--vae PIPELINE)")
    p.add_argument("--out", type=output_path, metavar="DIR", help="the cache")
    p.add_argument("--clips", type=int, metavar="N", help="number of clips, humans and scenes together")
    return p


def _cache(command: Command[CacheConfig]) -> int:
    from xdyna.core.quiet import quiet_libraries
    from xdyna.data.write_cache import cache_clips

    args = command.flags
    if args.vae is None or args.out is None or args.clips is None:
        raise UsageError("give --vae DIR, --out DIR and --clips N; see --help")
    quiet_libraries()
    print(cache_clips(command.config, vae=args.vae, out=args.out, clips=args.clips, keep_tokens=args.tokens))
    return 0
