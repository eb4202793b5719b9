"""Animate an image with what comes in: `xdyna live`. Parses, calls `xdyna.pipelines.live`, tells what came of it."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from xdyna.cli.arguments import Command, Program
from xdyna.cli.infer import PUPPET_FACES
from xdyna.config.infer import parse_size
from xdyna.config.live import LiveConfig
from xdyna.core.errors import UsageError

PROGRAM = Program(
    name="live",
    root="live",
    schema=LiveConfig,
    description="Animate one image of a person with what comes in, as it comes in: a camera, a file at its own speed, "
    "keypoints. Ctrl-C ends it; what was made is kept.",
    example="xdyna live --ref person.jpg --drive camera:0 --align --out - | ffplay -f rawvideo ...",
    lists=("lora",),
)


def parser() -> argparse.ArgumentParser:
    """The argument parser. Settings left out keep their defaults, or those of preset=NAME."""
    p = PROGRAM.parser()
    files = p.add_argument_group("files")
    files.add_argument("--ref", type=Path, metavar="IMG", help="image of the person")
    files.add_argument(
        "--drive",
        metavar="INPUT",
        help="a video or keypoints (.npz) at their own speed, camera:N, or keypoints as JSON lines: - (the standard "
        "input), tcp:HOST:PORT or unix:PATH (waits there for one who sends)",
    )
    files.add_argument("--ref-keypoints", type=Path, metavar="NPZ", help="of the person in the image (else detected)")
    files.add_argument("--out", metavar="MP4", help="default: outputs/REF_live.mp4, - for raw RGB on standard output")
    files.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    files.add_argument("--checkpoint", type=Path, metavar="DIR", help="pipeline folder, or the name of a shipped one")
    short = p.add_argument_group("other names of settings")
    short.add_argument("--size", metavar="HxW", help="height x width, multiples of 8 (default: the checkpoint's)")
    short.add_argument(
        "--puppet-face",
        action=argparse.BooleanOptionalAction,
        help=f"with --align: a puppet makes the faces, for models that know puppets only (face_source={PUPPET_FACES})",
    )
    return p


def prepare(flags: argparse.Namespace) -> None:
    """Put --size and --puppet-face among the settings.

    Raises:
        ConfigError: --size is none.
    """
    if flags.size is not None:
        height, width = parse_size(flags.size)
        flags.overrides += [f"height={height}", f"width={width}"]
    if flags.puppet_face is not None:
        flags.overrides.append(f"face_source={PUPPET_FACES if flags.puppet_face else 'null'}")


def main(argv: Sequence[str]) -> int:
    """Run `xdyna live`. Args: argv: without the program's name. Returns: exit code."""
    return PROGRAM.main(parser(), argv, work, prepare=prepare)


def work(command: Command[LiveConfig]) -> int:
    """Run until the input ends or somebody stops it. Args: command: what is asked for. Returns: exit code."""
    flags = command.flags
    if flags.ref is None or flags.drive is None:
        raise UsageError("give a picture with --ref and an input with --drive (a file, camera:N, -, tcp:...)")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: its threads leave the cores to the detector
    from xdyna.core.atomic import unique_path
    from xdyna.core.progress import Watch
    from xdyna.core.quiet import quiet_libraries
    from xdyna.core.stop import StopSignal
    from xdyna.pipelines.live.session import live
    from xdyna.pipelines.outputs import ENDINGS

    quiet_libraries()
    out = flags.out or ("-" if command.config.save == "raw" else None)
    if out is None:
        out = unique_path(Path("outputs") / f"{flags.ref.stem}_live{ENDINGS[command.config.save]}")

    def say(text: str) -> None:
        print(text, file=sys.stderr if out == "-" else sys.stdout, flush=True)

    with StopSignal() as stop:
        report = live(
            flags.ref,
            flags.drive,
            out=out,
            settings=command.config,
            model=flags.checkpoint,
            ref_keypoints=flags.ref_keypoints,
            overwrite=flags.overwrite,
            watch=Watch(cancel=lambda: stop.requested, tell=say),
            argv=command.argv,
        )
    for path in report.written:
        say(f"wrote {path}")
    say(f"{report.ended}: {report}" if report.frames else f"{report.ended}: no frame was made, so nothing is written")
    return 0
