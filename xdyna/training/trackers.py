"""Where curves and images go besides the run's own files: nowhere, TensorBoard, or Weights & Biases."""

import io
import os
import secrets
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from xdyna.core.atomic import write_file
from xdyna.core.install import install_xdyna
from xdyna.training.errors import TrainingError

TRACKERS = ("none", "wandb", "tensorboard")
WANDB_ID = "wandb_id.txt"


class Tracker(Protocol):
    """What every tracker does."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a step."""

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """An image, uint8 (H, W, 3)."""

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """A clip, uint8 (T, H, W, 3)."""

    def close(self) -> None:
        """Write what is pending."""


def open_tracker(kind: str, run_dir: Path, *, name: str, config: dict[str, Any], resume_step: int) -> Tracker | None:
    """Start a tracker.

    Args:
        kind: one of `TRACKERS`.
        run_dir: folder of the run; the tracker's files go there.
        name: of the run, as shown.
        config: plain nested dict, as shown.
        resume_step: step of the checkpoint that the run goes on from; 0 for a new run.

    Returns:
        Tracker | None: None for "none".

    Raises:
        TrainingError: an unknown kind, or its package is missing.
    """
    if kind not in TRACKERS:
        raise TrainingError(f"tracker is {kind!r}, expected one of {', '.join(TRACKERS)}")
    if kind == "none":
        return None
    try:
        if kind == "wandb":
            return _Wandb(run_dir, name=name, config=config)
        return _TensorBoard(run_dir, config=config, resume_step=resume_step)
    except ImportError as error:
        raise TrainingError(
            f"tracker {kind!r} needs the package {kind}, which cannot be imported ({error}); run: "
            f"{install_xdyna('train')}, or use tracker none"
        ) from error


def gif(frames: np.ndarray, fps: float) -> bytes:
    """Frames uint8 (T, H, W, 3) as a GIF, which needs no video encoder; the file counts time in 1/100 s."""
    images = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    duration = max(20, 10 * round(100 / fps))
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)
    return buffer.getvalue()


class _TensorBoard:
    def __init__(self, run_dir: Path, *, config: dict[str, Any], resume_step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torch.utils.tensorboard import SummaryWriter

        self._summary = Summary
        # Purged: what an interrupted run wrote after the checkpoint would be seen twice.
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resume_step + 1)
        if resume_step == 0:
            lines = [f"    {key}: {value}" for key, value in config.items()]
            self._writer.add_text("config", "\n".join(lines), 0)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self._writer.add_image(name, image, step, dataformats="HWC")

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        # SummaryWriter.add_video needs moviepy for the same GIF.
        height, width = frames.shape[1:3]
        image = self._summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif(frames, fps))
        summary = self._summary(value=[self._summary.Value(tag=name, image=image)])
        self._writer._get_file_writer().add_summary(summary, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """Offline unless WANDB_MODE says otherwise (`wandb sync` uploads later); a resumed run keeps its id."""

    def __init__(self, run_dir: Path, *, name: str, config: dict[str, Any]) -> None:
        import wandb

        self._wandb = wandb
        path = run_dir / WANDB_ID
        try:
            identity = path.read_text().strip()
        except FileNotFoundError:
            identity = secrets.token_hex(4)
            write_file(path, f"{identity}\n".encode())
        mode: Any = os.environ.get("WANDB_MODE", "offline")  # wandb names the right ones itself
        self._run = wandb.init(
            project="xdyna", name=name, id=identity, resume="allow", config=config, dir=str(run_dir), mode=mode
        )
        # The step is a value of its own: wandb's counter cannot go back to a checkpoint's step on resuming.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self._run.log({"step": step, **values})

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self._run.log({"step": step, name: self._wandb.Image(image)})

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        clip = self._wandb.Video(io.BytesIO(gif(frames, fps)), format="gif")
        self._run.log({"step": step, name: clip})

    def close(self) -> None:
        self._run.finish()
