"""Face reenactment by LivePortrait, a network that is installed beside this project.

It is used through its own inference wrapper, with crops made here, so that neither its face detector nor its video
writing is needed. To install it: clone https://github.com/KwaiVGI/LivePortrait, install its requirements into this
environment, download its weights into `pretrained_weights` as its README says, and name the folder in
$XDYNA_LIVEPORTRAIT.

Source: Guo et al., "LivePortrait: efficient portrait animation with stitching and retargeting control", 2024.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from xdyna.config.data import DataError
from xdyna.data.face_files import patch_boxes, seen
from xdyna.data.sources import Faces
from xdyna.perception.face_mesh import FaceMesher, ibug68
from xdyna.perception.mediapipe_backend import square_crop
from xdyna.preprocess.faces.reenact import (
    Portrait,
    ReenactError,
    check_clip,
    check_portrait,
    keep_boxes,
    portrait_penalty,
)

_RULES = 1  # raise when the code changes the images
_INPUT = 256  # px
_CROP, _UP = 2.3, 0.125  # side of the crop in face extents, and how far its centre lies above the face's
_HOME = "XDYNA_LIVEPORTRAIT"
_WEIGHTS = "pretrained_weights/liveportrait"


class LivePortrait:
    """The reenactor "liveportrait"; see `FaceReenactor`.

    The head is posed as the driving head in its crop; the expression is the portrait's own plus the driving one's
    difference from the driving person's calmest face; stitching is left out, because no body is pasted back.

    Args:
        models_dir: the repository's folder; None: $XDYNA_LIVEPORTRAIT.

    Raises:
        DataError: it is not installed there, or its weights are missing.
        PerceptionError: MediaPipe is missing.
    """

    name = "liveportrait"

    def __init__(self, *, models_dir: Path | None = None) -> None:
        self._wrapper, self._rotation = _load(models_dir)
        self._mesher = FaceMesher()
        self.version = f"r{_RULES}-{self._mesher.version}"

    def reenact(
        self, frames: np.ndarray, landmarks: np.ndarray, other: Portrait, *, own: Portrait | None = None
    ) -> Faces:
        """See `FaceReenactor.reenact`."""
        check_clip(frames, landmarks)
        check_portrait(other)
        size = (frames.shape[1], frames.shape[2])
        found = np.flatnonzero(seen(landmarks))
        if not len(found):
            raise ReenactError(f"no face in any of {len(frames)} frames; leave the clip out", reason="no_face")
        source = self._wrapper.prepare_source(_crop(other.image, other.landmarks)[0])
        identity = self._wrapper.get_kp_info(source)
        volume, start = self._wrapper.extract_feature_3d(source), self._wrapper.transform_keypoint(identity)
        neutral = self._neutral(frames, landmarks, found, own)
        images, points = np.zeros_like(frames), np.zeros((len(frames), 68, 3), dtype=np.float32)
        for row in found:
            crop, center, side = _crop(frames[row], landmarks[row])
            motion = self._wrapper.get_kp_info(self._wrapper.prepare_source(crop))
            end = self._keypoints(identity, motion, neutral)
            drawn = self._wrapper.parse_output(self._wrapper.warp_decode(volume, start, end)["out"])[0]
            image = _pasted(np.asarray(drawn), center, side, size=size)
            mesh = self._mesher.detect(image, landmarks[row])
            if mesh is not None:
                images[row], points[row, :, :2], points[row, :, 2] = image, ibug68(mesh), landmarks[row, :, 2]
        if not seen(points).any():
            raise ReenactError(f"{other.name}: LivePortrait shows no face; choose another", reason="no_portrait")
        return Faces(keep_boxes(images, patch_boxes(points, size=size)), points)

    def _neutral(
        self, frames: np.ndarray, landmarks: np.ndarray, found: np.ndarray, own: Portrait | None
    ) -> dict[str, Tensor]:
        """Motion of the driving person's calmest face."""
        if own is not None:
            image, points = own.image, own.landmarks
        else:
            row = found[int(np.argmin(portrait_penalty(landmarks[found])))]
            image, points = frames[row], landmarks[row]
        motion: dict[str, Tensor] = self._wrapper.get_kp_info(self._wrapper.prepare_source(_crop(image, points)[0]))
        return motion

    def _keypoints(self, identity: dict[str, Tensor], motion: dict[str, Tensor], neutral: dict[str, Tensor]) -> Tensor:
        """The portrait's implicit keypoints (1, N, 3) in the driving pose.

        x = s (x_c R + delta) + t with scale, rotation and place of the driving face. Source: LivePortrait, eq. 2.
        """
        rotation = self._rotation(motion["pitch"], motion["yaw"], motion["roll"])
        change = identity["exp"] + motion["exp"] - neutral["exp"]
        placed = motion["scale"][..., None] * (identity["kp"] @ rotation + change)
        shift = motion["t"][:, None].clone()
        shift[..., 2] = 0
        return placed + shift


def _crop(image: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The square around a face that the network sees: (256, 256, 3), its centre (2,) and side in px."""
    low, high = landmarks[:, :2].min(axis=0), landmarks[:, :2].max(axis=0)
    side = _CROP * float((high - low).max())
    center = (low + high) / 2 - [0, _UP * side / _CROP]
    crop = square_crop(image, center=center, side=side, size=_INPUT)
    if crop is None:
        raise ReenactError("the face lies outside its image or is below 4 px; leave it out", reason="no_face")
    return crop, center, side


def _pasted(crop: np.ndarray, center: np.ndarray, side: float, *, size: tuple[int, int]) -> np.ndarray:
    """A crop back in a black image of a size; edges are repeated as far as face patches can reach."""
    step = side / crop.shape[0]
    matrix = np.array([[step, 0, 0.0], [0, step, 0]])
    matrix[:, 2] = center - side / 2 + step / 2
    border = cv2.BORDER_REPLICATE
    return np.asarray(cv2.warpAffine(crop, matrix, (size[1], size[0]), flags=cv2.INTER_LINEAR, borderMode=border))


def _load(models_dir: Path | None) -> tuple[Any, Any]:
    """LivePortrait's wrapper with its weights, and its function from angles to rotations."""
    given = models_dir or os.environ.get(_HOME)
    how = (
        "clone https://github.com/KwaiVGI/LivePortrait, install its requirements, download its weights into "
        f"{_WEIGHTS} below it, and give the folder (or set {_HOME}); or use the reenactor 'mesh-warp'"
    )
    if given is None:
        raise DataError(f"face reenactor 'liveportrait' is not installed: {how}")
    home = Path(given).resolve()
    if not (home / "src" / "live_portrait_wrapper.py").is_file():
        raise DataError(f"'{home}' is no LivePortrait: it has no src/live_portrait_wrapper.py; {how}")
    if not any((home / _WEIGHTS).rglob("*.pth")):
        raise DataError(f"LivePortrait in '{home}' has no weights in {_WEIGHTS}; {how}")
    # Its modules are called `src.*`: they are importable only while its folder leads the path.
    sys.path.insert(0, str(home))
    try:
        config = importlib.import_module("src.config.inference_config").InferenceConfig
        wrapper = importlib.import_module("src.live_portrait_wrapper").LivePortraitWrapper
        rotation = importlib.import_module("src.utils.camera").get_rotation_matrix
        cpu = not torch.cuda.is_available()
        made = wrapper(config(flag_force_cpu=cpu, flag_use_half_precision=not cpu))
    except (ImportError, AttributeError, TypeError, OSError, KeyError, RuntimeError) as error:
        raise DataError(
            f"LivePortrait in '{home}' cannot be loaded ({type(error).__name__}: {error}); {how}"
        ) from error
    finally:
        sys.path.remove(str(home))
    return made, rotation
