"""Benchmark of the sampling loop: what the exact savings bring, as ratios within one run.

The network is a proxy of the published one: its operations divide alike between attention, convolutions, motion modules
and feed-forward layers, at a size that a CPU runs in seconds. The ways are timed in turn, A B A B ..., after a warm-up.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xdyna.checkpoints.build import build_controlnet, build_unet
from xdyna.config.loader import load_model
from xdyna.config.model import ModelConfig
from xdyna.core.atomic import write_file
from xdyna.diffusion.windows import uniform_windows
from xdyna.models.controls import FACE_CHANNELS, POSE_CHANNELS
from xdyna.models.denoiser import Control, Denoiser, Tokens
from xdyna.models.naive import naive_noise
from xdyna.pipelines.denoise import predict_noise
from xdyna.pipelines.residuals import Condition, ControlResidualCache

PROXY = "proxy"
"""Its sizes: configs/model/proxy.yaml."""
CONTEXT, OVERLAP = 16, 4
TEXT_TOKENS, IMAGE_TOKENS = 77, 16


def proxy_conditions(sizes: ModelConfig, frames: int, height: int, width: int, device: torch.device) -> list[Condition]:
    """Both ControlNets of the proxy, with noise for control images. Seed the global generator before."""
    conditions = []
    for channels in (POSE_CHANNELS, FACE_CHANNELS):
        net = build_controlnet(sizes.controlnet, channels=channels).eval().to(device)
        fill_zeros(net)
        conditions.append(Condition(net, torch.randint(0, 256, (frames, channels, height, width), dtype=torch.uint8)))
    return conditions


@torch.no_grad()
def fill_zeros(net: torch.nn.Module) -> None:
    """Draw the parameters that start at zero, as output layers do: a comparison would see nothing of what they end."""
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)


def bench_sampling(
    *, frames: int, height: int, width: int, pairs: int, device: torch.device, report_to: Path | None = None
) -> dict[str, Any]:
    """Time one denoising step straight from the equations and as it is here, and print the ratio.

    Args:
        frames: generated frames.
        height: px.
        width: px.
        pairs: timed pairs after the warm-up.
        device: where the networks run.
        report_to: JSON file for the result, with a plot beside it (.png); None for none.

    Returns:
        dict: what the JSON file holds.
    """
    torch.manual_seed(0)
    sizes = load_model(PROXY)
    unet = build_unet(sizes.unet).eval().to(device)
    conditions = proxy_conditions(sizes, frames, height, width, device)
    pose, face = (condition.controlnet for condition in conditions)
    denoiser = Denoiser(unet=unet, pose_controlnet=pose, face_controlnet=face)
    grid = (height // 8, width // 8)
    latents, reference = (
        torch.randn(1, 4, frames, *grid, device=device),
        torch.randn(1, 4, 1, *grid, device=device),
    )
    width_of_tokens = unet.config.cross_attention_dim
    text = torch.randn(1, TEXT_TOKENS, width_of_tokens, device=device).repeat(2, 1, 1)
    tokens = Tokens(text, torch.randn(2, IMAGE_TOKENS, width_of_tokens, device=device))
    windows = uniform_windows(frames, context=CONTEXT, overlap=OVERLAP, offset=0)
    timestep = torch.tensor(500, device=device)
    controls = [Control(c.controlnet, c.scaled(range(frames), c.value_range, latents)) for c in conditions]
    cache = ControlResidualCache(conditions, tokens)

    def naive() -> Tensor:
        return naive_noise(denoiser, latents, reference, timestep, windows=windows, tokens=tokens, controls=controls)

    def exact() -> Tensor:
        return predict_noise(denoiser, latents, reference, timestep, windows=windows, tokens=tokens, controls=cache)

    with torch.no_grad():
        first, other = naive(), exact()  # the warm-up, too
    difference = float((first - other).abs().max() / first.abs().max())
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU"
    print(
        f"one denoising step of {frames} frames in {len(windows)} windows, {height}x{width} px, both ControlNets, "
        f"{unet.dtype} on {device} ({name}) with {torch.get_num_threads()} threads\n"
        f"largest difference: {difference:.1e} of the largest value"
    )
    seconds = compare({"naive": naive, "exact": exact}, pairs=pairs, device=device)
    ratios = report(seconds)
    result = {
        "frames": frames,
        "windows": len(windows),
        "size": [height, width],
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "relative_difference": difference,
        "seconds": seconds,
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
    }
    if report_to is not None:
        report_to.parent.mkdir(parents=True, exist_ok=True)
        write_file(report_to, (json.dumps(result, indent=1) + "\n").encode())
        plot_seconds(seconds, report_to.with_suffix(".png"))
    return result


def plot_seconds(seconds: dict[str, list[float]], path: Path) -> None:
    """Draw a bar for the median of each way, and a dot for each measurement.

    Args:
        seconds: by name.
        path: PNG file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(1.5 + 1.2 * len(seconds), 3.5), layout="constrained")
    axes.bar(list(seconds), [statistics.median(values) for values in seconds.values()], color="0.8")
    for number, values in enumerate(seconds.values()):
        axes.plot([number] * len(values), values, "k.")
    axes.set_ylabel("seconds per denoising step")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def compare(ways: Mapping[str, Callable[[], Any]], *, pairs: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each way, timed in turn `pairs` times.

    Args:
        ways: by name.
        pairs: how often.
        device: where they run; on a CPU, seconds are those of the process, which other programs disturb least.

    Returns:
        dict: seconds by name.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for _ in range(pairs):
            for name, way in ways.items():
                start = clock()
                way()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds[name].append(clock() - start)
    return seconds


def report(seconds: dict[str, list[float]]) -> list[float]:
    """Print medians, and the ratio of the first way to the second, pair by pair. Returns: the ratios."""
    for name, values in seconds.items():
        print(f"{name:<10} median {statistics.median(values):.3f} s  (min {min(values):.3f}, max {max(values):.3f})")
    first, second = seconds.values()
    ratios = sorted(a / b for a, b in zip(first, second, strict=True))
    spread = f"range {ratios[0]:.3f} - {ratios[-1]:.3f}, {len(ratios)} pairs"
    print(f"speed-up   median {statistics.median(ratios):.3f}x ({spread})")
    return ratios
