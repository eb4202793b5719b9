"""`make demo`: renders a small sample figure and animates it with `scripts/infer.py`'s own code."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from xdyna.cli import infer
from xdyna.data.sample import write_sample
from xdyna.media.atomic import unique_path

FOLDER = Path("outputs") / "demo"
SIZE = (256, 256)  # (H, W) of the sample in px


def main(argv: Sequence[str]) -> int:
    """Run `scripts/demo.py`. Args: argv: without the program's name. Returns: exit code."""
    args, more = _parser().parse_known_args(argv)
    # The sample is rendered anew each time; results are never overwritten.
    reference, driving, _ = write_sample(FOLDER / "sample", size=SIZE, frames=args.frames, overwrite=True)
    out = unique_path(FOLDER / "demo.mp4")
    command = ["--ref", str(args.ref or reference), "--drive", str(args.drive or driving), "--out", str(out)]
    code = infer.main([*command, "--frames", str(args.frames), "--steps", str(args.steps), *more])
    if out.exists():
        print(f"\nVideo:         {out.resolve()}\nContact sheet: {out.with_suffix('.sheet.png').resolve()}")
    return code


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="demo.py",
        description="Animate a sample figure. Options that are not listed here go to infer.py.",
    )
    p.add_argument("--ref", type=Path, metavar="IMG", help="your own picture instead of the sample figure")
    p.add_argument("--drive", type=Path, metavar="FILE", help="your own driving video instead of the sample's")
    p.add_argument("--frames", type=int, default=16, help="frames to make (%(default)s)")
    p.add_argument("--steps", type=int, default=10, help="denoising steps (%(default)s)")
    return p
