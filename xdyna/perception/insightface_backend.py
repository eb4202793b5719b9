"""Face backend on insightface: boxes with 5 points, and identity. Its models are never downloaded here."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from xdyna.core.resources import weights_folder
from xdyna.perception.base import Face, check_frame, require
from xdyna.perception.errors import PerceptionError

DEFAULT_DIR = weights_folder() / "insightface"
_DETECTION, _RECOGNITION = "detection", "recognition"


class InsightFaceBackend:
    """The models of an insightface pack (for instance `buffalo_l`): a detector, and a recognition model if any.

    Args:
        models_dir: folder with the .onnx files; None: `pretrained/insightface` of the repository, whatever the
            working folder.
        threshold: lowest detector confidence, in (0, 1).

    Attributes:
        name: "insightface".
        version: library version and hash of the models' names and sizes.
        recognizes: whether faces get an embedding.

    Raises:
        PerceptionError: insightface is not installed, no detector in the folder, or a file that cannot be loaded.
    """

    name = "insightface"

    def __init__(self, *, models_dir: Path | None = None, threshold: float = 0.5) -> None:
        folder = DEFAULT_DIR if models_dir is None else Path(models_dir)
        files = sorted(folder.glob("*.onnx"))
        if not files:
            raise PerceptionError(
                f"face backend 'insightface' found no .onnx file in '{folder}'; put the files of a model pack there "
                f"(for instance buffalo_l: det_10g.onnx, w600k_r50.onnx)"
            )
        insightface = require("insightface", extra="perception", backend=self.name)
        self._face_type = require("insightface.app.common", extra="perception", backend=self.name).Face
        self._models: dict[str, Any] = {}
        for file in files:
            model = _load(file)
            if model is not None and model.taskname in (_DETECTION, _RECOGNITION):
                self._models.setdefault(model.taskname, model)
        if _DETECTION not in self._models:
            raise PerceptionError(
                f"face backend 'insightface' found no face detector in '{folder}' "
                f"(files: {[file.name for file in files]}); add one, for instance det_10g.onnx of buffalo_l"
            )
        self.recognizes = _RECOGNITION in self._models
        for task, model in self._models.items():
            model.prepare(-1, **({"input_size": (640, 640), "det_thresh": threshold} if task == _DETECTION else {}))
        listing = " ".join(f"{file.name}:{file.stat().st_size}" for file in files)
        self.version = f"{insightface.__version__}-{hashlib.sha256(listing.encode()).hexdigest()[:12]}"

    def detect_faces(self, frame: np.ndarray) -> list[Face]:
        """Find the faces in a frame.

        Args:
            frame: (H, W, 3) uint8 RGB.

        Returns:
            Faces, largest box first, with an embedding where the folder has a recognition model.

        Raises:
            PerceptionError: not such a frame.
        """
        image = np.ascontiguousarray(check_frame(frame)[..., ::-1])  # insightface takes BGR
        boxes, points = self._models[_DETECTION].detect(image, max_num=0, metric="default")
        faces = [self._face(image, box=box, kps5=kps5) for box, kps5 in zip(boxes, points, strict=True)]
        return sorted(faces, key=lambda face: -float(np.prod(face.box[2:] - face.box[:2])))

    def _face(self, image: np.ndarray, *, box: np.ndarray, kps5: np.ndarray) -> Face:
        """One face with what the recognition model says about it."""
        entry = self._face_type(bbox=box[:4], kps=kps5, det_score=box[4])
        embedding = None
        if _RECOGNITION in self._models:
            vector = np.asarray(self._models[_RECOGNITION].get(image, entry), dtype=np.float32).reshape(-1)
            embedding = vector / max(float(np.linalg.norm(vector)), 1e-12)
        return Face(
            box=np.asarray(box[:4], dtype=np.float32),
            score=float(box[4]),
            kps5=np.asarray(kps5, dtype=np.float32),
            embedding=embedding,
        )


def _load(file: Path) -> Any:
    """A model of insightface, or None for a file it does not know."""
    model_zoo = require("insightface.model_zoo", extra="perception", backend="insightface")
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # older releases print
            return model_zoo.get_model(str(file.resolve()), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has no common class for unreadable models
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PerceptionError(f"model '{file}' cannot be loaded ({reason}); copy or download it again") from error
