"""Metrics of detected people: faces found, expressions, poses. One detection per frame serves them all.

Shape legend: T frames, J body joints.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from xdyna.evaluation.metric import HIGHER, LOWER, Case, Column, Metric, Record, Video, pooled, pooled_means
from xdyna.evaluation.store import ArrayCache
from xdyna.perception.base import PoseBackend

SEEN = 0.3  # lowest confidence of a joint that counts
KEPT_VIDEOS = 6
EXPRESSIONS = (
    "mouth_open",
    "mouth_width",
    "smile",
    "eye_right",
    "eye_left",
    "brow_right",
    "brow_left",
    "jaw",
)


@dataclass(frozen=True)
class Detected:
    """The largest person of every frame.

    Attributes:
        body: float32 (T, 18, 3), OpenPose-18: x, y in px, confidence; zeros where nobody was found.
        face: float32 (T, 68, 3), iBUG-68.
        size: (H, W) of the frames.
    """

    body: np.ndarray
    face: np.ndarray
    size: tuple[int, int]


class PeopleReader:
    """Finds the largest person of every frame; remembers the last videos, and all of them in a cache.

    Args:
        backend: of `xdyna.perception.base.get_backend`.
        cache: keeps the points; None: memory alone.
    """

    def __init__(self, backend: PoseBackend, *, cache: ArrayCache | None = None) -> None:
        self.name = backend.name
        self.version = f"{backend.name}-{backend.version}"
        self._backend, self._cache = backend, cache
        self._recent: dict[str, np.ndarray] = {}

    def read(self, video: Video) -> Detected:
        """Detections of a video."""
        points = self._recent.get(video.digest)
        if points is None:
            key = f"people|{self.version}|{video.digest}"
            points = self._cache.get(key) if self._cache is not None else None
            if points is None:
                points = np.stack([self._frame(frame) for frame in video.frames])
                if self._cache is not None:
                    self._cache.put(key, points)
            if len(self._recent) >= KEPT_VIDEOS:
                self._recent.pop(next(iter(self._recent)))
            self._recent[video.digest] = points
        return Detected(points[:, :18], points[:, 18:], (video.frames.shape[1], video.frames.shape[2]))

    def _frame(self, frame: np.ndarray) -> np.ndarray:
        people = self._backend.detect(frame)
        if not people:
            return np.zeros((86, 3), np.float32)
        return np.concatenate([people[0].body, people[0].face]).astype(np.float32)


def has_face(face: np.ndarray) -> np.ndarray:
    """Frames whose face can be aligned: both eyes are apart. Args: face: (T, 68, 3). Returns: bool (T,)."""
    found = (face[..., 2] > 0).all(axis=1)
    return found & (_eye_distance(face) > 1e-3)


def _eye_distance(face: np.ndarray) -> np.ndarray:
    return np.linalg.norm(face[:, 42:48, :2].mean(axis=1) - face[:, 36:42, :2].mean(axis=1), axis=1)


def expression_coefficients(face: np.ndarray) -> np.ndarray:
    """Eight numbers for the state of a face, free of its size, place and in-plane rotation.

    Lengths are in distances between the eyes' centres, heights along the face's own upward axis (perpendicular to the
    line of the eyes): `mouth_open` between the inner lips' middles; `mouth_width` between the corners; `smile` height
    of the corners above the middle of the outer lips; `eye_right`, `eye_left` opening / width of each eye;
    `brow_right`, `brow_left` height of the brow above its eye; `jaw` from the nose's base to the chin.

    Args:
        face: (T, 68, >= 2) iBUG-68 in px (y downwards).

    Returns:
        float64 (T, 8), in the order of `EXPRESSIONS`; NaN where the eyes coincide.
    """
    points = face[..., :2].astype(np.float64)
    right, left = points[:, 36:42].mean(axis=1), points[:, 42:48].mean(axis=1)
    axis = left - right
    scale = np.linalg.norm(axis, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        across = axis / scale[:, None]
        up = np.stack([across[:, 1], -across[:, 0]], axis=1)

        def length(i: int, j: int) -> np.ndarray:
            return np.asarray(np.linalg.norm(points[:, i] - points[:, j], axis=1))

        def height(vector: np.ndarray) -> np.ndarray:
            return np.asarray((vector * up).sum(axis=1) / scale)

        def eye(first: int) -> np.ndarray:
            opening = length(first + 1, first + 5) + length(first + 2, first + 4)
            return opening / (2 * length(first, first + 3))

        corners = (points[:, 48] + points[:, 54]) / 2
        lips = (points[:, 51] + points[:, 57]) / 2
        columns = [
            length(62, 66) / scale,
            length(48, 54) / scale,
            height(corners - lips),
            eye(36),
            eye(42),
            height(points[:, 17:22].mean(axis=1) - right),
            height(points[:, 22:27].mean(axis=1) - left),
            length(33, 8) / scale,
        ]
    values = np.stack(columns, axis=1)
    values[~np.isfinite(values).all(axis=1)] = np.nan
    return values


class FaceDetection(Metric):
    """Face-Det: percentage of generated frames in which a face is found that can be aligned.

    Args:
        reader: finds the people.
    """

    name = "face_det"
    needs = frozenset[str]()

    def __init__(self, reader: PeopleReader) -> None:
        self._reader, self.version = reader, f"1|{reader.version}"
        self.columns = (Column("face_det", f"Face-Det % ({reader.name})", HIGHER, digits=1),)

    def measure(self, case: Case) -> Record:
        """See `Metric.measure`."""
        return Record(pooled("face_det", 100.0 * has_face(self._reader.read(case.generated).face)))

    def reduce(self, records: Iterable[Record]) -> dict[str, float]:
        """See `Metric.reduce`."""
        return {"face_det": math.nan, **pooled_means(records)}


class FaceExpression(Metric):
    """Face-Exp: mean absolute difference of `expression_coefficients` between generated and driving face, over
    coefficients and over frames in which both faces are found; noted: the share of such frames among those in which the
    driving face is found. X-Dyna published no definition; this one is of 68 landmarks.

    Args:
        reader: finds the people.
    """

    name = "face_exp"
    needs = frozenset({"driving"})
    columns = (Column("face_exp", "Face-Exp (68 landmarks)", LOWER, digits=4),)

    def __init__(self, reader: PeopleReader) -> None:
        self._reader, self.version = reader, f"1|{reader.version}"

    def measure(self, case: Case) -> Record:
        """See `Metric.measure`."""
        generated, driving, _ = _both(self._reader, case)
        asked = has_face(driving.face)
        both = asked & has_face(generated.face)
        error = np.abs(expression_coefficients(generated.face) - expression_coefficients(driving.face)).mean(axis=1)
        values = pooled("face_exp", error[both])
        return Record({**values, **pooled("valid", both[asked].astype(float))})

    def reduce(self, records: Iterable[Record]) -> dict[str, float]:
        """See `Metric.reduce`."""
        means = {"face_exp": math.nan, "valid": math.nan, **pooled_means(records)}
        return {"face_exp": means["face_exp"], "face_exp.valid_share": means["valid"]}


class PoseAccuracy(Metric):
    """PCK: percentage of the driving video's body joints that the generated video has in their place.

    A joint counts where it is seen in the driving frame (confidence 0.3); it is right when the same joint is seen in
    the generated frame within 10 % (PCK@0.1; 20 %: PCK@0.2) of the longer side of the box around the driving joints.
    Places are compared after scaling the driving frame to the generated one's size.

    Args:
        reader: finds the people.

    Source: Yang & Ramanan, "Articulated human detection with flexible mixtures of parts", 2013, section 5 (PCK).
    """

    name = "pck"
    needs = frozenset({"driving"})
    columns = (Column("pck_0.1", "PCK@0.1 %", HIGHER, digits=1), Column("pck_0.2", "PCK@0.2 %", HIGHER, digits=1))

    def __init__(self, reader: PeopleReader) -> None:
        self._reader, self.version = reader, f"1|{reader.version}"

    def measure(self, case: Case) -> Record:
        """See `Metric.measure`."""
        generated, driving, scale = _both(self._reader, case)
        wanted = driving.body[..., 2] >= SEEN
        if not wanted.any():
            raise ValueError("nobody is found in the driving video")
        target = driving.body[..., :2] * scale
        distance = np.linalg.norm(generated.body[..., :2] - target, axis=2)
        low = np.where(wanted[..., None], target, np.inf).min(axis=1)
        high = np.where(wanted[..., None], target, -np.inf).max(axis=1)
        side = (high - low).max(axis=1)  # -inf in frames without the person, where no joint is wanted
        found = generated.body[..., 2] >= SEEN
        values = {}
        for limit in (0.1, 0.2):
            right = found & (distance <= limit * side[:, None])
            values.update(pooled(f"pck_{limit}", 100.0 * right[wanted]))
        return Record(values)

    def reduce(self, records: Iterable[Record]) -> dict[str, float]:
        """See `Metric.reduce`."""
        return {"pck_0.1": math.nan, "pck_0.2": math.nan, **pooled_means(records)}


def _both(reader: PeopleReader, case: Case) -> tuple[Detected, Detected, np.ndarray]:
    """Generated and driving people over the frames that both have, and the factors (x, y) between their sizes."""
    driver = case.driving if case.driving is not None else case.truth
    if driver is None:
        raise ValueError(f"{case.id} has neither driving video nor ground truth")
    generated, driving = reader.read(case.generated), reader.read(driver)
    length = min(len(generated.body), len(driving.body))
    cut = (Detected(d.body[:length], d.face[:length], d.size) for d in (generated, driving))
    first, second = cut
    scale = np.array([first.size[1] / second.size[1], first.size[0] / second.size[0]])
    return first, second, scale
