"""Benchmark of the sampling loop: what the exact savings bring, as ratios within one run.

The network is a proxy of the published one: its operations divide alike between attention, convolutions, motion modules
and feed-forward layers, at a size that a CPU runs in seconds. A and B are timed in turn, A B A B ..., after a warm-up.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from torch import Tensor

from xdyna.checkpoints.build import build_controlnet
from xdyna.diffusion.windows import uniform_windows
from xdyna.models.controls import FACE_CHANNELS, POSE_CHANNELS, ControlResiduals, to_clip
from xdyna.models.denoiser import Control, Denoiser, Tokens, control_residuals
from xdyna.models.unet import XDynaUNet
from xdyna.pipelines.denoise import Condition, ControlResidualCache, predict_noise

CHANNELS = (64, 128, 256, 256)
SIZES = {"block_out_channels": CHANNELS, "cross_attention_dim": 154}
CONTEXT, OVERLAP = 16, 4


class RepeatedControls(ControlResidualCache):
    """The published way: every ControlNet for every window and for both branches, condition embedding included."""

    def window(self, latents: Tensor, timestep: Tensor, window: Sequence[int]) -> ControlResiduals | None:
        """As `ControlResidualCache.window`, nothing shared."""
        frames, rows = list(window), self.tokens.text.shape[0]
        sample = rearrange(latents[:, :, frames], "1 c t h w -> t c h w").repeat(rows, 1, 1, 1)
        controls = []
        for condition, value_range in self.conditions:
            control = condition.scaled(frames, value_range, sample)
            controls.append(Control(control.net, control.images.repeat(rows, 1, 1, 1)))
        text = self.tokens.text.repeat_interleave(len(frames), dim=0)
        return to_clip(control_residuals(sample, timestep, text, controls), rows)


def bench_sampling(*, frames: int, height: int, width: int, pairs: int, device: torch.device) -> None:
    """Time one denoising step as published and as it is here, and print the ratio.

    Args:
        frames: generated frames.
        height: px.
        width: px.
        pairs: timed pairs after the warm-up.
        device: where the networks run.
    """
    torch.manual_seed(0)
    unet = XDynaUNet(**SIZES, num_attention_heads=2, motion_heads=2).eval().to(device)
    sizes = {**SIZES, "attention_head_dim": 2, "conditioning_embedding_out_channels": (4, 8, 20, 52)}
    conditions = []
    for channels in (POSE_CHANNELS, FACE_CHANNELS):
        net = build_controlnet(sizes, channels=channels).eval().to(device)
        for parameter in net.parameters():  # output layers start at zero: the comparison below would see nothing
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
        pictures = torch.randint(0, 256, (frames, channels, height, width), dtype=torch.uint8)
        conditions.append(Condition(net, pictures))
    pose, face = (condition.controlnet for condition in conditions)
    denoiser = Denoiser(unet=unet, pose_controlnet=pose, face_controlnet=face)
    grid = (height // 8, width // 8)
    latents, reference = (
        torch.randn(1, 4, frames, *grid, device=device),
        torch.randn(1, 4, 1, *grid, device=device),
    )
    text = torch.randn(1, 77, 154, device=device).repeat(2, 1, 1)
    tokens = Tokens(text, torch.randn(2, 16, 154, device=device))
    windows = uniform_windows(frames, context=CONTEXT, overlap=OVERLAP, offset=0)

    def step(controls: ControlResidualCache) -> Callable[[], Tensor]:
        def run() -> Tensor:
            return predict_noise(
                denoiser,
                latents,
                reference,
                torch.tensor(500, device=device),
                windows=windows,
                tokens=tokens,
                controls=controls,
            )

        return run

    ways = {
        "published": step(RepeatedControls(conditions, tokens)),
        "xdyna": step(ControlResidualCache(conditions, tokens)),
    }
    with torch.no_grad():
        difference = float((ways["published"]() - ways["xdyna"]()).abs().max())  # the warm-up, too
    print(
        f"one denoising step of {frames} frames in {len(windows)} windows, {height}x{width} px, both "
        f"ControlNets, on {device} with {torch.get_num_threads()} threads\nlargest difference: {difference:.1e}"
    )
    report(compare(ways, pairs=pairs, device=device))


def compare(ways: dict[str, Callable[[], Tensor]], *, pairs: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each way, timed in turn `pairs` times. Returns: seconds by name."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for _ in range(pairs):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds[name].append(time.perf_counter() - start)
    return seconds


def report(seconds: dict[str, list[float]]) -> None:
    """Print medians, and the ratio of the first way to the second, pair by pair."""
    for name, values in seconds.items():
        print(f"{name:<10} median {statistics.median(values):.3f} s  (min {min(values):.3f}, max {max(values):.3f})")
    first, second = seconds.values()
    ratios = sorted(a / b for a, b in zip(first, second, strict=True))
    spread = f"range {ratios[0]:.3f} - {ratios[-1]:.3f}, {len(ratios)} pairs"
    print(f"speed-up   median {statistics.median(ratios):.3f}x ({spread})")
