"""From decoded frames to 8-bit RGB of BT.709: bit depth, transparency, wide gamuts, and HDR made fit for SDR.

The matrix (BT.601, 709, 2020) and the range (limited, full) that a file names are FFmpeg's business; where it names
none, BT.601 and limited are taken.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import av
import cv2
import numpy as np

BACKGROUND = 255
"""Grey level behind transparent pixels: white, as behind transparent images."""

# ITU-T H.273: transfer characteristics, primaries, and the matrices that FFmpeg's scaler does not know.
_PQ, _HLG = 16, 18
_BT2020, _P3 = 9, 12
_UNKNOWN_MATRICES = {8: "YCgCo", 10: "BT.2020 constant luminance", 14: "ICtCp", 15: "IPT-PQ", 16: "YCgCo", 17: "YCgCo"}
_XY = {  # chromaticities of red, green and blue; the white of all is D65
    "BT.709": ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    _BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    _P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
_WHITE = 203.0  # cd/m2 of a white sheet in HDR (BT.2408)
_PEAK = 1000.0 / _WHITE  # of what is kept apart from white, in whites
_KNEE = 0.6  # up to here colours stay as they are
_GAMMA = 2.4  # of an SDR display (BT.1886)


@dataclass(frozen=True)
class Colours:
    """What the numbers of a video's frames mean, in the codes of ITU-T H.273.

    Attributes:
        matrix: from RGB to what is stored.
        transfer: from light to numbers.
        primaries: the three lights.
        dolby: whether only Dolby Vision's own data tell what they mean.
    """

    matrix: int = 2
    transfer: int = 2
    primaries: int = 2
    dolby: bool = False

    @property
    def hdr(self) -> str:
        """ "PQ", "HLG", or "" for SDR."""
        return {_PQ: "PQ", _HLG: "HLG"}.get(self.transfer, "")

    @property
    def plain(self) -> bool:
        """Whether FFmpeg's RGB is what is to be seen."""
        return not self.hdr and self.primaries not in (_BT2020, _P3)

    @property
    def unknown(self) -> str:
        """A name of colours that cannot be read, or ""."""
        return "Dolby Vision without HDR10 or HLG" if self.dolby else _UNKNOWN_MATRICES.get(self.matrix, "")


def to_rgb(frame: av.VideoFrame, colours: Colours, *, size: tuple[int, int]) -> np.ndarray:
    """A decoded frame as it is seen on an SDR display.

    Args:
        frame: as it was decoded.
        colours: of the video.
        size: (H, W) of the result in px.

    Returns:
        uint8 (H, W, 3) RGB; transparent pixels lie on white.
    """
    parts = frame.format.components
    alpha = frame.format.has_palette or any(part.is_alpha for part in parts)
    deep = any(part.bits > 8 for part in parts)
    name = ("rgba64le" if deep else "rgba") if alpha else ("rgb48le" if deep else "rgb24")
    pixels = frame.to_ndarray(format=name, width=size[1], height=size[0])
    rgb = pixels[..., :3]
    if not colours.plain:
        rgb = _to_bt709(rgb if deep else rgb.astype(np.uint16) * 257, colours)
    elif deep:
        rgb = ((rgb.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if alpha:
        share = pixels[..., 3:].astype(np.float32) / (65535 if deep else 255)
        rgb = np.rint(rgb * share + BACKGROUND * (1 - share)).astype(np.uint8)
    return np.ascontiguousarray(rgb)


def _to_bt709(rgb: np.ndarray, colours: Colours) -> np.ndarray:
    """uint16 (H, W, 3) of another transfer or other primaries -> uint8 for a BT.709 display."""
    light = _light(colours.transfer)[rgb]  # in whites of an SDR display
    if colours.transfer == _HLG:  # the system gamma of a display of 1000 cd/m2 (BT.2100, table 5)
        luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light *= _PEAK * cv2.pow(luminance, 0.2)[..., None]
    if colours.primaries in (_BT2020, _P3):
        light = light @ to_bt709(colours.primaries).T
    light = np.maximum(light, 0)
    if colours.hdr:
        brightest = np.maximum(light.max(axis=-1, keepdims=True), 1e-6)
        light *= roll_off(brightest) / brightest
    return np.rint(255 * cv2.pow(np.minimum(light, 1), 1 / _GAMMA)).astype(np.uint8)


def roll_off(light: np.ndarray) -> np.ndarray:
    """The tone curve: straight up to the knee, then a hyperbola that meets it smoothly and reaches 1 at the peak.

    Args:
        light: >= 0, in whites of an SDR display.

    Returns:
        Within [0, 1], ascending; hue stays when all channels are scaled alike.
    """
    above = np.clip(light - _KNEE, 0, _PEAK - _KNEE) / (1 - _KNEE)
    bend = 1 - (1 - _KNEE) / (_PEAK - _KNEE)
    return np.minimum(light, _KNEE) + (1 - _KNEE) * above / (1 + bend * above)


@functools.cache
def to_bt709(primaries: int) -> np.ndarray:
    """float32 (3, 3): linear light of other primaries -> of BT.709; both with white D65."""
    return (np.linalg.inv(_to_xyz("BT.709")) @ _to_xyz(primaries)).astype(np.float32)


def _to_xyz(primaries: int | str) -> np.ndarray:
    lights = np.array([(x / y, 1, (1 - x - y) / y) for x, y in _XY[primaries]]).T  # type: ignore[index]
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    return lights * np.linalg.solve(lights, white)


@functools.cache
def _light(transfer: int) -> np.ndarray:
    """float32 (65536,): numbers -> light. PQ, SDR: of the display, in whites; HLG: of the scene, up to 1 (BT.2100)."""
    signal = np.arange(65536) / 65535
    if transfer == _PQ:
        root = signal ** (32 / 2523)
        light = 10000 / _WHITE * (np.maximum(root - 107 / 128, 0) / (2413 / 128 - 2392 / 128 * root)) ** (8192 / 1305)
    elif transfer == _HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    else:
        light = signal**_GAMMA
    return light.astype(np.float32)
