"""Curves of a run as an image, drawn with OpenCV: one small chart per number."""

import math
from collections.abc import Mapping

import cv2
import numpy as np

PANEL_W, PANEL_H = 560, 320  # px
LEFT, RIGHT, TOP, BOTTOM = 76, 20, 38, 44  # px around the axes
# Colours are RGB.
WHITE, INK, GRID, RAW, LINE = (255, 255, 255), (40, 40, 40), (225, 225, 225), (170, 200, 235), (25, 90, 170)
FONT, SMALL = cv2.FONT_HERSHEY_SIMPLEX, 0.42
LOG_RANGE = 30.0  # from this ratio of the largest to the smallest value the axis is logarithmic
SMOOTH_FROM = 60  # points; longer curves get a running mean over 1/30 of them

Points = list[tuple[int, float]]


def draw_curves(curves: Mapping[str, Points]) -> np.ndarray:
    """Small charts of curves, two in a row.

    The raw values are light; long curves have a running mean over them.

    Args:
        curves: steps and finite values by name, at least one curve of at least one point.

    Returns:
        np.ndarray: uint8 (H, W, 3), RGB.
    """
    panels = [draw_panel(name, points) for name, points in curves.items()]
    columns = 1 if len(panels) == 1 else 2
    panels += [np.full_like(panels[0], 255)] * (-len(panels) % columns)
    rows = [np.hstack(panels[start : start + columns]) for start in range(0, len(panels), columns)]
    return np.vstack(rows)


def draw_panel(title: str, points: Points) -> np.ndarray:
    """One chart.

    Args:
        title: shown above.
        points: step and finite value, at least one.

    Returns:
        np.ndarray: uint8 (PANEL_H, PANEL_W, 3), RGB.
    """
    image = np.full((PANEL_H, PANEL_W, 3), 255, np.uint8)
    steps = np.array([step for step, _ in points], np.float64)
    values = np.array([value for _, value in points], np.float64)
    logarithmic = bool(values.min() > 0 and values.max() / values.min() > LOG_RANGE)
    heights = np.log10(values) if logarithmic else values
    x_range, y_range = _padded(steps, pad=0.0), _padded(heights, pad=0.06)
    x_ticks = [x for x in ticks(*x_range, count=5) if abs(x - round(x)) < 1e-6]  # steps are whole
    y_ticks = _decades(*y_range) if logarithmic else ticks(*y_range, count=5)

    def place(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        across = (x - x_range[0]) / (x_range[1] - x_range[0]) * (PANEL_W - LEFT - RIGHT) + LEFT
        down = PANEL_H - BOTTOM - (y - y_range[0]) / (y_range[1] - y_range[0]) * (PANEL_H - TOP - BOTTOM)
        return np.stack([across, down], axis=-1)

    for x in x_ticks:
        across = int(place(np.array(x), np.array(y_range[0]))[0])
        cv2.line(image, (across, TOP), (across, PANEL_H - BOTTOM), GRID, 1)
        _text(image, label(x), (across, PANEL_H - BOTTOM + 16), align=0.5)
    for y in y_ticks:
        down = int(place(np.array(x_range[0]), np.array(y))[1])
        cv2.line(image, (LEFT, down), (PANEL_W - RIGHT, down), GRID, 1)
        _text(image, label(10**y if logarithmic else y), (LEFT - 6, down + 4), align=1.0)
    cv2.rectangle(image, (LEFT, TOP), (PANEL_W - RIGHT, PANEL_H - BOTTOM), INK, 1)
    smooth = len(points) >= SMOOTH_FROM
    _curve(image, place(steps, heights), RAW if smooth else LINE, marks=len(points) < 12)
    if smooth:
        mean = running_mean(values, window=len(points) // 30 | 1)
        _curve(image, place(steps, np.log10(mean) if logarithmic else mean), LINE, marks=False)
    scale = ", logarithmic" if logarithmic else ""
    _text(image, f"{title}{scale}", (LEFT, TOP - 12), align=0.0, scale=0.5)
    _text(image, "step", (LEFT, PANEL_H - 10), align=0.0)
    _text(image, f"last {label(values[-1])}, lowest {label(values.min())}", (PANEL_W - RIGHT, PANEL_H - 10), align=1.0)
    return image


def ticks(low: float, high: float, *, count: int) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) in [low, high], about `count` of them."""
    wish = (high - low) / count
    power = 10.0 ** math.floor(math.log10(wish))
    apart = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= wish * 0.999)
    first, last = math.ceil(low / apart - 1e-9), math.floor(high / apart + 1e-9)
    return [n * apart for n in range(first, last + 1)]


def label(value: float) -> str:
    """A number of at most four digits for an axis."""
    if value == 0:
        return "0"
    if 1e4 <= abs(value) < 1e9:
        for size, sign in ((1e6, "M"), (1e3, "k")):
            if abs(value) >= size:
                return f"{value / size:.4g}{sign}"
    return f"{value:.4g}"


def running_mean(values: np.ndarray, *, window: int) -> np.ndarray:
    """Mean over `window` values (odd) around each one, fewer at the ends; (N,) -> (N,) float64."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    # As many on either side: a window cut on one side alone would bend the ends.
    half = np.minimum(np.minimum(places, places[::-1]), window // 2)
    return (sums[places + half + 1] - sums[places - half]) / (2 * half + 1)


def _decades(low: float, high: float) -> list[float]:
    """Ticks of a logarithmic axis, as logarithms: 1, 2 and 5 of each decade, or the decades where these are many."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    factors = (1, 2, 5) if high - low < 2.5 else (1,)
    every = max(1, math.ceil((high - low) / 8))
    marks = [d + math.log10(f) for d in decades if d % every == 0 for f in factors]
    return [mark for mark in marks if low <= mark <= high]


def _padded(values: np.ndarray, *, pad: float) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if high == low:
        half = max(abs(low) * 0.1, 1e-6) if pad else 0.5
        return low - half, high + half
    return low - pad * (high - low), high + pad * (high - low)


def _curve(image: np.ndarray, places: np.ndarray, colour: tuple[int, int, int], *, marks: bool) -> None:
    fixed = np.round(places * 16).astype(np.int32)  # OpenCV's fixed-point coordinates: four binary digits
    cv2.polylines(image, [fixed[:, None]], False, colour, 1 if colour == RAW else 2, cv2.LINE_AA, shift=4)
    if marks:
        for x, y in places:
            cv2.circle(image, (round(float(x)), round(float(y))), 3, colour, -1, cv2.LINE_AA)


def _text(image: np.ndarray, text: str, place: tuple[int, int], *, align: float, scale: float = SMALL) -> None:
    width = cv2.getTextSize(text, FONT, scale, 1)[0][0]
    cv2.putText(image, text, (round(place[0] - align * width), place[1]), FONT, scale, INK, 1, cv2.LINE_AA)
