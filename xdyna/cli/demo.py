"""`make demo`: animates a puppet with another puppet's dance, by `scripts/infer.py`'s own code.

The sample in `assets/demo` is of the puppet world's test split: no model is trained on its people, motions and scenes.
Its keypoints are exact; detectors for people do not see puppets.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from xdyna.core.atomic import atomic_output, unique_path
from xdyna.core.resources import resource
from xdyna.media.image import write_png
from xdyna.media.video import probe, read_frames
from xdyna.media.writer import VideoWriter
from xdyna.puppets.world import PuppetClip, render_clip

ASSETS = resource("assets", "demo")
FOLDER = Path("outputs") / "demo"
SIZE = (256, 256)  # (H, W) of the sample in px
FRAMES = 48  # of the driving video: 4 s
# Seeds of identity, motion and scene.
REFERENCE = (2_046_885, 2_000_044, 2_051_532)  # a girl before the evening sea
DRIVING = (2_080_054, 2_086_280, 2_080_054)  # a boy who dances and talks in his room


@dataclass(frozen=True)
class SampleFiles:
    """The four files of the sample.

    Attributes:
        folder: where they are.
    """

    folder: Path

    @property
    def reference(self) -> Path:
        """The image."""
        return self.folder / "reference.png"

    @property
    def reference_points(self) -> Path:
        """Keypoints of the puppet in the image."""
        return self.folder / "reference.npz"

    @property
    def driving(self) -> Path:
        """The driving video."""
        return self.folder / "driving.mp4"

    @property
    def driving_points(self) -> Path:
        """Keypoints of the driving video, frame by frame."""
        return self.folder / "driving.npz"

    def complete(self) -> bool:
        """Whether all four are there."""
        files = (self.reference, self.reference_points, self.driving, self.driving_points)
        return all(path.is_file() for path in files)


def reference_clip() -> PuppetClip:
    """The reference, one frame."""
    return render_clip(*REFERENCE, frames=1, size=SIZE, scene_kind="sea")


def driving_clip() -> PuppetClip:
    """The driving video."""
    return render_clip(*DRIVING, frames=FRAMES, size=SIZE)


def write_sample(folder: Path) -> SampleFiles:
    """Render the sample; files that are there are replaced.

    Args:
        folder: where to; made if missing.

    Returns:
        SampleFiles: the same images and keypoints every time.

    Raises:
        MediaError: a file cannot be written.
    """
    files, still, driving = SampleFiles(folder), reference_clip(), driving_clip()
    write_png(files.reference, still.frames[0], overwrite=True)
    still.track().save(files.reference_points, overwrite=True)
    with VideoWriter(files.driving, fps=driving.fps, size=SIZE, overwrite=True) as writer:
        for frame in driving.frames:
            writer.write(frame)
    driving.track().save(files.driving_points, overwrite=True)
    return files


def command(args: argparse.Namespace, sample: SampleFiles, out: Path) -> list[str]:
    """What the demo asks of `scripts/infer.py`.

    Args:
        args: the demo's arguments.
        sample: what stands in for files that are not given.
        out: the video.

    Returns:
        Arguments.
    """
    words: list[str | Path] = ["--ref", args.ref or sample.reference, "--out", out]
    words += ["--frames", str(args.frames), "--steps", str(args.steps)]
    if args.drive is None:
        words += ["--drive", sample.driving_points, "--face-video", sample.driving]
    else:
        words += ["--drive", args.drive]
    if aligned(args):
        words += ["--align"] + ([] if args.ref else ["--ref-keypoints", sample.reference_points])
        if not args.ref and args.drive is not None and args.drive.suffix.lower() != ".npz":
            words.append("--puppet-face")
    return [str(word) for word in words]


def write_webp(path: Path, video: Path, *, overwrite: bool = False) -> None:
    """A video as an animated WebP that repeats for ever, for a page.

    Args:
        path: the .webp file.
        video: read frame by frame; shown at its rate.
        overwrite: whether an existing file may be replaced.

    Raises:
        FileError: the file exists or cannot be written.
    """
    frames = [Image.fromarray(frame) for frame in read_frames(video)]
    with atomic_output(path, overwrite=overwrite) as temporary:
        frames[0].save(
            temporary, "WEBP", save_all=True, append_images=frames[1:], duration=round(1000 / probe(video).fps), loop=0,
            quality=75,
        )  # fmt: skip


def aligned(args: argparse.Namespace) -> bool:
    """Whether the driving person is fitted to the one in the image: a person has not the puppet's size and place."""
    return args.drive is not None and args.ref is None if args.align is None else args.align


def main(argv: Sequence[str]) -> int:
    """Run `scripts/demo.py`. Args: argv: without the program's name. Returns: exit code."""
    start = time.perf_counter()
    args, more = _parser().parse_known_args(argv)
    if args.render:
        sample = write_sample(ASSETS)
        print(f"rendered {', '.join(str(path) for path in sorted(sample.folder.iterdir()))}")
        return 0
    # Imported here, so that the time it takes counts.
    from xdyna.cli import infer
    from xdyna.pipelines.folder import TINY

    sample = SampleFiles(ASSETS)
    if not sample.complete():
        sample = write_sample(FOLDER / "sample")
    if (TINY / "model_index.json").is_file():  # puppets are what it knows, whatever other weights there are
        more = ["--checkpoint", str(TINY), *more]
    if aligned(args) and args.align is None:
        print(
            "the driving person is scaled and moved to fit the puppet, and a puppet makes its faces; --no-align leaves "
            "it as it is"
        )
    out = unique_path(FOLDER / "demo.mp4")
    code = infer.main([*command(args, sample, out), *more])
    if out.exists() and args.webp is not None:
        write_webp(args.webp, out.with_suffix(".grid.mp4"), overwrite="--overwrite" in more)
        print(f"Moving image:  {args.webp.resolve()}")
    if out.exists():
        sampling = json.loads(out.with_suffix(".run.json").read_text())["sampling_seconds"]
        print(f"\nVideo:         {out.resolve()}\nContact sheet: {out.with_suffix('.sheet.png').resolve()}")
        print(f"Time:          {time.perf_counter() - start:.1f} s in all, {sampling:.1f} s of it sampling")
    return code


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="demo.py",
        description="Animate a puppet with another puppet's dance. Options that are not listed here go to infer.py.",
    )
    p.add_argument("--ref", type=Path, metavar="IMG", help="your own picture instead of the sample puppet")
    p.add_argument(
        "--drive", type=Path, metavar="FILE", help="your own driving video instead of the sample's: it moves the puppet"
    )
    p.add_argument(
        "--align",
        action=argparse.BooleanOptionalAction,
        help="fit the driving person to the one in the picture (default: where --drive moves the sample puppet)",
    )
    p.add_argument("--frames", type=int, default=16, help="frames to make (%(default)s)")
    p.add_argument("--steps", type=int, default=10, help="denoising steps (%(default)s)")
    p.add_argument("--webp", type=Path, metavar="FILE", help="write the side-by-side video as an animated WebP, too")
    p.add_argument("--render", action="store_true", help="only render the sample in assets/demo anew")
    return p
