"""Tells puppets from the scene behind them: a small network, so that generated videos have figure masks of their own.

Shape legend: N images, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from xdyna.puppets.networks import _Shipped


class PuppetSegmenter(_Shipped):
    """A U-Net. It is a `xdyna.evaluation.masks.Segmenter` and knows puppets only.

    Args:
        channels: of the levels, each half as high and wide as the one before.
    """

    kind = name = "puppet-segmenter"
    made_by = "train-segmenter"

    def __init__(self, channels: Sequence[int] = (12, 24, 48, 64)) -> None:
        super().__init__()
        self.sizes = {"channels": list(channels)}
        self.down = nn.ModuleList(_block(low, high) for low, high in zip((3, *channels[:-1]), channels, strict=True))
        pairs = zip(channels[1:], channels[:-1], strict=True)
        self.up = nn.ModuleList([_block(below + side, side) for below, side in pairs][::-1])
        self.head = nn.Conv2d(channels[0], 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Args: images: (N, 3, H, W) in [0, 1], of any size. Returns: (N, H, W) logits of "figure"."""
        height, width = images.shape[2:]
        unit = 2 ** (len(self.down) - 1)
        x = F.pad(2 * images - 1, (0, -width % unit, 0, -height % unit), mode="replicate")
        levels = []
        for k, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if k else x)
            levels.append(x)
        for block, side in zip(self.up, levels[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), side], dim=1))
        return rearrange(self.head(x), "n 1 h w -> n h w")[:, :height, :width]

    @torch.no_grad()
    def segment(self, frame: np.ndarray) -> np.ndarray:
        """Where the puppet is. Args: frame: uint8 (H, W, 3) RGB. Returns: float32 (H, W) in [0, 1]."""
        pixels = rearrange(torch.from_numpy(np.ascontiguousarray(frame)), "h w c -> 1 c h w").float() / 255
        return np.asarray(self(pixels)[0].sigmoid().numpy())


def _block(low: int, high: int) -> nn.Module:
    layers: list[nn.Module] = []
    for first in (low, high):
        layers += [nn.Conv2d(first, high, 3, padding=1, bias=False), nn.BatchNorm2d(high), nn.ReLU()]
    return nn.Sequential(*layers)
