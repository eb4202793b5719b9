"""MediaPipe's detectors, the same for release 0.10.21 (up to Python 3.12) and for 1.2 and above.

The MediaPipe Tasks detectors expect model bundles that no release contains. 0.10.21 does contain every model (they
serve its older "solutions"), so the bundles are put together in memory; Tasks give the solutions' numbers, and find
several people. Later releases have neither solutions nor models: everything is a task then, with the same models
(`mediapipe_files`). What makes a detector leaves threads behind that log until its first result: callers do both in one
block of `quiet_stderr`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from xdyna.core.install import install_xdyna
from xdyna.perception.base import require
from xdyna.perception.errors import PerceptionError
from xdyna.perception.mediapipe_files import bundle, find_models, has_solutions, model
from xdyna.perception.mediapipe_tflite import with_normalisation, with_refined_points

_T = TypeVar("_T")
_MAX_PEOPLE = 5
_MIN_FACE, _MIN_FULL_FACE = 0.3, 0.5  # least scores of faces in a crop and in the whole frame
_PROCESSORS = Path("/sys/devices/system/cpu/possible")


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hold back what native code writes to standard error: MediaPipe logs there whatever the settings say.

    Python's own warnings and errors are not affected. What was held back is shown after all if the block raises.
    """
    if sys.stderr is not None:
        sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:  # no standard error at all
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            if failed:
                held.seek(0)
                os.write(2, held.read())


def import_mediapipe() -> Any:
    """Import MediaPipe without its messages.

    Returns:
        The module.

    Raises:
        PerceptionError: not installed, or a release between the two kinds that are supported.
    """
    os.environ.setdefault("GLOG_minloglevel", "2")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with quiet_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mediapipe = require("mediapipe", extra="perception", backend="mediapipe")
    version = str(getattr(mediapipe, "__version__", "?"))
    if not hasattr(mediapipe, "solutions") and _number(version) < (1, 2):
        raise PerceptionError(
            f"mediapipe {version} contains no models; expected 0.10.21, or 1.2 and above: {install_xdyna('perception')}"
        )
    return mediapipe


def load_mediapipe() -> Any:
    """Import MediaPipe and make sure of its models, before a detector is made: downloads them where it has none.

    Returns:
        The module.

    Raises:
        PerceptionError: as `import_mediapipe`, the models cannot be downloaded, or a system library is missing.
    """
    mediapipe = import_mediapipe()
    if not hasattr(mediapipe, "solutions") and sys.platform == "linux":
        _check_system()
    find_models()
    return mediapipe


def _check_system() -> None:
    """What releases above 1.0 need beside Python: graphics libraries, though nothing is drawn, and the list of
    processors, without which their memory allocator ends the whole program (a chroot may have no /sys)."""
    try:
        processors = _PROCESSORS.read_text().strip()
    except OSError:
        processors = ""
    if not processors:
        raise PerceptionError(
            f"mediapipe needs {_PROCESSORS}, which cannot be read here; mount /sys (mount -t sysfs sysfs /sys); or "
            "give keypoints instead of a video, or pose_backend=dwpose"
        )
    for library in ("libEGL.so.1", "libGLESv2.so.2"):
        try:
            ctypes.CDLL(library)
        except OSError as error:
            raise PerceptionError(
                f"mediapipe needs the system library {library}, which is missing; on Debian and Ubuntu: apt install "
                "libegl1 libgles2; or give keypoints instead of a video, or pose_backend=dwpose"
            ) from error


def _number(version: str) -> tuple[int, ...]:
    """The first two numbers of a version; nothing where it is none."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return tuple(map(int, found.groups())) if found else ()


def pose_landmarker(*, masks: bool = False) -> Any:
    """A detector of up to 5 people per image, 33 landmarks each.

    Args:
        masks: whether each person's mask is returned as well.

    Returns:
        `mediapipe.tasks.python.vision.PoseLandmarker` for single images.
    """
    from mediapipe.tasks.python import vision

    models = bundle(
        {
            "pose_detector.tflite": model("pose_detection/pose_detection.tflite"),
            "pose_landmarks_detector.tflite": with_normalisation(
                model("pose_landmark/pose_landmark_full.tflite"), mean=0.0, std=255.0
            ),
        }
    )
    options = vision.PoseLandmarkerOptions(
        base_options=_base_options(models),
        num_poses=_MAX_PEOPLE,
        min_pose_detection_confidence=0.3,
        min_pose_presence_confidence=0.3,
        output_segmentation_masks=masks,
    )
    return _task(f"pose, masks={masks}", lambda: vision.PoseLandmarker.create_from_options(options))


def hand_landmarker() -> Any:
    """A detector of hands in a crop around a wrist.

    The thresholds are low on purpose: hands of dancers are small and blurred, and a hand is only believed at a wrist.

    Returns:
        `mediapipe.tasks.python.vision.HandLandmarker` for single images.
    """
    from mediapipe.tasks.python import vision

    models = bundle(
        {
            "hand_detector.tflite": model("palm_detection/palm_detection_full.tflite"),
            "hand_landmarks_detector.tflite": model("hand_landmark/hand_landmark_full.tflite"),
        }
    )
    options = vision.HandLandmarkerOptions(
        base_options=_base_options(models),
        num_hands=2,
        min_hand_detection_confidence=0.1,
        min_hand_presence_confidence=0.1,
    )
    return _task("hands", lambda: vision.HandLandmarker.create_from_options(options))


def face_mesh() -> Callable[[np.ndarray], np.ndarray | None]:
    """A detector of one face in a crop, 478 vertices, lips and eyes refined, without memory of earlier crops.

    Returns:
        (H, W, 3) uint8 RGB -> (478, 3) float64, x and y in parts of the crop, z in parts of its width; None where no
        face is seen.
    """
    import mediapipe

    if has_solutions():
        process = _solution(
            "face mesh",
            lambda: mediapipe.solutions.face_mesh.FaceMesh(
                static_image_mode=True, max_num_faces=1, refine_landmarks=True, min_detection_confidence=_MIN_FACE
            ),
        )
        return lambda crop: _first_mesh([x.landmark for x in process(crop).multi_face_landmarks or []])
    from mediapipe.tasks.python import vision

    options = vision.FaceLandmarkerOptions(
        base_options=_base_options(
            bundle(
                {
                    "face_detector.tflite": model("face_detection/face_detection_short_range.tflite"),
                    "face_landmarks_detector.tflite": with_refined_points(
                        model("face_landmark/face_landmark_with_attention.tflite")
                    ),
                }
            )
        ),
        num_faces=1,
        min_face_detection_confidence=_MIN_FACE,
    )
    task = _task("face mesh", lambda: vision.FaceLandmarker.create_from_options(options))
    return lambda crop: _first_mesh(task.detect(as_image(crop)).face_landmarks)


def face_detector() -> Callable[[np.ndarray], np.ndarray]:
    """A detector of all faces, also small ones.

    Returns:
        (H, W, 3) uint8 RGB -> (N, 4) float64: left, top, width, height in parts of the frame.
    """
    import mediapipe

    if has_solutions():
        process = _solution(
            "faces",
            lambda: mediapipe.solutions.face_detection.FaceDetection(
                model_selection=1, min_detection_confidence=_MIN_FULL_FACE
            ),
        )

        def detect(frame: np.ndarray) -> np.ndarray:
            found = [x.location_data.relative_bounding_box for x in process(frame).detections or []]
            return np.array([[box.xmin, box.ymin, box.width, box.height] for box in found]).reshape(-1, 4)

        return detect
    from mediapipe.tasks.python import vision

    options = vision.FaceDetectorOptions(
        base_options=_base_options(model("face_detection/face_detection_full_range_sparse.tflite")),
        min_detection_confidence=_MIN_FULL_FACE,
    )
    task = _task("faces", lambda: vision.FaceDetector.create_from_options(options))

    def detect_by_task(frame: np.ndarray) -> np.ndarray:
        found = [x.bounding_box for x in task.detect(as_image(frame)).detections]
        boxes = np.array([[box.origin_x, box.origin_y, box.width, box.height] for box in found]).reshape(-1, 4)
        return boxes / np.tile([frame.shape[1], frame.shape[0]], 2)

    return detect_by_task


def selfie_segmenter() -> Callable[[np.ndarray], np.ndarray]:
    """A person mask for images in which no body is found.

    Returns:
        (H, W, 3) uint8 RGB -> (H, W) float32 in [0, 1]; general model.
    """
    import mediapipe

    if has_solutions():
        process = _solution(
            "selfie", lambda: mediapipe.solutions.selfie_segmentation.SelfieSegmentation(model_selection=0)
        )
        return lambda frame: np.asarray(process(frame).segmentation_mask, dtype=np.float32)
    from mediapipe.tasks.python import vision

    options = vision.ImageSegmenterOptions(
        base_options=_base_options(model("selfie_segmentation/selfie_segmentation.tflite")),
        output_confidence_masks=True,
    )
    task = _task("selfie", lambda: vision.ImageSegmenter.create_from_options(options))
    return lambda frame: np.array(task.segment(as_image(frame)).confidence_masks[0].numpy_view(), dtype=np.float32)


def face_edges() -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """The edges between vertices of the face mesh: of the whole skin, and of the face's outline."""
    mediapipe = import_mediapipe()
    if has_solutions():
        table = mediapipe.solutions.face_mesh_connections
        return set(table.FACEMESH_TESSELATION), set(table.FACEMESH_FACE_OVAL)
    from mediapipe.tasks.python.vision import FaceLandmarksConnections as Table

    skin, outline = Table.FACE_LANDMARKS_TESSELATION, Table.FACE_LANDMARKS_FACE_OVAL
    return {(edge.start, edge.end) for edge in skin}, {(edge.start, edge.end) for edge in outline}


def as_image(frame: np.ndarray) -> Any:
    """A frame as tasks take it. Args: frame: (H, W, 3) uint8 RGB."""
    import mediapipe

    return mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(frame))


def _first_mesh(faces: Sequence[Any]) -> np.ndarray | None:
    return np.array([[p.x, p.y, p.z] for p in faces[0]]) if faces else None


def _base_options(content: bytes) -> Any:
    """Run a model or bundle on the CPU: the same numbers on every machine."""
    from mediapipe.tasks.python import BaseOptions

    return BaseOptions(model_asset_buffer=content, delegate=BaseOptions.Delegate.CPU)


_kept: dict[tuple[int, str], Any] = {}
"""Detectors by process and name."""


def _task(name: str, make: Callable[[], _T]) -> _T:
    """A detector, one of each name in a process, which is never deleted.

    Deleted ones leave their threads and about 20 MB behind (0.10), or wait for a thread of their own (1.x): called by
    the garbage collector, in the middle of anything, their `__del__` may wait for ever (seen inside an import); called
    when Python ends, it fails and says so on standard error. Single images leave nothing behind in a detector, so one
    serves all, also threads at once. A forked process needs its own: it has no such thread.
    """
    key = os.getpid(), name
    if key not in _kept:
        _kept[key] = make()
        if not has_solutions():  # given back by nobody, also not when Python ends
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(_kept[key]))
    return cast(_T, _kept[key])


def _solution(name: str, make: Callable[[], Any]) -> Callable[[np.ndarray], Any]:
    """The `process` of a detector of 0.10 that serves one thread at a time; see `_task`."""
    solution, alone = _task(f"solution, {name}", lambda: (make(), threading.Lock()))

    def process(frame: np.ndarray) -> Any:
        with alone:
            return solution.process(frame)

    return process
