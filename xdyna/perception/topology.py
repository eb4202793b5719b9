"""Orders of keypoints and the maps between them; data only.

Left and right are the person's own. Orders used everywhere in this project: OpenPose-18 for the body, OpenPose-21 for a
hand (wrist, then thumb to little finger, four points each from the palm outwards), iBUG-68 for the face.
"""

from __future__ import annotations

import numpy as np

BODY_JOINTS = (
    "nose", "neck",
    "right_shoulder", "right_elbow", "right_wrist",
    "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle",
    "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
)  # fmt: skip
"""Names of the 18 body joints, OpenPose's COCO order."""

NOSE, NECK = 0, 1
RIGHT_SHOULDER, RIGHT_ELBOW, RIGHT_WRIST = 2, 3, 4
LEFT_SHOULDER, LEFT_ELBOW, LEFT_WRIST = 5, 6, 7
RIGHT_HIP, LEFT_HIP = 8, 11
HEAD_JOINTS = (14, 15, 16, 17)
"""Eyes and ears: left out of the official pose maps."""

BODY_LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13),
    (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
"""Limbs in drawing order; limb k has colour k of `BODY_COLORS`. Source: OpenPose / ControlNet."""

BODY_COLORS = np.array(
    [
        [255, 0, 0], [255, 85, 0], [255, 170, 0], [255, 255, 0], [170, 255, 0], [85, 255, 0],
        [0, 255, 0], [0, 255, 85], [0, 255, 170], [0, 255, 255], [0, 170, 255], [0, 85, 255],
        [0, 0, 255], [85, 0, 255], [170, 0, 255], [255, 0, 255], [255, 0, 170], [255, 0, 85],
    ],
    dtype=np.uint8,
)  # fmt: skip
"""RGB of joint k. Source: OpenPose / ControlNet."""

HAND_BONES = tuple(
    (0 if joint == 0 else 4 * finger + joint, 4 * finger + joint + 1) for finger in range(5) for joint in range(4)
)
"""The 20 bones of a hand, finger by finger from the wrist outwards; bone k has hue k / 20."""

MEDIAPIPE_TO_BODY = {
    0: 0, 2: 12, 3: 14, 4: 16, 5: 11, 6: 13, 7: 15, 8: 24, 9: 26, 10: 28, 11: 23, 12: 25, 13: 27,
    14: 5, 15: 2, 16: 8, 17: 7,
}  # fmt: skip
"""OpenPose-18 joint -> MediaPipe Pose landmark (of 33); the neck (1) is the middle of the shoulders."""

MEDIAPIPE_TO_IBUG68 = np.array(
    [
        127, 234, 93, 132, 58, 136, 150, 176, 152, 400, 379, 365, 288, 361, 323, 454, 356,  # jaw, right ear to left ear
        70, 63, 105, 66, 107, 336, 296, 334, 293, 300,  # brows
        168, 197, 5, 4, 98, 97, 2, 326, 327,  # nose: bridge, then nostrils
        33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,  # eyes
        61, 40, 37, 0, 267, 270, 291, 321, 314, 17, 84, 91,  # outer lips
        78, 81, 13, 311, 308, 402, 14, 178,  # inner lips
    ],
    dtype=np.int64,
)  # fmt: skip
"""iBUG-68 landmark -> vertex of the MediaPipe face mesh (of 468).

Source: the usual correspondence of the canonical face mesh with the iBUG 300-W scheme, chosen left-right symmetric.
"""

COCO_TO_BODY = {
    0: 0, 2: 6, 3: 8, 4: 10, 5: 5, 6: 7, 7: 9, 8: 12, 9: 14, 10: 16, 11: 11, 12: 13, 13: 15, 14: 2, 15: 1, 16: 4, 17: 3,
}  # fmt: skip
"""OpenPose-18 joint -> COCO-17 keypoint; the neck (1) is the middle of the shoulders."""

WHOLEBODY_FACE = slice(23, 91)
WHOLEBODY_LEFT_HAND = slice(91, 112)
WHOLEBODY_RIGHT_HAND = slice(112, 133)
"""Where COCO-WholeBody (133 points) keeps face and hands; 0-16 are COCO-17, 17-22 the feet."""
