"""Bring a driving person to the size and place of the person in a reference image.

One similarity x' = scale * x + offset for the whole clip: no rotation, and one scale for both axes, so the driving
person's proportions and movements are kept and no limb can grow long.

Scale: each segment (torso, shoulders, limbs, face) has a length in the reference and one in the clip, a high quantile
over the frames in which both ends are seen, because turning away only shortens a segment. The scale is the weighted
60 % quantile of their ratios: the median, but for the reference's own turning. The face weighs little.

Offset: the neck's resting place in the clip goes to the neck in the reference (else the middle of the hips, the nose,
or the steadiest joint that both show). Where both stand with their feet in view and the ground under them agrees with
that, the ground decides the height: knees that bend then do not lift the feet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import cv2
import numpy as np

from xdyna.media import CropResize
from xdyna.perception.draw import CONFIDENCE
from xdyna.perception.errors import PerceptionError
from xdyna.perception.figure import (
    EXTENTS,
    FACE,
    FOOT,
    MID_HIP,
    Figure,
    extent_of,
    figure_of,
    high_quantile,
    leg_height,
    postures_differ,
    reference_figure,
    resting_place,
    share_turned,
)  # fmt: skip
from xdyna.perception.topology import BODY_JOINTS, LEFT_HIP, LEFT_SHOULDER, NECK, NOSE, RIGHT_HIP, RIGHT_SHOULDER
from xdyna.perception.types import Person, PoseTrack

_ANCHORS = (NECK, MID_HIP, NOSE, 2, 5, 8, 11, *range(14, 18), *range(FACE, MID_HIP), 9, 12, 10, 13, 3, 6, 4, 7)
_LEG_SEGMENTS = ("thigh", "shin", "foot")

_SEGMENTS = {
    "torso": (NECK, MID_HIP, 2.0), "shoulders": (RIGHT_SHOULDER, LEFT_SHOULDER, 2.0),
    "neck to right hip": (NECK, RIGHT_HIP, 1.0), "neck to left hip": (NECK, LEFT_HIP, 1.0),
    "right shoulder": (NECK, RIGHT_SHOULDER, 0.5), "left shoulder": (NECK, LEFT_SHOULDER, 0.5),
    "hips": (RIGHT_HIP, LEFT_HIP, 1.0), "neck to foot": (NECK, FOOT, 4.0), "neck to nose": (NECK, NOSE, 1.0),
    "right upper arm": (2, 3, 1.0), "right forearm": (3, 4, 0.5),
    "left upper arm": (5, 6, 1.0), "left forearm": (6, 7, 0.5),
    "right thigh": (8, 9, 1.5), "right shin": (9, 10, 1.0),
    "left thigh": (11, 12, 1.5), "left shin": (12, 13, 1.0),
    "eyes": (14, 15, 0.25), "ears": (16, 17, 0.25),
    "outer eye corners": (FACE + 36, FACE + 45, 0.25), "nose bridge to chin": (FACE + 27, FACE + 8, 0.75),
}  # fmt: skip
_WEIGHTS = np.array([weight for _, _, weight in _SEGMENTS.values()])
_FULL_WEIGHT = 7.0  # torso and shoulders: enough evidence of the scale
_SHORTEST = 0.02  # of a person's longest segment; shorter ones are too coarse in px to be compared

_RATIO_QUANTILE = 0.6
_GROUND_QUANTILE = 0.9  # feet leave the ground upwards only
_ZOOM = 8.0  # the person's share of the image's height may change by no more
_GROUND_TOLERANCE = 0.1  # of neck to ground
_AGREE = 1.25  # ratios within this factor of the scale support it
_OFTEN = 0.25  # share of the frames in which an anchor must be seen
_MISMATCH = 0.6  # factor on the score for another posture or a back view
USABLE = 0.3


@dataclass(frozen=True)
class AlignmentReport:
    """What `align_track` did, and how far to trust it.

    Attributes:
        scale: factor from driving px to reference px.
        offset: (x, y) in px of the reference; x' = scale * x + offset.
        source_size: (H, W) of the driving frames, px.
        size: (H, W) of the reference image, px.
        segments: names of the segments the scale was measured on.
        anchor: name of the point that was brought into place.
        ground: whether the ground under the feet decided the height instead of the anchor.
        score: in [0, 1]; agreement of the segments, times how much was compared (square root of its weight relative to
            torso and shoulders), times the share of frames with the person, times the share of those in which it stays
            in the image; 0.6 times that for each of another posture and a back view.
        warnings: sentences for the user; empty if all is well.
        mismatches: those of them that tell of another posture or a back view, which `xdyna.pipelines.suitability` tells
            as well.
        usable: the score is at least 0.3 and the scale was not limited.
        agreement: share of the segments' weight whose ratio is near the scale.
        limited: whether the scale would have to be more than is possible.
        mode: "global", or how `xdyna.perception.retarget` went on from here: "bones", "face".
        ratios: with "bones": length of each part in the reference over that in the clip.
        frame: with "face": the frame whose head is turned most like the reference's.
    """

    scale: float
    offset: tuple[float, float]
    source_size: tuple[int, int]
    size: tuple[int, int]
    segments: tuple[str, ...]
    anchor: str
    ground: bool
    score: float
    warnings: tuple[str, ...]
    usable: bool
    agreement: float = 1.0
    limited: bool = False
    mode: str = "global"
    ratios: dict[str, float] = field(default_factory=dict)
    frame: int | None = None
    mismatches: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line for the user."""
        place = f"{self.anchor} and ground" if self.ground else self.anchor
        if self.mode == "bones":
            low, high = min(self.ratios.values()), max(self.ratios.values())
            place += f"; bones by {low:.2f} to {high:.2f}"
        elif self.mode == "face":
            place += f", scale of frame {self.frame}"
        return (
            f"driving person scaled by {self.scale:.3f}, moved by ({self.offset[0]:+.1f}, {self.offset[1]:+.1f}) px; "
            f"measured on {len(self.segments)} segments, placed by {place}; score {self.score:.2f}"
        )

    @property
    def matrix(self) -> np.ndarray:
        """(2, 3) float64, driving px to reference px, for `cv2.warpAffine(frame, matrix, (W, H))`."""
        return np.array([[self.scale, 0, self.offset[0]], [0, self.scale, self.offset[1]]])

    def image(self, frame: np.ndarray) -> np.ndarray:
        """A driving frame in the reference's image; where the frame does not reach it is black.

        Unlike one `cv2.warpAffine` this averages when reducing, so that no detail turns into noise.

        Args:
            frame: (H, W) or (H, W, C) of `source_size`, uint8 or float32.

        Returns:
            The image of `size`, same type and number of channels.

        Raises:
            PerceptionError: the frame has another size.
        """
        if frame.ndim not in (2, 3) or frame.shape[:2] != self.source_size:
            raise PerceptionError(
                f"frame has shape {frame.shape}; expected (H, W, C) with the size {self.source_size} of the aligned "
                f"track; crop frames and track alike before aligning"
            )
        matrix = self.matrix
        if self.scale < 1:
            height, width = self.source_size
            small = (max(round(height * self.scale), 1), max(round(width * self.scale), 1))
            frame = CropResize(box=(0, 0, width, height), size=small).image(frame)
            # What the resize to whole sides left over; it scales about pixel edges, not centres.
            rest = self.scale * np.array([width / small[1], height / small[0]])
            matrix = np.column_stack([np.diag(rest), np.array(self.offset) + (rest - self.scale) / 2])
        warped = cv2.warpAffine(frame, matrix, (self.size[1], self.size[0]), flags=cv2.INTER_LINEAR)
        return warped.reshape(*self.size, *frame.shape[2:])  # OpenCV drops a single channel


class _Scale(NamedTuple):
    """A scale and its evidence; `limited` is a warning, or empty."""

    value: float
    segments: tuple[str, ...]
    agreement: float
    weight: float
    limited: str


def align_track(
    track: PoseTrack, reference: Person | np.ndarray, *, size: tuple[int, int]
) -> tuple[PoseTrack, AlignmentReport]:
    """Scale and move a driving track so that its person fits the one in the reference image.

    Aligning an aligned track again changes nothing, unless the scale was limited. Points that leave the image stay in
    the track (see `PoseTrack.transform`); confidences are unchanged.

    Args:
        track: T frames of the driving person.
        reference: the person in the reference image, or its body alone, (18, 3) x px, y px, confidence; a `Person`
            also brings its face, which close-ups need.
        size: (H, W) of the reference image, px.

    Returns:
        The track in px of the reference image, and the report. A track that is not `usable` is returned all the same.

    Raises:
        PerceptionError: wrong shapes or values, nobody in the track or in the reference, or no segment that both show.
    """
    height, width = int(size[0]), int(size[1])
    if min(height, width) < 1:
        raise PerceptionError(f"size of the reference image is {size}; expected (H, W) in px, both at least 1")
    target = reference_figure(reference)
    found = track.found
    driving = figure_of(track.body[found], track.face[found])
    if not driving.seen.any():
        raise PerceptionError(
            f"none of the {len(track)} driving frames shows a joint with a confidence of {CONFIDENCE} or more; "
            f"choose a video, or a part of it, that shows one person large and well lit"
        )
    posture, facing = _posture_warning(driving, target), _facing_warning(driving, target)
    scale = _scale(driving, target, legs=not posture, zoom=track.size[0] / height)
    offset, anchor, ground = _offset(driving, target, scale=scale.value, ground=not posture)
    present = float(found.mean())
    outside = _outside(driving, target, scale=scale.value, offset=offset, size=(height, width))
    notes = (
        scale.limited,
        posture,
        facing,
        _framing_warning(driving, target),
        *_quality_warnings(scale, outside),
    )
    score = scale.agreement * min(1.0, math.sqrt(scale.weight / _FULL_WEIGHT)) * present * (1 - outside)
    score *= _MISMATCH ** (bool(posture) + bool(facing))
    report = AlignmentReport(
        scale=scale.value,
        offset=(float(offset[0]), float(offset[1])),
        source_size=track.size,
        size=(height, width),
        segments=scale.segments,
        anchor=anchor,
        ground=ground,
        score=score,
        warnings=tuple(note for note in notes if note),
        usable=score >= USABLE and not scale.limited,
        agreement=scale.agreement,
        limited=bool(scale.limited),
        mismatches=tuple(note for note in (posture, facing) if note),
    )

    def moved(points: np.ndarray) -> np.ndarray:
        xy = (scale.value * points[..., :2].astype(np.float64) + offset).clip(-1e6, 1e6)  # what a track may hold
        return np.concatenate([np.where(points[..., 2:] > 0, xy, 0), points[..., 2:]], axis=-1)

    aligned = replace(track, body=moved(track.body), hands=moved(track.hands), face=moved(track.face), size=report.size)
    return aligned, report


def _scale(driving: Figure, target: Figure, *, legs: bool, zoom: float) -> _Scale:
    """The weighted quantile of the segments' ratios.

    `zoom` is the driving image's height over the reference's; `legs` whether the legs may be compared.
    """
    ours, theirs, weights = np.zeros(len(_SEGMENTS)), np.zeros(len(_SEGMENTS)), _WEIGHTS.copy()
    for row, (name, (start, end, _)) in enumerate(_SEGMENTS.items()):
        lengths, wanted = driving.length(start, end), target.length(start, end)
        if len(lengths) and len(wanted) and (legs or not name.endswith(_LEG_SEGMENTS)):
            ours[row], theirs[row] = high_quantile(lengths), wanted[0]
            weights[row] *= len(lengths) / len(driving.xy)
    # Limits that do not depend on the driving scale: the same segments count before and after alignment.
    rows = (ours > max(_SHORTEST * ours.max(), 1e-3)) & (theirs > max(_SHORTEST * theirs.max(), 1.0))
    if not rows.any():
        raise PerceptionError(
            f"no part of the body could be compared: the reference is seen down to {EXTENTS[extent_of(target)][0]}, "
            f"the driving person down to {EXTENTS[extent_of(driving)][0]}; choose a video and an image that show the "
            f"same part of the body, or run without alignment"
        )
    logs, weights = np.log(theirs[rows] / ours[rows]), weights[rows]
    middle = _weighted_quantile(logs, weights)
    agree, value = np.abs(logs - middle) <= math.log(_AGREE), math.exp(middle)
    limited = min(max(value, 1 / (_ZOOM * zoom)), _ZOOM / zoom)
    note = (
        f"the driving person would have to be scaled by {value:.3g}, limited to {limited:.3g}: the sizes in their "
        f"images differ too much; choose a video that shows the person about as large as the reference does"
    )
    return _Scale(
        value=limited,
        segments=tuple(name for name, used in zip(_SEGMENTS, rows, strict=True) if used),
        agreement=float(weights[agree].sum() / weights.sum()),
        weight=float(weights.sum()),
        limited=note if limited != value else "",
    )


def _weighted_quantile(values: np.ndarray, weights: np.ndarray) -> float:
    """The value with `_RATIO_QUANTILE` of the weight below; midway between two values where that falls between them."""
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    low, high = np.searchsorted(total, total[-1] * _RATIO_QUANTILE * np.array([1 - 1e-9, 1 + 1e-9]))
    return float(values[order[low]] + values[order[high]]) / 2


def _offset(driving: Figure, target: Figure, *, scale: float, ground: bool) -> tuple[np.ndarray, str, bool]:
    """The offset (2,), the anchor's name, and whether the ground decided the height; `ground`: whether it may."""
    share = driving.seen.mean(axis=0) * target.seen[0]
    point = next((joint for joint in _ANCHORS if share[joint] >= _OFTEN), int(share.argmax()))
    name = (*BODY_JOINTS, *["face"] * 68, "middle of the hips", "lower foot")[point].replace("_", " ")
    offset = target.xy[0, point] - scale * resting_place(driving.xy[driving.seen[:, point], point])

    shown = driving.seen[:, FOOT]
    if not (ground and target.seen[0, FOOT] and target.seen[0, NECK]) or shown.mean() < 0.5:
        return offset, name, False
    floor = float(target.xy[0, FOOT, 1])
    body_height = abs(floor - target.xy[0, NECK, 1])
    lowest = high_quantile(driving.xy[shown, FOOT, 1], quantile=_GROUND_QUANTILE, slack=0.05 * body_height / scale)
    height = floor - scale * lowest
    if abs(height - offset[1]) > _GROUND_TOLERANCE * body_height:
        return offset, name, False
    return np.array([offset[0], height]), name, True


def _outside(driving: Figure, target: Figure, *, scale: float, offset: np.ndarray, size: tuple[int, int]) -> float:
    """Share of the frames in which most of the joints that the reference shows as well lie outside its image."""
    joints = np.flatnonzero(target.seen[0])
    xy, seen = scale * driving.xy[:, joints] + offset, driving.seen[:, joints]
    # A pixel covers half a unit on each side of its centre.
    within = ((xy >= -0.5) & (xy <= np.array([size[1], size[0]]) - 0.5)).all(axis=-1) & seen
    return float((2 * within.sum(axis=1) < seen.sum(axis=1)).mean())


def _quality_warnings(scale: _Scale, outside: float) -> list[str]:
    """Weak evidence of the scale; frames with the person outside the image."""
    notes = []
    if scale.agreement < 0.5 or scale.weight < _FULL_WEIGHT / 4:
        notes.append(
            f"the scale is a rough guess: it was measured on {', '.join(scale.segments)} alone, {scale.agreement:.0%} "
            f"of which agree; look at the pose maps, or choose a video and an image that show more of the body"
        )
    if outside > 0.05:
        notes.append(
            f"the person leaves the reference image in {outside:.0%} of the frames; choose a reference with more "
            f"room around the person, or a calmer part of the driving video"
        )
    return notes


def _framing_warning(driving: Figure, target: Figure) -> str:
    """What one of the two shows and the other does not."""
    ours, theirs = extent_of(driving), extent_of(target)
    if ours == theirs:
        return ""
    effect = (
        "what lies below is driven without an image to go by"
        if ours > theirs
        else "what lies below in the image is not driven and may vanish"
    )
    lowest = f"the reference is seen down to {EXTENTS[theirs][0]}, the driving person down to {EXTENTS[ours][0]}"
    return f"{lowest}; {effect}"


def _posture_warning(driving: Figure, target: Figure) -> str:
    """One stands and the other does not."""
    if not postures_differ(driving, target):
        return ""
    ours, theirs = leg_height(driving), leg_height(target)
    words = {True: "stands", False: "sits or kneels"}
    return (
        f"the reference {words[theirs > ours]} and the driving person {words[ours > theirs]}; their legs were not "
        f"compared, and the result may bend or stretch them; choose a video with the reference's posture"
    )


def _facing_warning(driving: Figure, target: Figure) -> str:
    """One shows the front and the other the back."""
    share = share_turned(driving, target)
    if share <= 0.5:
        return ""
    return (
        f"left and right are the other way round than in the reference in {share:.0%} of the frames that show it: "
        f"one of the two shows the back or is mirrored; choose a video that faces as the reference does"
    )
