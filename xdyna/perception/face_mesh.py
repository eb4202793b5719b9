"""Dense face meshes: MediaPipe's 478 vertices of a face that was found before, and how they hang together.

Coordinates are x right, y down, z into the image, all in px; z has no fixed origin. Left and right are the person's
own. Vertices 0 to 467 are the skin, 468 to 472 and 473 to 477 the irises (centre, then four of the rim).
"""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache

import numpy as np

from xdyna.perception import mediapipe_models as models
from xdyna.perception.base import check_frame
from xdyna.perception.errors import PerceptionError
from xdyna.perception.mediapipe_backend import square_crop
from xdyna.perception.topology import MEDIAPIPE_TO_IBUG68

VERTICES = 478
SKIN = 468

RIGHT_EYE = (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7)
LEFT_EYE = (263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249)
"""Rim of an eye: outer corner, upper lid, inner corner, lower lid."""

RIGHT_LID = ((247, 30, 29, 27, 28, 56, 190), (113, 225, 224, 223, 222, 221, 189))
LEFT_LID = ((467, 260, 259, 257, 258, 286, 414), (342, 445, 444, 443, 442, 441, 413))
"""Two rows above the upper lid's seven vertices of the rim: its fold, and the skin below the brow; columns belong
together."""

RIGHT_IRIS, LEFT_IRIS = (468, 469, 470, 471, 472), (473, 474, 475, 476, 477)

INNER_LIPS = (78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95)
"""Rim of the mouth's opening: right corner, upper lip, left corner, lower lip."""

UPPER_LIP = (
    (191, 80, 81, 82, 13, 312, 311, 310, 415),
    (183, 42, 41, 38, 12, 268, 271, 272, 407),
    (184, 74, 73, 72, 11, 302, 303, 304, 408),
    (185, 40, 39, 37, 0, 267, 269, 270, 409),
)
LOWER_LIP = (
    (95, 88, 178, 87, 14, 317, 402, 318, 324),
    (96, 89, 179, 86, 15, 316, 403, 319, 325),
    (77, 90, 180, 85, 16, 315, 404, 320, 307),
    (146, 91, 181, 84, 17, 314, 405, 321, 375),
)
"""Rows of a lip from its inner to its outer rim, without the corners, right to left; columns belong together."""

RIGID = (
    10, 67, 297, 103, 332, 109, 338, 54, 284, 21, 251, 151, 9, 8, 127, 356, 234, 454, 162, 389,  # forehead, temples
    168, 6, 197, 195, 5, 4, 1, 19, 94, 2, 98, 327, 33, 263, 133, 362,  # nose, corners of the eyes
)  # fmt: skip
"""Vertices that expressions hardly move; chosen left-right symmetric."""

_CROPS = (1.7, 2.1)  # sides of the crops around a face, in extents of its 68 landmarks; their meshes are averaged


@cache
def oval() -> tuple[int, ...]:
    """The outline of the face, 36 vertices, each next to the one before."""
    following = dict(models.face_edges()[1])
    ring = [min(following)]
    while following[ring[-1]] != ring[0]:
        ring.append(following[ring[-1]])
    return tuple(ring)


@cache
def skin_triangles() -> np.ndarray:
    """The triangles of the skin; eyes and mouth are open.

    Returns:
        int64 (852, 3), in no particular winding.
    """
    neighbours: dict[int, set[int]] = {}
    for a, b in models.face_edges()[0]:
        neighbours.setdefault(a, set()).add(b)
        neighbours.setdefault(b, set()).add(a)
    found = {tuple(sorted((a, b, c))) for a in neighbours for b in neighbours[a] for c in neighbours[a] & neighbours[b]}
    uses = Counter(edge for triangle in found for edge in itertools.combinations(triangle, 2))
    # Three edges may also enclose a vertex; such edges have a triangle on both sides already.
    kept = [t for t in found if any(uses[edge] <= 2 for edge in itertools.combinations(t, 2))]
    return np.array(sorted(kept), dtype=np.int64)


class FaceMesher:
    """Finds the mesh of a face whose 68 landmarks are roughly known.

    Raises:
        PerceptionError: MediaPipe is missing or has no models.
    """

    def __init__(self) -> None:
        self.version = f"mediapipe-{models.load_mediapipe().__version__}"
        self._model: Callable[[np.ndarray], np.ndarray | None] | None = None

    def detect(self, frame: np.ndarray, landmarks: np.ndarray) -> np.ndarray | None:
        """Find the mesh; small faces are enlarged.

        Args:
            frame: (H, W, 3) uint8 RGB.
            landmarks: (68, >= 2) x, y in px, iBUG-68.

        Returns:
            (478, 3) float64 px, or None where no face is seen there.

        Raises:
            PerceptionError: not such a frame or landmarks.
        """
        frame, landmarks = check_frame(frame), np.asarray(landmarks, dtype=np.float64)
        if landmarks.ndim != 2 or len(landmarks) != 68 or not np.isfinite(landmarks[:, :2]).all():
            raise PerceptionError(f"face landmarks have shape {landmarks.shape}; expected finite values (68, 2)")
        low, high = landmarks[:, :2].min(axis=0), landmarks[:, :2].max(axis=0)
        extent = float((high - low).max())
        center = (low + high) / 2 - [0.0, 0.1 * extent]  # the landmarks end at the brows
        meshes = [self._mesh(frame, center=center, side=factor * extent) for factor in _CROPS]
        found = [mesh for mesh in meshes if mesh is not None]
        near = [m for m in found if np.linalg.norm(ibug68(m).mean(axis=0) - landmarks[:, :2].mean(axis=0)) < extent / 2]
        return np.mean(near, axis=0) if near else None

    def _mesh(self, frame: np.ndarray, *, center: np.ndarray, side: float) -> np.ndarray | None:
        crop = square_crop(frame, center=center, side=side)
        if crop is None:
            return None
        if self._model is None:
            with models.quiet_stderr(), warnings.catch_warnings():  # its threads log until the first result
                warnings.simplefilter("ignore")
                self._model = models.face_mesh()
                points = self._model(crop)
        else:
            points = self._model(crop)
        if points is None:
            return None
        points = points * side
        points[:, :2] += center - side / 2
        return points if np.isfinite(points).all() else None


def ibug68(mesh: np.ndarray) -> np.ndarray:
    """The 68 landmarks of a mesh. Args: mesh: (..., 478, >= 2) px. Returns: (..., 68, 2)."""
    return np.asarray(mesh[..., MEDIAPIPE_TO_IBUG68, :2])
