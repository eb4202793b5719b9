"""Condition pictures of an animation: skeletons and face patches at the size of the video."""

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from xdyna.config.infer import InferConfig
from xdyna.core.errors import UsageError
from xdyna.media.image import CropResize
from xdyna.media.video import read_frames
from xdyna.perception.align import AlignmentReport, align_track
from xdyna.perception.base import get_backend
from xdyna.perception.draw import draw_pose
from xdyna.perception.errors import PerceptionError
from xdyna.perception.face_patch import iter_face_patches
from xdyna.perception.smooth import OneEuro
from xdyna.perception.track import perceive
from xdyna.perception.types import PerceptionSummary, Person, PoseTrack
from xdyna.pipelines.crop import published_crop
from xdyna.pipelines.driving import Driving
from xdyna.puppets.actor import Acted, act

IN_MEMORY_BYTES = 512 * 2**20  # condition pictures beyond this go to a temporary file
Interpolation = Literal["area", "bilinear"]


@dataclass(frozen=True)
class Placement:
    """How driving pictures and key points get into the video's picture.

    Attributes:
        crop: from the pictures (from the reference picture, where `alignment` is used) to the video.
        alignment: from the driving person to the one in the reference picture; None leaves the person where it is.
    """

    crop: CropResize
    alignment: AlignmentReport | None = None

    def image(self, frame: np.ndarray, *, interpolation: Interpolation = "area") -> np.ndarray:
        """A driving picture at the video's size, uint8 (H, W, 3)."""
        return self.crop.image(self.alignment.image(frame) if self.alignment else frame, interpolation=interpolation)


@dataclass(frozen=True)
class Conditions:
    """Condition pictures of a clip.

    Attributes:
        pose: uint8 (T, H, W, 3).
        face: uint8 (T, H, W, 6) local and global face patch, or None.
        placement: how the driving pictures were placed.
        summary: what perception found; None when it did not run.
        track: key points in the coordinates of the driving file; None for pose videos.
    """

    pose: np.ndarray
    face: np.ndarray | None
    placement: Placement
    summary: PerceptionSummary | None
    track: PoseTrack | None

    def digest(self) -> str:
        """A hash of all condition pictures: whatever made them, the same pictures give the same video."""
        digest = hashlib.blake2b(digest_size=16)
        for pictures in (self.pose, self.face):
            for frame in pictures if pictures is not None else ():
                digest.update(np.ascontiguousarray(frame).data)
        return digest.hexdigest()


def make_conditions(
    driving: Driving,
    config: InferConfig,
    *,
    reference: np.ndarray,
    size: tuple[int, int],
    face: bool,
    cache_dir: Path | None,
    person: Person | None = None,
) -> Conditions:
    """Skeleton pictures and face patches for every output frame.

    Args:
        driving: the driving file.
        config: perception settings.
        reference: the reference picture, uint8 (H, W, 3); the driving person is aligned to it where asked for.
        size: (H, W) of the video to be made.
        face: make face patches.
        cache_dir: where key points are cached; None for the default folder.
        person: the person in the reference, for alignment; None looks for it.

    Returns:
        Conditions: at `size`.

    Raises:
        ValueError: no person in any frame; no face for face patches; alignment that cannot work.
    """
    rows, repeats = np.unique(driving.rows, return_inverse=True)
    track = _find_person(driving, rows, config, face=face, cache_dir=cache_dir)
    placement = Placement(published_crop(driving.size, size, face=face))
    aligned = track
    if config.align != "none" and track is not None:
        person = person or _find_reference(reference, config)
        aligned, report = _align(track, reference, person)
        placement = Placement(published_crop(reference.shape, size, face=face), report)
    placed = aligned.transform(placement.crop) if aligned is not None else None
    acted: Acted | None = None
    if config.puppet_face and face:
        assert placed is not None
        assert person is not None
        acted = act(placed, _placed_body(person, placement.crop, reference.shape))
        placed = acted.track
    skeletons: Iterable[np.ndarray]
    if driving.kind == "pose":
        read = read_frames(driving.path, rows.tolist())
        skeletons = (placement.image(frame, interpolation="bilinear") for frame in read)
    else:
        assert placed is not None
        people = zip(placed.body, placed.hands, strict=True)
        skeletons = (draw_pose(body, hands, size=size, head=config.head) for body, hands in people)
    drawn = _collect(skeletons, repeats, size=size, channels=3)
    patches = None
    if face:
        assert placed is not None
        assert driving.face_video is not None
        pictures: Iterable[np.ndarray] = (
            acted.pictures
            if acted is not None
            else (placement.image(frame) for frame in read_frames(driving.face_video, driving.video_frames(rows)))
        )
        pairs = iter_face_patches(pictures, placed.face, size=size)
        patches = _collect((np.concatenate(pair, axis=-1) for pair in pairs), repeats, size=size, channels=6)
    return Conditions(drawn, patches, placement, track.summary if track else None, track)


def _placed_body(person: Person, crop: CropResize, shape: tuple[int, ...]) -> np.ndarray:
    """(18, 3) body of the person in the reference picture, in px of the video."""
    still = PoseTrack(
        body=person.body[None], hands=person.hands[None], face=person.face[None], size=(shape[0], shape[1]),
        times=np.zeros(1), frame_index=np.zeros(1, np.int64),
    )  # fmt: skip
    return still.transform(crop).body[0]


def _collect(
    pictures: Iterable[np.ndarray], repeats: np.ndarray, *, size: tuple[int, int], channels: int
) -> np.ndarray:
    """Pictures of distinct frames -> one per output frame, (T, H, W, channels), written in place as they come."""
    shape = (len(repeats), *size, channels)
    if np.prod(shape, dtype=np.int64) <= IN_MEMORY_BYTES:
        collected = np.empty(shape, np.uint8)
    else:  # a long video: a nameless temporary file, of which the system holds in memory what it can
        with tempfile.TemporaryFile() as file:
            collected = np.memmap(file, np.uint8, "w+", shape=shape)
    for number, picture in enumerate(pictures):
        collected[repeats == number] = picture
    return collected


def driving_pictures(driving: Driving, placement: Placement) -> Iterator[np.ndarray | None]:
    """The driving person at the video's size, one per output frame; None where there are no pictures of a person."""
    if driving.face_video is None:
        yield from (None for _ in driving.rows)
    else:
        for frame in read_frames(driving.face_video, driving.video_frames(driving.rows)):
            yield placement.image(frame)


def _find_person(
    driving: Driving, rows: np.ndarray, config: InferConfig, *, face: bool, cache_dir: Path | None
) -> PoseTrack | None:
    if driving.track is not None:
        return driving.track.select(rows)
    if driving.face_video is None or (driving.kind == "pose" and not face):
        return None
    with tqdm(desc="finding the person", unit="frame") as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return perceive(
            driving.face_video,
            frame_indices=rows,
            backend=config.pose_backend,
            person=config.person,
            cache_dir=cache_dir,
            progress=advance,
            smooth=OneEuro() if config.smooth else None,
            max_gap=config.max_gap,
        )


def _find_reference(reference: np.ndarray, config: InferConfig) -> Person:
    people = get_backend(config.pose_backend).detect(reference)
    if not people:
        raise PerceptionError(
            "no person was found in the reference picture, so there is nothing to align to (--align); leave it out, or "
            "give the person's key points with --ref-keypoints"
        )
    return people[0]


def read_person(path: Path, size: tuple[int, ...]) -> Person:
    """The person in a reference picture, from a file instead of a detector.

    Args:
        path: key points (.npz); the first frame counts.
        size: (H, W) of the picture, px.

    Returns:
        Person: with the box around its body.

    Raises:
        UsageError: the file is missing, belongs to another size, or its first frame shows nobody.
    """
    if not path.exists():
        raise UsageError(f"--ref-keypoints {path}: no such file; expected key points of the picture (.npz)")
    track = PoseTrack.load(path)
    seen = track.body[0, track.body[0, :, 2] > 0, :2]
    if track.size != tuple(size) or not len(seen):
        who = "somebody" if len(seen) else "nobody"
        raise UsageError(
            f"--ref-keypoints {path} shows {who} in a picture of {track.size[0]}x{track.size[1]} (HxW); expected a "
            f"person in one of {size[0]}x{size[1]}, the size of --ref"
        )
    box = np.concatenate([seen.min(axis=0), seen.max(axis=0)])
    return Person(body=track.body[0], hands=track.hands[0], face=track.face[0], box=box, score=1.0)


def _align(track: PoseTrack, reference: np.ndarray, person: Person) -> tuple[PoseTrack, AlignmentReport]:
    height, width = reference.shape[:2]
    aligned, report = align_track(track, person, size=(height, width))
    print(f"alignment: {report}")
    for note in report.warnings:
        print(f"warning: {note}")
    if not report.usable:
        raise PerceptionError(
            f"the driving person cannot be aligned well enough to the reference (score {report.score:.2f}); choose "
            "another picture or driving video, or leave out --align"
        )
    return aligned, report
