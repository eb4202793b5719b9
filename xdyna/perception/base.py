"""The interface of perception backends, and how one is found by name."""

from __future__ import annotations

import difflib
import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from xdyna.core.install import install_xdyna
from xdyna.perception.errors import PerceptionError
from xdyna.perception.types import Person


@runtime_checkable
class PoseBackend(Protocol):
    """Finds people in single frames.

    What `detect` returns for a frame depends on that frame alone, never on earlier calls: results can then be cached by
    frame number, and asking for other frames does not change them.

    Attributes:
        name: as in `get_backend`.
        version: everything the numbers depend on (library, models, rules); part of the cache key.
    """

    name: str
    version: str

    def detect(self, frame: np.ndarray) -> list[Person]:
        """Find the people in a frame.

        Args:
            frame: (H, W, 3) uint8 RGB.

        Returns:
            People, largest box first; empty if there is none.
        """
        ...


@runtime_checkable
class CrowdBackend(PoseBackend, Protocol):
    """A pose backend whose `detect` is brief and misses people in a crowd, and that can also search for everybody."""

    def detect_everybody(self, frame: np.ndarray) -> list[Person]:
        """Find all people in a frame; takes several times as long as `detect`, which this adds to.

        Args:
            frame: (H, W, 3) uint8 RGB.

        Returns:
            People, largest box first; as `detect` if that finds as many.
        """
        ...


@runtime_checkable
class MaskBackend(Protocol):
    """Tells people from the scene."""

    name: str
    version: str

    def segment(self, frame: np.ndarray) -> np.ndarray:
        """Find the pixels that belong to people.

        Args:
            frame: (H, W, 3) uint8 RGB.

        Returns:
            (H, W) float32 in [0, 1], 1 on people.
        """
        ...


@dataclass(frozen=True)
class Face:
    """One face in one frame.

    Attributes:
        box: (4,) float32, left, top, right, bottom in px.
        score: confidence of the detector in [0, 1].
        kps5: (5, 2) float32, px: eye, eye (image left first), nose tip, mouth corner, mouth corner.
        embedding: (D,) float32 of unit length for identity, or None without a recognition model.
    """

    box: np.ndarray
    score: float
    kps5: np.ndarray
    embedding: np.ndarray | None = None


@runtime_checkable
class FaceBackend(Protocol):
    """Finds faces in single frames, and whose they are where `recognizes`."""

    name: str
    version: str
    recognizes: bool

    def detect_faces(self, frame: np.ndarray) -> list[Face]:
        """Find the faces in a frame.

        Args:
            frame: (H, W, 3) uint8 RGB.

        Returns:
            Faces, largest box first; empty if there is none.
        """
        ...


# name -> (module, class): heavy libraries are imported only when their backend is asked for.
_POSE_BACKENDS = {
    "mediapipe": ("xdyna.perception.mediapipe_backend", "MediaPipeBackend"),
    "dwpose": ("xdyna.perception.dwpose_backend", "DWPoseBackend"),
}
_FACE_BACKENDS = {"insightface": ("xdyna.perception.insightface_backend", "InsightFaceBackend")}


def get_backend(name: str = "mediapipe", *, models_dir: str | os.PathLike[str] | None = None) -> PoseBackend:
    """Make a pose backend.

    Args:
        name: "mediapipe" (has its own models) or "dwpose" (needs `models_dir`).
        models_dir: folder with the model files; None: the backend's default. "mediapipe" has none.

    Returns:
        The backend.

    Raises:
        PerceptionError: unknown name, package not installed, or models missing.
    """
    return _make(_POSE_BACKENDS, name, what="pose backend", models_dir=models_dir)


def everybody(backend: PoseBackend, frame: np.ndarray) -> list[Person]:
    """All people in a frame, as far as a backend can find them.

    Args:
        backend: finds people.
        frame: (H, W, 3) uint8 RGB.

    Returns:
        People, largest box first.
    """
    return backend.detect_everybody(frame) if isinstance(backend, CrowdBackend) else backend.detect(frame)


def get_face_backend(name: str = "insightface", *, models_dir: str | os.PathLike[str] | None = None) -> FaceBackend:
    """Make a face backend.

    Args:
        name: "insightface".
        models_dir: folder with the .onnx files; None: the backend's default.

    Returns:
        The backend.

    Raises:
        PerceptionError: unknown name, package not installed, or models missing.
    """
    return _make(_FACE_BACKENDS, name, what="face backend", models_dir=models_dir)


def require(package: str, *, extra: str, backend: str) -> Any:
    """Import the package behind a backend.

    Args:
        package: name to import.
        extra: of xdyna that brings it.
        backend: for the message.

    Returns:
        The module.

    Raises:
        PerceptionError: not installed, or broken.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise PerceptionError(
            f"perception backend '{backend}' needs the package '{package}', which cannot be imported ({error}); "
            f"run: {install_xdyna(extra)}"
        ) from error


def check_frame(frame: np.ndarray) -> np.ndarray:
    """A frame as the backends need it.

    Args:
        frame: (H, W, 3) uint8 RGB.

    Returns:
        The same frame, contiguous.

    Raises:
        PerceptionError: another shape or type.
    """
    frame = np.asarray(frame)
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or not frame.size:
        raise PerceptionError(f"frame has shape {frame.shape} and type {frame.dtype}; expected (H, W, 3) uint8 RGB")
    return np.ascontiguousarray(frame)


def _make(
    registry: dict[str, tuple[str, str]], name: str, *, what: str, models_dir: str | os.PathLike[str] | None
) -> Any:
    """Import and make the backend `name` of a registry."""
    if name not in registry:
        close = difflib.get_close_matches(str(name).lower(), registry, n=1, cutoff=0.4)
        hint = f"did you mean '{close[0]}'?" if close else "choose one of them"
        raise PerceptionError(f"{what} '{name}' is unknown; known are {sorted(registry)}: {hint}")
    module, cls = registry[name]
    return getattr(importlib.import_module(module), cls)(models_dir=None if models_dir is None else Path(models_dir))
