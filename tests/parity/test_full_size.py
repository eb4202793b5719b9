"""The published sizes for real: one forward pass of all networks at 64 x 64 px, 3 frames (about 9 GB)."""

import resource
import time

import pytest
import torch
from diffusers import ControlNetModel

from xdyna.models.controls import merge_residuals, run_controlnet, to_clip
from xdyna.models.unet import XDynaUNet

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("two_threads")]


@torch.no_grad()
def test_full_size_forward():
    torch.manual_seed(0)
    start = time.perf_counter()
    unet = XDynaUNet().eval()
    nets = [ControlNetModel(cross_attention_dim=768, conditioning_channels=c).eval() for c in (3, 6)]
    built = time.perf_counter()
    t, text, image = torch.tensor(500), torch.randn(2, 77, 768), torch.randn(2, 16, 768)
    latents = torch.randn(2, 4, 8, 8)
    pictures = [torch.rand(2, net.config.conditioning_channels, 64, 64) for net in nets]
    residuals = merge_residuals(
        [run_controlnet(net, latents, t, text[:1], picture) for net, picture in zip(nets, pictures, strict=True)]
    )
    clip = to_clip(residuals, 1)
    sample = torch.randn(2, 4, 3, 8, 8)
    out = unet(sample, t, text, image, down_residuals=clip.down, mid_residual=clip.mid).sample
    done = time.perf_counter()
    parameters = sum(p.numel() for m in (unet, *nets) for p in m.parameters())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"\n{parameters / 1e6:.1f} M parameters, built in {built - start:.1f} s; one guided pass of 3 frames at 64 x "
        f"64 px in {done - built:.1f} s; peak memory {peak:.2f} GiB"
    )
    assert out.shape == (2, 4, 3, 8, 8)
    assert out.isfinite().all()
    assert out.std() > 0
