"""Animate an image: `scripts/infer.py`. Parses, calls `xdyna.pipelines.animate`, tells what came of it.

What animates is imported by the functions that need it: help and --cfg come at once.
"""

import argparse
import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdyna.cli.arguments import Command, Program
from xdyna.config.infer import DRIVE_KINDS, InferConfig, parse_size
from xdyna.core.atomic import output_path
from xdyna.core.errors import UsageError
from xdyna.core.files import is_address
from xdyna.core.program import FAILURE

if TYPE_CHECKING:
    from xdyna.core.ranks import Ranks
    from xdyna.pipelines.animate import Animation
    from xdyna.pipelines.plan import Request

UNITS = {
    "downloading": "kB",
    "finding the person": "frame",
    "hashing weights": "file",
    "denoising": "window",
    "decoding": "frame",
}
PUPPET_FACES = "xdyna.puppets.actor.PuppetFaces"

PROGRAM = Program(
    name="animate",
    root="infer",
    schema=InferConfig,
    description="Animate one image of a person with the motion and expression of a driving video.",
    example="xdyna animate --ref person.jpg --drive dance.mp4 --steps 10 seed=7",
    lists=("lora", "guidance_interval"),
)


def parser() -> argparse.ArgumentParser:
    """The argument parser. Settings left out keep their defaults, or those of preset=NAME."""
    p = PROGRAM.parser()
    files = p.add_argument_group("files")
    files.add_argument("--ref", type=file_or_address, metavar="IMG", help="image of the person")
    files.add_argument(
        "--drive",
        type=file_or_address,
        metavar="FILE",
        help="driving video, pose video, folder of frames, or keypoints (.npz); this and the other inputs may be "
        "https:// and s3:// addresses",
    )
    files.add_argument(
        "--drive-kind", choices=DRIVE_KINDS, default="auto", help="what --drive is (default: by its ending)"
    )
    files.add_argument(
        "--face-video",
        type=file_or_address,
        metavar="FILE",
        help="for a pose video or keypoints: the video they were made from, to take the faces from",
    )
    files.add_argument(
        "--ref-keypoints",
        type=file_or_address,
        metavar="NPZ",
        help="keypoints of the person in the image, for --align, for --crop person and for the warning about what a "
        "crop cuts (default: they are detected)",
    )
    files.add_argument(
        "--out", type=output_path, metavar="MP4", help="default: outputs/REF_DRIVE.mp4, numbered if it exists"
    )
    files.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    files.add_argument("--batch", type=Path, metavar="JSON", help="many pairs of ref and drive")
    files.add_argument("--checkpoint", type=Path, metavar="DIR", help="pipeline folder, or the name of a shipped one")
    files.add_argument("--cache-dir", type=output_path, metavar="DIR", help="where keypoints are kept")
    files.add_argument(
        "--preview",
        type=Path,
        metavar="PNG",
        help="draw reference, fitted skeletons and crop before anything slow; with --dry-run: and stop",
    )
    files.add_argument(
        "--force", action="store_true", help="go on where image and driving video do not suit each other"
    )
    files.add_argument(
        "--dry-run",
        action="store_true",
        help="print the plan and how well image and driving video suit each other, and stop; keypoints are kept",
    )
    files.add_argument("--calibrate", action="store_true", help="with --dry-run: time a few steps on this device first")
    short = p.add_argument_group("other names of settings")
    short.add_argument("--size", metavar="HxW", help="height x width, multiples of 8 (default: the checkpoint's)")
    short.add_argument(
        "--puppet-face",
        action=argparse.BooleanOptionalAction,
        help=f"with --align: a puppet makes the driving person's faces, for models that know puppets only (face_source="
        f"{PUPPET_FACES})",
    )
    short.add_argument("--audio", dest="audio", action=argparse.BooleanOptionalAction, help="as --keep-audio")
    return p


def file_or_address(text: str) -> Path | str:
    """A path, or an address as it is. Args: text: of the command line."""
    return text if is_address(text) else Path(text)


def prepare(flags: argparse.Namespace) -> None:
    """Put --size, --puppet-face and --audio among the settings. Of fps and stride, the one given wins over a preset's.

    Raises:
        ConfigError: --size is none.
    """
    if flags.size is not None:
        height, width = parse_size(flags.size)
        flags.overrides += [f"height={height}", f"width={width}"]
    if flags.puppet_face is not None:
        flags.overrides.append(f"face_source={PUPPET_FACES if flags.puppet_face else 'null'}")
    if flags.audio is not None:
        flags.overrides.append(f"keep_audio={str(flags.audio).lower()}")
    given = {word.partition("=")[0].lstrip("+") for word in flags.overrides}
    if ("fps" in given) != ("stride" in given):
        flags.overrides.append("fps=null" if "stride" in given else "stride=null")


def numbered(command: Command[Any], number: int) -> list[str]:
    """Where job `number` of a --multirun writes: a folder of its own beside what --out names."""
    from xdyna.pipelines.outputs import ENDINGS

    out = command.flags.out or Path("outputs") / f"multirun{ENDINGS[command.config.save]}"
    return ["--out", str(out.parent / out.stem / str(number) / out.name)]


def main(argv: Sequence[str]) -> int:
    """Run `scripts/infer.py`. Args: argv: without the program's name. Returns: exit code."""
    return PROGRAM.main(parser(), argv, work, prepare=prepare, numbered=numbered)


def work(command: Command[InferConfig]) -> int:
    """Make the animations, or tell the plan. Args: command: what is asked for. Returns: exit code."""
    return make_all(_requests(command.flags), command)


def make_all(requests: "Sequence[Request]", command: Command[InferConfig]) -> int:
    """Make animations with one set of weights.

    Args:
        requests: files that go in and come out.
        command: settings and flags.

    Returns:
        Exit code: 0 when all were made.
    """
    from xdyna.core.ranks import Ranks

    ranks = Ranks.launched()
    try:
        return _make_all(requests, command, ranks)
    except Exception as error:
        if ranks.fail():
            raise
        raise SystemExit(FAILURE) from error  # another process says why


def _make_all(requests: "Sequence[Request]", command: Command[InferConfig], ranks: "Ranks") -> int:
    from xdyna.core.device import device_of_rank
    from xdyna.core.progress import Bars, Watch
    from xdyna.core.quiet import quiet_libraries
    from xdyna.core.ranks import Ranks
    from xdyna.pipelines import batch
    from xdyna.pipelines.animate import make
    from xdyna.pipelines.estimate import calibrate, describe_plan
    from xdyna.pipelines.examine import examine
    from xdyna.pipelines.fetching import fetched
    from xdyna.pipelines.folder import UNTRAINED_MARK
    from xdyna.pipelines.model import load
    from xdyna.pipelines.plan import plan_animation
    from xdyna.pipelines.reuse import already_made

    args, settings = command.flags, command.config
    if args.calibrate and not args.dry_run:
        raise UsageError("--calibrate is for estimates; give --dry-run, too")
    quiet_libraries()
    if ranks.world > 1:
        device = device_of_rank(settings.device, int(os.environ.get("LOCAL_RANK", "0")))
        settings = dataclasses.replace(settings, device=str(device))
    apart = len(requests) > 1  # then each process makes whole videos, else all make one together
    model = load(args.checkpoint, settings)
    folder = model.checkpoint.folder
    if model.checkpoint.untrained and ranks.rank == 0:
        print(f"note: {folder}: {(folder / UNTRAINED_MARK).read_text().strip()}")
    if args.dry_run:
        for request in requests if ranks.rank == 0 else ():
            watch = Watch(progress=Bars(UNITS), tell=print)
            with fetched(request, settings, watch) as local:
                plan = plan_animation(local, settings, model.checkpoint, overwrite=args.overwrite)
                if args.calibrate:
                    model.settle_attention(plan.settings.attention, plan.run_shapes())
                    calibrate(model.pipeline, plan)
                print(*describe_plan(plan, device=model.device, dtype=model.dtype), sep="\n")
                suits = examine(plan, cache_dir=args.cache_dir, watch=watch, overwrite=args.overwrite)
                print(*suits.lines(), sep="\n")
        return 0

    def run(request: "Request") -> None:
        bars, speaks = Bars(UNITS), apart or ranks.rank == 0
        watch = Watch(progress=bars, tell=print) if speaks else Watch()
        with contextlib.closing(bars), fetched(request, settings, watch) as local:
            if apart and not args.overwrite and (there := already_made(local, model, settings)):
                print(f"{there} is there already, made of the same files with the same settings")
                return
            made = make(
                local,
                model,
                settings=settings,
                overwrite=args.overwrite,
                watch=watch,
                cache_dir=args.cache_dir,
                argv=command.argv,
                ranks=Ranks() if apart else ranks,
            )
        if speaks:
            _tell(made)

    if apart:
        return batch.run_all(requests, run, ranks)
    run(requests[0])
    return 0


def _tell(made: "Animation") -> None:
    from xdyna.pipelines.writing import describe

    for path in made.written:
        print(f"wrote {path}")
    cost = made.manifest
    memory = ", ".join(f"{value / 2**30:.2f} GiB ({name})" for name, value in cost["peak_memory_bytes"].items())
    print(
        f"{describe(made.files)}; took {cost['seconds']:.1f} s (sampling {cost['sampling_seconds']:.1f} s), "
        f"peak memory {memory or 'unknown'}"
    )


def _requests(args: argparse.Namespace) -> "list[Request]":
    from xdyna.pipelines import batch
    from xdyna.pipelines.plan import Request

    if args.batch is not None:
        if args.ref or args.drive or args.out or args.face_video or args.ref_keypoints or args.preview:
            raise UsageError(
                "--batch names the references, driving files and outputs itself; leave out --ref, --drive, --out, "
                "--face-video, --ref-keypoints, --preview"
            )
        return [dataclasses.replace(request, force=args.force) for request in batch.read_requests(args.batch)]
    if args.ref is None or args.drive is None:
        raise UsageError("give an image with --ref and a driving file with --drive (or pairs with --batch); see --help")
    return [
        Request(
            args.ref,
            args.drive,
            out=args.out,
            kind=args.drive_kind,
            face_video=args.face_video,
            ref_keypoints=args.ref_keypoints,
            force=args.force,
            preview=args.preview,
        )
    ]
