"""Looking at an animation before it is made: fitting, suitability, and one image of what would be animated."""

from pathlib import Path

import cv2
import numpy as np

from xdyna.core.progress import Watch
from xdyna.media.image import write_png
from xdyna.media.sheet import contact_sheet
from xdyna.media.video import read_frames
from xdyna.perception.draw import draw_pose
from xdyna.perception.errors import PerceptionError
from xdyna.perception.types import Person, PoseTrack
from xdyna.pipelines import crop as crops
from xdyna.pipelines.controls import Placed, look_for_reference, perceive, place, some_pose_maps
from xdyna.pipelines.plan import Plan
from xdyna.pipelines.suitability import Suitability, assess

_COLUMNS = 6
_CELL = (192, 384)  # px: smallest and largest height of a cell
_DIM = 0.45  # brightness of images under a skeleton


def examine(
    plan: Plan, *, cache_dir: Path | None = None, watch: Watch | None = None, overwrite: bool = False
) -> Suitability:
    """Say how well image and driving suit each other, and draw the preview that is asked for: what `--dry-run` does.

    Args:
        plan: the animation.
        cache_dir: where keypoints are cached; None for the default folder.
        watch: told of the frames in which the person is looked for, and of the alignment.
        overwrite: whether an existing preview may be replaced.

    Returns:
        Suitability: "unknown", too, where perception or alignment cannot be had; nothing is refused here.
    """
    try:
        track = perceive(plan, cache_dir=cache_dir, watch=watch)
        return examined(plan, track, watch=watch or Watch(), overwrite=overwrite)[1]
    except PerceptionError as error:
        return Suitability((), str(error))


def examined(plan: Plan, track: PoseTrack | None, *, watch: Watch, overwrite: bool) -> tuple[Placed, Suitability]:
    """Fit a driving track to the reference, compare the two, and draw the preview that is asked for.

    Args:
        plan: the animation.
        track: what `perceive` gave.
        watch: told of the alignment.
        overwrite: whether an existing preview may be replaced.

    Returns:
        The track in the video's image, and how well the two suit each other.

    Raises:
        PerceptionError: alignment that cannot work.
    """
    placed = place(track, plan, watch=watch)
    person = placed.person or (look_for_reference(plan, watch) if track is not None else None)
    alignment = placed.placement.alignment
    _, counts = np.unique(plan.driving.rows, return_counts=True)
    suits = assess(
        track,
        person,
        placed=placed.track,
        shape=plan.reference.shape,
        crop=plan.crop,
        aligned=alignment.scale if alignment is not None else None,
        counts=counts,
    )
    if plan.request.preview is not None:
        write_png(plan.request.preview, preview(plan, placed, person), overwrite=overwrite)
    return placed, suits


def preview(plan: Plan, placed: Placed, person: Person | None) -> np.ndarray:
    """Reference with its skeleton and the crop; driving frames; the reference under the skeletons that will drive it.

    Args:
        plan: the animation.
        placed: the driving track in the video's image.
        person: in the reference, where it is known.

    Returns:
        uint8 (H, W, 3).
    """
    distinct, used = np.unique(plan.driving.rows, return_index=True)
    picks = np.linspace(0, len(distinct) - 1, min(_COLUMNS, len(distinct))).round().astype(int)
    rows = {"reference": [_reference(plan, person)]}
    fitted = plan.fitted()
    poses = some_pose_maps(plan, placed, distinct[picks], picks)
    if plan.driving.face_video is not None:
        frames = read_frames(plan.driving.face_video, plan.driving.video_frames(distinct[picks]))
        rows[placed.placement.label] = [placed.placement.image(frame) for frame in frames]
    rows["skeleton on reference"] = [over(fitted, pose) for pose in poses]
    captions = [f"{used[k] / float(plan.driving.fps):.2f} s" for k in picks]
    height = int(np.clip(plan.size[0], *_CELL))
    return contact_sheet(rows, columns=_COLUMNS, cell_height=height, captions=captions)


def over(image: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """A pose map over a dimmed image. Args: image, pose: uint8 (H, W, 3). Returns: the same shape."""
    dimmed = (image * _DIM).astype(np.uint8)
    return np.where(pose.any(axis=-1, keepdims=True), pose, dimmed)


def _reference(plan: Plan, person: Person | None) -> np.ndarray:
    image = plan.reference
    size = (image.shape[0], image.shape[1])
    if person is not None:
        image = over(image, draw_pose(person.body, person.hands, size=size, head=True))
    image = np.ascontiguousarray(image).copy()
    if not crops.is_whole(plan.crop, size):
        left, top, width, height = plan.crop.box
        line = max(2, min(size) // 200)
        cv2.rectangle(image, (left, top), (left + width - 1, top + height - 1), (255, 255, 255), line)
    return image
