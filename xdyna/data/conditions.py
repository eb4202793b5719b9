"""Control images of training clips, drawn by the same functions as at inference."""

from __future__ import annotations

import cv2
import numpy as np

from xdyna.perception import PoseTrack, draw_pose
from xdyna.perception.draw import CONFIDENCE
from xdyna.perception.face_patch import iter_face_patches

_OFFICIAL_SIDE, _LANDMARK_RADIUS = 512, 3  # px, OpenPose's drawing of faces
_LANDMARK_COLOR = (255, 255, 255)


def pose_pictures(
    track: PoseTrack, *, landmarks: bool = False, hands: bool = True, head: bool = False, width: float = 1.0
) -> np.ndarray:
    """Skeletons of a clip, as inference draws them.

    Args:
        track: T frames, in px of the image.
        landmarks: draw the 68 face landmarks too (the paper's w/lmk).
        hands: draw hands.
        head: draw eyes and ears.
        width: factor of all widths and radii, above 0; 1 as official.

    Returns:
        (T, H, W, 3) uint8 RGB.
    """
    pictures = np.empty((len(track), *track.size, 3), np.uint8)
    for row, (body, both, face) in enumerate(zip(track.body, track.hands, track.face, strict=True)):
        pictures[row] = draw_pose(body, both if hands else None, size=track.size, head=head, width=width)
        if landmarks:
            draw_landmarks(pictures[row], face)
    return pictures


def draw_landmarks(picture: np.ndarray, landmarks: np.ndarray) -> None:
    """Draw face landmarks as white dots.

    Their radius scales with the shorter side of the image (512 px: 3 px; below 171 px they are single pixels).

    Args:
        image: (H, W, 3) uint8, drawn into.
        landmarks: (68, 3) x px, y px, confidence; those below the confidence threshold of poses are left out.

    Source: OpenPose's drawing of faces.
    """
    radius = int(_LANDMARK_RADIUS * min(picture.shape[:2]) / _OFFICIAL_SIDE)
    for x, y, confidence in landmarks.tolist():
        if confidence >= CONFIDENCE:
            cv2.circle(picture, (int(x), int(y)), radius, _LANDMARK_COLOR, thickness=-1)


def face_pictures(frames: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Face patches of a clip, as inference makes them.

    Args:
        frames: (T, H, W, 3) uint8 RGB.
        landmarks: (T, 68, 3) in px of these frames.

    Returns:
        (T, H, W, 6) uint8: local patch, global patch.

    Raises:
        PerceptionError: no face in any frame.
    """
    pictures = np.empty((*frames.shape[:3], 6), np.uint8)
    pairs = iter_face_patches(frames, landmarks, size=(frames.shape[1], frames.shape[2]))
    for row, (local, whole) in enumerate(pairs):
        pictures[row, ..., :3], pictures[row, ..., 3:] = local, whole
    return pictures
