"""The two face images the face ControlNet reads: the face alone (global) and eyes and mouth alone (local).

The official geometry is kept to the pixel, its quirks included (see the constants), because the published weights were
trained with it. What the official code meant but forgot is done: a face's box is carried from frame to frame, also
through frames without a face.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from xdyna.perception.errors import NoFaceError, PerceptionError

Box = tuple[int, int, int, int]
"""left, top, right, bottom in px; right and bottom are not part of it."""

# The slices drop the first point of each group (42, 36, 48): the weights were trained so.
_GROUPS = (slice(43, 48), slice(37, 42), slice(49, 68))  # left eye, right eye, mouth
_LEFT, _TOP, _RIGHT, _BOTTOM = 1.35, 1.25, 1.35, 1.45  # reach of the box in face lengths from the centre
_CONFIDENCE = 0.3  # faces of lower mean confidence count as missing, as in the drawing of bodies
_REGION = 64 / 512  # half-size of a local rectangle as a fraction of the box


def face_box(landmarks: np.ndarray, *, size: tuple[int, int], previous: Box | None = None) -> Box:
    """The box around a face.

    Args:
        landmarks: (68, 2) x, y in px, iBUG-68.
        size: (H, W) of the image, px.
        previous: the box of the frame before; it is kept where the new one lies inside it.

    Returns:
        The box, clipped to the image.

    Raises:
        PerceptionError: wrong shape, or values that are not finite.

    Source: X-Dyna inference (face control), method as published.
    """
    landmarks = _checked(landmarks)
    height, width = size
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    (x, y), length = (low + high) / 2, float((high - low).max())
    left, right = np.clip([int(x - _LEFT * length), int(x + _RIGHT * length)], 0, width).tolist()
    top, bottom = np.clip([int(y - _TOP * length), int(y + _BOTTOM * length)], 0, height).tolist()
    if previous is not None and _inside((left, top, right, bottom), previous):
        return previous
    return left, top, right, bottom


def region_centers(landmarks: np.ndarray) -> np.ndarray:
    """Centres of left eye, right eye and mouth.

    Args:
        landmarks: (68, 2) x, y in px, iBUG-68.

    Returns:
        (3, 2) int64 x, y in px.

    Raises:
        PerceptionError: wrong shape, or values that are not finite.
    """
    landmarks = _checked(landmarks)
    return np.stack([np.round(landmarks[group].mean(axis=0)) for group in _GROUPS]).astype(np.int64)


def face_boxes(face_landmarks: np.ndarray, *, size: tuple[int, int]) -> list[Box]:
    """The box of every frame of a clip.

    A box inside the one before keeps it. Frames without a face carry the box of the last frame that has one; frames
    before the first face take the first found box.

    Args:
        face_landmarks: (T, 68, 2) x, y in px with NaN where the face is missing, or (T, 68, 3) with confidence (a mean
            below 0.3, or any landmark at 0: missing).
        size: (H, W) of the frames, px.

    Returns:
        T boxes.

    Raises:
        PerceptionError: wrong shape, or no face in any frame.
    """
    return _boxes(filled_landmarks(face_landmarks), size=size)


def global_patch(frame: np.ndarray, box: Box) -> np.ndarray:
    """A frame that is black outside the face's box.

    Args:
        frame: (H, W, 3) uint8 RGB.
        box: as from `face_box`.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    left, top, right, bottom = box
    result = np.zeros_like(frame)
    result[top:bottom, left:right] = frame[top:bottom, left:right]
    return result


def local_patch(frame: np.ndarray, landmarks: np.ndarray, box: Box) -> np.ndarray:
    """A frame that is black outside the eyes and the mouth.

    Args:
        frame: (H, W, 3) uint8 RGB.
        landmarks: (68, 2) x, y in px, iBUG-68.
        box: as from `face_box`; sets the size of the three rectangles.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        PerceptionError: wrong shape of the landmarks, or values that are not finite.
    """
    height, width = frame.shape[:2]
    half_width, half_height = int((box[2] - box[0]) * _REGION), int((box[3] - box[1]) * _REGION)
    result = np.zeros_like(frame)
    for x, y in region_centers(landmarks).tolist():
        left, right = np.clip([x - half_width, x + half_width], 0, width)
        top, bottom = np.clip([y - half_height, y + half_height], 0, height)
        result[top:bottom, left:right] = frame[top:bottom, left:right]
    return result


def face_patches(
    frames: np.ndarray | Sequence[np.ndarray], face_landmarks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both face images of every frame of a clip.

    In frames without a face, box and landmarks are those of the last frame that has one (of the first one that has,
    before it).

    Args:
        frames: (T, H, W, 3) uint8 RGB.
        face_landmarks: as in `face_boxes`, in px of these frames (`PoseTrack.face` after the same crop).

    Returns:
        local, global: each (T, H, W, 3) uint8 RGB.

    Raises:
        PerceptionError: wrong shapes, or no face in any frame.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise PerceptionError(f"frames have shape {frames.shape} and type {frames.dtype}; expected (T, H, W, 3) uint8")
    if len(frames) != len(face_landmarks):
        raise PerceptionError(f"{len(frames)} frames but landmarks of {len(face_landmarks)}; expected as many")
    pairs = list(iter_face_patches(frames, face_landmarks, size=(frames.shape[1], frames.shape[2])))
    return np.stack([local for local, _ in pairs]), np.stack([global_ for _, global_ in pairs])


def iter_face_patches(
    frames: Iterable[np.ndarray], face_landmarks: np.ndarray, *, size: tuple[int, int]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """As `face_patches`, one frame at a time, so that a long clip is never held as a whole.

    Args:
        frames: T frames, (H, W, 3) uint8 RGB.
        face_landmarks: as in `face_boxes`.
        size: (H, W) of the frames, px.

    Yields:
        local, global: (H, W, 3) uint8 RGB.

    Raises:
        PerceptionError: wrong shapes, or no face in any frame.
    """
    landmarks = filled_landmarks(face_landmarks)
    for frame, points, box in zip(frames, landmarks, _boxes(landmarks, size=size), strict=True):
        yield local_patch(frame, points, box), global_patch(frame, box)


def _boxes(landmarks: np.ndarray, *, size: tuple[int, int]) -> list[Box]:
    """Boxes of landmarks without gaps."""
    boxes: list[Box] = []
    for points in landmarks:
        boxes.append(face_box(points, size=size, previous=boxes[-1] if boxes else None))
    return boxes


def filled_landmarks(face_landmarks: np.ndarray) -> np.ndarray:
    """Landmarks without gaps: each gap repeats the last face, which keeps its box as well.

    Args:
        face_landmarks: as in `face_boxes`.

    Returns:
        (T, 68, 2) float32.

    Raises:
        PerceptionError: wrong shape, or no face in any frame (NoFaceError).
    """
    points = np.asarray(face_landmarks)
    if points.ndim != 3 or points.shape[1] != 68 or points.shape[2] not in (2, 3) or not len(points):
        raise PerceptionError(
            f"face landmarks have shape {points.shape}; expected (T, 68, 2) or (T, 68, 3), T at least 1"
        )
    found = np.isfinite(points).all(axis=(1, 2))
    if points.shape[2] == 3:
        found &= (points[..., 2] > 0).all(axis=1) & (points[..., 2].mean(axis=1) >= _CONFIDENCE)
    if not found.any():
        raise NoFaceError(
            f"no face was found in any of {len(points)} frames; face control needs a visible face: "
            f"choose another part of the driving video, or run without face control (--no-face)"
        )
    rows = np.flatnonzero(found)
    last = np.searchsorted(rows, np.arange(len(points)), side="right") - 1
    return points[rows[last.clip(0)], :, :2].astype(np.float32)


def _inside(box: Box, outer: Box) -> bool:
    """Whether a box lies within another; edges may coincide."""
    return box[0] >= outer[0] and box[1] >= outer[1] and box[2] <= outer[2] and box[3] <= outer[3]


def _checked(landmarks: np.ndarray) -> np.ndarray:
    """(68, 2) finite landmarks, or an error."""
    landmarks = np.asarray(landmarks)
    if landmarks.shape != (68, 2) or not np.isfinite(landmarks).all():
        raise PerceptionError(f"face landmarks have shape {landmarks.shape}; expected finite values of shape (68, 2)")
    return landmarks
