"""Building blocks of the UNet: resnets with clip-wide GroupNorm, spatial transformers, down / middle / up blocks.

Shape legend: B clips, F frames (frame 0 = reference), Z = B * F images (frames of a clip adjacent), C channels,
H W grid, L = H * W tokens. Structure and parameter names are Stable Diffusion 1.5's (Rombach et al., arXiv 2112.10752)
with a motion module after every (resnet, attention) pair.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xdyna.models.layers import (
    BlockOptions,
    ClipContext,
    Downsample,
    ResnetBlock,
    SpatialTransformer,
    SpatialTransformerBlock,
    Upsample,
)
from xdyna.models.motion import MotionModule


class Checkpointed(nn.Module):
    """Runs layers through diffusers' gradient checkpointing when it is switched on for this block."""

    def __init__(self) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Any] | None = None

    def _run(self, layer: nn.Module, *args: Any) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing and self._gradient_checkpointing_func is not None:
            return self._gradient_checkpointing_func(layer, *args)
        return layer(*args)


class NoMotion(nn.Module):
    """Stands where a motion module would be in a network for single images."""

    def forward(self, x_ZCHW: Tensor, num_frames: int) -> Tensor:
        """Args: x_ZCHW: (B * F, C, H, W). Returns: the same tensor."""
        return x_ZCHW


def _motion_module(dim: int, options: BlockOptions) -> MotionModule | NoMotion:
    if not options.motion:
        return NoMotion()
    return MotionModule(
        dim,
        heads=options.motion_heads,
        blocks=options.motion_blocks,
        attentions=options.motion_attentions,
        max_frames=options.motion_max_frames,
        groups=options.groups,
    )


class DownBlock(Checkpointed):
    """`layers` times (resnet, spatial transformer, motion module), then halving of the grid.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out.
        layers: number of (resnet, ...) groups.
        attention: False leaves out the spatial transformers.
        downsample: False for the lowest level.
        options: shared sizes.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        layers: int,
        attention: bool,
        downsample: bool,
        options: BlockOptions,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            [ResnetBlock(out_channels if i else in_channels, out_channels, options=options) for i in range(layers)]
        )
        self.attentions = (
            nn.ModuleList([SpatialTransformer(out_channels, options=options) for _ in range(layers)])
            if attention
            else None
        )
        self.motion_modules = nn.ModuleList([_motion_module(out_channels, options) for _ in range(layers)])
        self.downsamplers = nn.ModuleList([Downsample(out_channels)]) if downsample else None

    def forward(self, x_ZCHW: Tensor, context: ClipContext, wanted: int | None = None) -> tuple[Tensor, list[Tensor]]:
        """Run the block.

        Args:
            x_ZCHW: (B * F, in_channels, H, W).
            context: timestep and tokens of the clips.
            wanted: end after so many skips; None runs all.

        Returns:
            tuple: the output and the skips, in order of computation.
        """
        skips = []
        for i, (resnet, motion) in enumerate(zip(self.resnets, self.motion_modules, strict=True)):
            x_ZCHW = self._run(resnet, x_ZCHW, context)
            if self.attentions is not None:
                x_ZCHW = self._run(self.attentions[i], x_ZCHW, context)
            x_ZCHW = self._run(motion, x_ZCHW, context.num_frames)
            skips.append(x_ZCHW)
            if len(skips) == wanted:
                return x_ZCHW, skips
        if self.downsamplers is not None:
            x_ZCHW = self.downsamplers[0](x_ZCHW)
            skips.append(x_ZCHW)
        return x_ZCHW, skips


class MidBlock(Checkpointed):
    """Resnet, spatial transformer, (motion module,) resnet at the lowest grid.

    Args:
        dim: channels.
        motion: add a motion module, as AnimateDiff v2 has it (v1, v3 and X-Dyna do not).
        options: shared sizes.
    """

    def __init__(self, dim: int, *, motion: bool, options: BlockOptions) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResnetBlock(dim, dim, options=options) for _ in range(2)])
        self.attentions = nn.ModuleList([SpatialTransformer(dim, options=options)])
        self.motion_modules = nn.ModuleList([_motion_module(dim, options)]) if motion else None

    def forward(self, x_ZCHW: Tensor, context: ClipContext) -> Tensor:
        """Args: x_ZCHW: (B * F, C, H, W). Returns: the same shape."""
        x_ZCHW = self._run(self.resnets[0], x_ZCHW, context)
        x_ZCHW = self._run(self.attentions[0], x_ZCHW, context)
        if self.motion_modules is not None:
            x_ZCHW = self._run(self.motion_modules[0], x_ZCHW, context.num_frames)
        return self._run(self.resnets[1], x_ZCHW, context)


class UpBlock(Checkpointed):
    """As `DownBlock`, each resnet taking one skip connection, then doubling of the grid.

    Args:
        in_channels: channels that come in from below.
        skip_channels: channels of the skip connection of each layer, in order of use.
        out_channels: channels that go out.
        attention: False leaves out the spatial transformers.
        upsample: False for the highest level.
        options: shared sizes.
    """

    def __init__(
        self,
        in_channels: int,
        skip_channels: list[int],
        out_channels: int,
        *,
        attention: bool,
        upsample: bool,
        options: BlockOptions,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            [
                ResnetBlock((out_channels if i else in_channels) + skip, out_channels, options=options)
                for i, skip in enumerate(skip_channels)
            ]
        )
        layers = len(skip_channels)
        self.attentions = (
            nn.ModuleList([SpatialTransformer(out_channels, options=options) for _ in range(layers)])
            if attention
            else None
        )
        self.motion_modules = nn.ModuleList([_motion_module(out_channels, options) for _ in range(layers)])
        self.upsamplers = nn.ModuleList([Upsample(out_channels)]) if upsample else None

    def forward(
        self,
        x_ZCHW: Tensor,
        skips: Sequence[Tensor],
        context: ClipContext,
        size: tuple[int, int] | None,
        first: int = 0,
    ) -> Tensor:
        """Run the block.

        Args:
            x_ZCHW: (B * F, in_channels, H, W).
            skips: this block's skip connections, in order of computation; used from the end, a layer each. Not changed:
                hooks that move a block's inputs between devices hand on copies of lists.
            context: timestep and tokens of the clips.
            size: (H', W') to enlarge to after the last layer; None for the highest level.
            first: layer to begin with.

        Returns:
            Tensor: (B * F, out_channels, H', W').
        """
        for i, skip in enumerate(skips[::-1], first):
            x_ZCHW = torch.cat([x_ZCHW, skip], dim=1)
            x_ZCHW = self._run(self.resnets[i], x_ZCHW, context)
            if self.attentions is not None:
                x_ZCHW = self._run(self.attentions[i], x_ZCHW, context)
            x_ZCHW = self._run(self.motion_modules[i], x_ZCHW, context.num_frames)
        if self.upsamplers is not None and first + len(skips) == len(self.resnets):
            assert size is not None
            x_ZCHW = self.upsamplers[0](x_ZCHW, size)
        return x_ZCHW


def build_levels(
    channels: Sequence[int],
    attention_levels: Sequence[bool],
    *,
    layers: int,
    options: BlockOptions,
    motion_mid_block: bool = False,
    highest: int = 0,
) -> tuple[nn.ModuleList, MidBlock, nn.ModuleList]:
    """All blocks of a UNet between its first and its last convolution.

    Args:
        channels: of each level, highest resolution first.
        attention_levels: for each level, whether it has spatial transformers.
        layers: (resnet, attention, motion) groups per down block; up blocks have one more.
        options: shared sizes.
        motion_mid_block: a motion module in the middle block too.
        highest: the level at which the way up ends; 0 is the whole UNet.

    Returns:
        tuple: down blocks, middle block, up blocks, each list in order of computation.
    """
    last = len(channels) - 1
    down_blocks, up_blocks = nn.ModuleList(), nn.ModuleList()
    skip_channels = [channels[0]]  # of conv_in; each down block appends its own
    for level, dim in enumerate(channels):
        down_blocks.append(
            DownBlock(
                channels[max(level - 1, 0)],
                dim,
                layers=layers,
                attention=attention_levels[level],
                downsample=level != last,
                options=options,
            )
        )
        skip_channels += [dim] * (layers + (level != last))
    mid_block = MidBlock(channels[-1], motion=motion_mid_block, options=options)
    for level in reversed(range(highest, len(channels))):
        up_blocks.append(
            UpBlock(
                channels[min(level + 1, last)],
                [skip_channels.pop() for _ in range(layers + 1)],
                channels[level],
                attention=attention_levels[level],
                upsample=level != highest,
                options=options,
            )
        )
    blocks = (m for part in (down_blocks, mid_block, up_blocks) for m in part.modules())
    for place, block in enumerate(m for m in blocks if isinstance(m, SpatialTransformerBlock)):
        block.place = place
    return down_blocks, mid_block, up_blocks
