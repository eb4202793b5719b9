"""The look before anything slow: do the image and the video fit, and what will the networks see?"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from xdyna.config.infer import InferConfig
from xdyna.core.progress import Watch
from xdyna.media.image import write_png
from xdyna.media.sheet import contact_sheet
from xdyna.page.words import FORCE
from xdyna.perception.errors import NoFaceError
from xdyna.pipelines.controls import perceive, prepare
from xdyna.pipelines.examine import examined
from xdyna.pipelines.folder import Checkpoint
from xdyna.pipelines.plan import Plan, Request, plan_animation

LOOKED = 12  # frames in which the person is looked for; the share without one is of these
SHOWN = 4  # of them in the preview
_HEIGHT = 256  # px of an image of the preview
_OUTSIDE = 0.35  # brightness of what the crop leaves out
_BOX = (255, 196, 0)


@dataclass(frozen=True)
class Look:
    """What was found.

    Attributes:
        image: uint8 (H, W, 3): the reference with its crop, and skeletons on it.
        notes: sentences about the inputs, warnings among them as "warning: ...".
    """

    image: np.ndarray = field(repr=False)
    notes: list[str]

    def write(self, path: Path) -> Path:
        """Write the image. Args: path: of a PNG file."""
        return write_png(path, self.image)


def look_at(request: Request, settings: InferConfig, checkpoint: Checkpoint, *, cache_dir: Path) -> Look:
    """Plan an animation, find the person in some frames, judge how well the two fit and draw what comes of it.

    Nothing is refused here: that one may see why. Alignment that cannot work is, unless it is forced.

    Args:
        request: files that go in.
        settings: of the animation.
        checkpoint: whose size and style count; its weights are not read.
        cache_dir: where keypoints are cached.

    Raises:
        ValueError: inputs that cannot be used; the message says what to do.
    """
    notes: list[str] = []
    plan = plan_animation(request, settings, checkpoint)
    notes += plan.notes
    rows = plan.driving.rows
    chosen = np.unique(np.linspace(0, len(rows) - 1, LOOKED).round().astype(int))
    short = dataclasses.replace(plan, driving=dataclasses.replace(plan.driving, rows=rows[chosen]))
    watch = Watch(tell=notes.append)
    track = perceive(short, cache_dir=cache_dir, watch=watch)
    placed, suits = examined(short, track, watch=watch, overwrite=False)
    notes[:0] = suits.lines()
    if suits.verdict == "refuse":
        notes.insert(0, f"warning: they do not fit, so nothing is animated without “{FORCE}”")
    try:
        conditions = prepare(track, short, watch=watch, placed=placed)
    except NoFaceError as error:
        notes.append(f"warning: without face control: {error}")
        plan, short = plan.without_face(), short.without_face()
        conditions = prepare(track, short, watch=watch)
    if conditions.summary is not None:
        found = conditions.summary.found
        notes.append(f"the person was found in {found} of the {len(chosen)} frames that were looked at")
    shown = np.linspace(0, len(chosen) - 1, SHOWN).round().astype(int)
    return Look(_drawn(plan, conditions.pose[shown], rows[chosen[shown]]), list(dict.fromkeys(notes)))


def _drawn(plan: Plan, poses: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The whole reference with what the crop keeps, and the skeletons of these driving frames on what is kept."""
    left, top, across, down = plan.crop.box
    whole = plan.reference.astype(np.float32) * _OUTSIDE
    whole[top : top + down, left : left + across] = plan.reference[top : top + down, left : left + across]
    whole = np.ascontiguousarray(whole.round().astype(np.uint8))
    line = max(1, max(whole.shape) // 128)
    cv2.rectangle(whole, (left, top), (left + across - 1, top + down - 1), _BOX, line)
    fitted = plan.fitted()
    laid = [np.where(pose.any(axis=-1, keepdims=True), pose, fitted // 2 + 32) for pose in poses]
    captions = [f"driving frame {row}" for row in rows]
    return contact_sheet(
        {"your image and its crop": [whole], "": laid}, columns=len(laid), cell_height=_HEIGHT, captions=captions
    )
