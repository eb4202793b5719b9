"""Control images of an animation: skeletons and face patches at the size of the video."""

import dataclasses
import hashlib
import importlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch

from xdyna.config.infer import InferConfig
from xdyna.core.errors import UsageError
from xdyna.core.progress import Watch
from xdyna.core.scratch import drop_pages, mapped
from xdyna.media.image import CropResize
from xdyna.media.video import read_frames
from xdyna.perception.align import AlignmentReport
from xdyna.perception.base import get_backend
from xdyna.perception.draw import draw_styled
from xdyna.perception.errors import PerceptionError
from xdyna.perception.face_patch import iter_face_patches
from xdyna.perception.retarget import fit_track
from xdyna.perception.smooth import OneEuro
from xdyna.perception.track import track_person
from xdyna.perception.types import PerceptionSummary, Person, PoseTrack
from xdyna.pipelines.crop import published_crop
from xdyna.pipelines.plan import Plan

IN_MEMORY_BYTES = 8 * 2**20  # control images beyond this go to a temporary file
Interpolation = Literal["area", "bilinear"]


@dataclass(frozen=True)
class Placement:
    """How driving images and keypoints get into the video's image.

    Attributes:
        crop: from the images (from the reference image, where `alignment` is used) to the video.
        alignment: from the driving person to the one in the reference image; None leaves the person where it is.
        heads: (T, 3) scale, x, y: where the head of each distinct frame goes instead, see `xdyna.perception.retarget`.
    """

    crop: CropResize
    alignment: AlignmentReport | None = None
    heads: np.ndarray | None = None

    @property
    def label(self) -> str:
        """What `image` shows, for people: of bones that were fitted one by one it cannot show the place."""
        one_by_one = self.alignment is not None and self.alignment.mode == "bones"
        return "driving, by one scale" if one_by_one else "driving"

    def image(self, frame: np.ndarray, *, interpolation: Interpolation = "area") -> np.ndarray:
        """A driving image at the video's size, uint8 (H, W, 3)."""
        return self.crop.image(self.alignment.image(frame) if self.alignment else frame, interpolation=interpolation)

    def head_image(self, frame: np.ndarray, row: int) -> np.ndarray:
        """A driving image whose head is where the track has it; `row`: number of the distinct frame."""
        if self.heads is None or self.alignment is None:
            return self.image(frame)
        scale, x, y = self.heads[row].tolist()
        return dataclasses.replace(
            self, alignment=dataclasses.replace(self.alignment, scale=scale, offset=(x, y))
        ).image(frame)


@dataclass(frozen=True)
class Placed:
    """A driving track that was brought into the video's image.

    Attributes:
        track: of the distinct frames, in px of the video; None for pose videos.
        placement: how.
        person: in the reference image; None where it is not known.
    """

    track: PoseTrack | None
    placement: Placement
    person: Person | None


@dataclass(frozen=True)
class Conditions:
    """Control images of a clip.

    Attributes:
        pose: uint8 (T, H, W, 3).
        face: uint8 (T, H, W, 6) local and global face patch, or None.
        placement: how the driving images were placed.
        summary: what perception found; None when it did not run.
        track: keypoints in the coordinates of the driving file; None for pose videos.
    """

    pose: np.ndarray
    face: np.ndarray | None
    placement: Placement
    summary: PerceptionSummary | None
    track: PoseTrack | None

    def digest(self) -> str:
        """A hash of all control images: whatever made them, the same images give the same video."""
        digest = hashlib.blake2b(digest_size=16)
        for pictures in (self.pose, self.face):
            for number, frame in enumerate(pictures if pictures is not None else ()):
                digest.update(np.ascontiguousarray(frame).data)
                if number % 32 == 0:
                    drop_pages()
        return digest.hexdigest()


@dataclass(frozen=True)
class ActedFaces:
    """Faces that were made for a track.

    Attributes:
        track: with the landmarks of these faces, in px of the video.
        frames: uint8 (T, H, W, 3), of use around the face only.
    """

    track: PoseTrack
    frames: np.ndarray


class FaceSource(Protocol):
    """Makes the faces that the face ControlNet sees, in place of the driving video's own (`face_source`)."""

    def __call__(self, track: PoseTrack, reference: np.ndarray, *, history: PoseTrack | None = None) -> ActedFaces:
        """Make them.

        Args:
            track: the driving person, T frames, fitted to the reference, in px of the video.
            reference: (18, 3) body of the person in the reference, in px of the video.
            history: frames before these, of a live animation; None for none.

        Raises:
            NoFaceError: there is no face to follow.
        """


def face_source(name: str) -> FaceSource:
    """The face source of a dotted name.

    Raises:
        UsageError: there is none of that name.
    """
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
        if not (isinstance(found, type) and any("__call__" in kind.__dict__ for kind in found.__mro__)):
            raise ValueError(f"{attribute} is no class of face sources")  # before anything of it is called
        return found()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UsageError(
            f"face_source={name}: {error}; expected the dotted name of a class like xdyna.puppets.actor.PuppetFaces"
        ) from error


def perceive(plan: Plan, *, cache_dir: Path | None = None, watch: Watch | None = None) -> PoseTrack | None:
    """The track that an animation is driven by: that of its keypoint file, or of `track_person` in its driving video.

    Args:
        plan: the animation.
        cache_dir: where keypoints are cached; None for the default folder.
        watch: told of each frame as "finding the person".

    Returns:
        PoseTrack: of the distinct frames that are used, in px of the driving file; None for a pose video whose faces
        are not needed.

    Raises:
        PerceptionError: no person in any frame, or a backend that is not there.
    """
    driving, settings, watch = plan.driving, plan.settings, watch or Watch()
    rows = np.unique(driving.rows)
    if driving.track is not None:
        return driving.track.select(rows)
    if driving.face_video is None or (driving.kind == "pose" and not plan.face):
        return None
    return track_person(
        driving.face_video,
        frame_indices=rows,
        backend=settings.pose_backend,
        person=settings.person,
        crowd=settings.crowd,
        cache_dir=cache_dir,
        progress=lambda done, total: watch.step("finding the person", done, total),
        smooth=OneEuro() if settings.smooth else None,
        max_gap=settings.max_gap,
        fps=driving.source_fps,
    )


def place(track: PoseTrack | None, plan: Plan, *, watch: Watch | None = None) -> Placed:
    """Bring a driving track into the video's image: fitted to the reference where `align` asks for it, and cropped.

    Args:
        track: what `perceive` gave.
        plan: the animation.
        watch: told of the alignment, and where the person in the reference is not known.

    Returns:
        Placed: of the distinct frames.

    Raises:
        PerceptionError: alignment that cannot work.
    """
    settings, watch = plan.settings, watch or Watch()
    crop = published_crop(plan.driving.size, plan.size, face=plan.face)
    if settings.align == "none" or track is None:
        placed = track.transform(crop) if track is not None else None
        return Placed(placed, Placement(crop), plan.person)
    person = plan.person or find_reference(plan.reference, settings)
    height, width = plan.reference.shape[:2]
    fit = fit_track(track, person, size=(height, width), mode=settings.align)
    watch.say(f"alignment: {fit.report}")
    for note in fit.report.warnings:
        if note not in fit.report.mismatches:  # suitability tells these
            watch.say(f"warning: {note}")
    if not fit.report.usable and not plan.request.force:
        raise PerceptionError(
            f"the driving person cannot be aligned well enough to the reference (score {fit.report.score:.2f}); choose "
            "another picture or driving video, leave out --align, or give --force"
        )
    return Placed(fit.track.transform(plan.crop), Placement(plan.crop, fit.report, fit.heads), person)


def prepare(
    track: PoseTrack | None,
    plan: Plan,
    *,
    watch: Watch | None = None,
    folder: Path | None = None,
    placed: Placed | None = None,
) -> Conditions:
    """Control images of every output frame: pose maps and face patches, aligned and drawn.

    Args:
        track: what `perceive` gave.
        plan: the animation.
        watch: told of the alignment, and of frames without a person.
        folder: where images beyond `IN_MEMORY_BYTES` go, in nameless files; None for the system's temporary folder.
        placed: what `place` gave for them; None to call it here.

    Returns:
        Conditions: at the video's size.

    Raises:
        ValueError: no face for face patches; alignment that cannot work.
    """
    driving, settings, size, watch = plan.driving, plan.settings, plan.size, watch or Watch()
    rows, repeats = np.unique(driving.rows, return_inverse=True)
    placed = placed or place(track, plan, watch=watch)
    moved, placement = placed.track, placed.placement
    if moved is not None:
        parts = () if placement.alignment else ("person", "face") if plan.face else ("person",)
        for note in _gaps(moved, np.bincount(repeats), parts):
            watch.say(f"warning: {note}")
    acted: ActedFaces | None = None
    if settings.face_source is not None and plan.face:
        assert moved is not None
        assert placed.person is not None
        body = placed_body(placed.person, placement.crop, plan.reference.shape)
        acted = face_source(settings.face_source)(moved, body)
        moved = acted.track
    pose = _collect(_pose_maps(plan, placement, moved, rows), repeats, size=size, channels=3, folder=folder)
    face = None
    if plan.face:
        assert moved is not None
        frames = acted.frames if acted is not None else _driving_frames(plan, placement, rows)
        pairs = iter_face_patches(frames, moved.face, size=size)
        patches = (np.concatenate(pair, axis=-1) for pair in pairs)
        face = _collect(patches, repeats, size=size, channels=6, folder=folder)
    return Conditions(pose, face, placement, track.summary if track else None, track)


def _gaps(track: PoseTrack, counts: np.ndarray, parts: Sequence[str]) -> Iterator[str]:
    """What a track in px of the video does not show, a sentence each; `parts` are looked for outside of the image."""
    if (missing := ~track.found).any():
        yield (
            f"nobody is seen in {track.share(missing, counts)}; their pose maps are empty, choose a part that shows "
            f"the person throughout"
        )
    for part in parts:
        points = track.face if part == "face" else track.body
        seen = points[..., 2] > 0
        within = seen & ((points[..., :2] >= -0.5) & (points[..., :2] < np.array(track.size[::-1]) - 0.5)).all(axis=-1)
        outside = seen.any(axis=1) & ~within.any(axis=1)
        if outside.any():
            yield (
                f"the crop leaves the {part} out of {track.share(outside, counts)}; give --align, or a --size whose "
                f"aspect is that of the driving video"
            )


def some_pose_maps(plan: Plan, placed: Placed, rows: np.ndarray, numbers: np.ndarray) -> Iterator[np.ndarray]:
    """Pose maps of some of the distinct frames.

    Args:
        plan: the animation.
        placed: the driving track in the video's image.
        rows: (N,) frame numbers in the driving file.
        numbers: (N,) of the distinct frames.

    Yields:
        uint8 (H, W, 3), as the network will see them.
    """
    track = placed.track
    yield from _pose_maps(plan, placed.placement, track.select(numbers) if track is not None else None, rows)


def _pose_maps(plan: Plan, placement: Placement, placed: PoseTrack | None, rows: np.ndarray) -> Iterator[np.ndarray]:
    if plan.driving.kind == "pose":
        for frame in read_frames(plan.driving.path, rows.tolist()):
            yield placement.image(frame, interpolation="bilinear")
        return
    assert placed is not None
    for person in zip(placed.body, placed.hands, placed.face, strict=True):
        yield draw_styled(*person, size=plan.size, style=plan.checkpoint.contract.pose)


def _driving_frames(plan: Plan, placement: Placement, rows: np.ndarray) -> Iterator[np.ndarray]:
    assert plan.driving.face_video is not None
    for row, frame in enumerate(read_frames(plan.driving.face_video, plan.driving.video_frames(rows))):
        yield placement.head_image(frame, row)


def placed_body(person: Person, crop: CropResize, shape: tuple[int, ...]) -> np.ndarray:
    """(18, 3) body of a person in the reference image, in px of the video. Args: shape: (H, W, ...) of that image."""
    still = PoseTrack(
        body=person.body[None], hands=person.hands[None], face=person.face[None], size=(shape[0], shape[1]),
        times=np.zeros(1), frame_index=np.zeros(1, np.int64),
    )  # fmt: skip
    return still.transform(crop).body[0]


def _collect(
    pictures: Iterable[np.ndarray], repeats: np.ndarray, *, size: tuple[int, int], channels: int, folder: Path | None
) -> np.ndarray:
    """Images of distinct frames -> one per output frame, (T, H, W, channels), written in place as they come."""
    shape = (len(repeats), *size, channels)
    if np.prod(shape, dtype=np.int64) <= IN_MEMORY_BYTES:
        collected = np.empty(shape, np.uint8)
    else:
        with tempfile.TemporaryFile(dir=folder) as file:
            collected = mapped(file, shape, torch.uint8).numpy()
    for number, picture in enumerate(pictures):
        collected[repeats == number] = picture
        if number % 32 == 0:
            drop_pages()
    return collected


def find_reference(reference: np.ndarray, config: InferConfig) -> Person:
    """The largest person in a reference image, by the detector of the settings.

    Raises:
        PerceptionError: nobody is found.
    """
    people = get_backend(config.pose_backend).detect(reference)
    if not people:
        raise PerceptionError(
            "no person was found in the reference picture, so there is nothing to align to (--align); leave it out, or "
            "give the person's keypoints with --ref-keypoints"
        )
    return people[0]


def look_for_reference(plan: Plan, watch: Watch) -> Person | None:
    """The person in the reference where one is known or found; else None. That nobody can look is said."""
    if plan.person is not None or plan.searched:
        return plan.person
    try:
        people = get_backend(plan.settings.pose_backend).detect(plan.reference)
    except (PerceptionError, OSError) as error:  # the package or its models are missing, or cannot be unpacked
        watch.say(f"note: the reference was not searched for a person: {error}")
        return None
    return people[0] if people else None
