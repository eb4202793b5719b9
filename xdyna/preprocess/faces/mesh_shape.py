"""Numbers of the mesh warp: a face mesh as head pose times shape, and one person's expression on another's shape.

Shapes are meshes without pose: x to the face's left, y down, z into the head, the eyes' centres one unit apart, the
rigid vertices around the origin. A mesh in an image is `scale * shape @ rotation.T + shift`, in px.
Shape legend: V = 478 vertices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xdyna.perception.face_mesh import (
    INNER_LIPS,
    LEFT_EYE,
    LEFT_IRIS,
    LOWER_LIP,
    RIGHT_EYE,
    RIGHT_IRIS,
    RIGID,
    UPPER_LIP,
    ibug68,
)
from xdyna.preprocess.faces.reenact import portrait_penalty

_UP = (54, 284, 103, 332, 67, 297, 109, 338, 10)  # forehead
_DOWN = (129, 358, 98, 327, 2, 94)  # below the nose
_ACROSS = ((127, 356), (234, 454), (162, 389), (33, 263), (133, 362), (54, 284), (103, 332), (67, 297))
_CALM = 5  # meshes that a neutral shape is the mean of
_ROUNDS = 2  # of aligning them to their mean
_GAIN_LIMITS = (0.5, 2.0)  # bounds of the other face's proportions over the driving face's
_EYE_REACH, _MOUTH_REACH = (0.7, 1.1), (0.6, 1.0)  # distances in widths: full effect, no effect


@dataclass(frozen=True)
class HeadPose:
    """Where a head is in an image.

    Attributes:
        scale: px per unit of shape.
        rotation: float64 (3, 3).
        shift: float64 (3,) px.
    """

    scale: float
    rotation: np.ndarray
    shift: np.ndarray

    def place(self, shape: np.ndarray) -> np.ndarray:
        """Points of a shape in the image. Args: shape: (..., 3). Returns: the same shape, px."""
        return np.asarray(self.scale * shape @ self.rotation.T + self.shift)

    def upright(self) -> HeadPose:
        """The same place without turn and nod: only the tilt in the plane of the image is kept."""
        angle = np.arctan2(self.rotation[1, 0], self.rotation[0, 0])
        cos, sin = np.cos(angle), np.sin(angle)
        return HeadPose(self.scale, np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]]), self.shift)

    @property
    def turn(self) -> float:
        """Angle between the face and the camera, rad."""
        return float(np.arccos(np.clip(self.rotation[2, 2], -1, 1)))


def eye_center(shape: np.ndarray, eye: tuple[int, ...]) -> np.ndarray:
    """Middle of the two corners of an eye. Args: shape: (V, D). Returns: (D,)."""
    return np.asarray((shape[eye[0]] + shape[eye[8]]) / 2)


def opening(shape: np.ndarray, eye: tuple[int, ...]) -> float:
    """Mean distance of the lids of an eye, over its middle five pairs of vertices. Args: shape: (V, 3)."""
    upper, lower = list(eye[2:7]), list(eye[14:9:-1])
    return float(np.linalg.norm(shape[upper] - shape[lower], axis=1).mean())


def frontal(mesh: np.ndarray) -> tuple[np.ndarray, HeadPose]:
    """Shape and pose of a single mesh, by its own axes: left and right are mirror images, the forehead is up.

    Args:
        mesh: (V, 3) px.

    Returns:
        shape (V, 3), pose.
    """
    right, left = np.transpose(_ACROSS)
    x = _unit((mesh[left] - mesh[right]).mean(axis=0))
    down = mesh[list(_DOWN)].mean(axis=0) - mesh[list(_UP)].mean(axis=0)
    y = _unit(down - down @ x * x)
    rotation = np.stack([x, y, np.cross(x, y)], axis=1)
    scale = float(np.linalg.norm(eye_center(mesh, LEFT_EYE) - eye_center(mesh, RIGHT_EYE)))
    pose = HeadPose(scale, rotation, mesh[list(RIGID)].mean(axis=0))
    return (mesh - pose.shift) @ rotation / scale, pose


def align(mesh: np.ndarray, neutral: np.ndarray) -> tuple[np.ndarray, HeadPose]:
    """Shape and pose of a mesh, so that its rigid vertices lie nearest to those of a neutral shape.

    Args:
        mesh: (V, 3) px.
        neutral: (V, 3) shape of the same person.

    Returns:
        shape (V, 3), pose.

    Source: Umeyama, "Least-squares estimation of transformation parameters between two point patterns", PAMI 1991,
    eqs. 39-43.
    """
    target, source = mesh[list(RIGID)], neutral[list(RIGID)]
    mean, center = target.mean(axis=0), source.mean(axis=0)
    u, singular, vt = np.linalg.svd((target - mean).T @ (source - center))
    sign = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
    rotation = u * sign @ vt
    scale = float((singular * sign).sum() / ((source - center) ** 2).sum())
    pose = HeadPose(scale, rotation, mean - scale * rotation @ center)
    return (mesh - pose.shift) @ rotation / scale, pose


def neutral_shape(meshes: Sequence[np.ndarray]) -> np.ndarray:
    """The shape of a person without expression: the mean of the calmest meshes, brought together.

    Args:
        meshes: (V, 3) px each, at least one, all of this person.

    Returns:
        (V, 3) shape.
    """
    calm = [meshes[k] for k in np.argsort(portrait_penalty(ibug68(np.stack(meshes))), kind="stable")[:_CALM]]
    neutral, _ = frontal(calm[0])
    for _ in range(_ROUNDS):
        neutral, _ = frontal(np.mean([align(mesh, neutral)[0] for mesh in calm], axis=0))
    return neutral


def closed_mouth(shape: np.ndarray) -> np.ndarray:
    """A shape whose lips are brought together, each by half of the gap between them."""
    result = shape.copy()
    gap = shape[list(LOWER_LIP[0])] - shape[list(UPPER_LIP[0])]
    for row in UPPER_LIP:
        result[list(row)] += gap / 2
    for row in LOWER_LIP:
        result[list(row)] -= gap / 2
    return result


class ExpressionTransfer:
    """Puts the driving person's expression on another person.

    An expression is the difference of a shape from its person's neutral one with closed lips. It is scaled to the other
    face: around the eyes by width and opening of the eyes, so that a closed eye closes the other one; around the mouth
    by the mouth's width; elsewhere not (shapes have their eyes one unit apart).

    Args:
        driver: (V, 3) neutral shape of the driving person.
        other: (V, 3) neutral shape of the other.
    """

    def __init__(self, driver: np.ndarray, other: np.ndarray) -> None:
        self._driver, self._other = closed_mouth(driver), closed_mouth(other)
        self._gain = np.ones_like(other)
        lips = (INNER_LIPS[0], INNER_LIPS[10])
        self._blend(
            (other[lips[0]] + other[lips[1]]) / 2,
            width=_distance(other, *lips),
            gain=np.full(3, _ratio(_distance(other, *lips), _distance(driver, *lips))),
            reach=_MOUTH_REACH,
            squeeze=1.3,
        )
        for eye in (RIGHT_EYE, LEFT_EYE):
            across = _ratio(_distance(other, eye[0], eye[8]), _distance(driver, eye[0], eye[8]))
            along = _ratio(opening(other, eye), opening(driver, eye))
            self._blend(
                eye_center(other, eye),
                width=_distance(other, eye[0], eye[8]),
                gain=np.array([across, along, across]),
                reach=_EYE_REACH,
                squeeze=2.2,
            )

    def _blend(
        self, center: np.ndarray, *, width: float, gain: np.ndarray, reach: tuple[float, float], squeeze: float
    ) -> None:
        """Use `gain` (3,) around a point; the region is `squeeze` times as wide as it is high."""
        offset = (self._other - center)[:, :2] * [1, squeeze] / width
        share = np.clip((reach[1] - np.linalg.norm(offset, axis=1)) / (reach[1] - reach[0]), 0, 1)[:, None]
        self._gain += share * (gain - self._gain)

    def __call__(self, shape: np.ndarray) -> np.ndarray:
        """The other face with the expression of a shape of the driving one. Args: shape: (V, 3). Returns: (V, 3)."""
        change = (shape - self._driver) * self._gain
        for iris in (RIGHT_IRIS, LEFT_IRIS):  # it moves, it does not change its size
            change[list(iris)] = change[iris[0]]
        result = self._other + change
        upper, lower = list(UPPER_LIP[0]), list(LOWER_LIP[0])
        crossed = np.minimum(result[lower, 1] - result[upper, 1], 0) / 2
        result[upper, 1] += crossed
        result[lower, 1] -= crossed
        return result


def _unit(vector: np.ndarray) -> np.ndarray:
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-9))


def _distance(shape: np.ndarray, first: int, second: int) -> float:
    return float(np.linalg.norm(shape[first] - shape[second]))


def _ratio(other: float, driver: float) -> float:
    return float(np.clip(other / max(driver, 1e-6), *_GAIN_LIMITS))
