"""Long videos measured over time (`scripts/puppets.py long`): drift, seams and flicker of the schedules of windows.

One held-out puppet clip is rendered long, animated once with each schedule by the way of `scripts/infer.py`, and
compared with its truth frame by frame. Interrupted runs go on where they were; finished videos are not made again.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xdyna.config.infer import DTYPES, SCHEDULES, InferConfig
from xdyna.core.atomic import atomic_output, output_path
from xdyna.core.errors import UsageError
from xdyna.core.progress import Bars, Watch
from xdyna.core.quiet import quiet_libraries
from xdyna.diffusion.windows import window_schedule
from xdyna.evaluation.metrics.images import psnr_float
from xdyna.media.image import write_png
from xdyna.media.writer import VideoWriter
from xdyna.pipelines.animate import Frames, make
from xdyna.pipelines.folder import TINY
from xdyna.pipelines.model import Model, load
from xdyna.pipelines.outputs import OutputFiles
from xdyna.pipelines.plan import Request
from xdyna.pipelines.reuse import difference
from xdyna.puppets.heldout import DISTANCE, HELD_OUT, HeldOut, load_held_out
from xdyna.puppets.long_report import draw, table
from xdyna.puppets.summary import without_nan
from xdyna.puppets.world import PuppetClip, render_clip

OUT = Path("outputs") / "long"
CLIP = 1  # of the held-out list: its scene stands still, so that flicker shows
UNITS = {"hashing weights": "file", "denoising": "window", "decoding": "frame"}


@dataclass(frozen=True)
class OverTime:
    """How a generated video differs from its truth, over time. T frames, T - 1 pairs of neighbouring frames.

    Attributes:
        psnr: (T,) dB, whole frames.
        change: (T - 1,) mean absolute change of the error (generated minus truth) from a frame to the next, levels.
        flicker: (T - 1,) mean absolute change where truth and figure stand still, levels; NaN where nothing does.
        flicker_truth: (T - 1,) the same of the truth.
        borders: (T - 1,) whether the last step's windows of the one frame are not those of the next.
        ends: mean absolute difference between the last frame and the first, levels.
        ends_truth: the same of the truth.
    """

    psnr: np.ndarray
    change: np.ndarray
    flicker: np.ndarray
    flicker_truth: np.ndarray
    borders: np.ndarray
    ends: float
    ends_truth: float

    def summary(self, edge: int) -> dict[str, float]:
        """Numbers of the table.

        Args:
            edge: frames that count as first and as last.

        Returns:
            dict: PSNR (dB) of all, first, last and other frames; its drift (dB in 100 frames) with the standard error
            of a straight line; the change of the error at borders of windows over that inside with its standard error
            (NaN without borders); flicker; the difference between last and first frame.
        """
        t = np.arange(len(self.psnr)) - (len(self.psnr) - 1) / 2
        slope = float((t * self.psnr).sum() / (t**2).sum())
        left = self.psnr - self.psnr.mean() - slope * t
        spread = float(np.sqrt((left**2).sum() / max(len(t) - 2, 1) / (t**2).sum()))
        ratio, error = _ratio(self.change[self.borders], self.change[~self.borders])
        return {
            "psnr": float(self.psnr.mean()),
            "first": float(self.psnr[:edge].mean()),
            "middle": float(self.psnr[edge:-edge].mean()),
            "last": float(self.psnr[-edge:].mean()),
            "drift": 100 * slope,
            "drift_error": 100 * spread,
            "seam": ratio,
            "seam_error": error,
            "flicker": _mean(self.flicker),
            "flicker_truth": _mean(self.flicker_truth),
            "ends": self.ends,
            "ends_truth": self.ends_truth,
        }


def over_time(frames: Sequence[np.ndarray], truth: PuppetClip, windows: Sequence[Sequence[int]]) -> OverTime:
    """Compare a generated video with its truth.

    Args:
        frames: T generated frames, uint8 (H, W, 3).
        truth: T frames with their masks.
        windows: frame numbers of each window of the last step.

    Returns:
        OverTime: all numbers.

    Raises:
        ValueError: another number of frames.
    """
    count = len(truth.frames)
    if len(frames) != count:
        raise ValueError(f"{len(frames)} frames were generated, the truth has {count}")
    shown = np.stack(list(frames)).astype(np.int16)
    true = truth.frames.astype(np.int16)
    moving = truth.mask | truth.dynamic
    still = ~(moving[1:] | moving[:-1])
    held = [frozenset(k for k, window in enumerate(windows) if t in window) for t in range(count)]
    return OverTime(
        psnr=np.array([psnr_float(*pair) for pair in zip(truth.frames, shown.astype(np.uint8), strict=True)]),
        change=np.array([np.abs(np.diff(shown[t : t + 2] - true[t : t + 2], axis=0)).mean() for t in range(count - 1)]),
        flicker=_change(shown, still),
        flicker_truth=_change(true, still),
        borders=np.array([held[t] != held[t + 1] for t in range(count - 1)]),
        ends=float(np.abs(shown[-1] - shown[0]).mean()),
        ends_truth=float(np.abs(true[-1] - true[0]).mean()),
    )


def _change(frames: np.ndarray, where: np.ndarray) -> np.ndarray:
    changes = (np.abs(frames[t + 1] - frames[t])[where[t]] for t in range(len(where)))
    return np.array([change.mean() if change.size else np.nan for change in changes])


def _ratio(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Ratio of two means and its standard error; NaN where one is of nothing, or zero."""
    if not len(one) or not len(other) or not other.mean():
        return float("nan"), float("nan")
    relative = [values.std(ddof=1) / np.sqrt(len(values)) / values.mean() for values in (one, other) if len(values) > 1]
    ratio = float(one.mean() / other.mean())
    return ratio, ratio * float(np.sqrt(np.square(relative).sum())) if len(relative) == 2 else float("nan")


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


@dataclass(frozen=True)
class LongClip:
    """A long clip and its files, from which it is animated.

    Attributes:
        truth: the clip.
        reference: image of the same puppet in the same scene, after the clip.
        driving: keypoints.
        video: the truth without loss; faces are taken from it.
    """

    truth: PuppetClip
    reference: Path
    driving: Path
    video: Path


def write_clip(entry: HeldOut, folder: Path, *, frames: int, size: tuple[int, int]) -> LongClip:
    """Render a clip and write what animates it; files that are there are replaced.

    Args:
        entry: of the held-out list; its clip begins at world frame 0 here.
        folder: where to.
        frames: T.
        size: (H, W), px.
    """
    seeds = entry.identity, entry.motion, entry.scene
    truth = render_clip(*seeds, frames=frames, size=size)
    still = render_clip(*seeds, frames=1, start=frames + DISTANCE, size=size)
    files = LongClip(truth, folder / "reference.png", folder / "driving.npz", folder / "truth.mkv")
    folder.mkdir(parents=True, exist_ok=True)
    write_png(files.reference, still.frames[0], overwrite=True)
    truth.track().save(files.driving, overwrite=True)
    with VideoWriter(files.video, fps=truth.fps, size=size, lossless=True, overwrite=True) as writer:
        for frame in truth.frames:
            writer.write(frame)
    return files


def animated(clip: LongClip, path: Path, model: Model, settings: InferConfig, watch: Watch) -> dict[str, Any]:
    """Animate a clip unless that is done.

    Args:
        clip: with its files.
        path: the video to write.
        model: the weights.
        settings: of the animation.
        watch: told of the progress.

    Returns:
        dict: the run manifest.
    """
    files = OutputFiles.named(path, settings.save)
    request = Request(clip.reference, clip.driving, out=files.video, face_video=clip.video)
    if (why := difference(files, request, model, settings)) is not None:
        if why != "missing":
            watch.say(f"making {path} anew: {why}")
        make(request, model, settings=settings, overwrite=True, watch=watch)
    manifest: dict[str, Any] = json.loads(files.manifest.read_text())
    return manifest


def main(argv: Sequence[str]) -> int:
    """Run `scripts/puppets.py long`. Args: argv: without the program's name. Returns: exit code."""
    args = _parser().parse_args(argv)
    quiet_libraries()
    held_out, settings = load_held_out(), _settings(args)
    if not 0 <= args.clip < len(held_out):
        raise UsageError(f"--clip {args.clip}: expected 0 to {len(held_out) - 1}, the clips of {HELD_OUT}")
    if args.frames <= 2 * settings[0].context_frames:
        raise UsageError(f"--frames {args.frames}: expected more than two windows, {2 * settings[0].context_frames}")
    model = load(args.checkpoint, settings[0])
    clip = write_clip(held_out[args.clip], args.out, frames=args.frames, size=model.checkpoint.size)
    found: dict[str, OverTime] = {}
    for setting in settings:
        bars, name = Bars(UNITS), setting.context_schedule
        print(f"schedule {name}:")
        try:
            manifest = animated(clip, args.out / f"{name}.mkv", model, setting, Watch(progress=bars, tell=print))
        finally:
            bars.close()
        size = {"context": setting.context_frames, "overlap": setting.context_overlap}
        windows = window_schedule(name)(args.frames, **size, offset=manifest["window_offsets"][-1])
        found[name] = over_time(list(Frames(args.out / f"{name}.mkv")), clip.truth, windows)
    config = manifest["config"]
    made = (
        f"Held-out clip {args.clip} ({clip.truth.motion_kind}, {clip.truth.scene_kind}), {args.frames} frames of "
        f"{model.checkpoint.size[0]} x {model.checkpoint.size[1]} px; {config['steps']} steps, guidance "
        f"{config['guidance']:g}, seed {args.seed}, {str(model.dtype).removeprefix('torch.')}, "
        f"{model.checkpoint.folder.name}: `scripts/puppets.py {' '.join(['long', *argv])}`"
    )
    _write(args.out, made, found, edge=settings[0].context_frames // 2, fps=clip.truth.fps)
    return 0


def _write(folder: Path, made: str, found: dict[str, OverTime], *, edge: int, fps: float) -> None:
    """Write the table, the numbers and the plot, replacing those of an earlier run, and show the table."""
    rows = {name: values.summary(edge) for name, values in found.items()}
    series = {name: {k: np.asarray(v).tolist() for k, v in asdict(values).items()} for name, values in found.items()}
    with atomic_output(folder / "long.json", overwrite=True) as path:
        content = without_nan({"made": made, "summary": rows, "over_time": series})
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    with atomic_output(folder / "long.md", overwrite=True) as path:
        path.write_text(f"{made}.\n\n{table(rows, edge)}")
    with atomic_output(folder / "long.png", overwrite=True) as path:
        draw(found, path, fps=fps)
    print(f"{made}.\n\n{table(rows, edge)}\nwritten to {folder}: long.md, long.json, long.png, the videos")


def _settings(args: argparse.Namespace) -> list[InferConfig]:
    """One for each schedule."""
    names = args.schedules.split(",")
    if unknown := [name for name in names if name not in SCHEDULES]:
        raise UsageError(f"--schedules: got {unknown[0]!r}, expected some of {','.join(SCHEDULES)}")
    return [
        InferConfig(
            steps=args.steps, seed=args.seed, context_schedule=name, device=args.device, dtype=args.dtype, save="ffv1"
        )
        for name in dict.fromkeys(names)
    ]


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="puppets.py long", description="Measure drift, seams and flicker of a long video with each schedule."
    )
    p.add_argument("checkpoint", nargs="?", type=Path, default=TINY, help="pipeline folder (%(default)s)")
    p.add_argument("--frames", type=int, default=192, metavar="N", help="length (%(default)s)")
    p.add_argument("--clip", type=int, default=CLIP, metavar="K", help="of the held-out list (%(default)s)")
    p.add_argument("--schedules", default=",".join(SCHEDULES), metavar="NAME,...", help="(%(default)s)")
    p.add_argument("--steps", type=int, default=10, metavar="N", help="denoising steps (%(default)s)")
    p.add_argument("--seed", type=int, default=42, metavar="N", help="of the noise (%(default)s)")
    p.add_argument("--out", type=output_path, default=OUT, metavar="FOLDER", help="where to write (%(default)s)")
    p.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, mps or auto")
    p.add_argument("--dtype", default="auto", choices=DTYPES)
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p
