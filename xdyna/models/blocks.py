"""Building blocks of the UNet: resnets with clip-wide GroupNorm, spatial transformers, down / middle / up blocks.

Shape legend: B clips, F frames (frame 0 = reference), Z = B * F pictures (frames of a clip adjacent), C channels,
H W grid, L = H * W tokens. Structure and parameter names are Stable Diffusion 1.5's (Rombach et al., arXiv 2112.10752)
with a motion module after every (resnet, attention) pair.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from einops import rearrange
from torch import Tensor, nn

from xdyna.models.attention import DynamicsAdapterAttention, TextImageCrossAttention, expand_frames
from xdyna.models.motion import MotionModule


@dataclass(frozen=True)
class BlockOptions:
    """What all blocks of one UNet share; see `XDynaUNet` for the meaning of each."""

    time_dim: int
    heads: int
    context_dim: int
    transformer_layers: int
    groups: int
    norm_eps: float
    joint_group_norm: bool
    dynamics_adapter: bool
    image_tokens: bool
    motion_heads: int
    motion_blocks: int
    motion_attentions: int
    motion_max_frames: int
    motion: bool = True


class FeatureRecorder:
    """Collects the inputs of self-attentions. Not a dataclass or dict: wrappers of layers may hand on copies of these.

    Attributes:
        features: by place, (B, L, C) each.
    """

    def __init__(self) -> None:
        self.features: dict[int, Tensor] = {}

    def record(self, place: int, x_ZLC: Tensor) -> None:
        """Keep a self-attention's input; the first of a place stays, as checkpointing runs a layer twice."""
        self.features.setdefault(place, x_ZLC)


@dataclass(frozen=True)
class ClipContext:
    """What every layer of one forward pass may look at.

    Attributes:
        num_frames: F.
        time_BC: (B, time_dim) timestep embedding, one per clip.
        text_BSC: (B, S, context_dim) text tokens.
        image_BSC: (B, S', context_dim) image tokens or None.
        reference: one (B, L, C) per spatial self-attention, the ReferenceNet's tokens of the same place; or empty.
        recorder: where the ReferenceNet collects these; None otherwise.
    """

    num_frames: int
    time_BC: Tensor
    text_BSC: Tensor
    image_BSC: Tensor | None
    reference: Sequence[Tensor] = ()
    recorder: FeatureRecorder | None = None


def clip_group_norm(x_ZCHW: Tensor, norm: nn.GroupNorm, *, num_frames: int) -> Tensor:
    """GroupNorm with statistics over all frames of a clip together, the reference frame included.

    Args:
        x_ZCHW: (B * F, C, H, W).
        norm: the layer whose groups, weight, bias and eps are used.
        num_frames: F; 1 gives the ordinary per-picture GroupNorm.

    Returns:
        Tensor: (B * F, C, H, W).
    """
    h, w = x_ZCHW.shape[-2:]
    x_BCX = rearrange(x_ZCHW, "(b f) c h w -> b c (f h w)", f=num_frames)
    return rearrange(norm(x_BCX), "b c (f h w) -> (b f) c h w", f=num_frames, h=h, w=w)


class ResnetBlock(nn.Module):
    """Residual block of Stable Diffusion with the timestep added between its convolutions."""

    def __init__(self, in_channels: int, out_channels: int, *, options: BlockOptions) -> None:
        super().__init__()
        self.joint_group_norm = options.joint_group_norm
        self.norm1 = nn.GroupNorm(options.groups, in_channels, eps=options.norm_eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(options.time_dim, out_channels)
        self.norm2 = nn.GroupNorm(options.groups, out_channels, eps=options.norm_eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x_ZCHW: Tensor, context: ClipContext) -> Tensor:
        """Args: x_ZCHW: (B * F, C, H, W). Returns: (B * F, out_channels, H, W)."""
        norm_frames = context.num_frames if self.joint_group_norm else 1
        h = self.conv1(F.silu(clip_group_norm(x_ZCHW, self.norm1, num_frames=norm_frames)))
        time_BC = self.time_emb_proj(F.silu(context.time_BC))
        h = h + expand_frames(time_BC, context.num_frames)[:, :, None, None]
        h = self.conv2(F.silu(clip_group_norm(h, self.norm2, num_frames=norm_frames)))
        return h + (x_ZCHW if self.conv_shortcut is None else self.conv_shortcut(x_ZCHW))


class SpatialTransformerBlock(nn.Module):
    """Self-attention with the Dynamics-Adapter, cross-attention, feed-forward; pre-norm with residuals.

    Attributes:
        place: number of this block's self-attention among all of its UNet, in order of computation.
    """

    place = 0

    def __init__(self, dim: int, *, options: BlockOptions) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = DynamicsAdapterAttention(dim, heads=options.heads, adapter=options.dynamics_adapter)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = TextImageCrossAttention(
            dim, heads=options.heads, context_dim=options.context_dim, image_tokens=options.image_tokens
        )
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim, activation_fn="geglu")

    def forward(self, x_ZLC: Tensor, context: ClipContext) -> Tensor:
        """Args: x_ZLC: (B * F, L, C). Returns: the same shape."""
        f = context.num_frames
        h_ZLC = self.norm1(x_ZLC)
        if context.recorder is not None:
            context.recorder.record(self.place, h_ZLC)
        reference_BLC = context.reference[self.place] if context.reference else None
        x_ZLC = x_ZLC + self.attn1(h_ZLC, num_frames=f, reference_BLC=reference_BLC)
        x_ZLC = x_ZLC + self.attn2(self.norm2(x_ZLC), context.text_BSC, context.image_BSC, num_frames=f)
        return x_ZLC + self.ff(self.norm3(x_ZLC))


class LastRead(nn.Module):
    """The last transformer block of a ReferenceNet as far as it is read: what follows would never get a gradient."""

    def __init__(self, block: SpatialTransformerBlock) -> None:
        super().__init__()
        self.norm1 = block.norm1
        self.place = block.place

    def forward(self, x_ZLC: Tensor, context: ClipContext) -> Tensor:
        """Args: x_ZLC: (B * F, L, C). Returns: the same tensor."""
        assert context.recorder is not None
        context.recorder.record(self.place, self.norm1(x_ZLC))
        return x_ZLC


class SpatialTransformer(nn.Module):
    """Transformer over the places of each frame. Its GroupNorm is always per frame."""

    def __init__(self, dim: int, *, options: BlockOptions) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(options.groups, dim, eps=1e-6)
        self.proj_in = nn.Conv2d(dim, dim, 1)
        self.transformer_blocks = nn.ModuleList(
            [SpatialTransformerBlock(dim, options=options) for _ in range(options.transformer_layers)]
        )
        self.proj_out: nn.Module = nn.Conv2d(dim, dim, 1)

    def end_at_read(self) -> None:
        """Take away what follows the last self-attention's input: the end of a ReferenceNet."""
        block = self.transformer_blocks[-1]
        assert isinstance(block, SpatialTransformerBlock)
        self.transformer_blocks[-1] = LastRead(block)
        self.proj_out = nn.Identity()

    def forward(self, x_ZCHW: Tensor, context: ClipContext) -> Tensor:
        """Args: x_ZCHW: (B * F, C, H, W). Returns: the same shape."""
        h, w = x_ZCHW.shape[-2:]
        x_ZLC = rearrange(self.proj_in(self.norm(x_ZCHW)), "z c h w -> z (h w) c")
        for block in self.transformer_blocks:
            x_ZLC = block(x_ZLC, context)
        return x_ZCHW + self.proj_out(rearrange(x_ZLC, "z (h w) c -> z c h w", h=h, w=w))


class Downsample(nn.Module):
    """Halve the grid with a strided convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2, padding=1)

    def forward(self, x_ZCHW: Tensor) -> Tensor:
        """(Z, C, H, W) -> (Z, C, ceil(H / 2), ceil(W / 2))."""
        return self.conv(x_ZCHW)


class Upsample(nn.Module):
    """Nearest-neighbour enlargement to a given grid, then a convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x_ZCHW: Tensor, size: tuple[int, int]) -> Tensor:
        """(Z, C, H, W) -> (Z, C, *size); `size` is the grid of the skip connection that comes next."""
        return self.conv(F.interpolate(x_ZCHW, size=size, mode="nearest"))


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
    """Stands where a motion module would be in a network for single pictures."""

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

    def forward(self, x_ZCHW: Tensor, context: ClipContext) -> tuple[Tensor, list[Tensor]]:
        """Args: x_ZCHW: (B * F, in_channels, H, W). Returns: the output and the skips, in order of computation."""
        skips = []
        for i, (resnet, motion) in enumerate(zip(self.resnets, self.motion_modules, strict=True)):
            x_ZCHW = self._run(resnet, x_ZCHW, context)
            if self.attentions is not None:
                x_ZCHW = self._run(self.attentions[i], x_ZCHW, context)
            x_ZCHW = self._run(motion, x_ZCHW, context.num_frames)
            skips.append(x_ZCHW)
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
        self, x_ZCHW: Tensor, skips: Sequence[Tensor], context: ClipContext, size: tuple[int, int] | None
    ) -> Tensor:
        """Run the block.

        Args:
            x_ZCHW: (B * F, in_channels, H, W).
            skips: this block's skip connections, in order of computation; used from the end. Not changed: hooks that
                move a block's inputs between devices hand on copies of lists.
            context: timestep and tokens of the clips.
            size: (H', W') to enlarge to; None for the highest level.

        Returns:
            Tensor: (B * F, out_channels, H', W').
        """
        for i, (resnet, motion, skip) in enumerate(zip(self.resnets, self.motion_modules, skips[::-1], strict=True)):
            x_ZCHW = torch.cat([x_ZCHW, skip], dim=1)
            x_ZCHW = self._run(resnet, x_ZCHW, context)
            if self.attentions is not None:
                x_ZCHW = self._run(self.attentions[i], x_ZCHW, context)
            x_ZCHW = self._run(motion, x_ZCHW, context.num_frames)
        if self.upsamplers is not None:
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
