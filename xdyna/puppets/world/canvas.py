"""Anti-aliased drawing of bold shapes with OpenCV, at twice the size of the final image."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

OVERSAMPLE = 2
Color = Sequence[float]
INK = (34, 26, 40)
"""RGB that outlines tend to."""

_SHIFT = 4  # OpenCV takes coordinates in 1/16 px
_BODY, _SECONDARY = 1, 2
_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 24, False)), np.sin(np.linspace(0, 2 * np.pi, 24, False))], 1)


def mix(first: Color, second: Color, share: float) -> tuple[float, ...]:
    """`first` with a share of `second`; RGB, 0 to 255."""
    return tuple((1 - share) * a + share * b for a, b in zip(first, second, strict=True))


def outline_of(color: Color) -> tuple[float, ...]:
    """The dark line around a shape of a colour."""
    return mix(tuple(0.45 * c for c in color), INK, 0.45)


def spline(points: np.ndarray, *, steps: int = 6, closed: bool = True) -> np.ndarray:
    """A smooth curve through points (uniform Catmull-Rom).

    Args:
        points: (N, 2).
        steps: points of the curve per given point.
        closed: whether the curve returns to its start; an open one ends at the last point.

    Returns:
        (N * steps, 2), or ((N - 1) * steps + 1, 2) for an open curve.
    """
    points = np.asarray(points, dtype=np.float64)
    if closed:
        before, start, end, after = np.roll(points, 1, 0), points, np.roll(points, -1, 0), np.roll(points, -2, 0)
    else:
        padded = np.concatenate([points[:1], points, points[-1:]])
        before, start, end, after = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    t = (np.arange(steps) / steps)[None, :, None]
    p0, p1, p2, p3 = before[:, None], start[:, None], end[:, None], after[:, None]
    curve = p1 + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, points[-1:]])


def ribbon(line: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """The outline of a band of changing width along a line.

    Args:
        line: (N, 2) points of the middle.
        widths: (N,) half widths.

    Returns:
        (2 N, 2) closed polygon.
    """
    along = np.empty_like(line)
    along[1:-1] = line[2:] - line[:-2]
    along[0], along[-1] = line[1] - line[0], line[-1] - line[-2]
    length = np.sqrt((along * along).sum(1, keepdims=True)) + 1e-9
    across = np.stack([-along[:, 1], along[:, 0]], 1) / length * widths[:, None]
    return np.concatenate([line + across, (line - across)[::-1]])


class Canvas:
    """An image being drawn, in coordinates of its own: px = origin + unit * xy.

    With four channels colours are premultiplied by the coverage, which is the fourth; drawing in OpenCV's way, that
    is `new = old + (color - old) * coverage`, keeps them so.

    Args:
        pixels: (2 H, 2 W, 3 or 4) uint8; drawn over.
        unit: px of the final image per unit.
        origin: (x, y) px of the final image at (0, 0).
        outline: width of outlines in units; 0 for none.
        label: (2 H, 2 W) uint8 that receives 1 for the body and 2 for hair and cloth, or None.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        *,
        unit: float,
        origin: Sequence[float] = (0.0, 0.0),
        outline: float = 0.0,
        label: np.ndarray | None = None,
    ) -> None:
        self.pixels, self.label = pixels, label
        fixed = OVERSAMPLE * (1 << _SHIFT)
        self._scale = unit * fixed
        # OpenCV's pixel centres are whole numbers; the half px keeps them so across the oversampling.
        self._offset = (np.asarray(origin, dtype=np.float64) + 0.5) * fixed - 0.5 * (1 << _SHIFT)
        self._width = unit * OVERSAMPLE
        self._outline = max(1, round(outline * self._width)) if outline else 0
        self._alpha = (255.0,) if pixels.shape[2] == 4 else ()

    def fill(
        self,
        points: np.ndarray,
        color: Color,
        *,
        outlined: bool = True,
        secondary: bool = False,
        edge: Color | None = None,
    ) -> None:
        """Fill a polygon, over a dark outline if wanted (`edge`: its colour)."""
        where = self._fixed(points)
        if outlined and self._outline:
            self._line(where, edge or outline_of(color), 2 * self._outline, secondary, closed=True)
        cv2.fillPoly(self.pixels, [where], (*color, *self._alpha), cv2.LINE_AA, _SHIFT)
        if self.label is not None:
            cv2.fillPoly(self.label, [where], _SECONDARY if secondary else _BODY, cv2.LINE_8, _SHIFT)

    def stroke(
        self, points: np.ndarray, width: float, color: Color, *, outlined: bool = False, secondary: bool = False
    ) -> None:
        """A polyline with round ends, `width` units wide."""
        where, thick = self._fixed(points), max(1, round(width * self._width))
        if outlined and self._outline:
            self._line(where, outline_of(color), thick + 2 * self._outline, secondary)
        self._line(where, color, thick, secondary)

    def ellipse(
        self,
        centre: np.ndarray,
        axes: tuple[float, float],
        color: Color,
        *,
        angle: float = 0.0,
        outlined: bool = False,
        secondary: bool = False,
    ) -> None:
        """Fill an ellipse of half axes `axes` (units), turned by `angle` radians clockwise."""
        ring = _CIRCLE * axes
        if angle:
            c, s = np.cos(angle), np.sin(angle)
            ring = np.stack([c * ring[:, 0] - s * ring[:, 1], s * ring[:, 0] + c * ring[:, 1]], 1)
        self.fill(np.asarray(centre) + ring, color, outlined=outlined, secondary=secondary)

    def limb(
        self, points: Sequence[np.ndarray], radii: Sequence[float], color: Color, *, outlined: bool = True
    ) -> None:
        """A tapered limb through points, with the radius of each; the outline runs around the whole."""
        parts = [
            _capsule(np.asarray(points[k]), np.asarray(points[k + 1]), radii[k], radii[k + 1])
            for k in range(len(radii) - 1)
        ]
        if outlined and self._outline:
            for part in parts:
                self._line(self._fixed(part), outline_of(color), 2 * self._outline, False, closed=True)
        for part in parts:
            self.fill(part, color, outlined=False)

    def image(self) -> np.ndarray:
        """The finished image, (H, W, 3 or 4) uint8."""
        height, width = self.pixels.shape[:2]
        size = (width // OVERSAMPLE, height // OVERSAMPLE)
        return np.asarray(cv2.resize(self.pixels, size, interpolation=cv2.INTER_AREA))

    def _line(self, where: np.ndarray, color: Color, thick: int, secondary: bool, *, closed: bool = False) -> None:
        cv2.polylines(self.pixels, [where], closed, (*color, *self._alpha), thick, cv2.LINE_AA, _SHIFT)
        if self.label is not None:
            cv2.polylines(self.label, [where], closed, _SECONDARY if secondary else _BODY, thick, cv2.LINE_8, _SHIFT)

    def _fixed(self, points: np.ndarray) -> np.ndarray:
        return np.rint(np.asarray(points) * self._scale + self._offset).astype(np.int32)


def _capsule(start: np.ndarray, end: np.ndarray, first: float, last: float) -> np.ndarray:
    """(N, 2) outline of a tapered stick with round ends of radii `first` and `last`."""
    delta = end - start
    turn = np.arctan2(delta[1], delta[0]) + np.pi / 2 + np.linspace(0, np.pi, 9)
    arc = np.stack([np.cos(turn), np.sin(turn)], 1)
    return np.concatenate([start + first * arc, end - last * arc])
