"""Pose backend on DWPose (rtmlib), the detector behind the official pose maps. Models are never downloaded here."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from xdyna.core.files import file_sha256
from xdyna.core.resources import weights_folder
from xdyna.perception.base import check_frame, require
from xdyna.perception.errors import PerceptionError
from xdyna.perception.topology import (
    COCO_TO_BODY,
    LEFT_SHOULDER,
    NECK,
    RIGHT_SHOULDER,
    WHOLEBODY_FACE,
    WHOLEBODY_LEFT_HAND,
    WHOLEBODY_RIGHT_HAND,
)
from xdyna.perception.types import Person, mark_face, mark_outside

DETECTOR_FILE = "yolox_l.onnx"
POSE_FILE = "dw-ll_ucoco_384.onnx"
DEFAULT_DIR = weights_folder() / "dwpose"
_RULES = 1  # raise when the code below changes the numbers: cached keypoints are then detected again


class DWPoseBackend:
    """YOLOX people detector and DWPose whole-body keypoints, run by rtmlib on onnxruntime.

    Args:
        models_dir: folder with `yolox_l.onnx` and `dw-ll_ucoco_384.onnx`; None: `pretrained/dwpose` of the
            repository, whatever the working folder.
        device: of rtmlib, "cpu" or "cuda".

    Attributes:
        name: "dwpose".
        version: hashes of both models and number of the rules here.

    Raises:
        PerceptionError: rtmlib is not installed, a model is missing or cannot be loaded.
    """

    name = "dwpose"

    def __init__(self, *, models_dir: Path | None = None, device: str = "cpu") -> None:
        folder = DEFAULT_DIR if models_dir is None else Path(models_dir)
        files = [folder / DETECTOR_FILE, folder / POSE_FILE]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise PerceptionError(
                f"perception backend 'dwpose' lacks {missing} in '{folder}'; put the files of the Hub repository "
                f"'yzd-v/DWPose' there, or use the backend 'mediapipe', which brings its models"
            )
        # The models are checked first: rtmlib would download what it does not find.
        rtmlib = require("rtmlib", install="rtmlib onnxruntime", backend=self.name)
        self._detector = _load(rtmlib.YOLOX, files[0], model_input_size=(640, 640), device=device)
        self._pose = _load(rtmlib.RTMPose, files[1], model_input_size=(288, 384), device=device)
        self.version = "-".join([*(file_sha256(file)[:12] for file in files), f"r{_RULES}"])

    def detect(self, frame: np.ndarray) -> list[Person]:
        """Find the people in a frame.

        Args:
            frame: (H, W, 3) uint8 RGB.

        Returns:
            People, largest box first.

        Raises:
            PerceptionError: not such a frame.
        """
        frame = check_frame(frame)
        image = np.ascontiguousarray(frame[..., ::-1])  # rtmlib takes BGR
        boxes = np.asarray(self._detector(image), dtype=np.float32).reshape(-1, 4)
        if not len(boxes):  # rtmlib would take the whole image for a person
            return []
        points, scores = self._pose(image, bboxes=boxes)
        people = [
            wholebody_person(np.column_stack(entry[:2]), box=entry[2], size=(frame.shape[0], frame.shape[1]))
            for entry in zip(points, scores, boxes, strict=True)
        ]
        return sorted(people, key=lambda person: -person.area)


def wholebody_person(points: np.ndarray, *, box: np.ndarray, size: tuple[int, int]) -> Person:
    """A person from COCO-WholeBody keypoints.

    Args:
        points: (133, 3) x px, y px, score.
        box: (4,) left, top, right, bottom in px.
        size: (H, W) of the image, px.

    Returns:
        The person; the neck is the middle of the shoulders with the lower of their scores.

    Raises:
        PerceptionError: another number of points.
    """
    if points.shape != (133, 3):
        raise PerceptionError(
            f"DWPose returned points of shape {points.shape}; expected (133, 3): is it a whole-body model?"
        )
    body = np.zeros((18, 3))
    for joint, source in COCO_TO_BODY.items():
        body[joint] = points[source]
    shoulders = body[[RIGHT_SHOULDER, LEFT_SHOULDER]]
    body[NECK] = [*shoulders[:, :2].mean(axis=0), shoulders[:, 2].min()]
    hands = np.stack([points[WHOLEBODY_LEFT_HAND], points[WHOLEBODY_RIGHT_HAND]])
    return Person(
        body=mark_outside(body, size),
        hands=mark_outside(hands, size),
        face=mark_face(points[WHOLEBODY_FACE], size),
        box=np.asarray(box, dtype=np.float32),
        score=float(body[:, 2].mean().clip(0, 1)),
    )


def _load(tool: Any, file: Path, *, model_input_size: tuple[int, int], device: str) -> Any:
    """Make an rtmlib tool of a model file, whatever input size the file has."""
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # rtmlib prints
            model = tool(str(file), model_input_size=model_input_size, backend="onnxruntime", device=device)
    except Exception as error:  # onnxruntime has no common class for unreadable models
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PerceptionError(f"model '{file}' cannot be loaded ({reason}); copy or download it again") from error
    height, width = model.session.get_inputs()[0].shape[2:]
    if isinstance(height, int) and isinstance(width, int):
        # YOLOX counts (height, width) and RTMPose (width, height).
        model.model_input_size = (height, width) if tool.__name__ == "YOLOX" else (width, height)
    return model
