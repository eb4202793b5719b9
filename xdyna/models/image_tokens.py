"""The Resampler of IP-Adapter plus: CLIP hidden states of the reference image -> image tokens (arXiv 2308.06721).

The computation is diffusers' IPAdapterPlusImageProjection, which equals the published Resampler (tested against golden
numbers); this class gives it a config and save_pretrained / from_pretrained.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from xdyna.core.device import to_device
from xdyna.models.clip_pixels import clip_pixels


class ImageTokenResampler(ModelMixin, ConfigMixin):
    """Turns image features into a fixed number of tokens. The defaults are the published sizes.

    Args:
        dim: channels inside.
        depth: layers.
        dim_head: width of one head.
        heads: attention heads.
        num_queries: number of tokens that come out.
        embedding_dim: channels of the image features (1280 for CLIP ViT-H/14).
        output_dim: channels of the tokens (the UNet's cross_attention_dim).
        ff_mult: widening of the feed-forward layers.
    """

    @register_to_config
    def __init__(
        self,
        dim: int = 768,
        depth: int = 4,
        dim_head: int = 64,
        heads: int = 12,
        num_queries: int = 16,
        embedding_dim: int = 1280,
        output_dim: int = 768,
        ff_mult: float = 4,
    ) -> None:
        super().__init__()
        self.projection = IPAdapterPlusImageProjection(
            embed_dims=embedding_dim,
            output_dims=output_dim,
            hidden_dims=dim,
            depth=depth,
            dim_head=dim_head,
            heads=heads,
            num_queries=num_queries,
            ffn_ratio=ff_mult,
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, patches + 1, embedding_dim) penultimate hidden states -> (B, num_queries, output_dim)."""
        return self.projection(features)


def image_tokens(
    images: Tensor | Sequence[Image.Image],
    *,
    extractor: Any,
    encoder: nn.Module,
    projection: nn.Module,
    keep: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Image tokens; where `keep` is False those of an all-zero input, for the unconditional branch.

    Args:
        images: uint8 (B, 3, H, W) RGB, which stay where they are; or B images of PIL.
        extractor: CLIP's preprocessing.
        encoder: CLIP vision model.
        projection: the Resampler.
        keep: bool (B,), or (K * B,) for K rows of each image, image by image within each row; None keeps all.
        device: where the encoder runs; None: where its weights are.

    Returns:
        Tensor: (B or K * B, S, D) on that device.
    """
    device = next(encoder.parameters()).device if device is None else device
    if isinstance(images, Tensor):
        pixels = clip_pixels(images, extractor).to(device)
    else:
        pixels = to_device(extractor(images=list(images), return_tensors="pt").pixel_values, device)
    if keep is not None:
        pixels = pixels.repeat(len(keep) // len(pixels), 1, 1, 1) * rearrange(keep.to(device).float(), "b -> b 1 1 1")
    return tokens_of_pixels(pixels, encoder, projection)


def tokens_of_pixels(pixels: Tensor, encoder: nn.Module, projection: nn.Module) -> Tensor:
    """The Resampler's view of CLIP's last hidden states but one.

    Args:
        pixels: (B, 3, side, side), as `clip_pixels` gives them.
        encoder: CLIP vision model.
        projection: the Resampler.

    Returns:
        Tensor: (B, S, D).
    """
    dtype, own = (next(module.parameters()).dtype for module in (encoder, projection))
    hidden = encoder(pixels.to(dtype), output_hidden_states=True).hidden_states[-2]
    return projection(hidden.to(own))
