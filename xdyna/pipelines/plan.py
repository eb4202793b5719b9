"""What a run will do, known before perception and sampling; `--dry-run` prints it."""

from dataclasses import dataclass

import numpy as np
import torch

from xdyna.config.infer import InferConfig
from xdyna.diffusion.windows import window_schedule
from xdyna.perception.types import Person
from xdyna.pipelines.driving import Driving
from xdyna.pipelines.estimate import Workload, estimate
from xdyna.pipelines.folder import Checkpoint
from xdyna.pipelines.outputs import OutputFiles


@dataclass(frozen=True)
class Plan:
    """One animation, checked and ready to be made.

    Attributes:
        reference: uint8 (H, W, 3), as it was read.
        size: (H, W) of the video.
        driving: the driving file and the frames used.
        files: names of the outputs.
        face: whether face control is used.
        person: the person in the reference where a file tells it; None where a detector would look for it.
    """

    reference: np.ndarray
    size: tuple[int, int]
    driving: Driving
    files: OutputFiles
    face: bool
    person: Person | None = None


def print_plan(
    plan: Plan, checkpoint: Checkpoint, config: InferConfig, *, device: torch.device, dtype: torch.dtype
) -> None:
    """Print frames, windows, sizes, weights with their hashes, and the expected cost."""
    assert config.guidance is not None, "the checkpoint's own was put in"
    frames = len(plan.driving.rows)
    schedule = window_schedule(config.context_schedule)
    windows = schedule(frames, context=config.context_frames, overlap=config.context_overlap, offset=0)
    work = Workload(
        frames=frames,
        windows=len(windows),
        context=min(frames, config.context_frames),
        steps=config.steps,
        halves=2 if config.guidance > 1 else 1,
        size=plan.size,
        face=plan.face,
        decode_chunk=config.vae_chunk,
    )
    cost = estimate(checkpoint, work, device=device, dtype=dtype)
    height, width = plan.reference.shape[:2]
    driving = plan.driving
    print(f"reference  {height}x{width} (HxW)")
    print(
        f"driving    {driving.path} ({driving.kind}), {driving.size[0]}x{driving.size[1]} (HxW), "
        f"{driving.source_fps:.4g} fps, {driving.duration:.2f} s, {'with sound' if driving.audio else 'no sound'}"
    )
    print(
        f"video      {frames} frames of {plan.size[0]}x{plan.size[1]} (HxW) at {float(driving.fps):.4g} fps = "
        f"{frames / float(driving.fps):.2f} s, face control {'on' if plan.face else 'off'}"
    )
    print(
        f"sampling   {config.steps} steps x {len(windows)} windows of {work.context} frames (overlap "
        f"{config.context_overlap}, {config.context_schedule}), guidance {config.guidance:g}, seed {config.seed}"
    )
    print(f"device     {device}, {str(dtype).removeprefix('torch.')}, attention {config.attention}")
    print(f"checkpoint {checkpoint.folder}{' (untrained)' if checkpoint.untrained else ''}")
    for name, digest in checkpoint.hashes().items():
        print(f"  {digest}  {name}")
    print(
        f"estimate   {cost.flops / 1e12:.4g} TFLOP, about {_duration(cost.seconds)} and {cost.memory / 2**30:.1f} GiB"
    )
    print("would write:")
    for path in plan.files.all(keypoints=plan.driving.kind == "video"):
        print(f"  {path}")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
