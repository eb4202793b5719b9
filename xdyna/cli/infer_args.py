"""Command line of `scripts/infer.py`: files and actions; the settings are `InferConfig`'s."""

import argparse
from pathlib import Path
from typing import Any

from xdyna.cli.arguments import Command, Program
from xdyna.config.infer import DRIVE_KINDS, InferConfig, parse_size

PROGRAM = Program(
    name="animate",
    root="infer",
    schema=InferConfig,
    description="Animate one image of a person with the motion and expression of a driving video.",
    example="xdyna animate --ref person.jpg --drive dance.mp4 --steps 10 seed=7",
    lists=("lora",),
)


def parser() -> argparse.ArgumentParser:
    """The argument parser. Settings left out keep their defaults, or those of preset=NAME."""
    p = PROGRAM.parser()
    files = p.add_argument_group("files")
    files.add_argument("--ref", type=Path, metavar="IMG", help="image of the person")
    files.add_argument("--drive", type=Path, metavar="FILE", help="driving video, pose video or keypoints (.npz)")
    files.add_argument(
        "--drive-kind", choices=DRIVE_KINDS, default="auto", help="what --drive is (default: by its ending)"
    )
    files.add_argument(
        "--face-video",
        type=Path,
        metavar="FILE",
        help="for a pose video or keypoints: the video they were made from, to take the faces from",
    )
    files.add_argument(
        "--ref-keypoints",
        type=Path,
        metavar="NPZ",
        help="for --align: keypoints of the person in the image (default: they are detected)",
    )
    files.add_argument("--out", type=Path, metavar="MP4", help="default: outputs/REF_DRIVE.mp4, numbered if it exists")
    files.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    files.add_argument("--batch", type=Path, metavar="JSON", help="many pairs of ref and drive")
    files.add_argument("--checkpoint", type=Path, metavar="DIR", help="pipeline folder, or the name of a shipped one")
    files.add_argument("--cache-dir", type=Path, metavar="DIR", help="where keypoints are kept")
    files.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    short = p.add_argument_group("other names of settings")
    short.add_argument("--size", metavar="HxW", help="height x width, multiples of 8 (default: the checkpoint's)")
    short.add_argument("--audio", dest="audio", action=argparse.BooleanOptionalAction, help="as --keep-audio")
    return p


def prepare(flags: argparse.Namespace) -> None:
    """Put --size and --audio among the settings; of fps and stride, the one that is given wins over a preset's.

    Raises:
        ConfigError: --size is none.
    """
    if flags.size is not None:
        height, width = parse_size(flags.size)
        flags.overrides += [f"height={height}", f"width={width}"]
    if flags.audio is not None:
        flags.overrides.append(f"keep_audio={str(flags.audio).lower()}")
    given = {word.partition("=")[0].lstrip("+") for word in flags.overrides}
    if ("fps" in given) != ("stride" in given):
        flags.overrides.append("fps=null" if "stride" in given else "stride=null")


def numbered(command: Command[Any], number: int) -> list[str]:
    """Where job `number` of a --multirun writes: a folder of its own beside what --out names."""
    out = command.flags.out or Path("outputs") / "multirun.mp4"
    return ["--out", str(out.with_suffix("") / str(number) / out.name)]
