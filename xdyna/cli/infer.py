"""Animate an image: `scripts/infer.py`. Parses, calls `xdyna.pipelines.animate`, tells what came of it."""

import argparse
from collections.abc import Sequence

from xdyna.cli.arguments import Command
from xdyna.cli.infer_args import PROGRAM, numbered, parser, prepare
from xdyna.config.infer import InferConfig
from xdyna.core.errors import UsageError
from xdyna.core.progress import Bars, Watch
from xdyna.core.quiet import quiet_libraries
from xdyna.pipelines import batch
from xdyna.pipelines.animate import Animation, make
from xdyna.pipelines.folder import UNTRAINED_MARK
from xdyna.pipelines.model import load
from xdyna.pipelines.plan import Request, describe_plan, plan_animation
from xdyna.pipelines.writing import describe

UNITS = {"finding the person": "frame", "hashing weights": "file", "denoising": "window", "decoding": "frame"}


def main(argv: Sequence[str]) -> int:
    """Run `scripts/infer.py`. Args: argv: without the program's name. Returns: exit code."""
    return PROGRAM.main(parser(), argv, work, prepare=prepare, numbered=numbered)


def work(command: Command[InferConfig]) -> int:
    """Make the animations, or tell the plan. Args: command: what is asked for. Returns: exit code."""
    return make_all(_requests(command.flags), command)


def make_all(requests: Sequence[Request], command: Command[InferConfig]) -> int:
    """Make animations with one set of weights.

    Args:
        requests: files that go in and come out.
        command: settings and flags.

    Returns:
        Exit code: 0 when all were made.
    """
    args, settings = command.flags, command.config
    quiet_libraries()
    model = load(args.checkpoint, settings)
    folder = model.checkpoint.folder
    if model.checkpoint.untrained:
        print(f"note: {folder}: {(folder / UNTRAINED_MARK).read_text().strip()}")
    if args.dry_run:
        for request in requests:
            plan = plan_animation(request, settings, model.checkpoint, overwrite=args.overwrite)
            print(*describe_plan(plan, device=model.device, dtype=model.dtype), sep="\n")
        return 0

    def run(request: Request) -> None:
        bars = Bars(UNITS)
        try:
            made = make(
                request,
                model,
                settings=settings,
                overwrite=args.overwrite,
                watch=Watch(progress=bars, tell=print),
                cache_dir=args.cache_dir,
                argv=command.argv,
            )
        finally:
            bars.close()
        _tell(made)

    if len(requests) > 1:
        return batch.run_all(requests, run)
    run(requests[0])
    return 0


def _tell(made: Animation) -> None:
    for path in made.written:
        print(f"wrote {path}")
    cost = made.manifest
    memory = ", ".join(f"{value / 2**30:.2f} GiB ({name})" for name, value in cost["peak_memory_bytes"].items())
    print(
        f"{describe(made.files)}; took {cost['seconds']:.1f} s (sampling {cost['sampling_seconds']:.1f} s), "
        f"peak memory {memory or 'unknown'}"
    )


def _requests(args: argparse.Namespace) -> list[Request]:
    if args.batch is not None:
        if args.ref or args.drive or args.out or args.face_video or args.ref_keypoints:
            raise UsageError(
                "--batch names the references, driving files and outputs itself; leave out --ref, --drive, --out, "
                "--face-video, --ref-keypoints"
            )
        return batch.read_requests(args.batch)
    if args.ref is None or args.drive is None:
        raise UsageError(
            "give a picture with --ref and a driving file with --drive (or pairs with --batch); see --help"
        )
    return [
        Request(
            args.ref,
            args.drive,
            out=args.out,
            kind=args.drive_kind,
            face_video=args.face_video,
            ref_keypoints=args.ref_keypoints,
        )
    ]
