"""Images of the mesh warp: a portrait drawn over moved triangles.

All triangles of a frame become one map from image to portrait: each is filled with its number, far ones first, and
every pixel then looks up its triangle's affine map. Shape legend: N triangles, P vertices, S sub-pixels per pixel side.
"""

from __future__ import annotations

import cv2
import numpy as np

from xdyna.perception.face_mesh import (
    INNER_LIPS,
    LEFT_EYE,
    LEFT_LID,
    RIGHT_EYE,
    RIGHT_LID,
    SKIN,
    VERTICES,
    oval,
    skin_triangles,
)
from xdyna.preprocess.faces.mesh_shape import HeadPose, opening

_FINE = 2  # S
_SHIFT = 4  # binary digits of a vertex' place that filling keeps
_RINGS = (1.45, 4.5)  # outlines around the face's own: hair and neck, surroundings
_GAP_OF_OPEN_MOUTH = 0.12  # in mouth widths: from here on the portrait shows its own teeth
_LASHES = 0.6  # from fold to rim, where the lashes begin
_LID_OFFSET = 0.02  # that lids lie before the skin they are drawn over, in units of shape
_FLAT = 0.02  # px^2 of sub-pixels below which a triangle is not drawn
_MAX_SIDE = 4096  # of the portrait with its surroundings, px
_FULL_LIGHT = 215.0
_DARK, _TONGUE, _TEETH = (48, 20, 22), (128, 58, 60), (226, 216, 206)


class PortraitWarp:
    """Draws one person's portrait over moving meshes of the same person.

    Args:
        image: uint8 (H, W, 3) RGB, the portrait.
        mesh: (478, 3) px, the face in it.
        shape: (478, 3), the same without pose; see `mesh_shape`.
        pose: of the portrait.
        scale: px per unit that faces will be drawn at; a larger portrait is reduced first.
    """

    def __init__(self, image: np.ndarray, mesh: np.ndarray, shape: np.ndarray, pose: HeadPose, *, scale: float) -> None:
        self._shape = shape
        self._rings = _rings(shape)
        self._width = float(np.linalg.norm(shape[INNER_LIPS[0]] - shape[INNER_LIPS[10]]))
        own = np.concatenate([mesh[:, :2], self._ring_places(pose), mesh[[*RIGHT_EYE, *LEFT_EYE], :2]])
        self._atlas, factor, corner = _reduced(image, own, pose.scale, _FINE * scale)
        self._mouth_side = max(int(self._width * pose.scale * factor), 8)
        self._uv = (own + 0.5) * factor - 0.5 - corner
        mouth = _draw_mouth(self._mouth_side, brightness=_brightness(self._atlas, self._uv[:SKIN]))
        self._mouth_left = self._atlas.shape[1]
        pad = self._atlas.shape[0] - mouth.shape[0]
        self._atlas = np.hstack([self._atlas, np.pad(mouth, ((0, pad), (0, 0), (0, 0)), mode="edge")])
        inner = shape[list(INNER_LIPS)]
        gap = float(np.linalg.norm(inner[5] - inner[15])) / self._width
        self._own_mouth = self._uv[list(INNER_LIPS)] if gap > _GAP_OF_OPEN_MOUTH else None

    def draw(self, shape: np.ndarray, pose: HeadPose, box: np.ndarray) -> np.ndarray:
        """Draw the face in a pose.

        Args:
            shape: (478, 3), with expression.
            pose: where.
            box: (4,) left, top, right, bottom of the part of the image that is wanted, px.

        Returns:
            uint8 (bottom - top, right - left, 3) RGB.
        """
        placed = pose.place(shape)
        eyes = [pose.place(self._open_eye(shape, eye))[:, :2] for eye in (RIGHT_EYE, LEFT_EYE)]
        lips = placed[list(INNER_LIPS), :2]
        lids, lid_source = self._lids(shape)
        lids = pose.place(lids)
        target = np.concatenate([placed[:, :2], self._ring_places(pose), *eyes, lips, lids[:, :2]])
        source = np.concatenate([self._uv, self._mouth(shape), lid_source])
        skin, strips = skin_triangles(), _lid_triangles()
        depth = [placed[skin, 2].mean(axis=1), lids[strips, 2].mean(axis=1) - _LID_OFFSET * pose.scale]
        above = np.concatenate([skin, strips + len(target) - len(lids)])
        triangles = np.concatenate([_background(), above[np.argsort(-np.concatenate(depth), kind="stable")]])
        size = int(box[3] - box[1]), int(box[2] - box[0])
        fine = (target - box[:2] + 0.5) * _FINE - 0.5
        map_xy = _map(fine, source, triangles, (size[0] * _FINE, size[1] * _FINE))
        drawn = cv2.remap(self._atlas, map_xy, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(cv2.resize(drawn, (size[1], size[0]), interpolation=cv2.INTER_AREA))

    def _ring_places(self, pose: HeadPose) -> np.ndarray:
        """Hair and neck turn with the head, the surroundings only tilt."""
        near, far = self._rings
        return np.concatenate([pose.place(near), pose.upright().place(far)])[:, :2]

    def _open_eye(self, shape: np.ndarray, eye: tuple[int, ...]) -> np.ndarray:
        """(16, 3) rim of an eye at least as open as in the portrait: lids slide over the eye, they do not press it."""
        rim, own = shape[list(eye)].copy(), self._shape[list(eye)]
        own = own + (rim[[0, 8]] - own[[0, 8]]).mean(axis=0)
        rim[1:8, 1] = np.minimum(rim[1:8, 1], own[1:8, 1])
        rim[9:, 1] = np.maximum(rim[9:, 1], own[9:, 1])
        return rim

    def _lids(self, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Upper lids that unroll when they close: twice 27 places (3,) in the shape, and where they are looked up (2,).

        Three rows of nine from corner to corner: fold, edge of the lashes, rim. The further an eye is closed, the more
        skin from above the fold is seen; the lashes keep their height.
        """
        places, sources = [], []
        for eye, (fold, above) in ((RIGHT_EYE, RIGHT_LID), (LEFT_EYE, LEFT_LID)):
            shut = float(np.clip(1 - opening(shape, eye) / max(opening(self._shape, eye), 1e-6), 0, 1))
            rim = [eye[0], *eye[1:8], eye[8]]
            rows = [[eye[0], *row, eye[8]] for row in (fold, above)]
            share = 1 - _LASHES * (1 - shut)  # of the way from rim to fold that keeps its height
            height = np.linalg.norm(self._shape[rows[0]] - self._shape[rim], axis=1) * share
            now = np.linalg.norm(shape[rows[0]] - shape[rim], axis=1)
            kept = np.minimum(height / np.maximum(now, 1e-6), 1)[:, None]
            uv = [self._uv[row] for row in (*rows, rim)]
            places += [shape[rows[0]], shape[rim] + kept * (shape[rows[0]] - shape[rim]), shape[rim]]
            sources += [uv[0] + _LASHES * shut * (uv[1] - uv[0]), uv[2] + share * (uv[0] - uv[2]), uv[2]]
        return np.concatenate(places), np.concatenate(sources)

    def _mouth(self, shape: np.ndarray) -> np.ndarray:
        """(20, 2) where the inside of the mouth is looked up: in the portrait, or in the drawn one.

        There the teeth hang on the upper lip, so the opening alone decides how much of the inside shows.
        """
        if self._own_mouth is not None:
            return self._own_mouth
        lips = shape[list(INNER_LIPS)]
        across = np.clip((lips[:, 0] - lips[0, 0]) / max(float(lips[10, 0] - lips[0, 0]), 1e-6), 0, 1)
        depth = np.zeros(20)
        depth[11:] = np.linalg.norm(lips[11:] - lips[9:0:-1], axis=1) / self._width
        place = np.stack([across, np.clip(depth, 0, 1)], axis=1) * (self._mouth_side - 1)
        return np.asarray(place + [self._mouth_left, 0])


def _rings(shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two outlines (36, 3) around a face, at the depth of its own."""
    outline = shape[list(oval())]
    center = outline.mean(axis=0)
    rings = [center + factor * (outline - center) for factor in _RINGS]
    for ring in rings:
        ring[:, 2] = center[2]
    return rings[0], rings[1]


def _background() -> np.ndarray:
    """int64 (N, 3): what lies behind the skin: surroundings, hair and neck, eyes, inside of the mouth.

    Vertices: 478 of the face, twice 36 of the rings, twice 16 of the eyes, 20 of the mouth.
    """
    outline, triangles = list(oval()), []
    count = len(outline)
    near, far = VERTICES + np.arange(count), VERTICES + count + np.arange(count)
    for inner, outer in ((near, far), (np.array(outline), near)):
        for k in range(count):
            following = (k + 1) % count
            triangles += [[inner[k], inner[following], outer[k]], [inner[following], outer[following], outer[k]]]
    first = VERTICES + 2 * count
    for iris in (468, 473):
        triangles += [[first + k, first + (k + 1) % 16, iris] for k in range(16)]
        first += 16
    for k in range(10):  # between upper lip 0..10 and lower lip 20..10
        upper, lower = first + k, first + (20 - k) % 20
        triangles += [[upper, upper + 1, lower], [upper + 1, first + 19 - k, lower]]
    return np.array(triangles, dtype=np.int64)


def _lid_triangles() -> np.ndarray:
    """int64 (64, 3): the strips of `PortraitWarp._lids`."""
    first = np.array([27 * eye + 9 * row + k for eye in (0, 1) for row in (0, 1) for k in range(8)])[:, None]
    return np.concatenate([first + [0, 1, 9], first + [1, 10, 9]])


def _reduced(
    image: np.ndarray, places: np.ndarray, scale: float, wanted: float
) -> tuple[np.ndarray, float, np.ndarray]:
    """The part of a portrait that vertices (P, 2) lie in, mirrored beyond its edges, not much larger than wanted.

    Returns:
        the part, the factor between its pixels and the portrait's, its corner (2,) in px after scaling.
    """
    extent = float(np.ptp(places, axis=0).max())
    factor = min(1.0, wanted / scale, _MAX_SIDE / extent)
    size = max(round(image.shape[1] * factor), 1), max(round(image.shape[0] * factor), 1)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    low = np.floor((places.min(axis=0) + 0.5) * factor - 0.5) - 1
    high = np.ceil((places.max(axis=0) + 0.5) * factor - 0.5) + 2
    move = np.array([[1, 0, -low[0]], [0, 1, -low[1]]])
    width, height = (high - low).astype(int).tolist()
    part = cv2.warpAffine(small, move, (width, height), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(part), factor, low


def _brightness(image: np.ndarray, places: np.ndarray) -> float:
    """How light a face is: the median of its vertices' brightest channel, 1 for fair skin in full light."""
    x, y = np.clip(np.round(places).astype(int), 0, [image.shape[1] - 1, image.shape[0] - 1]).T
    return float(np.clip(np.median(image[y, x].max(axis=1)) / _FULL_LIGHT, 0.2, 1))


def _draw_mouth(side: int, *, brightness: float) -> np.ndarray:
    """(side, side, 3) the inside of a mouth, its width the side: teeth at the top, tongue below, dark between."""
    y, x = np.mgrid[:side, :side] / max(side - 1, 1)
    bend = (2 * x - 1) ** 2
    light = np.clip(1.15 - 0.9 * bend, 0, 1)[..., None]
    teeth = np.clip((0.17 - 0.06 * bend - y) / 0.03, 0, 1)[..., None]
    tongue = np.clip((y - 0.42 - 0.25 * bend) / 0.15, 0, 1)[..., None]
    shade = np.clip(0.55 + y / 0.08, 0, 1)[..., None]
    inside = (1 - tongue) * np.array(_DARK) + tongue * np.array(_TONGUE)
    inside = (1 - teeth) * inside + teeth * np.array(_TEETH) * shade
    return np.asarray(np.clip(inside * brightness * (0.35 + 0.65 * light), 0, 255).astype(np.uint8))


def _map(target: np.ndarray, source: np.ndarray, triangles: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Where each pixel of an image of `size` comes from.

    Args:
        target: (P, 2) vertices in px of the image.
        source: (P, 2) vertices in px of the portrait.
        triangles: (N, 3), later ones cover earlier ones.
        size: (H, W).

    Returns:
        float32 (H, W, 2) x, y in px of the portrait.
    """
    corners, origins = target[triangles], source[triangles]
    edges = corners[:, 1:] - corners[:, :1]
    area = edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0]
    shown = np.abs(area) > _FLAT
    shown &= (corners.max(axis=1) > -1).all(axis=1) & (corners.min(axis=1) < [size[1], size[0]]).all(axis=1)
    corners, origins, edges = corners[shown], origins[shown], edges[shown]
    linear = np.linalg.solve(edges, origins[:, 1:] - origins[:, :1])  # (N, 2, 2): source = target @ linear + constant
    constant = origins[:, 0] - np.einsum("nk,nkd->nd", corners[:, 0], linear)

    numbers = np.zeros(size, dtype=np.int32)
    places = np.round(np.clip(corners, -8000, 8000) * (1 << _SHIFT)).astype(np.int32)
    for number, polygon in enumerate(places):
        cv2.fillConvexPoly(numbers, polygon, number, cv2.LINE_8, _SHIFT)
    # One row per triangle: the affine map, then the bounds of its origin, because edge pixels lie just outside.
    low, high = origins.min(axis=1), origins.max(axis=1)
    table = np.concatenate([linear.reshape(-1, 4), constant, low, high], axis=1).astype(np.float32)[numbers]
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    mapped = np.empty((*size, 2), dtype=np.float32)
    for axis in (0, 1):
        value = x * table[..., axis] + y * table[..., 2 + axis] + table[..., 4 + axis]
        np.clip(value, table[..., 6 + axis], table[..., 8 + axis], out=mapped[..., axis])
    return mapped
