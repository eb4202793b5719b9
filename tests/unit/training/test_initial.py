"""Weights to train from nothing with."""

from pathlib import Path

import pytest
import torch
from torch import nn

from xdyna.checkpoints import build
from xdyna.config.loader import load_model
from xdyna.training.initial import FIRST_LOG_VARIANCE, has_room, initialise
from xdyna.training.stages import Components

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def test_convolutions_keep_the_variance(components: Components) -> None:
    initialise(components.vae, components.unet, seed=0)
    for network in (components.vae, components.unet):
        kept = 0
        for module in network.modules():
            if isinstance(module, nn.Conv2d) and module.weight.any():
                grid = torch.randn(8, module.in_channels, 32, 32)
                with torch.no_grad():
                    gain = float(module(grid)[..., 4:-4, 4:-4].var())
                few = module.out_channels < 16  # few outputs: a rougher estimate
                assert gain == pytest.approx(1.0, abs=0.75 if few else 0.4) or module is components.vae.quant_conv
                kept += 1
        assert kept > 5


def test_residual_branches_begin_silent(components: Components) -> None:
    initialise(components.vae, components.unet, seed=0)
    for network in (components.vae, components.unet):
        branches = [m for name, m in network.named_modules() if name.endswith(".conv2")]
        assert branches
        assert not any(m.weight.any() or m.bias.any() for m in branches)
    grid, text = torch.randn(1, 4, 1, 8, 8), torch.randn(1, 3, 16)
    assert not components.unet(grid, 5, text, text).sample.any()
    assert components.vae.decoder.conv_out.weight.any(), "silent only where a skip goes around it"


def test_the_decoder_does_not_begin_with_noise(components: Components) -> None:
    initialise(components.vae, components.unet, seed=0)
    with torch.no_grad():
        posterior = components.vae.encode(2 * torch.rand(4, 3, 64, 64) - 1).latent_dist
    assert float(posterior.logvar.mean()) == pytest.approx(FIRST_LOG_VARIANCE, abs=0.5)
    assert float(posterior.std.mean()) < 0.3 * float(posterior.mean.std())


def test_the_seed_decides(components: Components) -> None:
    initialise(components.vae, components.unet, seed=1)
    first = components.unet.conv_in.weight.clone()
    initialise(components.vae, components.unet, seed=1)
    assert torch.equal(first, components.unet.conv_in.weight)
    initialise(components.vae, components.unet, seed=2)
    assert not torch.equal(first, components.unet.conv_in.weight)


@pytest.mark.long
def test_the_tiny_autoencoder_begins_with_the_colours() -> None:
    """Before any training: smooth images come back in their colours, which random weights do not do."""
    config = load_model("tiny")
    vae, unet = build.build_vae(config.vae), build.build_unet(config.unet)
    coarse = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images = torch.nn.functional.interpolate(coarse, size=(128, 128), mode="bicubic").clamp(-1, 1)

    def error() -> float:
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.mean
            return float((vae.decode(latents).sample - images).square().mean() / images.var())

    assert error() > 0.5
    initialise(vae, unet, seed=0)
    assert has_room(vae)
    assert error() < 0.1


def test_an_autoencoder_without_room_is_left_to_chance(components: Components) -> None:
    assert not has_room(components.vae)
    initialise(components.vae, components.unet, seed=0)
    assert components.vae.encoder.conv_in.weight[0].count_nonzero() == components.vae.encoder.conv_in.weight[0].numel()
