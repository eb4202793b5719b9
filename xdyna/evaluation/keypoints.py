"""A pose backend beside pose videos that somebody else's detector made: `scripts/eval.py keypoints`.

The joints of a pose map are found by their colours (`drawn_joints`), so that the official pose videos, of which no
numbers are published, can be compared with.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from xdyna.config.infer import POSE_BACKENDS
from xdyna.core.atomic import write_file
from xdyna.core.errors import UsageError
from xdyna.media.video import probe, read_frames
from xdyna.perception.base import PoseBackend, get_backend
from xdyna.perception.draw import CONFIDENCE
from xdyna.perception.follow import follow
from xdyna.perception.topology import BODY_COLORS, BODY_JOINTS, LEFT_HIP, NECK, NOSE, RIGHT_HIP
from xdyna.perception.types import missing_points

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
DRAWN = 14
"""Joints of a pose map: all but eyes and ears."""
_RIGHT_ANKLE, _LEFT_KNEE, _LEFT_ANKLE = 10, 12, 13
_SHOWN = 0.5  # share of a disc from which on its joint counts as drawn
_NEAR = 0.05  # of the body's height: how many joints lie within is told


def drawn_joints(image: np.ndarray) -> np.ndarray:
    """The joints of one person in a pose map, by their colours: discs of radius 4 px at full brightness.

    Args:
        image: uint8 (H, W, 3) RGB, a pose map of the published style and size (512 px across).

    Returns:
        (14, 3) x px, y px, share of the disc that shows (hands are drawn over some); 0 where a joint is not drawn.
    """
    image = image.astype(np.float32)
    apart = np.stack([np.abs(image - color).sum(axis=-1) for color in BODY_COLORS[:DRAWN].astype(np.float32)])
    nearest, bright = apart.argmin(axis=0), image.max(axis=-1) > 180
    disc = np.zeros((9, 9), np.float32)
    cv2.circle(disc, (4, 4), 4, (1.0,), -1)
    ring = (np.hypot(*np.mgrid[-8:9, -8:9]) > 5.5).astype(np.float32)
    joints = np.zeros((DRAWN, 3))
    for joint in [*range(_LEFT_KNEE), _LEFT_ANKLE, _LEFT_KNEE]:
        mask = ((nearest == joint) & bright & (apart[joint] < 150)).astype(np.float32)
        shown = cv2.filter2D(mask, -1, disc / disc.sum(), borderType=cv2.BORDER_CONSTANT)
        if joint == _LEFT_KNEE:  # hands have the same blue: a lone disc around the middle of the leg is the knee
            if min(joints[LEFT_HIP, 2], joints[_LEFT_ANKLE, 2]) < _SHOWN:
                continue
            leg = joints[[LEFT_HIP, _LEFT_ANKLE], :2]
            rows, columns = np.indices(mask.shape)
            off = np.hypot(columns - leg[:, 0].mean(), rows - leg[:, 1].mean())
            shown[off > 0.35 * np.linalg.norm(leg[0] - leg[1])] = 0
            shown -= cv2.filter2D(mask, -1, ring / ring.sum(), borderType=cv2.BORDER_CONSTANT)
        best = shown.max()
        if best > 0.35:
            row, column = np.unravel_index(shown.argmax(), shown.shape)
            ys, xs = np.nonzero(shown >= best - 1e-3)
            same = np.hypot(xs - column, ys - row) < 5
            joints[joint] = xs[same].mean(), ys[same].mean(), best
    return joints


@dataclass(frozen=True)
class Compared:
    """Joints of a backend beside those of a pose video, T frames.

    Attributes:
        ours: (T, 14, 3) x px, y px, confidence.
        drawn: (T, 14, 3) as `drawn_joints`.
        seconds: of the processor, all threads, that detection took.
    """

    ours: np.ndarray
    drawn: np.ndarray
    seconds: float

    @property
    def shown(self) -> np.ndarray:
        """(T, 14) bool: drawn in the pose video."""
        return self.drawn[..., 2] > _SHOWN

    @property
    def found(self) -> np.ndarray:
        """(T, 14) bool: found by the backend, as surely as what we draw."""
        return self.ours[..., 2] >= CONFIDENCE

    def distance(self) -> np.ndarray:
        """(T, 14) px; NaN where one of the two has no joint."""
        apart = np.linalg.norm(self.ours[..., :2] - self.drawn[..., :2], axis=-1)
        return np.where(self.shown & self.found, apart, np.nan)

    def height(self) -> float:
        """The body's height in px: nose to the middle of the ankles by way of neck and hips, as drawn; the median.

        Raises:
            UsageError: no frame shows all of these.
        """
        places = self.drawn[..., :2]
        hips = (places[:, RIGHT_HIP] + places[:, LEFT_HIP]) / 2
        ankles = (places[:, _RIGHT_ANKLE] + places[:, _LEFT_ANKLE]) / 2
        way = np.stack([places[:, NOSE], places[:, NECK], hips, ankles])
        length = np.linalg.norm(np.diff(way, axis=0), axis=-1).sum(axis=0)
        whole = self.shown[:, [NOSE, NECK, RIGHT_HIP, LEFT_HIP, _RIGHT_ANKLE, _LEFT_ANKLE]].all(axis=1)
        if not whole.any():
            raise UsageError("no pose map shows a whole body (nose, neck, hips, ankles); expected some that do")
        return float(np.median(length[whole]))


def compare(video: Path, poses: Path, backend: PoseBackend, *, frames: int | None = None) -> Compared:
    """Detect the largest person in a video, and find the joints drawn in its pose video.

    Args:
        video: of a person.
        poses: pose maps of the same frames.
        backend: finds people.
        frames: so many frames, evenly spread; None for all.

    Returns:
        Compared: of these frames.

    Raises:
        UsageError: the two do not show the same frames.
        xdyna.media.MediaError: a video cannot be read.
    """
    one, other = probe(video), probe(poses)
    if (one.frame_count, one.height, one.width) != (other.frame_count, other.height, other.width):
        raise UsageError(
            f"{video} has {one.frame_count} frames of {one.height}x{one.width} (HxW), {poses} {other.frame_count} of "
            f"{other.height}x{other.width}; expected a video and the pose maps of its frames"
        )
    count = min(frames or one.frame_count, one.frame_count)
    rows = np.linspace(0, one.frame_count - 1, count).round().astype(int)
    people, seconds = [], 0.0
    for frame in read_frames(video, rows):
        begun = time.process_time()
        people.append(backend.detect(frame))
        seconds += time.process_time() - begun
    bodies = [missing_points(18) if person is None else person.body for person in follow(people)]
    drawn = np.stack([drawn_joints(image) for image in read_frames(poses, rows)])
    return Compared(np.stack(bodies)[:, :DRAWN], drawn, seconds)


def table(measured: Sequence[tuple[str, Compared]]) -> str:
    """Distances per joint, all videos together, then the sums of each video, as Markdown.

    Args:
        measured: name and comparison of each video.
    """
    px = np.concatenate([each.distance() for _, each in measured])
    share = np.concatenate([each.distance() / each.height() for _, each in measured])
    shown = np.concatenate([each.shown for _, each in measured])
    found = np.concatenate([each.found for _, each in measured])
    lines = [
        "| joint | compared | median px | mean px | 95 % px | median / height | mean / height "
        f"| within {_NEAR:.0%} of the height | drawn, not found | found, not drawn |",
        f"|{' --- |' * 10}",
    ]
    for joint, name in enumerate((*BODY_JOINTS[:DRAWN], "all")):
        those = slice(None) if name == "all" else slice(joint, joint + 1)
        lines.append(_row(name.replace("_", " "), px[:, those], share[:, those], shown[:, those], found[:, those]))
    for name, each in measured:
        apart = each.distance()
        lines.append(_row(name, apart, apart / each.height(), each.shown, each.found))
    lines.append("")
    for name, each in measured:
        count = len(each.ours)
        lines.append(
            f"{name}: {count} frames, height {each.height():.0f} px, {count / max(each.seconds, 1e-9):.2f} frames a "
            f"second of processor time ({each.seconds / count:.3f} s a frame).\n"
        )
    return "\n".join(lines)


def _row(name: str, px: np.ndarray, share: np.ndarray, shown: np.ndarray, found: np.ndarray) -> str:
    both = np.isfinite(px)
    missed, extra = (shown & ~found).sum(), (found & ~shown).sum()
    cells = ["-"] * 6
    if both.any():
        there, relative = px[both], share[both]
        cells = [f"{value:.1f}" for value in (np.median(there), there.mean(), np.percentile(there, 95))]
        cells += [f"{np.median(relative):.4f}", f"{relative.mean():.4f}", f"{(relative < _NEAR).mean():.1%}"]
    return f"| {name} | {both.sum()} | {' | '.join(cells)} | {missed} | {extra} |"


def main(argv: Sequence[str]) -> int:
    """Run `scripts/eval.py keypoints`. Args: argv: without the action. Returns: exit code."""
    p = argparse.ArgumentParser(
        prog="xdyna eval keypoints",
        description="Measure a pose backend against pose videos that another detector made: distances of the joints.",
    )
    p.add_argument("videos", type=Path, nargs="+", metavar="VIDEO POSES", help="videos, each with its pose video")
    p.add_argument("--backend", choices=POSE_BACKENDS, default="mediapipe", help="what finds people (%(default)s)")
    p.add_argument("--frames", type=int, metavar="N", help="of each video, evenly spread (default: all)")
    p.add_argument("--doc", type=Path, metavar="MD", help="put the table between its marks in this file")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    args = p.parse_args(argv)
    if len(args.videos) % 2:
        raise UsageError(f"{len(args.videos)} videos were given; expected pairs: a video, then its pose video")
    if args.frames is not None and args.frames < 1:
        raise UsageError(f"--frames {args.frames}: expected 1 or more")
    before, after = ("", "") if args.doc is None else _around_marks(args.doc)
    backend = get_backend(args.backend)
    pairs = zip(args.videos[::2], args.videos[1::2], strict=True)
    measured = [(video.stem, compare(video, poses, backend, frames=args.frames)) for video, poses in pairs]
    told = f"{args.backend} {backend.version}\n\n{table(measured)}"
    print(told, end="")
    if args.doc is not None:
        write_file(args.doc, f"{before}{BEGIN}\n{told}{END}{after}".encode())
        print(f"wrote {args.doc}")
    return 0


def _around_marks(path: Path) -> tuple[str, str]:
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise UsageError(f"--doc {path}: expected the lines {BEGIN} and {END}, between which the table goes")
    return before, after
