"""VideoMAE-v2, the vision transformer behind cd-FVD.

Source: Wang et al., arXiv 2303.16727; cd-FVD: Ge et al., arXiv 2404.12391.
Shape legend: T frames, C channels, H W pixels, L tokens, N heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from xdyna.evaluation.frames import FrameSequence
from xdyna.evaluation.networks.loading import CLIPS, clips_to_device, load_published, on_device


class Attention(nn.Module):
    """Self-attention; keys have no bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, width) -> the same."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        q, k, v = rearrange(
            F.linear(x, self.qkv.weight, bias), "b l (three n d) -> three b n l d", three=3, n=self._heads
        )
        return self.proj(rearrange(F.scaled_dot_product_attention(q, k, v), "b n l d -> b l (n d)"))


class Mlp(nn.Module):
    """Two layers with GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, width) -> the same."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width, heads), Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, width) -> the same."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """Patches of 2 frames."""

    def __init__(self, width: int, patch: int, tubelet: int) -> None:
        super().__init__()
        sides = (tubelet, patch, patch)
        self.proj = nn.Conv3d(3, width, sides, sides)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, T, H, W) -> (B, L, width)."""
        return rearrange(self.proj(x), "b c t h w -> b (t h w) c")


def sinusoid_positions(tokens: int, width: int) -> Tensor:
    """Sines in even and cosines in odd channels (arXiv 1706.03762, section 3.5), float32 (tokens, width)."""
    channels = np.arange(width)
    angles = np.arange(tokens)[:, None] / np.power(10000, 2 * (channels // 2) / width)[None]
    return torch.from_numpy(np.where(channels % 2 == 0, np.sin(angles), np.cos(angles)).astype(np.float32))


class VideoMAE(nn.Module):
    """The network. The defaults are ViT-g of `vit_g_hybrid_pt_1200e_ssv2_ft.pth` (526 tensors).

    Args:
        width: channels of tokens.
        depth: blocks.
        heads: of every attention.
        hidden: of every MLP.
        patch: px.
        tubelet: frames per token.
        frames: T.
        side: H = W, px.
        classes: of the last layer, which features do not use.
    """

    def __init__(
        self,
        *,
        width: int = 1408,
        depth: int = 40,
        heads: int = 16,
        hidden: int = 6144,
        patch: int = 14,
        tubelet: int = 2,
        frames: int = 16,
        side: int = 224,
        classes: int = 174,
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(width, patch, tubelet)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.fc_norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)
        tokens = (frames // tubelet) * (side // patch) ** 2
        self.register_buffer("positions", sinusoid_positions(tokens, width), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [0, 1] -> (B, width): the norm of the tokens' mean."""
        x = self.patch_embed(x)
        x = x + self.positions.to(x)  # type: ignore[operator]
        for block in self.blocks:
            x = block(x)
        return self.fc_norm(x.mean(dim=1))


class VideoMAEExtractor:
    """A clip of 16 frames -> 1408 features, as cd-FVD computes them.

    Args:
        state: tensors of `vit_g_hybrid_pt_1200e_ssv2_ft.pth` (its entry "module").
        weights: its hash, for the version.
        sizes: of a smaller `VideoMAE`, for tests; None: the published one.
        device: where it runs; None: the CPU.
    """

    name = "videomae"
    batch = CLIPS

    def __init__(
        self,
        state: Mapping[str, Tensor],
        *,
        weights: str,
        sizes: Mapping[str, int] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self._net = VideoMAE(**(sizes or {}))
        self.dim = self._net.fc_norm.normalized_shape[0]
        load_published(self._net, state, what="vit_g_hybrid_pt_1200e_ssv2_ft.pth")
        self._device = on_device(device)
        self._net.to(self._device)
        self.version = f"p1-{weights[:12]}"

    @torch.no_grad()
    def features(self, frames: FrameSequence | np.ndarray) -> np.ndarray:
        """uint8 (16, H, W, 3), or (N, 16, H, W, 3) -> float32 (1 or N, 1408).

        [0, 1], bilinear to 224 px, not normalised.
        """
        clips = clips_to_device(frames, self._device)
        x = rearrange(clips, "n t c h w -> (n t) c h w").float() / 255
        x = F.interpolate(x, size=(224, 224), mode="bilinear", align_corners=False)
        return np.asarray(self._net(rearrange(x, "(n t) c h w -> n c t h w", n=len(clips))).float().cpu().numpy())
