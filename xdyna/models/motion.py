"""Motion modules: attention along time, at each place of the image (AnimateDiff v1, arXiv 2307.04725).

Shape legend: B clips, F frames (frame 0 = reference), T = F - 1 generated frames, C channels, H W grid,
P = B * H * W places.

    GroupNorm per frame -> Linear -> [LayerNorm -> + positions -> temporal self-attention -> + residual] x 2
    -> LayerNorm -> GEGLU feed-forward -> + residual -> Linear (starts at zero) -> + residual

Attention runs over frames 1..T only; the reference frame passes through untouched.
"""

import math

import torch
from diffusers.models.attention import FeedForward
from einops import rearrange
from torch import Tensor, nn

from xdyna.models.attention import AttentionBase


def sinusoidal_positions(max_frames: int, dim: int) -> Tensor:
    """Sinusoidal position table (Vaswani et al. 2017, section 3.5), sines at even and cosines at odd channels.

    Args:
        max_frames: number of positions.
        dim: channels, even.

    Returns:
        Tensor: (1, max_frames, dim), float32.
    """
    positions = torch.arange(max_frames, dtype=torch.float32)[:, None]
    frequencies = torch.exp(torch.arange(0, dim, 2, dtype=torch.float32) * (-math.log(10000.0) / dim))
    table = torch.zeros(1, max_frames, dim)
    table[0, :, 0::2] = torch.sin(positions * frequencies)
    table[0, :, 1::2] = torch.cos(positions * frequencies)
    return table


class PositionTable(nn.Module):
    """Holds the position table as the buffer `pe`, which the published checkpoints carry too."""

    def __init__(self, max_frames: int, dim: int) -> None:
        super().__init__()
        self.pe: Tensor
        self.register_buffer("pe", sinusoidal_positions(max_frames, dim))

    def forward(self, x_PTC: Tensor) -> Tensor:
        """Add positions 0..T-1. Args: x_PTC: (P, T, C). Returns: the same shape."""
        if x_PTC.shape[1] > self.pe.shape[1]:
            raise ValueError(
                f"{x_PTC.shape[1]} generated frames in one window, but the motion modules know {self.pe.shape[1]} "
                "positions; use a smaller context (windows) or a model with a larger `motion_max_frames`"
            )
        return x_PTC + self.pe[:, : x_PTC.shape[1]].to(x_PTC.dtype)


class TemporalSelfAttention(AttentionBase):
    """Self-attention along time; positions are added to the (already normalised) tokens."""

    def __init__(self, dim: int, *, heads: int, max_frames: int) -> None:
        super().__init__(dim, heads=heads)
        self.pos_encoder = PositionTable(max_frames, dim)

    def forward(self, x_PTC: Tensor) -> Tensor:
        """Args: x_PTC: (P, T, C). Returns: the same shape."""
        x_PTC = self.pos_encoder(x_PTC)
        return self.to_out[0](self._attend(self.to_q(x_PTC), self.to_k(x_PTC), self.to_v(x_PTC)))


class TemporalTransformerBlock(nn.Module):
    """`attentions` temporal self-attentions followed by a feed-forward layer, all pre-norm with residuals."""

    def __init__(self, dim: int, *, heads: int, attentions: int, max_frames: int) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList(
            [TemporalSelfAttention(dim, heads=heads, max_frames=max_frames) for _ in range(attentions)]
        )
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(attentions)])
        self.ff = FeedForward(dim, activation_fn="geglu")
        self.ff_norm = nn.LayerNorm(dim)

    def forward(self, x_PTC: Tensor) -> Tensor:
        """Args: x_PTC: (P, T, C). Returns: the same shape."""
        for attention, norm in zip(self.attention_blocks, self.norms, strict=True):
            x_PTC = x_PTC + attention(norm(x_PTC))
        return x_PTC + self.ff(self.ff_norm(x_PTC))


class TemporalTransformer(nn.Module):
    """Normalise, project in, run the blocks along time, project out."""

    def __init__(self, dim: int, *, heads: int, blocks: int, attentions: int, max_frames: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, dim, eps=1e-6)
        self.proj_in = nn.Linear(dim, dim)
        self.transformer_blocks = nn.ModuleList(
            [
                TemporalTransformerBlock(dim, heads=heads, attentions=attentions, max_frames=max_frames)
                for _ in range(blocks)
            ]
        )
        self.proj_out = nn.Linear(dim, dim)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x_BTCHW: Tensor) -> Tensor:
        """Args: x_BTCHW: (B, T, C, H, W). Returns: what is to be added to it, the same shape."""
        b, t, _, h, w = x_BTCHW.shape
        x_ZCHW = self.norm(rearrange(x_BTCHW, "b t c h w -> (b t) c h w"))
        # The clip is laid out as (places, time, channels) once, for all layers of the module. With a view of another
        # order, linear layers become one product for each place, each with a copy of the weights.
        x_PTC = self.proj_in(rearrange(x_ZCHW, "(b t) c h w -> (b h w) t c", t=t).contiguous())
        for block in self.transformer_blocks:
            x_PTC = block(x_PTC)
        return rearrange(self.proj_out(x_PTC), "(b h w) t c -> b t c h w", b=b, h=h, w=w)


class MotionModule(nn.Module):
    """A motion module of the UNet: changes frames 1..T of a clip, leaves the reference frame as it is.

    Args:
        dim: channels.
        heads: attention heads.
        blocks: transformer blocks (1 in AnimateDiff).
        attentions: temporal self-attentions per block (2 in AnimateDiff).
        max_frames: positions known to the module (24 in v1, 32 in v2 and v3).
        groups: groups of the GroupNorm at its entry.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 8,
        blocks: int = 1,
        attentions: int = 2,
        max_frames: int = 24,
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.temporal_transformer = TemporalTransformer(
            dim, heads=heads, blocks=blocks, attentions=attentions, max_frames=max_frames, groups=groups
        )

    def forward(self, x_ZCHW: Tensor, num_frames: int) -> Tensor:
        """Args: x_ZCHW: (B * F, C, H, W), frames of a clip adjacent. Returns: the same shape."""
        if num_frames == 1:  # a lone reference image has nothing that could move
            return x_ZCHW
        x_BFCHW = rearrange(x_ZCHW, "(b f) c h w -> b f c h w", f=num_frames)
        reference, moving = x_BFCHW[:, :1], x_BFCHW[:, 1:]
        if not torch.is_grad_enabled():
            out_ZCHW = x_ZCHW.clone()  # keeps channels last, which concatenation does not
            rearrange(out_ZCHW, "(b f) c h w -> b f c h w", f=num_frames)[:, 1:] += self.temporal_transformer(moving)
            return out_ZCHW
        out_BFCHW = torch.cat([reference, moving + self.temporal_transformer(moving)], dim=1)
        return rearrange(out_BFCHW, "b f c h w -> (b f) c h w")
