"""What a run will cost, before it is run: operations counted on the meta device, memory by rule of thumb."""

import time
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, ControlNetModel
from torch.utils.flop_counter import FlopCounterMode

from xdyna.models.unet import XDynaUNet
from xdyna.pipelines.folder import Checkpoint

# Peak of live features during a UNet pass, in units of one full-resolution feature map of all frames (measured: 5.5 GB
# for two halves of 17 frames of 320 channels at 112 x 64 in half precision).
LIVE_FEATURE_MAPS = 35
# The networks reach about this part of the speed of a plain matrix product.
MATMUL_EFFICIENCY = 0.4
# Python with its libraries and the pose detector (measured: 0.8 GiB with xdyna-tiny).
BASE_BYTES = 0.8 * 2**30


@dataclass(frozen=True)
class Estimate:
    """Cost of a run.

    Attributes:
        flops: floating-point operations of all sampling steps and the decoding.
        seconds: expected duration of them on this machine, rough.
        memory: expected peak of weights and features in bytes, rough.
    """

    flops: float
    seconds: float
    memory: float


@dataclass(frozen=True)
class Workload:
    """What is to be computed.

    Attributes:
        frames: generated frames T.
        windows: windows per step.
        context: generated frames per window.
        steps: denoising steps.
        halves: 2 with guidance, 1 without.
        size: (H, W) in pixels.
        face: whether the face ControlNet runs.
        decode_chunk: images decoded at a time.
    """

    frames: int
    windows: int
    context: int
    steps: int
    halves: int
    size: tuple[int, int]
    face: bool
    decode_chunk: int


def _count(module: torch.nn.Module, *args: object, **kwargs: object) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*args, **kwargs)
    return float(counter.get_total_flops())


def estimate(checkpoint: Checkpoint, work: Workload, *, device: torch.device, dtype: torch.dtype) -> Estimate:
    """Count operations and guess time and memory.

    Args:
        checkpoint: the weights; only their configs and file sizes are read.
        work: what is to be computed.
        device: where; a short matrix product is timed on it.
        dtype: of the networks.

    Returns:
        Estimate: rough; time and memory are within a factor of about two.
    """
    h, w = (side // checkpoint.vae_scale for side in work.size)
    with torch.device("meta"):
        unet = XDynaUNet.from_config(XDynaUNet.load_config(checkpoint.folder / "unet"))
        names = ["pose_controlnet", "face_controlnet"] if work.face else ["pose_controlnet"]
        nets = [ControlNetModel.from_config(ControlNetModel.load_config(checkpoint.folder / n)) for n in names]
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(checkpoint.folder / "vae"))
        width = unet.config.cross_attention_dim
        text, image = torch.empty(1, 77, width), torch.empty(1, 16, width)
        sample = torch.empty(1, unet.config.in_channels, work.context + 1, h, w)
        per_window = _count(unet, sample, torch.empty(()), text, image) * work.halves
        latent, step = torch.empty(1, unet.config.in_channels, h, w), torch.empty((), dtype=torch.long)
        pictures = [torch.empty(1, net.config.conditioning_channels, *work.size) for net in nets]
        per_frame = sum(
            _count(net, latent, step, encoder_hidden_states=text, controlnet_cond=picture)
            for net, picture in zip(nets, pictures, strict=True)
        )
        decode = _count(vae.decoder, torch.empty(1, vae.config.latent_channels, h, w))
    flops = work.steps * (work.windows * per_window + work.frames * per_frame) + work.frames * decode
    itemsize = torch.empty((), dtype=dtype).element_size()
    weights = sum(path.stat().st_size for path in checkpoint.weight_files()) * itemsize / 2  # stored as float16
    channels = unet.config.block_out_channels[0]
    features = LIVE_FEATURE_MAPS * work.halves * (work.context + 1) * channels * h * w * itemsize
    conditions = work.frames * work.size[0] * work.size[1] * (9 if work.face else 3)
    memory = BASE_BYTES + weights + features + conditions
    return Estimate(flops, flops / (_matmul_speed(device, dtype) * MATMUL_EFFICIENCY), memory)


def _matmul_speed(device: torch.device, dtype: torch.dtype, side: int = 1024) -> float:
    """Operations per second of a square matrix product: the best of a few."""
    a = torch.randn(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
