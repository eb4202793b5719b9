"""Whose face it is by insightface's models (for instance `buffalo_l`: SCRFD, then ArcFace); a `FaceEmbedder`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xdyna.core.errors import WeightsError
from xdyna.evaluation.frames import FrameSequence
from xdyna.perception import get_face_backend

NAME = "insightface"
DIM = 512
HOW = (
    "insightface's models are missing: a detector and a recognition network as .onnx files, for instance det_10g.onnx "
    "and w600k_r50.onnx of the pack buffalo_l (https://github.com/deepinsight/insightface, for research only); put "
    "them into a folder 'insightface' below --weights-dir"
)


class InsightFaceEmbedder:
    """Embeddings of the largest face of every frame; see `FaceEmbedder`.

    Args:
        models_dir: folder with the .onnx files.

    Raises:
        PerceptionError: insightface is not installed, no detector in the folder, or a file that cannot be loaded.
        WeightsError: no recognition model in the folder.
    """

    dim = DIM

    def __init__(self, models_dir: Path) -> None:
        self._backend = get_face_backend(NAME, models_dir=models_dir)
        if not self._backend.recognizes:
            raise WeightsError(
                f"'{models_dir}' holds no recognition model of insightface; add one, e.g. w600k_r50.onnx"
            )
        self.name = NAME
        self.version = f"1-{self._backend.version}"

    def embed(self, frames: FrameSequence) -> np.ndarray:
        """uint8 (T, H, W, 3) RGB -> float32 (T, 512) of length 1; NaN where no face is found.

        Raises:
            WeightsError: the recognition model gives vectors of another length.
        """
        out = np.full((len(frames), DIM), np.nan, np.float32)
        for row, frame in enumerate(frames):
            faces = self._backend.detect_faces(frame)
            if not faces:
                continue
            vector = faces[0].embedding
            if vector is None or vector.shape != (DIM,):
                found = "none" if vector is None else str(vector.shape)
                raise WeightsError(f"insightface's recognition model gives vectors {found}, expected ({DIM},)")
            out[row] = vector
        return out
