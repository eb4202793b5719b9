"""Between ComfyUI's values and xdyna's: images, files, progress, and the track that goes from node to node.

ComfyUI's IMAGE is a float32 tensor (T, H, W, C) in [0, 1]; xdyna's images are uint8 arrays (T, H, W, 3).
"""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.cli_args
import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import torch
from PIL import Image

from xdyna.core.errors import UsageError
from xdyna.core.resources import pretrained, resource, weights_folder
from xdyna.media.video import probe
from xdyna.media.writer import VideoWriter
from xdyna.perception.types import PoseTrack
from xdyna.pipelines.driving import Driving
from xdyna.pipelines.lora import LORA_FILE

NONE = "none"
VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")
_MODELS = "xdyna"  # folder of pipeline folders in ComfyUI's models
_PREVIEW = 512  # px, longest side of a preview

folder_paths.add_model_folder_path(_MODELS, str(Path(folder_paths.models_dir) / _MODELS))


@dataclass(frozen=True)
class Drive:
    """What drives an animation; goes from node to node as XDYNA_TRACK.

    Attributes:
        track: (T frames) one for each frame of the result.
        fps: of the result.
        video: where the faces come from; None for keypoints alone.
        person: keypoints of the person in the image (.npz), where no detector sees it.
        align: how the driving person is fitted to that one.
        crop: what of the image is kept.
        face_source: what makes the faces instead of the video.
    """

    track: PoseTrack
    fps: float
    video: Path | None = None
    person: Path | None = None
    align: str = "none"
    crop: str = "published"
    face_source: str | None = None

    @classmethod
    def of(cls, driving: Driving, track: PoseTrack, video: Path | None) -> "Drive":
        """The frames of a driving file that are used. Args: track: one row for each of `driving.rows`."""
        return cls(replace(track, summary=None), float(driving.fps), video)

    def settings(self) -> dict[str, Any]:
        """Those of an animation that the track decides."""
        return {
            "fps": self.fps,
            "frames": len(self.track),
            "align": self.align,
            "crop": self.crop,
            "face_source": self.face_source,
        }

    def driving(self) -> PoseTrack:
        """The track as `xdyna.animate` takes it: with its last frame once more where it ends.

        An animation lasts as long as its track, and how long a track's last frame is shown stands nowhere in it.
        """
        count = len(self.track)
        closed = self.track.select([*range(count), count - 1])
        times = closed.times.copy()
        times[-1] = max(times[0] + count / self.fps, times[-2])
        return replace(closed, times=times)


class NodeProgress:
    """Shows how far a node is, with a preview, and ends it when ComfyUI's user says so.

    Args:
        node: number of the node in the graph; None where it is not known.
    """

    def __init__(self, node: str | None = None) -> None:
        self._node = node
        self._bar = comfy.utils.ProgressBar(1)
        self._at = (0, 1)
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """See `xdyna.core.progress.Progress`.

        Raises:
            comfy.model_management.InterruptProcessingException: the user wants to stop.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()
        self._at = (done, total)
        self._bar.update_absolute(done, total)
        if stage != self._stage:
            self._stage = stage
            self._say(stage)

    @property
    def show(self) -> Callable[[np.ndarray], None] | None:
        """Takes an image of the work as it stands; None where ComfyUI was started without previews."""
        method = getattr(comfy.cli_args.args, "preview_method", None)
        return None if getattr(method, "value", method) in (None, "none") else self._show

    def _show(self, frame: np.ndarray) -> None:
        self._bar.update_absolute(*self._at, ("JPEG", Image.fromarray(frame), _PREVIEW))

    def _say(self, text: str) -> None:
        """Write below the node, where this ComfyUI can."""
        from server import PromptServer

        send = getattr(getattr(PromptServer, "instance", None), "send_progress_text", None)
        if send is not None and self._node is not None:
            send(text, self._node)


def outside_inference_mode(method: Callable[..., Any]) -> Callable[..., Any]:
    """Run a node's method as programs run: ComfyUI's inference mode would be built into weights that are loaded."""

    @functools.wraps(method)
    def called(*args: Any, **kwargs: Any) -> Any:
        with torch.inference_mode(False):
            return method(*args, **kwargs)

    return called


def device() -> str:
    """Where ComfyUI computes: "cpu", "cuda:0", "mps", ..."""
    return str(comfy.model_management.get_torch_device())


def make_room(device: torch.device) -> None:
    """Let ComfyUI's own models leave a GPU before ours needs it."""
    if device.type != "cpu":
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()


# --- images ---------------------------------------------------------------------------------------------------------


def to_arrays(images: torch.Tensor) -> np.ndarray:
    """IMAGE -> uint8 (T, H, W, 3), rounded to nearest, without an alpha channel.

    Raises:
        UsageError: no IMAGE.
    """
    if images.ndim != 4 or images.shape[-1] not in (3, 4) or not len(images):
        raise UsageError(
            f"images have shape {tuple(images.shape)}; expected (images, height, width, 3), as Load Image gives them"
        )
    scaled = images[..., :3].detach().cpu().float().clamp(0, 1) * 255
    return scaled.round().to(torch.uint8).numpy()


def to_image(frames: np.ndarray) -> torch.Tensor:
    """uint8 (T, H, W, 3) -> IMAGE."""
    return torch.from_numpy(frames).to(torch.float32) / 255


def one_image(images: torch.Tensor) -> np.ndarray:
    """IMAGE of one image -> uint8 (H, W, 3).

    Raises:
        UsageError: several images.
    """
    arrays = to_arrays(images)
    if len(arrays) != 1:
        raise UsageError(f"image is a batch of {len(arrays)}; expected one image of the person to animate")
    return np.ascontiguousarray(arrays[0])


# --- files ----------------------------------------------------------------------------------------------------------


def listed(*endings: str) -> list[str]:
    """Names of the files in ComfyUI's input folder with certain endings."""
    folder = Path(folder_paths.get_input_directory())
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in files if path.is_file() and path.suffix.lower() in endings)


def input_file(name: str) -> Path:
    """The file of a name as ComfyUI gives it ("dance.mp4", "dance.mp4 [output]").

    Raises:
        UsageError: there is none in ComfyUI's input, output or temp folder.
    """
    path = Path(folder_paths.get_annotated_filepath(name)).resolve()
    own = [folder_paths.get_input_directory(), folder_paths.get_output_directory(), folder_paths.get_temp_directory()]
    if not any(path.is_relative_to(Path(folder).resolve()) for folder in own) or not path.is_file():
        raise UsageError(f"{name!r} is no file in ComfyUI's input folder ({own[0]}); upload it, or put it there")
    return path


def problem(name: str) -> str | bool:
    """For VALIDATE_INPUTS: True, or what is wrong with a file's name."""
    try:
        return bool(input_file(name))
    except UsageError as error:
        return str(error)


def temporary_folder() -> Path:
    """Where nodes keep what others read; ComfyUI empties it when it starts."""
    folder = Path(folder_paths.get_temp_directory()) / "xdyna"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def frames_file(images: torch.Tensor, fps: float) -> Path:
    """A lossless video of an IMAGE batch, named by what it holds.

    Raises:
        UsageError: no IMAGE.
    """
    frames = to_arrays(images)
    digest = hashlib.sha256(f"{frames.shape} {fps:g}".encode())
    digest.update(np.ascontiguousarray(frames).data)
    path = temporary_folder() / f"{digest.hexdigest()[:32]}.mkv"
    if not path.exists():
        with VideoWriter(path, fps=fps, size=frames.shape[1:3], lossless=True) as writer:
            for frame in frames:
                writer.write(np.ascontiguousarray(frame))
    assert probe(path).frame_count == len(frames), "the video holds another number of frames"
    return path


def person_file(drive: Drive) -> Path:
    """A keypoint file of the first frame of a track, named by what it holds."""
    first = drive.track.select([0])
    digest = hashlib.sha256(repr(first.size).encode())
    for points in (first.body, first.hands, first.face):
        digest.update(points.tobytes())
    path = temporary_folder() / f"{digest.hexdigest()[:32]}.npz"
    if not path.exists():
        first.save(path)
    return path


# --- weights --------------------------------------------------------------------------------------------------------


def pipeline_folders() -> dict[str, Path]:
    """Pipeline folders by name: of ComfyUI's models/xdyna, then xdyna's own; the first of a name counts."""
    roots = [*map(Path, folder_paths.get_folder_paths(_MODELS)), weights_folder(), resource("pretrained")]
    found: dict[str, Path] = {}
    for root in roots:
        for index in sorted(root.glob("*/model_index.json")):
            if _is_ours(index):
                found.setdefault(index.parent.name, index.parent)
    return found


def _is_ours(index: Path) -> bool:
    try:
        return bool(json.loads(index.read_text())["_class_name"] == "XDynaPipeline")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def lora_names() -> list[str]:
    """LoRA files of ComfyUI's models/loras, and folders of xdyna's own that hold one."""
    own = {
        path.parent.name for root in (weights_folder(), resource("pretrained")) for path in root.glob(f"*/{LORA_FILE}")
    }
    files = [name for name in folder_paths.get_filename_list("loras") if name.endswith(".safetensors")]
    return [*sorted(own), *files]


def lora_path(name: str) -> Path:
    """The file of a name of `lora_names`.

    Raises:
        UsageError: it is not there.
    """
    for path in (folder_paths.get_full_path("loras", name), pretrained(name) / LORA_FILE):
        if path is not None and Path(path).is_file():
            return Path(path)
    raise UsageError(f"LoRA {name!r} is not there; expected a file of ComfyUI's models/loras, or one that xdyna ships")


def fingerprint(paths: Iterator[Path]) -> str:
    """For IS_CHANGED: another text when one of the files is another one, by name, size and time."""
    entries = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(repr(sorted(entries)).encode()).hexdigest()
