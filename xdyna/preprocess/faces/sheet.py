"""Cross-identity faces to look at, and how well they keep expression and change identity.

Expression: the eight coefficients of `xdyna.evaluation.metrics.people` in driving frames (read by the pose backend)
against those read back from the reenacted images; deviations from each clip's mean are pooled over frames and
coefficients. Identity: the root mean square distance between neutral face shapes, in distances between the eyes:
result to other person, result to driving person.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from xdyna.core.atomic import atomic_output, output_path
from xdyna.core.errors import UsageError
from xdyna.data.face_files import patch_boxes, seen
from xdyna.evaluation.metrics.people import EXPRESSIONS, expression_coefficients
from xdyna.media import contact_sheet, probe, read_frames, read_image, unique_path, write_png
from xdyna.perception import get_backend
from xdyna.perception.face_mesh import SKIN, FaceMesher, ibug68
from xdyna.preprocess.faces.mesh_shape import align, neutral_shape
from xdyna.preprocess.faces.reenact import FaceReenactor, Portrait, get_reenactor, portrait_penalty

_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".heic", ".avif")
_CELL, _ACROSS, _PAPER = 208, 6, 250  # px, columns, grey

Triple = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Driving face, other identity, result."""


@dataclass(frozen=True)
class Clip:
    """Driving frames and the landmarks of their person: uint8 (T, H, W, 3), float32 (T, 68, 3) px."""

    name: str
    frames: np.ndarray
    landmarks: np.ndarray


@dataclass(frozen=True)
class Transfer:
    """What one clip shown with one other person's face measures.

    Attributes:
        driving: name of the clip.
        other: name of the other person.
        frames: frames in which a face was read in both.
        pooled: correlation of the coefficients' deviations from their means, driving frame to result.
        each: correlation by coefficient.
        spread: standard deviation of each coefficient in the driving frames.
        reading: `pooled` of the driving frames read in two ways: what could be reached at most.
        to_other: distance of the result's neutral shape from the other person's.
        to_driver: the same from the driving person's.
        deviations: float64 (2, frames, 8), driving and result; not part of the report.
    """

    driving: str
    other: str
    frames: int
    pooled: float
    each: dict[str, float]
    spread: dict[str, float]
    reading: float
    to_other: float
    to_driver: float
    deviations: np.ndarray = field(repr=False)

    def row(self) -> dict[str, object]:
        """The numbers as JSON values."""
        return {name: value for name, value in asdict(self).items() if name != "deviations"}


def measure_transfer(clip: Clip, result: Clip, other: Portrait, mesher: FaceMesher) -> Transfer:
    """Compare driving frames, reenacted images and the other person.

    Args:
        clip: driving frames; their landmarks are the first reading.
        result: the reenacted images of the same frames; landmarks tell only where the face is looked for.
        other: whose face is shown.
        mesher: reads faces from pixels.

    Returns:
        The measures.

    Raises:
        UsageError: fewer than 4 frames with a face in both, or no face in the other's image.
    """
    driving, shown = _meshes(clip, mesher), _meshes(result, mesher)
    rows = sorted(driving.keys() & shown.keys())
    face = mesher.detect(other.image, other.landmarks)
    if len(rows) < 4 or face is None:
        raise UsageError(f"{clip.name} with {other.name}: {len(rows)} frames show both faces; expected 4 or more")
    asked = _deviations(clip.landmarks[rows])
    again = _deviations(ibug68(np.stack([driving[row] for row in rows])))
    got = _deviations(ibug68(np.stack([shown[row] for row in rows])))
    each = {name: _correlation(asked[:, k], got[:, k]) for k, name in enumerate(EXPRESSIONS)}
    spread = dict(zip(EXPRESSIONS, asked.std(axis=0).tolist(), strict=True))
    neutral = neutral_shape([shown[row] for row in rows])
    return Transfer(
        driving=clip.name,
        other=other.name,
        frames=len(rows),
        pooled=_correlation(asked, got),
        each=each,
        spread=spread,
        reading=_correlation(asked, again),
        to_other=_shape_distance(neutral, neutral_shape([face])),
        to_driver=_shape_distance(neutral, neutral_shape([driving[row] for row in rows])),
        deviations=np.stack([asked, got]),
    )


def pooled_correlation(transfers: Sequence[Transfer]) -> float:
    """Correlation over all clips: deviations from each clip's means, all coefficients together."""
    first, second = (np.concatenate([t.deviations[side].ravel() for t in transfers]) for side in (0, 1))
    return _correlation(first, second)


def _meshes(clip: Clip, mesher: FaceMesher) -> dict[int, np.ndarray]:
    """Meshes (478, 3) by frame."""
    rows = np.flatnonzero(seen(clip.landmarks))
    found = {int(row): mesher.detect(clip.frames[row], clip.landmarks[row]) for row in rows}
    return {row: mesh for row, mesh in found.items() if mesh is not None}


def _deviations(landmarks: np.ndarray) -> np.ndarray:
    values = expression_coefficients(landmarks)
    return np.asarray(values - values.mean(axis=0))


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])


def _shape_distance(first: np.ndarray, second: np.ndarray) -> float:
    moved, _ = align(first, second)
    return float(np.sqrt(((moved - second)[:SKIN] ** 2).sum(axis=1).mean()))


# What is shown


def read_clip(path: Path, *, frames: int) -> Clip:
    """Frames spread over a video, and the landmarks of the largest person in each."""
    rows = np.linspace(0, probe(path).frame_count - 1, frames).round().astype(int).tolist()
    images = np.stack(list(read_frames(path, rows)))
    backend = get_backend("mediapipe")
    points = np.zeros((len(images), 68, 3), dtype=np.float32)
    for row, frame in enumerate(tqdm(images, desc=path.name, unit="frame", leave=False)):
        people = backend.detect(frame)
        if people:
            points[row] = people[0].face
    return Clip(path.stem, images, points)


def read_portrait(path: Path, clips: dict[Path, Clip], *, frames: int) -> Portrait:
    """The person of an image, or the calmest face of a video."""
    if path.suffix.lower() not in _IMAGES:
        clip = _remembered(path, clips, frames=frames)
        rows = np.flatnonzero(seen(clip.landmarks))
        if not len(rows):
            raise UsageError(f"--other {path}: no face is found in it")
        row = rows[int(np.argmin(portrait_penalty(clip.landmarks[rows])))]
        return Portrait(clip.frames[row], clip.landmarks[row], clip.name)
    image = read_image(path)
    people = get_backend("mediapipe").detect(image)
    if not people or not seen(people[0].face[None])[0]:
        raise UsageError(f"--other {path}: no face is found in it")
    return Portrait(image, people[0].face, path.stem)


def _remembered(path: Path, clips: dict[Path, Clip], *, frames: int) -> Clip:
    """A video's clip; people are found once."""
    if path not in clips:
        clips[path] = read_clip(path, frames=frames)
    return clips[path]


def triples(clip: Clip, result: Clip, other: Portrait, *, count: int, turn: tuple[int, int]) -> Iterator[Triple]:
    """The liveliest frame of each of `count` parts of a clip, cut to what a face patch shows.

    The clip is cut into `turn[1] * count` equal parts; every `turn[1]`-th from number `turn[0]` on is meant, so that
    one clip with several faces does not show the same frames again.
    """
    size = (clip.frames.shape[1], clip.frames.shape[2])
    boxes, shown = patch_boxes(result.landmarks, size=size), np.flatnonzero(seen(result.landmarks))
    lively = portrait_penalty(clip.landmarks)
    portrait_box = patch_boxes(other.landmarks[None], size=(other.image.shape[0], other.image.shape[1]))[0]
    for part in np.array_split(shown, turn[1] * count)[turn[0] :: turn[1]]:
        if not len(part):
            continue
        row = int(part[np.argmax(lively[part])])
        yield (
            cut_out(clip.frames[row], boxes[row]),
            cut_out(other.image, portrait_box),
            cut_out(result.frames[row], boxes[row]),
        )


def cut_out(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The part of an image inside a box (left, top, right, bottom); the whole image where the box is empty."""
    left, top, right, bottom = box.tolist()
    return image[top:bottom, left:right] if left < right and top < bottom else image


def sheet(shown: Sequence[Triple]) -> np.ndarray:
    """All triples as columns of three images, six columns side by side; uint8 (H, W, 3)."""
    names, blocks = ("driving", "other identity", "result"), []
    for first in range(0, len(shown), _ACROSS):
        part = [tuple(_square(image) for image in triple) for triple in shown[first : first + _ACROSS]]
        rows = dict(zip(names, zip(*part, strict=True), strict=True))
        blocks.append(contact_sheet(rows, columns=len(part), cell_height=_CELL, captions=[" "] * len(part)))
    width = max(block.shape[1] for block in blocks)
    padded = [np.pad(b, ((0, 0), (0, width - b.shape[1]), (0, 0)), constant_values=_PAPER) for b in blocks]
    return np.concatenate(padded)


def _square(image: np.ndarray) -> np.ndarray:
    return cv2.resize(np.ascontiguousarray(image), (_CELL, _CELL), interpolation=cv2.INTER_AREA)


def main(argv: Sequence[str], *, rendered: Callable[[int, int], Iterable[Triple]] | None = None) -> int:
    """Run `scripts/preprocess.py face-sheet`, or `scripts/puppets.py faces`.

    Args:
        argv: without the program's name.
        rendered: makes triples of rendered figures, given their number and a seed; None: real faces alone.

    Returns:
        Exit code.
    """
    args = _parser(rendered is not None).parse_args(argv)
    if (not args.driving) != (not args.other) or not (args.driving or rendered):
        raise UsageError(
            "--driving and --other belong together; give both (or neither to `xdyna puppets faces`, which renders)"
        )
    count = args.puppets if rendered is not None else 0
    shown, transfers = _real(args, count=max(args.triples - count, 0)) if args.driving else ([], [])
    if rendered is not None:
        shown += rendered(args.triples - len(shown), args.seed)
    path = args.out if args.overwrite else unique_path(args.out)
    write_png(path, sheet(shown), overwrite=args.overwrite)
    print(f"{path}: {len(shown)} faces")
    if args.report is not None and transfers:
        report = {
            "reenactor": args.reenactor,
            "pooled": pooled_correlation(transfers),
            "clips": [t.row() for t in transfers],
        }
        with atomic_output(args.report, overwrite=args.overwrite) as temporary:
            temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def _real(args: argparse.Namespace, *, count: int) -> tuple[list[Triple], list[Transfer]]:
    """Every driving video with every other face: `count` triples, the clips in turn, and all measures."""
    pairs = [(driving, other) for driving in args.driving for other in args.other if driving != other]
    if not pairs:
        raise UsageError("--driving and --other are the same video; give another person's image or video")
    reenactor, mesher, clips = get_reenactor(args.reenactor), FaceMesher(), dict[Path, Clip]()
    others = {path: read_portrait(path, clips, frames=args.frames) for path in args.other}
    share = max(-(-count // len(pairs)), 1)
    columns, transfers = [], []
    for number, (driving, path) in enumerate(pairs):
        clip = _remembered(driving, clips, frames=args.frames)
        result, transfer = _reenact(clip, others[path], reenactor, mesher)
        transfers.append(transfer)
        columns.append(list(triples(clip, result, others[path], count=share, turn=(number, len(pairs)))))
        print(_line(transfer))
    print(f"all: expression {pooled_correlation(transfers):.3f}")
    return [column[rank] for rank in range(share) for column in columns if rank < len(column)][:count], transfers


def _reenact(clip: Clip, other: Portrait, reenactor: FaceReenactor, mesher: FaceMesher) -> tuple[Clip, Transfer]:
    faces = reenactor.reenact(clip.frames, clip.landmarks, other)
    result = Clip(f"{clip.name} as {other.name}", faces.frames, faces.landmarks)
    return result, measure_transfer(clip, result, other, mesher)


def _line(transfer: Transfer) -> str:
    return (
        f"{transfer.driving} with the face of {transfer.other}: expression {transfer.pooled:.3f} (two readings of the "
        f"driving frames: {transfer.reading:.3f}) over {transfer.frames} frames; shape {transfer.to_other:.3f} from "
        f"the other, {transfer.to_driver:.3f} from the driver"
    )


def _parser(rendered: bool) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="xdyna puppets faces" if rendered else "xdyna preprocess face-sheet",
        description="Show cross-identity faces side by side, and measure them."
        + (" Without videos: rendered figures alone." if rendered else ""),
    )
    p.add_argument("--driving", type=Path, nargs="+", default=[], metavar="VIDEO", help="whose expression is shown")
    p.add_argument("--other", type=Path, nargs="+", default=[], metavar="FILE", help="images or videos: whose face")
    p.add_argument("--out", type=output_path, required=True, metavar="PNG", help="the sheet")
    p.add_argument("--report", type=Path, metavar="JSON", help="where the measures are written")
    p.add_argument("--reenactor", default="mesh-warp", help="mesh-warp or liveportrait (%(default)s)")
    p.add_argument("--frames", type=int, default=48, metavar="N", help="frames of each video (%(default)s)")
    p.add_argument("--triples", type=int, default=12, metavar="N", help="faces on the sheet (%(default)s)")
    if rendered:
        p.add_argument("--puppets", type=int, default=3, metavar="N", help="of them rendered figures (%(default)s)")
        p.add_argument("--seed", type=int, default=0, help="of the rendered figures (%(default)s)")
    p.add_argument("--overwrite", action="store_true", help="replace existing files")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p
