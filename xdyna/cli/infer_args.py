"""Arguments of `scripts/infer.py`, and how they join the settings file."""

import argparse
import dataclasses
from pathlib import Path

from xdyna.config.infer import ALIGNMENTS, InferConfig, parse_size
from xdyna.config.loader import load_config
from xdyna.core.errors import ConfigError, UsageError
from xdyna.pipelines.driving import KINDS

# Arguments that set an entry of `InferConfig` under another name.
RENAMED = {"cfg": "guidance"}


def parser() -> argparse.ArgumentParser:
    """The argument parser. Options left out keep the value of --config, or its default."""
    p = argparse.ArgumentParser(
        prog="infer.py",
        description="Animate one picture of a person with the motion and expression of a driving video.",
        argument_default=argparse.SUPPRESS,
    )
    files = p.add_argument_group("files")
    files.add_argument("--ref", type=Path, default=None, metavar="IMG", help="picture of the person")
    files.add_argument(
        "--drive", type=Path, default=None, metavar="FILE", help="driving video, pose video or key points (.npz)"
    )
    files.add_argument("--drive-kind", choices=KINDS, default="auto", help="what --drive is (default: by its ending)")
    files.add_argument(
        "--face-video",
        type=Path,
        default=None,
        metavar="FILE",
        help="for a pose video or key points: the video they were made from, to take the faces from",
    )
    files.add_argument(
        "--ref-keypoints",
        type=Path,
        default=None,
        metavar="NPZ",
        help="for --align: key points of the person in the picture (default: they are detected)",
    )
    files.add_argument(
        "--out", type=Path, default=None, metavar="MP4", help="default: outputs/REF_DRIVE.mp4, numbered if it exists"
    )
    files.add_argument("--overwrite", action="store_true", default=False, help="replace existing outputs")
    files.add_argument("--batch", type=Path, default=None, metavar="JSON", help="many pairs of ref and drive")
    files.add_argument("--checkpoint", type=Path, default=None, metavar="DIR", help="pipeline folder")
    files.add_argument("--config", type=Path, default=None, metavar="YAML", help="settings, see configs/infer/")
    files.add_argument("--cache-dir", type=Path, default=None, metavar="DIR", help="where key points are kept")

    video = p.add_argument_group("video")
    video.add_argument("--size", metavar="HxW", help="height x width, multiples of 8 (default: the checkpoint's)")
    video.add_argument("--fps", type=float, help="frame rate (default: a whole fraction of the driving rate, <= 15)")
    video.add_argument("--stride", type=int, metavar="N", help="use every N-th driving frame instead of --fps")
    video.add_argument("--frames", type=int, metavar="N", help="at most N frames")
    video.add_argument(
        "--audio",
        dest="keep_audio",
        action=argparse.BooleanOptionalAction,
        help="keep the driving sound (default: yes)",
    )

    sampling = p.add_argument_group("sampling")
    sampling.add_argument(
        "--face", action=argparse.BooleanOptionalAction, help="face control (default: where possible)"
    )
    sampling.add_argument("--steps", type=int, help="denoising steps")
    sampling.add_argument("--cfg", type=float, help="guidance scale; 1 or less runs without guidance")
    sampling.add_argument("--seed", type=int, help="the same seed gives the same video")
    sampling.add_argument("--prompt", help="text prompt")
    sampling.add_argument("--negative-prompt", help="text to move away from")
    sampling.add_argument("--context-schedule", help="uniform (closed loop) or uniform_open")

    perception = p.add_argument_group("perception")
    perception.add_argument("--pose-backend", help="mediapipe or dwpose")
    perception.add_argument("--person", type=int, metavar="N", help="which person, 0 = the largest")
    perception.add_argument("--smooth", action=argparse.BooleanOptionalAction, help="one-euro filter on key points")
    perception.add_argument(
        "--align",
        nargs="?",
        const="global",
        choices=ALIGNMENTS,
        help="global (bare --align): fit the driving person to the one in the image; none (default)",
    )
    perception.add_argument("--no-align", dest="align", action="store_const", const="none", help="as --align none")
    perception.add_argument(
        "--puppet-face",
        action=argparse.BooleanOptionalAction,
        help="with --align: a puppet makes the driving person's faces, for models that know puppets only",
    )
    perception.add_argument("--head", action=argparse.BooleanOptionalAction, help="draw eyes and ears too")

    machine = p.add_argument_group("machine")
    machine.add_argument("--device", help="auto, cpu, cuda, cuda:N or mps")
    machine.add_argument("--dtype", help="auto, float32, float16 or bfloat16")
    machine.add_argument("--attention", help="sdpa or xformers")
    machine.add_argument("--dry-run", action="store_true", default=False, help="print the plan and stop")
    machine.add_argument("--debug", action="store_true", default=False, help="show tracebacks")
    return p


def settings(args: argparse.Namespace) -> InferConfig:
    """--config joined with the options given on the command line, which win.

    Raises:
        UsageError: an unknown key or a value out of range.
    """
    names = {field.name for field in dataclasses.fields(InferConfig)}
    given = {RENAMED.get(name, name): value for name, value in vars(args).items()}
    changes = {name: value for name, value in given.items() if name in names}
    # One given on the command line wins over the other of the file.
    if (changes.get("fps") is None) != (changes.get("stride") is None):
        changes.setdefault("fps" if "stride" in changes else "stride", None)
    try:
        if "size" in given:
            changes["height"], changes["width"] = parse_size(given["size"])
        return load_config(InferConfig, args.config, changes)
    except ConfigError as error:
        raise UsageError(str(error).replace("in the overrides", "on the command line")) from error
