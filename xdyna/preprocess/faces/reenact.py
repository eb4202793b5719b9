"""Face reenactment: another person's face, posed as a driving face and with its expression, frame by frame.

In its second stage X-Dyna's face control sees such faces, so that it learns expressions and cannot read who somebody
is. What is shown around the face is the other person's as well (hair, clothes, scene): whatever of the driving frame
were left in the patch, training would learn to copy.

`FaceReenactor` is the interface, `get_reenactor` makes one by name: "mesh-warp" needs nothing but MediaPipe,
"liveportrait" an installed LivePortrait.
"""

from __future__ import annotations

import difflib
import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from xdyna.config.data import DataError
from xdyna.data.face_files import seen
from xdyna.data.sources import Faces


class ReenactError(DataError):
    """A clip whose face cannot be replaced.

    Args:
        message: what was given, what was expected, how to mend it.
        reason: in a word, for counting: "no_face" (in the clip) or "no_portrait" (no face in the other's image).
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Portrait:
    """One image of one person.

    Attributes:
        image: uint8 (H, W, 3) RGB.
        landmarks: float32 (68, 3), iBUG-68, x px, y px, confidence.
        name: for messages.
    """

    image: np.ndarray
    landmarks: np.ndarray
    name: str = "portrait"


@runtime_checkable
class FaceReenactor(Protocol):
    """Shows another person with the head pose and expression of a clip.

    Attributes:
        name: as in `get_reenactor`.
        version: everything the images depend on.
    """

    name: str
    version: str

    def reenact(
        self, frames: np.ndarray, landmarks: np.ndarray, other: Portrait, *, own: Portrait | None = None
    ) -> Faces:
        """Reenact a clip.

        Args:
            frames: uint8 (T, H, W, 3) RGB, the driving clip, T >= 1.
            landmarks: float32 (T, 68, 3) px of these frames; confidence 0 where there is no face.
            other: whose face is shown.
            own: the driving person without expression, where there is such an image: expressions are measured from
                there; None: from the clip's own calmest frame.

        Returns:
            Images of the size of `frames`, black outside what a face patch of any part of the clip can show, and the
            landmarks in them; black with confidence 0 in frames without a face.

        Raises:
            ReenactError: no face in the clip or in the other's image.
            DataError: wrong shapes or types, no frames, NaN.
        """
        ...


# name -> (module, class): heavy libraries are imported only when they are asked for.
_REENACTORS = {
    "mesh-warp": ("xdyna.preprocess.faces.mesh_warp", "MeshWarp"),
    "liveportrait": ("xdyna.preprocess.faces.liveportrait", "LivePortrait"),
}


def get_reenactor(name: str = "mesh-warp", *, models_dir: str | os.PathLike[str] | None = None) -> FaceReenactor:
    """Make a reenactor.

    Args:
        name: "mesh-warp" or "liveportrait".
        models_dir: "liveportrait": folder of its repository with the weights; None: $XDYNA_LIVEPORTRAIT. "mesh-warp"
            has none.

    Returns:
        The reenactor.

    Raises:
        DataError: unknown name, or not installed.
        PerceptionError: MediaPipe is missing.
    """
    if name not in _REENACTORS:
        close = difflib.get_close_matches(str(name).lower(), _REENACTORS, n=1, cutoff=0.4)
        hint = f"did you mean '{close[0]}'?" if close else "choose one of them"
        raise DataError(f"face reenactor '{name}' is unknown; known are {sorted(_REENACTORS)}: {hint}")
    module, cls = _REENACTORS[name]
    made: FaceReenactor = getattr(importlib.import_module(module), cls)(
        models_dir=None if models_dir is None else Path(models_dir)
    )
    return made


def check_clip(frames: np.ndarray, landmarks: np.ndarray) -> None:
    """Refuse what `FaceReenactor.reenact` cannot take. Args: see there. Raises: DataError."""
    frames, landmarks = np.asarray(frames), np.asarray(landmarks)
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise DataError(
            f"frames have shape {frames.shape} and type {frames.dtype}; expected (T, H, W, 3) uint8, T >= 1"
        )
    if landmarks.shape != (len(frames), 68, 3):
        raise DataError(f"landmarks have shape {landmarks.shape}; expected ({len(frames)}, 68, 3) for as many frames")
    if not np.isfinite(landmarks).all():
        raise DataError("landmarks hold NaN or infinite values; mark missing faces with confidence 0 instead")


def check_portrait(portrait: Portrait) -> None:
    """Refuse a portrait of a wrong shape. Raises: DataError; ReenactError where it has no face."""
    check_clip(np.asarray(portrait.image)[None], np.asarray(portrait.landmarks)[None])
    if not seen(portrait.landmarks[None])[0]:
        raise ReenactError(f"{portrait.name}: there is no face in it; choose another image", reason="no_portrait")


def portrait_penalty(landmarks: np.ndarray) -> np.ndarray:
    """How far a face is from a calm, frontal one with open eyes and closed mouth; to choose images by.

    The sum of: opening of the mouth and distance of its width from the frames' median, both in mouth widths; eyes
    narrower than the frames' 80th percentile, in eye widths; sideways turn (the nose's distance from the jaw's middle,
    in half jaw widths) and half the nod (height of the nose between eyes and mouth, from the frames' median).

    Args:
        landmarks: (T, 68, >= 2) px of one person, all seen.

    Returns:
        float64 (T,), 0 at best; inf where a face has no size.
    """
    points = np.asarray(landmarks[..., :2], dtype=np.float64)

    def length(i: int, j: int) -> np.ndarray:
        return np.asarray(np.linalg.norm(points[:, i] - points[:, j], axis=1))

    eyes = [points[:, 36:42].mean(axis=1), points[:, 42:48].mean(axis=1)]
    across, middle = eyes[1] - eyes[0], (eyes[0] + eyes[1]) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        across /= np.linalg.norm(across, axis=1, keepdims=True)
        down = np.stack([-across[:, 1], across[:, 0]], axis=1)

        def place(point: np.ndarray, axis: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
            """Where a point lies between two others along an axis, 0 to 1."""
            return np.asarray(((point - start) * axis).sum(axis=1) / ((end - start) * axis).sum(axis=1))

        nose, mouth = points[:, 30], points[:, 48:60].mean(axis=1)
        gap, width = length(62, 66) / length(48, 54), length(48, 54) / np.linalg.norm(eyes[1] - eyes[0], axis=1)
        lids = [length(f + 1, f + 5) + length(f + 2, f + 4) for f in (36, 42)]
        opening = np.min([lids[0] / (2 * length(36, 39)), lids[1] / (2 * length(42, 45))], axis=0)
        turn = 2 * np.abs(place(nose, across, points[:, 0], points[:, 16]) - 0.5)
        nod = place(nose, down, middle, mouth)
        values = [gap, width, opening, turn, nod]
    usable = np.isfinite(values).all(axis=0)
    result = np.full(len(points), np.inf)
    if usable.any():
        gap, width, opening, turn, nod = (value[usable] for value in values)
        narrow = np.maximum(np.quantile(opening, 0.8) - opening, 0)
        unusual = np.abs(width - np.median(width)) + 0.5 * np.abs(nod - np.median(nod))
        result[usable] = gap + unusual + narrow + turn
    return result


def keep_boxes(frames: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Frames that are black outside their box. Args: frames: (T, H, W, 3); boxes: (T, 4). Returns: (T, H, W, 3)."""
    kept = np.zeros_like(frames)
    for result, frame, (left, top, right, bottom) in zip(kept, frames, boxes, strict=True):
        result[top:bottom, left:right] = frame[top:bottom, left:right]
    return kept
