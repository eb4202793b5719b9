"""Control images of training clips, drawn by the same functions as at inference."""

from __future__ import annotations

import numpy as np

from xdyna.config.contract import PoseStyle
from xdyna.perception import PoseTrack
from xdyna.perception.draw import draw_styled
from xdyna.perception.face_patch import iter_face_patches


def pose_images(track: PoseTrack, style: PoseStyle) -> np.ndarray:
    """Pose maps of a clip, as inference draws them.

    Args:
        track: T frames, in px of the image.
        style: what is drawn, and how wide.

    Returns:
        (T, H, W, 3) uint8 RGB.
    """
    drawn = zip(track.body, track.hands, track.face, strict=True)
    return np.stack([draw_styled(*person, size=track.size, style=style) for person in drawn])


def face_images(frames: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Face patches of a clip, as inference makes them.

    Args:
        frames: (T, H, W, 3) uint8 RGB.
        landmarks: (T, 68, 3) in px of these frames.

    Returns:
        (T, H, W, 6) uint8: local patch, global patch.

    Raises:
        PerceptionError: no face in any frame.
    """
    images = np.empty((*frames.shape[:3], 6), np.uint8)
    pairs = iter_face_patches(frames, landmarks, size=(frames.shape[1], frames.shape[2]))
    for row, (local, whole) in enumerate(pairs):
        images[row, ..., :3], images[row, ..., 3:] = local, whole
    return images
