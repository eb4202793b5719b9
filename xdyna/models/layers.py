"""Layers of the UNet: resnets whose norms span a clip, transformers with the Dynamics-Adapter, resampling.

Shape legend: Z frames of all clips, C channels, H W grid, L tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.attention import FeedForward
from einops import rearrange, repeat
from torch import Tensor, nn

from xdyna.models.attention import (
    CrossAttentionCache,
    DynamicsAdapterAttention,
    TextImageCrossAttention,
    TokenDownsampling,
    TokenKeys,
    expand_frames,
)


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

    A single row serves all clips. As long as nothing tells branches of guidance apart, which is until the first
    cross-attention, the clips of one branch stand for all: each layer takes (B * F, ...), or F rows for each of those.

    Attributes:
        num_frames: F.
        time_BC: (B or more, time_dim) timestep embedding, one per clip; equal ones where there are more.
        text_BSC: (B or 1, S, context_dim) text tokens.
        image_BSC: (B or 1, S', context_dim) image tokens or None.
        keys: what cross-attention made of the tokens before; None computes it in each pass, for gradients.
        reference: one (B, L, C) per spatial self-attention, the ReferenceNet's tokens of the same place; or empty.
        recorder: where the ReferenceNet collects these; None otherwise.
        downsampled: what spatial self-attention computes keys and values from; None: all tokens.
    """

    num_frames: int
    time_BC: Tensor
    text_BSC: Tensor
    image_BSC: Tensor | None
    keys: CrossAttentionCache | None = None
    reference: Sequence[Tensor] = ()
    recorder: FeatureRecorder | None = None
    downsampled: TokenDownsampling | None = None


def to_clips(x_Z: Tensor, clips: int, *, num_frames: int) -> Tensor:
    """Frames of clips that did not differ between branches so far, for each branch; those of all clips as they are.

    Args:
        x_Z: (clips * F, ...), or of a branch's clips alone, by which `clips` can be divided.
        clips: of all branches; those of a branch are adjacent.
        num_frames: F.

    Returns:
        Tensor: (clips * F, ...).
    """
    branches = clips * num_frames // len(x_Z)
    return x_Z if branches == 1 else repeat(x_Z, "z ... -> (b z) ...", b=branches)


def clip_group_norm(x_ZCHW: Tensor, norm: nn.GroupNorm, *, num_frames: int) -> Tensor:
    """GroupNorm with statistics over all frames of a clip together, the reference frame included.

    Args:
        x_ZCHW: (B * F, C, H, W).
        norm: the layer whose groups, weight, bias and eps are used.
        num_frames: F; 1 gives the ordinary per-image GroupNorm.

    Returns:
        Tensor: (B * F, C, H, W).
    """
    channels_last = x_ZCHW.is_contiguous(memory_format=torch.channels_last) and not x_ZCHW.is_contiguous()
    if channels_last and not torch.is_grad_enabled():  # its backward pass crashes in this layout
        x_BCFHW = rearrange(x_ZCHW, "(b f) c h w -> b c f h w", f=num_frames)  # a view: channels stay the last
        return rearrange(norm(x_BCFHW), "b c f h w -> (b f) c h w")
    h, w = x_ZCHW.shape[-2:]
    x_BCX = rearrange(x_ZCHW, "(b f) c h w -> b c (f h w)", f=num_frames)
    return rearrange(norm(x_BCX), "b c (f h w) -> (b f) c h w", f=num_frames, h=h, w=w)


class HalvesGEGLU(GEGLU):
    """diffusers' GEGLU with the same layer. On a CPU in bfloat16, without gradients, its halves are computed one by
    one: what works on half of each row is up to 1.5 times as slow as on rows of their own. Bit by bit the same.
    """

    def __init__(self, geglu: GEGLU) -> None:
        nn.Module.__init__(self)
        self.proj = geglu.proj

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Args: hidden_states: (..., C). Returns: (..., inner)."""
        proj = self.proj
        plain = type(proj) is nn.Linear and "forward" not in vars(proj)  # neither LoRA nor a hook that moves weights
        suits = hidden_states.device.type == "cpu" and hidden_states.dtype == torch.bfloat16
        if not suits or not plain or torch.is_grad_enabled():
            return super().forward(hidden_states)
        value, gate = (
            F.linear(hidden_states, *half) for half in zip(proj.weight.chunk(2), proj.bias.chunk(2), strict=True)
        )
        return value.mul_(F.gelu(gate))


def halve_geglu(module: nn.Module) -> None:
    """Let every feed-forward layer of a network compute its halves one by one. Names and weights stay as they are."""
    for layer in module.modules():
        if isinstance(layer, FeedForward) and type(layer.net[0]) is GEGLU:
            layer.net[0] = HalvesGEGLU(layer.net[0])


def use_channels_last(*networks: nn.Module) -> None:
    """Lay out the weights of all convolutions channels last, in place; what they compute is laid out so, too."""
    for network in networks:
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)


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
        time_BC = time_BC[: len(h) // context.num_frames]  # fewer rows where the clips of one branch stand for all
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

    def token_keys(self, context: ClipContext) -> TokenKeys:
        """Keys and values of the tokens for this block's cross-attention."""
        if context.keys is None:
            return self.attn2.keys(context.text_BSC, context.image_BSC)
        return context.keys.get(self.place, self.attn2, context.text_BSC, context.image_BSC)

    def forward(self, x_ZLC: Tensor, context: ClipContext, keys: TokenKeys) -> Tensor:
        """Args: x_ZLC: (B * F, L, C), or of one branch; keys: of `token_keys`. Returns: (B * F, L, C)."""
        f = context.num_frames
        h_ZLC = self.norm1(x_ZLC)
        if context.recorder is not None:
            context.recorder.record(self.place, h_ZLC)
        if context.reference:
            reference_BLC = context.reference[self.place]
            x_ZLC, h_ZLC = (to_clips(t, len(reference_BLC), num_frames=f) for t in (x_ZLC, h_ZLC))
            x_ZLC = x_ZLC + self.attn1(
                h_ZLC, num_frames=f, reference_BLC=reference_BLC, downsampled=context.downsampled
            )
        else:
            x_ZLC = x_ZLC + self.attn1(h_ZLC, num_frames=f, downsampled=context.downsampled)
        cross_ZLC = self.attn2(self.norm2(x_ZLC), keys, num_frames=f)
        x_ZLC = to_clips(x_ZLC, len(cross_ZLC) // f, num_frames=f) + cross_ZLC
        return x_ZLC + self.ff(self.norm3(x_ZLC))


class LastRead(nn.Module):
    """The last transformer block of a ReferenceNet as far as it is read: what follows would never get a gradient."""

    def __init__(self, block: SpatialTransformerBlock) -> None:
        super().__init__()
        self.norm1 = block.norm1
        self.place = block.place

    def token_keys(self, context: ClipContext) -> TokenKeys | None:
        """None: it does not look at tokens."""
        return None

    def forward(self, x_ZLC: Tensor, context: ClipContext, keys: TokenKeys | None) -> Tensor:
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
        """Args: x_ZCHW: (B * F, C, H, W), or of one branch. Returns: (B * F, C, H, W)."""
        h, w = x_ZCHW.shape[-2:]
        x_ZLC = rearrange(self.proj_in(self.norm(x_ZCHW)), "z c h w -> z (h w) c")
        for block in self.transformer_blocks:
            assert isinstance(block, SpatialTransformerBlock | LastRead)
            x_ZLC = block(x_ZLC, context, block.token_keys(context))
        x_ZCHW = to_clips(x_ZCHW, len(x_ZLC) // context.num_frames, num_frames=context.num_frames)
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
