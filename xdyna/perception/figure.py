"""A person in T frames as points that can be measured: what alignment, retargeting and suitability look at."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from xdyna.perception.draw import CONFIDENCE
from xdyna.perception.errors import PerceptionError
from xdyna.perception.topology import LEFT_HIP, LEFT_SHOULDER, NECK, RIGHT_HIP, RIGHT_SHOULDER
from xdyna.perception.types import Person, missing_points

# Points of a figure: 18 body joints, 68 face landmarks, the middle of the hips, the lower one of the ankles.
FACE, MID_HIP, FOOT = 18, 86, 87
LEGS = ((8, 9, 10), (11, 12, 13))
"""Hip, knee and ankle of each leg."""
EXTENTS = (
    ("the head", (0, 14, 15, 16, 17, *range(FACE, MID_HIP))),
    ("the shoulders", (2, 5)),
    ("the hips", (8, 11)),
    ("the knees", (9, 12)),
    ("the feet", (10, 13)),
)
"""Parts of a person from above to below, and the points that show them."""
LENGTH_QUANTILE = 0.75
"""Of lengths over a clip; higher makes scales too small: the reference's limbs are foreshortened as well."""
STANDING, FOLDED = 0.6, 0.4
"""Heights of the legs' parts in torso lengths above which somebody stands, and below which not."""
FACING = 0.25
"""Shoulders' horizontal distance in torso lengths above which front and back are told apart."""


class Figure(NamedTuple):
    """A person in T frames: `xy` (T, 88, 2) float64 px and `seen` (T, 88) bool, in the order of the constants above."""

    xy: np.ndarray
    seen: np.ndarray

    def length(self, start: int, end: int) -> np.ndarray:
        """(N,) distances in px in the frames in which both points are seen."""
        rows = self.seen[:, start] & self.seen[:, end]
        return np.linalg.norm(self.xy[rows, start] - self.xy[rows, end], axis=1)


def reference_figure(reference: Person | np.ndarray) -> Figure:
    """The reference as a figure of one frame, or an error."""
    body, face = (reference.body, reference.face) if isinstance(reference, Person) else (reference, missing_points(68))
    for points, count in ((body, 18), (face, 68)):
        points = np.asarray(points)
        fits = points.shape == (count, 3) and points.dtype.kind in "fiu" and bool(np.isfinite(points).all())
        if not fits or np.abs(points[:, :2]).max() > 1e6:
            raise PerceptionError(
                f"keypoints of the reference have shape {points.shape} and type {points.dtype}; expected finite "
                f"({count}, 3): x px, y px (below 1e6), confidence"
            )
    figure = figure_of(np.asarray(body)[None], np.asarray(face)[None])
    if not figure.seen.any():
        raise PerceptionError(
            f"the reference image shows no joint with a confidence of {CONFIDENCE} or more; "
            f"choose an image that shows one person large and well lit, or run without alignment"
        )
    return figure


def figure_of(body: np.ndarray, face: np.ndarray) -> Figure:
    """Body (T, 18, 3) and face (T, 68, 3) as a figure."""
    body_seen = body[..., 2] >= CONFIDENCE
    face_seen = np.repeat((face[..., 2].mean(axis=1) >= CONFIDENCE)[:, None], 68, axis=1) & (face[..., 2] > 0)
    xy = np.concatenate([body[..., :2], face[..., :2]], axis=1).astype(np.float64)
    shoulders, hips, ankles = [RIGHT_SHOULDER, LEFT_SHOULDER], [RIGHT_HIP, LEFT_HIP], [10, 13]
    # The neck of a body is the middle of its shoulders (see the maps in topology.py), so it can stand in.
    stand_in = ~body_seen[:, NECK] & body_seen[:, shoulders].all(axis=1)
    xy[stand_in, NECK] = xy[stand_in][:, shoulders].mean(axis=1)
    body_seen[:, NECK] |= stand_in
    lower = np.argmax(np.where(body_seen[:, ankles], xy[:, ankles, 1], -np.inf), axis=1)
    foot = xy[np.arange(len(xy)), np.array(ankles)[lower]]
    xy = np.concatenate([xy, xy[:, hips].mean(axis=1, keepdims=True), foot[:, None]], axis=1)
    added = np.stack([body_seen[:, hips].all(axis=1), body_seen[:, ankles].any(axis=1)], axis=1)
    seen = np.concatenate([body_seen, face_seen, added], axis=1)
    return Figure(xy=xy, seen=seen)


def high_quantile(values: np.ndarray, *, quantile: float = LENGTH_QUANTILE, slack: float | None = None) -> float:
    """A high quantile of (N,) values that detections gone wrong in a part of the frames do not raise.

    Values above the median by more than 3 standard deviations (estimated from the median deviation) and `slack` (5 % of
    the median unless given) do not count.
    """
    median = float(np.median(values))
    deviation = 1.4826 * float(np.median(np.abs(values - median)))
    limit = median + 3 * deviation + (0.05 * median if slack is None else slack)
    return float(np.quantile(values[values <= limit], quantile))


def resting_place(points: np.ndarray) -> np.ndarray:
    """Where (N, 2) points mostly are: the median of the half that is nearest to the median of all."""
    distance = np.linalg.norm(points - np.median(points, axis=0), axis=1)
    return np.median(points[distance <= np.median(distance)], axis=0)


def extent_of(figure: Figure) -> int:
    """Number of the lowest part that is seen in at least half of the frames; 0 if none is."""
    shares = [figure.seen[:, list(points)].any(axis=1).mean() for _, points in EXTENTS]
    return max((row for row, share in enumerate(shares) if share >= 0.5), default=0)


def leg_height(figure: Figure) -> float:
    """Typical height of the lower of thigh and shin, in the straighter leg, in torso lengths; NaN if not seen.

    About 0.8 when standing; near 0 for the thigh when sitting and for the shin when kneeling.
    """
    torso = figure.length(NECK, MID_HIP)
    legs = []
    for hip, knee, ankle in LEGS:
        thigh = figure.xy[:, knee, 1] - figure.xy[:, hip, 1]
        shin = np.where(figure.seen[:, ankle], figure.xy[:, ankle, 1] - figure.xy[:, knee, 1], np.inf)
        legs.append(np.where(figure.seen[:, hip] & figure.seen[:, knee], np.minimum(thigh, shin), -np.inf))
    best = np.max(legs, axis=0)
    best = best[np.isfinite(best)]
    measured = len(best) and len(torso) and high_quantile(torso) > 0
    return float(np.median(best)) / high_quantile(torso) if measured else math.nan


def facing_of(figure: Figure) -> np.ndarray:
    """(T,) 1 where the left shoulder is clearly on the image's right: the front is seen; -1 for the back, else 0."""
    torso, shoulders = figure.length(NECK, MID_HIP), figure.length(RIGHT_SHOULDER, LEFT_SHOULDER)
    unit = high_quantile(torso) if len(torso) else high_quantile(shoulders) if len(shoulders) else 0.0
    across = figure.xy[:, LEFT_SHOULDER, 0] - figure.xy[:, RIGHT_SHOULDER, 0]
    clear = figure.seen[:, [RIGHT_SHOULDER, LEFT_SHOULDER]].all(axis=1) & (np.abs(across) > FACING * unit)
    return np.where(clear, np.sign(across), 0)


def share_turned(driving: Figure, target: Figure) -> float:
    """Share of the frames with a clear front or back in which left and right are the other way round."""
    facing, wanted = facing_of(driving), facing_of(target)[0]
    return float((facing[facing != 0] * wanted < 0).mean()) if facing.any() else 0.0


def postures_differ(driving: Figure, target: Figure) -> bool:
    """Whether one clearly stands and the other does not."""
    ours, theirs = leg_height(driving), leg_height(target)
    return min(ours, theirs) < FOLDED and max(ours, theirs) > STANDING
