"""Weights to train from nothing with (the tiny model: the others stand on Stable Diffusion).

1. PyTorch's default shrinks a convolution's output by 1 / sqrt(3), layer by layer, and lets every residual branch speak
   from the start. Here convolutions keep the variance and residual branches begin silent: a deep network starts as a
   nearly linear one (Goyal et al., arXiv 1706.02677, section 5.1; Fixup, arXiv 1901.09321).
2. The autoencoder's GroupNorms subtract what an image's colours have in common, and learning to carry colour past them
   is most of the first thousand steps. A few channels therefore start as a path that carries colour: block means in the
   encoder, linear interpolation in the decoder. docs/log.md has the measurements.
"""

import math
import re

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from xdyna.models.unet import XDynaUNet

# The last layer of every residual branch, and the UNet's output.
SILENT = {"vae": r"\.conv2$", "unet": r"\.(conv2|proj_out)$|^conv_out$"}
FIRST_LOG_VARIANCE = -5.0  # of the autoencoder's posterior: the decoder must not begin with noise

# One unit of the colour path carries one colour in four channels: +c, -c, +ANCHOR, -ANCHOR. Their mean is zero and
# their variance nearly constant, so that a GroupNorm over whole units leaves them alone; SiLU(c) - SiLU(-c) = c makes
# the non-linearity after it vanish.
UNIT, COLOURS, ANCHOR = 4, 3, 4.0
LATENT_GAIN = 4.0  # colours in [-1, 1] -> latents that are large beside the posterior's noise


@torch.no_grad()
def initialise(vae: AutoencoderKL, unet: XDynaUNet, *, seed: int) -> None:
    """Set autoencoder and UNet to a state that trains well from nothing.

    Args:
        vae: changed in place.
        unet: changed in place.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    for network, pattern in ((vae, SILENT["vae"]), (unet, SILENT["unet"])):
        for name, module in network.named_modules():
            if not isinstance(module, nn.Conv2d):
                continue
            fan_in = module.weight[0].numel()
            deviation = 0.0 if re.search(pattern, name) else 1 / math.sqrt(fan_in)
            module.weight.copy_(deviation * torch.randn(module.weight.shape, generator=generator))
            if module.bias is not None:
                module.bias.zero_()
    quant = vae.quant_conv
    channels = quant.weight.shape[0] // 2
    quant.weight[channels:] *= 0.1
    quant.bias[channels:] = FIRST_LOG_VARIANCE
    if has_room(vae):
        carry_colour(vae)


def has_room(vae: AutoencoderKL) -> bool:
    """Whether an autoencoder has the channels for the colour path: three units per level, groups of whole units."""
    widths = vae.config.block_out_channels
    groups = vae.config.norm_num_groups
    return (
        min(widths) >= COLOURS * UNIT
        and vae.config.latent_channels >= COLOURS
        and all((widths[k] // groups) % UNIT == 0 for k in (0, -1))
    )


@torch.no_grad()
def carry_colour(vae: AutoencoderKL) -> None:
    """Set the first channels of every level to carry colour. Args: vae: silent residual branches, `has_room`."""
    encoder, decoder = vae.encoder, vae.decoder
    plain, box = torch.ones(1, 1), torch.zeros(3, 3)
    box[:2, :2] = 0.25  # the stride-2 convolution's 2 x 2 block
    hat = torch.tensor([0.25, 0.5, 0.25])
    hat = hat[:, None] * hat  # after nearest-neighbour doubling: linear interpolation
    _enter(encoder.conv_in, gain=1.0)
    _leave(encoder.conv_out)
    _enter(decoder.conv_in, gain=1 / LATENT_GAIN)
    _leave(decoder.conv_out)
    for block in (*encoder.down_blocks, *decoder.up_blocks):
        for resnet in block.resnets:
            if resnet.conv_shortcut is not None:
                _pass(resnet.conv_shortcut, plain)
        for sampler in getattr(block, "downsamplers", None) or ():
            _pass(sampler.conv, box)
        for sampler in getattr(block, "upsamplers", None) or ():
            _pass(sampler.conv, hat)
    for middle in (encoder.mid_block, decoder.mid_block):
        for attention in middle.attentions:
            attention.to_out[0].weight.zero_()
            attention.to_out[0].bias.zero_()
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight[:COLOURS] = 0
        conv.weight[range(COLOURS), range(COLOURS)] = 1.0
    vae.post_quant_conv.weight[:, COLOURS:] = 0
    # What the norms' constants come to depends on the widths: measured once, on flat colours.
    colours = torch.rand(64, COLOURS, 1, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images = colours.expand(-1, -1, 32, 32)
    encoder.conv_out.weight[:COLOURS] *= LATENT_GAIN / _slope(colours, vae.encode(images).latent_dist.mean)
    latents = vae.encode(images).latent_dist.mean
    decoder.conv_out.weight[:COLOURS] /= _slope(colours, vae.decode(latents).sample)


def _enter(conv: nn.Conv2d, *, gain: float) -> None:
    assert conv.bias is not None
    assert conv.bias is not None
    conv.weight[: COLOURS * UNIT] = 0
    for colour in range(COLOURS):
        first = colour * UNIT
        conv.weight[first, colour, 1, 1], conv.weight[first + 1, colour, 1, 1] = gain, -gain
        conv.bias[first + 2], conv.bias[first + 3] = ANCHOR, -ANCHOR


def _pass(conv: nn.Conv2d, kernel: Tensor) -> None:
    conv.weight[: COLOURS * UNIT] = 0
    for channel in range(COLOURS * UNIT):
        conv.weight[channel, channel] = kernel


def _leave(conv: nn.Conv2d) -> None:
    conv.weight[:COLOURS] = 0
    for colour in range(COLOURS):
        conv.weight[colour, colour * UNIT, 1, 1], conv.weight[colour, colour * UNIT + 1, 1, 1] = 1.0, -1.0


def _slope(colours: Tensor, output: Tensor) -> float:
    """Least-squares factor from colours to the first channels in the middle of the images."""
    middle = output[:, :COLOURS, output.shape[2] // 2, output.shape[3] // 2]
    flat = colours[:, :, 0, 0]
    return float((flat * middle).sum() / (flat * flat).sum())
