"""Pose backend on DWPose (rtmlib), the detector behind the official pose maps.

Its two models are looked for in `$XDYNA_DWPOSE`, then in `pretrained/DWPose` (or `pretrained/dwpose`); where they are
nowhere, they are fetched into `pretrained/DWPose` at first use.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.utils import WeakFileLock

from xdyna.core.errors import WeightsError
from xdyna.core.files import file_sha256
from xdyna.core.hub import HubFile, fetch, load_registry
from xdyna.core.resources import weights_folder
from xdyna.perception.base import check_frame, require
from xdyna.perception.errors import PerceptionError, PerceptionWarning
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
FOLDER_VARIABLE = "XDYNA_DWPOSE"
DEVICE_VARIABLE = "XDYNA_DWPOSE_DEVICE"
_FILES = (DETECTOR_FILE, POSE_FILE)
_CUDA = "CUDAExecutionProvider"
_RULES = 1  # raise when the code below changes the numbers: cached keypoints are then detected again


def models_folder() -> Path | None:
    """Where both models lie on this machine; None where they are nowhere.

    Raises:
        PerceptionError: `$XDYNA_DWPOSE` names a folder without them.
    """
    if own := os.environ.get(FOLDER_VARIABLE):
        folder = Path(own).expanduser()
        if lacking := _lacking(folder):
            raise PerceptionError(
                f"{FOLDER_VARIABLE}={own}: there is no {' and no '.join(lacking)} in that folder; put them there (from "
                "the Hub repository yzd-v/DWPose), or unset it and they are fetched"
            )
        return folder
    return next((folder for folder in _folders() if not _lacking(folder)), None)


def _folders() -> tuple[Path, ...]:
    """Of the repository, whatever the working folder: that of downloads, and that of former versions."""
    return weights_folder() / "DWPose", weights_folder() / "dwpose"


def _lacking(folder: Path) -> list[str]:
    return [name for name in _FILES if not (folder / name).is_file()]


def registered() -> dict[str, HubFile]:
    """The published models, by file name."""
    return {file.path: file for file in load_registry().values() if file.repo.rpartition("/")[2] == "DWPose"}


def fetch_models() -> Path:
    """Fetch both models, 351 MB; processes that want them at once take turns.

    Returns:
        Their folder.

    Raises:
        PerceptionError: they cannot be fetched; the message says how to get them by hand.
    """
    files = registered()
    folder = files[DETECTOR_FILE].target(weights_folder()).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(folder / ".lock"):
            for name in _FILES:
                fetch(files[name], weights_folder())
    except (WeightsError, OSError) as error:
        raise PerceptionError(
            f"the models of perception backend 'dwpose' are not here and cannot be fetched: {error}. Or use the "
            "backend 'mediapipe'"
        ) from error
    return folder


class DWPoseBackend:
    """YOLOX people detector and DWPose whole-body keypoints, run by rtmlib on onnxruntime.

    Args:
        models_dir: folder with `yolox_l.onnx` and `dw-ll_ucoco_384.onnx`; None: see the head of this file.
        device: "cpu", "cuda" or "cuda:N"; None: `$XDYNA_DWPOSE_DEVICE`, else a GPU where onnxruntime has one.

    Attributes:
        name: "dwpose".
        version: hashes of both models and number of the rules here.
        device: that the models run on.

    Raises:
        PerceptionError: rtmlib or onnxruntime is not installed, the models are not there and cannot be fetched, cannot
            be loaded, or not on that device.

    Warns:
        PerceptionWarning: a model has other bytes than the published one; or the GPU could not be used.
    """

    name = "dwpose"

    def __init__(self, *, models_dir: Path | None = None, device: str | None = None) -> None:
        rtmlib = require("rtmlib", extra="dwpose", backend=self.name)
        runtime = require("onnxruntime", extra="dwpose", backend=self.name)
        folder = models_folder() or fetch_models() if models_dir is None else Path(models_dir)
        if missing := _lacking(folder):  # rtmlib would download what it does not find
            raise PerceptionError(
                f"perception backend 'dwpose' lacks {missing} in '{folder}'; put the files of the Hub repository "
                f"'yzd-v/DWPose' there, or use the backend 'mediapipe', which brings its models"
            )
        files = [folder / name for name in _FILES]
        digests = [_digest(file) for file in files]
        known = registered()
        for file, digest in zip(files, digests, strict=True):
            if (expected := known[file.name].sha256) is not None and digest != expected:
                warnings.warn(
                    f"'{file}' is not the published model (sha256 {digest[:16]}..., published {expected[:16]}...); it "
                    "is used as it is, and keypoints may differ",
                    PerceptionWarning,
                    stacklevel=3,
                )
        asked = device or os.environ.get(DEVICE_VARIABLE)
        if asked and not re.fullmatch(r"cpu|cuda(:\d+)?", asked):
            raise PerceptionError(f"{DEVICE_VARIABLE}={asked}: expected cpu, cuda or cuda:N")
        wanted = asked or _best_device(runtime)
        self._detector, on = _load(rtmlib.YOLOX, files[0], model_input_size=(640, 640), device=wanted)
        self._pose, _ = _load(rtmlib.RTMPose, files[1], model_input_size=(288, 384), device=wanted)
        self.device = on
        if on != wanted.partition(":")[0]:
            if asked:
                raise PerceptionError(
                    f"perception backend 'dwpose' cannot run on {wanted}: this onnxruntime has {_providers(runtime)}; "
                    f"run: pip install onnxruntime-gpu (in place of onnxruntime), or take the CPU "
                    f"({DEVICE_VARIABLE}=cpu)"
                )
            warnings.warn(
                f"perception backend 'dwpose' runs on the CPU: onnxruntime could not use the GPU (its CUDA or cuDNN "
                f"does not fit); {DEVICE_VARIABLE}=cpu says that this is wanted",
                PerceptionWarning,
                stacklevel=3,
            )
        self.version = "-".join([*(digest[:12] for digest in digests), f"r{_RULES}"])

    def detect(self, frame: np.ndarray) -> list[Person]:
        """Find the people in a frame.

        Args:
            frame: (H, W, 3) uint8 RGB.

        Returns:
            People, largest box first.

        Raises:
            PerceptionError: not such a frame, or models that give something else.
        """
        frame = check_frame(frame)
        image = np.ascontiguousarray(frame[..., ::-1])  # rtmlib takes BGR
        with _running(DETECTOR_FILE):
            boxes = np.asarray(self._detector(image), dtype=np.float32).reshape(-1, 4)
        if not len(boxes):  # rtmlib would take the whole image for a person
            return []
        with _running(POSE_FILE):
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


def _load(tool: Any, file: Path, *, model_input_size: tuple[int, int], device: str) -> tuple[Any, str]:
    """An rtmlib tool of a model file, whatever input size the file has; and the device that it runs on."""
    state = file.stat()
    try:
        # rtmlib prints
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            model = _loaded(tool, str(file), state.st_size, state.st_mtime_ns, model_input_size, device)
    except Exception as error:  # onnxruntime has no common class for unreadable models
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PerceptionError(f"model '{file}' cannot be loaded ({reason}); copy or download it again") from error
    height, width = model.session.get_inputs()[0].shape[2:]
    if isinstance(height, int) and isinstance(width, int):
        # YOLOX counts (height, width) and RTMPose (width, height).
        model.model_input_size = (height, width) if tool.__name__ == "YOLOX" else (width, height)
    return model, "cuda" if _CUDA in model.session.get_providers() else "cpu"


@functools.lru_cache(maxsize=2)  # one run asks for the backend several times
def _loaded(tool: Any, file: str, size: int, modified: int, model_input_size: tuple[int, int], device: str) -> Any:
    return tool(file, model_input_size=model_input_size, backend="onnxruntime", device=device)


def _digest(file: Path) -> str:
    state = file.stat()
    return _digest_of(str(file), state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _digest_of(file: str, size: int, modified: int) -> str:
    return file_sha256(file)


@contextlib.contextmanager
def _running(name: str) -> Iterator[None]:
    """Turn what rtmlib and onnxruntime raise while they run a model into one message."""
    try:
        yield
    except Exception as error:  # of any class, where a model's outputs are not what rtmlib expects
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PerceptionError(
            f"the file '{name}' of perception backend 'dwpose' does not work as that model does ({reason}); put the "
            "one of the Hub repository 'yzd-v/DWPose' in its place"
        ) from error


def _providers(runtime: Any) -> str:
    return ", ".join(name.removesuffix("ExecutionProvider") for name in runtime.get_available_providers())


def _best_device(runtime: Any) -> str:
    """A GPU where this onnxruntime was built for one, else the CPU."""
    if _CUDA not in runtime.get_available_providers():
        return "cpu"
    if hasattr(runtime, "preload_dlls"):  # PyTorch's CUDA libraries serve onnxruntime, too
        with contextlib.suppress(Exception), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            runtime.preload_dlls()
    return "cuda"
