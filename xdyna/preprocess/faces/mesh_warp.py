"""Face reenactment by warping: another person's portrait bent to the driving head's pose and expression.

Per frame: find the face mesh, split it into head pose and shape, put the difference of the shape from the driving
person's neutral one on the other person's neutral shape, place that with the driving pose, and draw the other's
portrait over it. Nothing is downloaded, nothing is learned. Who is seen is the other person, down to the proportions of
the face; what a portrait cannot show (the far side of a strongly turned head, wrinkles) stays as it is in the portrait.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xdyna.config.data import DataError
from xdyna.data.face_files import patch_boxes, seen
from xdyna.data.sources import Faces
from xdyna.perception.face_mesh import FaceMesher, ibug68
from xdyna.preprocess.faces.mesh_draw import PortraitWarp
from xdyna.preprocess.faces.mesh_shape import ExpressionTransfer, HeadPose, align, frontal, neutral_shape
from xdyna.preprocess.faces.reenact import Portrait, ReenactError, check_clip, check_portrait

_RULES = 1  # raise when the code changes the images


class MeshWarp:
    """The reenactor "mesh-warp"; see `FaceReenactor`.

    Args:
        models_dir: must be None: MediaPipe's models are in its package.

    Raises:
        DataError: `models_dir` was given.
        PerceptionError: MediaPipe is missing.
    """

    name = "mesh-warp"

    def __init__(self, *, models_dir: Path | None = None) -> None:
        if models_dir is not None:
            raise DataError(f"face reenactor 'mesh-warp' takes no models folder ('{models_dir}'); leave it out")
        self._mesher = FaceMesher()
        self.version = f"{self._mesher.version}-r{_RULES}"

    def reenact(
        self, frames: np.ndarray, landmarks: np.ndarray, other: Portrait, *, own: Portrait | None = None
    ) -> Faces:
        """See `FaceReenactor.reenact`."""
        check_clip(frames, landmarks)
        portrait, calm = self._portrait(other), None if own is None else self._portrait(own)
        if portrait is None:
            raise ReenactError(
                f"{other.name}: no face is found where its landmarks are; choose another image", reason="no_portrait"
            )
        meshes = {
            int(row): mesh
            for row in np.flatnonzero(seen(landmarks))
            if (mesh := self._mesher.detect(frames[row], landmarks[row])) is not None
        }
        if not meshes:
            raise ReenactError(f"no face in any of {len(frames)} frames; leave the clip out", reason="no_face")
        neutral = neutral_shape([*meshes.values(), *([] if calm is None else [calm])])
        aligned = {row: align(mesh, neutral) for row, mesh in meshes.items()}
        other_shape, other_pose = frontal(portrait)
        transfer = ExpressionTransfer(neutral, other_shape)
        placed: dict[int, tuple[np.ndarray, HeadPose]] = {
            row: (transfer(shape), pose) for row, (shape, pose) in aligned.items()
        }
        points = np.zeros((len(frames), 68, 3), dtype=np.float32)
        for row, (shape, pose) in placed.items():
            points[row, :, :2] = ibug68(pose.place(shape))
            points[row, :, 2] = landmarks[row, :, 2]
        scale = float(np.median([pose.scale for _, pose in placed.values()]))
        warp = PortraitWarp(other.image, portrait, other_shape, other_pose, scale=scale)
        images = np.zeros_like(frames)
        boxes = patch_boxes(points, size=(frames.shape[1], frames.shape[2]))
        for row, (shape, pose) in placed.items():
            left, top, right, bottom = boxes[row]
            if left < right and top < bottom:  # else the whole box lies outside the image
                images[row, top:bottom, left:right] = warp.draw(shape, pose, boxes[row])
        return Faces(images, points)

    def _portrait(self, portrait: Portrait) -> np.ndarray | None:
        """(478, 3) the mesh of a portrait, or None where none is found."""
        check_portrait(portrait)
        return self._mesher.detect(portrait.image, portrait.landmarks)
