"""`make demo`: animates a puppet with another puppet's dance, by `scripts/infer.py`'s own code.

The sample in `assets/demo` is of the puppet world's test split: no model is trained on its people, motions and scenes.
Its keypoints are exact; detectors for people do not see puppets.
"""

import argparse
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xdyna.cli.arguments import program_name
from xdyna.core.atomic import output_path, unique_path
from xdyna.core.resources import resource

if TYPE_CHECKING:
    from xdyna.puppets.sample import SampleFiles

ASSETS = resource("assets", "demo")
FOLDER = Path("outputs") / "demo"
STEPS = 10  # of the undistilled model


def command(args: argparse.Namespace, sample: "SampleFiles", out: Path) -> list[str]:
    """What the demo asks of `scripts/infer.py`.

    Args:
        args: the demo's arguments.
        sample: what stands in for files that are not given.
        out: the video.

    Returns:
        Arguments.
    """
    words: list[str | Path] = ["--ref", args.ref or sample.reference, "--out", out]
    words += ["--frames", str(args.frames)] + (["--steps", str(args.steps)] if args.steps is not None else [])
    if args.drive is None:
        words += ["--drive", sample.driving_points, "--face-video", sample.driving]
    else:
        words += ["--drive", args.drive]
    if not args.ref:  # whom no detector for people sees
        words += ["--ref-keypoints", sample.reference_points]
    if aligned(args):
        words.append("--align")
        if not args.ref and args.drive is not None and args.drive.suffix.lower() != ".npz":
            words.append("--puppet-face")
    return [str(word) for word in words]


def aligned(args: argparse.Namespace) -> bool:
    """Whether the driving person is fitted to the one in the image: a person has not the puppet's size and place."""
    return args.drive is not None and args.ref is None if args.align is None else args.align


def few_steps(args: argparse.Namespace, more: Sequence[str]) -> bool:
    """Whether the demo takes the distilled model: unless something else is asked for, or its weights are not there."""
    from xdyna.core.resources import pretrained
    from xdyna.pipelines.lora import LORA_FILE

    other = re.compile(r"(\+{0,2}(preset|lora|scheduler|steps)=|--(preset|lora|scheduler|checkpoint)\b)")
    return (
        args.steps is None
        and not any(other.match(word) for word in more)
        and (pretrained("xdyna-tiny-few-step") / LORA_FILE).is_file()
    )


def main(argv: Sequence[str]) -> int:
    """Run `scripts/demo.py`. Args: argv: without the program's name. Returns: exit code."""
    start = time.perf_counter()
    args, more = _parser().parse_known_args(argv)
    # Imported here, so that the time it takes counts, and --help comes at once.
    from xdyna.puppets.sample import SampleFiles, write_sample

    if args.render:
        sample = write_sample(ASSETS)
        print(f"rendered {', '.join(str(path) for path in sorted(sample.folder.iterdir()))}")
        return 0
    from xdyna.cli import infer
    from xdyna.pipelines.folder import TINY

    sample = SampleFiles(ASSETS)
    if not sample.complete():
        sample = write_sample(FOLDER / "sample")
    few = few_steps(args, more)
    if not few and args.steps is None:
        args.steps = STEPS
    if (TINY / "model_index.json").is_file():  # puppets are what it knows, whatever other weights there are
        if few:
            print("two steps of the distilled model; --steps 10 takes ten of the one that it was made from")
            more = ["preset=few_step", *more]
        more = ["--checkpoint", str(TINY), *more]
    if aligned(args) and args.align is None:
        print(
            "the driving person is scaled and moved to fit the puppet, and a puppet makes its faces; --no-align leaves "
            "it as it is"
        )
    out = args.out or unique_path(FOLDER / "demo.mp4")
    code = infer.main([*command(args, sample, out), *more])
    if out.exists() and args.webp is not None:
        from xdyna.media.sheet import write_webp

        write_webp(args.webp, out.with_suffix(".grid.mp4"), overwrite="--overwrite" in more)
        print(f"Moving image:  {args.webp.resolve()}")
    if out.exists():
        sampling = json.loads(out.with_suffix(".run.json").read_text())["sampling_seconds"]
        print(f"\nVideo:         {out.resolve()}\nContact sheet: {out.with_suffix('.sheet.png').resolve()}")
        print(f"Time:          {time.perf_counter() - start:.1f} s in all, {sampling:.1f} s of it sampling")
    return code


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog=program_name("demo"),
        description="Animate a puppet with another puppet's dance. Options that are not listed here go to infer.py.",
    )
    p.add_argument("--ref", type=Path, metavar="IMG", help="your own image instead of the sample puppet")
    p.add_argument(
        "--drive", type=Path, metavar="FILE", help="your own driving video instead of the sample's: it moves the puppet"
    )
    p.add_argument(
        "--align",
        action=argparse.BooleanOptionalAction,
        help="fit the driving person to the one in the image (default: where --drive moves the sample puppet)",
    )
    p.add_argument("--frames", type=int, default=16, help="frames to make (%(default)s)")
    p.add_argument("--steps", type=int, metavar="N", help="denoising steps, undistilled (default: 2, distilled)")
    p.add_argument("--out", type=output_path, metavar="FILE", help="the video (outputs/demo/demo.mp4)")
    p.add_argument(
        "--webp", type=output_path, metavar="FILE", help="write the side-by-side video as an animated WebP, too"
    )
    p.add_argument("--render", action="store_true", help="only render the sample in assets/demo anew")
    return p
