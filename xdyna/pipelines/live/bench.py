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
        Rows: new, held, steps, seconds (median), processor_seconds, stages (processor s of each), frames_per_second.
        On a GPU, processor seconds are the host's.
    """
    rng, rows = np.random.default_rng(0), []
    device = pipeline._execution_device
    reference = rng.integers(0, 256, (*size, 3), np.uint8)
    print(
        f"{size[0]}x{size[1]} (HxW), {'both ControlNets' if face else 'pose ControlNet'}, {pipeline.unet.dtype}, "
        f"{device}, {torch.get_num_threads()} threads\n"
        "new held steps  s a window  frames/s  processor s  = conditions + ControlNets + UNet + decoding"
    )
    for new, held in windows:
        channels = {"pose": 3, "face": 6} if face else {"pose": 3}
        shapes: dict[str, tuple[int, ...]] = {name: (new + held, *size, n) for name, n in channels.items()}
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
            seconds, stages = _timed(denoiser, rng, shapes, new, repeats)
            spent = sum(stages.values())
            rows.append(
                {"new": new, "held": held, "steps": count, "seconds": seconds, "processor_seconds": spent,
                 "stages": stages, "frames_per_second": new / seconds}
            )  # fmt: skip
            parts = " + ".join(f"{value:.3f}" for value in stages.values())
            print(
                f"{new:3d} {held:4d} {count:5d}  {seconds:10.3f}  {new / seconds:8.2f}  {spent:11.3f}  = {parts}",
                flush=True,
            )
    if device.type == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB (gpu)")
    return rows


class _Stopwatch:
    """Processor s of the stages of a window: what networks take in their calls, in and around them the rest."""

    def __init__(self, pipeline: XDynaPipeline) -> None:
        nets = [net for net in (pipeline.pose_controlnet, pipeline.face_controlnet) if net is not None]
        self.spent: dict[str, float] = {}
        self._handles = []
        for stage, modules in {"ControlNets": nets, "UNet": [pipeline.unet]}.items():
            for module in modules:
                self._handles.append(module.register_forward_pre_hook(lambda *_, stage=stage: self._add(stage, -1)))
                self._handles.append(module.register_forward_hook(lambda *_, stage=stage: self._add(stage, 1)))

    def _add(self, stage: str, sign: int) -> None:
        self.spent[stage] = self.spent.get(stage, 0.0) + sign * time.process_time()

    def window(
        self, denoiser: WindowDenoiser, images: dict[str, np.ndarray], *, start: int, held: torch.Tensor | None
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """One window, decoded. Returns: its latents, and processor s of each stage in order."""
        self.spent.clear()
        begin = time.process_time()
        latents = denoiser.denoise(images, start=start, held=held)
        between = time.process_time()
        denoiser.decode(latents[:, :, 0 if held is None else held.shape[2] :])
        inside = dict(self.spent)
        rest = between - begin - sum(inside.values())
        return latents, {"conditions": rest, **inside, "decoding": time.process_time() - between}

    def end(self) -> None:
        for handle in self._handles:
            handle.remove()


def _timed(
    denoiser: WindowDenoiser, rng: np.random.Generator, shapes: dict[str, tuple[int, ...]], new: int, repeats: int
) -> tuple[float, dict[str, float]]:
    """Medians of s and of processor s by stage, over windows that follow each other, after one that is not timed.

    Frames end on the CPU, so the device has finished.
    """
    stopwatch = _Stopwatch(denoiser.pipeline)
    seconds: list[float] = []
    spent: list[dict[str, float]] = []
    held, images = None, {name: rng.integers(0, 256, shape, np.uint8) for name, shape in shapes.items()}
    count = next(iter(shapes.values()))[0]
    try:
        for number in range(repeats + 2):  # the first window holds nothing
            begin = time.perf_counter()
            latents, stages = stopwatch.window(denoiser, images, start=number * new, held=held)
            if number > 1:
                seconds.append(time.perf_counter() - begin)
                spent.append(stages)
            held = latents[:, :, new:].clone() if new < count else None
            fresh = {name: rng.integers(0, 256, (new, *shape[1:]), np.uint8) for name, shape in shapes.items()}
            images = {name: np.concatenate([images[name][new:], fresh[name]]) for name in images}
    finally:
        stopwatch.end()
    return statistics.median(seconds), {name: statistics.median(one[name] for one in spent) for name in spent[0]}
