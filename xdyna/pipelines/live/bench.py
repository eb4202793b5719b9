"""Benchmark of live windows: s of ControlNets, UNet and decoding, and the frames per second that they allow."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from xdyna.config.live import LiveConfig
from xdyna.pipelines.live.window import WindowDenoiser
from xdyna.pipelines.xdyna import XDynaPipeline


def bench_live(
    pipeline: XDynaPipeline,
    settings: LiveConfig,
    *,
    size: tuple[int, int],
    face: bool,
    windows: Sequence[tuple[int, int]],
    steps: Sequence[int],
    repeats: int,
) -> list[dict[str, Any]]:
    """Time whole windows, and print a row for each: nothing is drawn or detected, control images are noise.

    Args:
        pipeline: the networks, on their device.
        settings: guidance (a number), seed, held_as.
        size: (H, W) px.
        face: whether both ControlNets run.
        windows: (new, held) frames.
        steps: denoising steps.
        repeats: timed windows of each, after a warm-up.

    Returns:
        Rows: new, held, steps, seconds (median), processor seconds, frames_per_second, gpu_gib.
    """
    rng, rows = np.random.default_rng(0), []
    device = pipeline._execution_device
    reference = rng.integers(0, 256, (*size, 3), np.uint8)
    print(
        f"{size[0]}x{size[1]} (HxW), {'both ControlNets' if face else 'pose ControlNet'}, {pipeline.unet.dtype}, "
        f"{device}, {torch.get_num_threads()} threads\nnew held steps  s a window  processor s  frames/s"
    )
    for new, held in windows:
        shapes = {"pose": 3, "face": 6} if face else {"pose": 3}
        images = {name: rng.integers(0, 256, (new + held, *size, n), np.uint8) for name, n in shapes.items()}
        for count in steps:
            asked = LiveConfig(
                steps=count,
                new=new,
                held=held,
                guidance=settings.guidance,
                seed=settings.seed,
                held_as=settings.held_as,
            )
            denoiser = WindowDenoiser(pipeline, reference, reference, asked)
            before = denoiser.denoise(images, start=0, held=None)[:, :, -held:] if held else None
            seconds, spent = _timed(denoiser, images, before, repeats)
            rows.append(
                {"new": new, "held": held, "steps": count, "seconds": seconds, "processor_seconds": spent,
                 "frames_per_second": new / seconds}
            )  # fmt: skip
            print(f"{new:3d} {held:4d} {count:5d}  {seconds:10.3f}  {spent:11.3f}  {new / seconds:8.2f}", flush=True)
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB (gpu)")
    return rows


def _timed(
    denoiser: WindowDenoiser, images: dict[str, np.ndarray], before: torch.Tensor | None, repeats: int
) -> tuple[float, float]:
    """Medians of s and of processor s; frames end on the CPU, so the device has finished."""
    seconds, spent = [], []
    held = 0 if before is None else before.shape[2]
    for number in range(repeats + 1):
        start, used = time.perf_counter(), time.process_time()
        denoiser.decode(denoiser.denoise(images, start=0, held=before)[:, :, held:])
        if number:
            seconds.append(time.perf_counter() - start)
            spent.append(time.process_time() - used)
    return statistics.median(seconds), statistics.median(spent)
