"""Benchmark of one denoising step of one window at the published sizes, with random weights (`bench window`).

Both ControlNets, both branches of guidance: naive (the equation as it stands), eager (ControlNets once for both
branches), regional (repeated blocks compiled, as `compile=regional` does), compiled as a whole, and as one CUDA graph.
No files are needed. FLOPs are counted, not estimated.
"""

import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from xdyna.checkpoints import build
from xdyna.config.model import ModelConfig
from xdyna.core.atomic import write_file
from xdyna.models.controls import FACE_CHANNELS, POSE_CHANNELS, to_clip
from xdyna.models.denoiser import Control, Denoiser, Tokens, control_residuals
from xdyna.models.naive import naive_noise
from xdyna.pipelines.compiling import compile_networks, restore_networks

TEXT_TOKENS, IMAGE_TOKENS = 77, 16
WARM_UP = 2  # steps that are not timed; the first one compiles
WAYS = ("naive", "eager", "regional", "compiled", "graph")


def bench_window(
    model: ModelConfig,
    *,
    frames: int,
    size: tuple[int, int],
    repeats: int,
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    ways: Sequence[str] = WAYS,
    report_to: Path | None = None,
) -> list[dict[str, Any]]:
    """Time a window-step in several ways, and print milliseconds, TFLOP/s and peak memory of each.

    Args:
        model: sizes of the networks.
        frames: of the window.
        size: (H, W) px.
        repeats: timed steps of each way.
        device: where the networks run.
        dtypes: of networks and latents, one after the other.
        ways: some of `WAYS`; "graph" is left out where there is no GPU.
        report_to: JSON file for the rows; written anew after each; None for none.

    Returns:
        A row each: dtype, way, ms (all timed steps), tflop, tflops, peak_bytes (None without a GPU); or `failed`.
    """
    rows: list[dict[str, Any]] = []
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"one step of {frames} frames, {size[0]} x {size[1]} px, both ControlNets, guidance, on {name}", flush=True)
    print(f"{'dtype':<10} {'way':<10} {'ms: median':>10} {'least':>9} {'TFLOP':>8} {'TFLOP/s':>8} {'peak':>9}")
    for dtype in dtypes:
        steps = window_steps(model, frames=frames, size=size, device=device, dtype=dtype)
        for way in ways:
            if way == "graph" and device.type != "cuda":
                continue
            row = {"dtype": str(dtype).removeprefix("torch."), "way": way, "device": name, "torch": torch.__version__}
            try:
                row |= _timed(steps, way, repeats=repeats, device=device)
                print(_line(row), flush=True)
            except RuntimeError as error:  # full memory, or what the compiler cannot do: the other ways may
                row["failed"] = str(error).splitlines()[0][:200]
                print(f"{row['dtype']:<10} {way:<10} {row['failed']}", flush=True)
            restore_networks(steps.networks)
            rows.append(row)
            if report_to is not None:
                report_to.parent.mkdir(parents=True, exist_ok=True)
                write_file(report_to, (json.dumps(rows, indent=1) + "\n").encode())
        del steps
    return rows


@dataclass(frozen=True)
class WindowSteps:
    """One step of one window.

    Attributes:
        naive: as the equation has it; gives the prediction, (2, 4, T, h, w).
        eager: as sampling computes it; gives the same.
        networks: UNet and ControlNets.
    """

    naive: Callable[[], Tensor]
    eager: Callable[[], Tensor]
    networks: tuple[Any, ...]


def window_steps(
    model: ModelConfig, *, frames: int, size: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> WindowSteps:
    """The step as the equation has it, and with ControlNets that serve both branches.

    Args:
        model: sizes of the networks, whose weights are random.
        frames: of the window.
        size: (H, W) px.
        device: where they run.
        dtype: of everything.

    Returns:
        WindowSteps: both ways, and the networks.
    """
    torch.manual_seed(0)
    with device:
        unet = build.build_unet(model.unet).to(dtype).eval()
        nets = [build.build_controlnet(model.controlnet, channels=c).to(dtype).eval() for c in _CHANNELS]
        scale = 2 ** (len(model.vae.get("block_out_channels", range(4))) - 1)
        latents = torch.randn(1, 4, frames, size[0] // scale, size[1] // scale, dtype=dtype)
        reference = torch.randn_like(latents[:, :, :1])
        images = [torch.rand(frames, channels, *size, dtype=dtype) for channels in _CHANNELS]
        width = unet.config["cross_attention_dim"]
        text = torch.randn(1, TEXT_TOKENS, width, dtype=dtype).expand(2, -1, -1)
        tokens = Tokens(text, torch.randn(2, IMAGE_TOKENS, width, dtype=dtype))
        timestep = torch.tensor(500)
    for net in nets:
        for parameter in net.parameters():  # output layers start at zero: a comparison would see nothing
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    denoiser = Denoiser(unet=unet, pose_controlnet=nets[0], face_controlnet=nets[1])
    controls = [Control(net, shown) for net, shown in zip(nets, images, strict=True)]
    flat = latents[0].transpose(0, 1)

    def naive() -> Tensor:
        windows = [range(frames)]
        return naive_noise(denoiser, latents, reference, timestep, windows=windows, tokens=tokens, controls=controls)

    def eager() -> Tensor:
        residuals = to_clip(control_residuals(flat, timestep, text[:1], controls), 1)
        return denoiser.predict(latents, timestep, tokens, reference_BC1hw=reference, residuals=residuals)

    return WindowSteps(naive, eager, (unet, *nets))


_CHANNELS = (POSE_CHANNELS, FACE_CHANNELS)


@torch.no_grad()
def _timed(steps: WindowSteps, way: str, *, repeats: int, device: torch.device) -> dict[str, Any]:
    bare = steps.naive if way == "naive" else steps.eager
    with FlopCounterMode(display=False) as counter:
        bare()
    step = bare
    if way in ("regional", "compiled", "graph"):
        torch._dynamo.reset()
    if way == "regional":
        compile_networks(steps.networks)
    if way in ("compiled", "graph"):
        step = torch.compile(bare, mode="reduce-overhead" if way == "graph" else "default")
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for number in range(WARM_UP + repeats):
        start = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number >= WARM_UP:
            seconds.append(time.perf_counter() - start)
    tflop = counter.get_total_flops() / 1e12
    return {
        "ms": [1000 * value for value in seconds],
        "tflop": tflop,
        "tflops": tflop / statistics.median(seconds),
        "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    }


def _line(row: dict[str, Any]) -> str:
    peak = "unknown" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.2f} GB"
    return (
        f"{row['dtype']:<10} {row['way']:<10} {statistics.median(row['ms']):>10.1f} {min(row['ms']):>9.1f} "
        f"{row['tflop']:>8.3g} {row['tflops']:>8.3g} {peak:>9}"
    )
