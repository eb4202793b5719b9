"""MediaPipe's detectors, built from the models inside its own package: nothing is downloaded.

The MediaPipe Tasks detectors expect model bundles that the package does not contain. It does contain every model (they
serve the older "solutions"), so the bundles are put together in memory; Tasks give the solutions' numbers, and find
several people. What makes a detector leaves threads behind that log until its first result: callers do both in one
block of `quiet_stderr`.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xdyna.perception.base import require
from xdyna.perception.errors import PerceptionError

_MAX_PEOPLE = 5
_INSTALL = '"xdyna[perception]"'


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
        PerceptionError: not installed, or a release without models and solutions.
    """
    os.environ.setdefault("GLOG_minloglevel", "2")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with quiet_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mediapipe = require("mediapipe", install=_INSTALL, backend="mediapipe")
    if not hasattr(mediapipe, "solutions"):
        raise PerceptionError(
            f"mediapipe {getattr(mediapipe, '__version__', '?')} contains no models; expected 0.10.21: "
            f"pip install {_INSTALL}"
        )
    return mediapipe


def pose_landmarker(*, masks: bool = False) -> Any:
    """A detector of up to 5 people per picture, 33 landmarks each.

    Args:
        masks: whether each person's mask is returned as well.

    Returns:
        `mediapipe.tasks.python.vision.PoseLandmarker` for single pictures.
    """
    from mediapipe.tasks.python import vision

    bundle = _bundle(
        {
            "pose_detector.tflite": _model("pose_detection/pose_detection.tflite"),
            "pose_landmarks_detector.tflite": _with_normalisation(
                _model("pose_landmark/pose_landmark_full.tflite"), mean=0.0, std=255.0, outputs=5
            ),
        }
    )
    options = vision.PoseLandmarkerOptions(
        base_options=_base_options(bundle),
        num_poses=_MAX_PEOPLE,
        min_pose_detection_confidence=0.3,
        min_pose_presence_confidence=0.3,
        output_segmentation_masks=masks,
    )
    return vision.PoseLandmarker.create_from_options(options)


def hand_landmarker() -> Any:
    """A detector of hands in a crop around a wrist.

    The thresholds are low on purpose: hands of dancers are small and blurred, and a hand is only believed at a wrist.

    Returns:
        `mediapipe.tasks.python.vision.HandLandmarker` for single pictures.
    """
    from mediapipe.tasks.python import vision

    bundle = _bundle(
        {
            "hand_detector.tflite": _model("palm_detection/palm_detection_full.tflite"),
            "hand_landmarks_detector.tflite": _model("hand_landmark/hand_landmark_full.tflite"),
        }
    )
    options = vision.HandLandmarkerOptions(
        base_options=_base_options(bundle),
        num_hands=2,
        min_hand_detection_confidence=0.1,
        min_hand_presence_confidence=0.1,
    )
    return vision.HandLandmarker.create_from_options(options)


def face_mesh() -> Any:
    """A detector of one face in a crop, 478 vertices, lips and eyes refined.

    Returns:
        `mediapipe.solutions.face_mesh.FaceMesh` without memory of earlier pictures.
    """
    import mediapipe

    return mediapipe.solutions.face_mesh.FaceMesh(
        static_image_mode=True, max_num_faces=1, refine_landmarks=True, min_detection_confidence=0.3
    )


def face_detector() -> Any:
    """A detector of all faces, also small ones.

    Returns:
        `mediapipe.solutions.face_detection.FaceDetection`, full-range model.
    """
    import mediapipe

    return mediapipe.solutions.face_detection.FaceDetection(model_selection=1, min_detection_confidence=0.5)


def selfie_segmenter() -> Any:
    """A person mask for pictures in which no body is found.

    Returns:
        `mediapipe.solutions.selfie_segmentation.SelfieSegmentation`, general model.
    """
    import mediapipe

    return mediapipe.solutions.selfie_segmentation.SelfieSegmentation(model_selection=0)


def _base_options(bundle: bytes) -> Any:
    """Run a bundle on the CPU: the same numbers on every machine."""
    from mediapipe.tasks.python import BaseOptions

    return BaseOptions(model_asset_buffer=bundle, delegate=BaseOptions.Delegate.CPU)


def _model(name: str) -> bytes:
    """The bytes of a model inside the MediaPipe package."""
    import mediapipe

    path = Path(mediapipe.__file__).parent / "modules" / name
    if not path.is_file():
        raise PerceptionError(
            f"mediapipe {mediapipe.__version__} lacks its model '{name}'; expected 0.10.21: "
            f"pip install --force-reinstall {_INSTALL}"
        )
    return path.read_bytes()


def _bundle(models: dict[str, bytes]) -> bytes:
    """A .task bundle: an uncompressed zip of models."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in models.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _with_normalisation(model: bytes, *, mean: float, std: float, outputs: int) -> bytes:
    """Add to a .tflite the metadata that Tasks need: pixels enter as (value - mean) / std.

    Source: TensorFlow Lite metadata schema; the pose landmark model takes [0, 1] (MediaPipe's pose_landmark graph).
    """
    import flatbuffers
    from mediapipe.tasks.metadata import metadata_schema_py_generated as schema
    from mediapipe.tasks.python.metadata.metadata import MetadataPopulator

    image = schema.TensorMetadataT()
    image.name = "image"
    image.content = schema.ContentT()
    image.content.contentPropertiesType = schema.ContentProperties.ImageProperties
    image.content.contentProperties = schema.ImagePropertiesT()
    image.content.contentProperties.colorSpace = schema.ColorSpaceType.RGB
    step = schema.ProcessUnitT()
    step.optionsType = schema.ProcessUnitOptions.NormalizationOptions
    step.options = schema.NormalizationOptionsT()
    step.options.mean, step.options.std = [mean], [std]
    image.processUnits = [step]

    graph = schema.SubGraphMetadataT()
    graph.inputTensorMetadata = [image]
    graph.outputTensorMetadata = []
    for number in range(outputs):
        tensor = schema.TensorMetadataT()
        tensor.name = f"output_{number}"
        graph.outputTensorMetadata.append(tensor)
    metadata = schema.ModelMetadataT()
    metadata.name = "model"
    metadata.subgraphMetadata = [graph]

    builder = flatbuffers.Builder(0)
    builder.Finish(metadata.Pack(builder), MetadataPopulator.METADATA_FILE_IDENTIFIER)
    populator = MetadataPopulator.with_model_buffer(model)
    populator.load_metadata_buffer(bytes(builder.Output()))
    populator.populate()
    return bytes(populator.get_model_buffer())
