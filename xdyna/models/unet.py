"""The denoising network of X-Dyna: Stable Diffusion 1.5's UNet over the frames of a clip, with motion modules and the
Dynamics-Adapter (Chang et al., CVPR 2025, arXiv 2501.10021, section 3).

Shape legend: B clips, F = 1 + T frames (frame 0 is the clean reference, 1..T are generated), C channels, h w latent
grid, S tokens. Inside, images run as Z = B * F with the frames of a clip adjacent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.utils import BaseOutput
from einops import rearrange
from torch import Tensor, nn

from xdyna.models.attention import CrossAttentionCache, TokenDownsampling
from xdyna.models.blocks import build_levels
from xdyna.models.controls import add_to_frames
from xdyna.models.deep import DeepFeatures
from xdyna.models.layers import (
    BlockOptions,
    ClipContext,
    SpatialTransformerBlock,
    clip_group_norm,
    to_clips,
)


@dataclass
class XDynaUNetOutput(BaseOutput):
    """Output of `XDynaUNet`.

    Attributes:
        sample: (B, out_channels, F, h, w) predicted noise; the value at frame 0 is a by-product and not used.
    """

    sample: Tensor


class XDynaUNet(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):
    """Video UNet. The defaults are the published model (1321.5 M parameters).

    Args:
        sample_size: latent grid (h, w) the checkpoint was made for; only a default for pipelines.
        in_channels: latent channels.
        out_channels: predicted channels.
        block_out_channels: channels of each level, highest resolution first.
        layers_per_block: (resnet, attention, motion) groups per down block; up blocks have one more.
        attention_levels: for each level, whether it has spatial transformers.
        transformer_layers: transformer blocks per spatial transformer.
        num_attention_heads: heads of every spatial attention. (SD1.5 files call this number `attention_head_dim`.)
        cross_attention_dim: channels of text and image tokens.
        norm_num_groups: groups of every GroupNorm.
        norm_eps: epsilon of the resnets' and the output's GroupNorm.
        joint_group_norm: resnet and output GroupNorm over all frames of a clip together (published weights); False
            takes each frame alone, as AnimateDiff v2 and most newer trainings do.
        dynamics_adapter: have the Dynamics-Adapter branch; False is the ablation without it (`w/IP-A`).
        image_tokens: have key and value weights for image tokens in cross-attention.
        motion_heads: heads of temporal attention.
        motion_blocks: transformer blocks per motion module.
        motion_attentions: temporal attentions per such block.
        motion_max_frames: number of temporal positions (24 in AnimateDiff v1, 32 in v2 and v3).
        motion_mid_block: a motion module in the middle block too (AnimateDiff v2).
        position_channels: channels of a sine-cosine map of positions that is projected and added behind `conv_in`, a
            multiple of 4; 0 for none (published). Stable Diffusion learns positions from zero padding, in more steps
            and layers than a small network trained from nothing has.

    Raises:
        ValueError: on sizes that do not fit together.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["ResnetBlock", "SpatialTransformer", "MotionModule"]
    _repeated_blocks: ClassVar = ["ResnetBlock", "SpatialTransformerBlock", "TemporalTransformerBlock"]

    @register_to_config
    def __init__(
        self,
        sample_size: Sequence[int] = (112, 64),
        in_channels: int = 4,
        out_channels: int = 4,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        attention_levels: Sequence[bool] = (True, True, True, False),
        transformer_layers: int = 1,
        num_attention_heads: int = 8,
        cross_attention_dim: int = 768,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        joint_group_norm: bool = True,
        dynamics_adapter: bool = True,
        image_tokens: bool = True,
        motion_heads: int = 8,
        motion_blocks: int = 1,
        motion_attentions: int = 2,
        motion_max_frames: int = 24,
        motion_mid_block: bool = False,
        position_channels: int = 0,
    ) -> None:
        super().__init__()
        if position_channels < 0 or position_channels % 4:
            raise ValueError(f"position_channels is {position_channels}, expected 0 or a multiple of 4")
        channels = list(block_out_channels)
        check_sizes(channels, list(attention_levels), norm_num_groups, (num_attention_heads, motion_heads))
        options = BlockOptions(
            time_dim=channels[0] * 4,
            heads=num_attention_heads,
            context_dim=cross_attention_dim,
            transformer_layers=transformer_layers,
            groups=norm_num_groups,
            norm_eps=norm_eps,
            joint_group_norm=joint_group_norm,
            dynamics_adapter=dynamics_adapter,
            image_tokens=image_tokens,
            motion_heads=motion_heads,
            motion_blocks=motion_blocks,
            motion_attentions=motion_attentions,
            motion_max_frames=motion_max_frames,
        )
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.position_in = nn.Conv2d(position_channels, channels[0], 1) if position_channels else None
        self.time_proj = Timesteps(channels[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(channels[0], options.time_dim)
        self.down_blocks, self.mid_block, self.up_blocks = build_levels(
            channels,
            attention_levels,
            layers=layers_per_block,
            options=options,
            motion_mid_block=motion_mid_block,
        )
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, channels[0], eps=norm_eps)
        self.conv_out = nn.Conv2d(channels[0], out_channels, 3, padding=1)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        text_tokens: Tensor,
        image_tokens: Tensor | None = None,
        *,
        keys: CrossAttentionCache | None = None,
        down_residuals: Sequence[Tensor] = (),
        mid_residual: Tensor | None = None,
        reference_features: Sequence[Tensor] = (),
        deep: DeepFeatures | None = None,
        token_downsampling: int = 1,
        return_dict: bool = True,
    ) -> XDynaUNetOutput | tuple[Tensor]:
        """Predict the noise in frames 1..T of a clip.

        Args:
            sample: (B, in_channels, F, h, w); frame 0 holds the clean latents of the reference image. Fewer rows are
                the clips of each branch of guidance, which differ in their tokens: row b * rows + k of these is branch
                b of clip k. What comes before the tokens tell branches apart is then computed once.
            timestep: scalar or (B,), in training steps (0..999); the reference frame gets it too.
            text_tokens: (B, S, cross_attention_dim), or one row for all.
            image_tokens: (B, S', cross_attention_dim), or one row for all; None leaves the image branch out.
            keys: of the video that these tokens belong to; None computes keys and values of tokens in each call.
            down_residuals: ControlNet residuals for the skip connections, one per skip, each (B, C, T, ., .) for the
                generated frames or (B, C, F, ., .) for all frames; empty for none.
            mid_residual: the same for the middle block.
            reference_features: what `ReferenceNet` gives, one (B, L, C) per spatial self-attention; empty for none.
                Only the self-attention of frames 1..T reads them. Frame 0 stays part of the clip: its own layers run
                as in the ablation `w/IP-A` and it counts in the joint GroupNorm, so that all ablations normalise alike.
            deep: what was kept of this clip in an earlier step: only the layers of its `depth` highest skip connections
                run, and no others need residuals; where it is empty, all run and it is filled. None keeps nothing.
            token_downsampling: n; at the highest resolution, keys and values of spatial self-attention are computed
                from means over n x n places (see `models/attention.py`). 1 is exact.
            return_dict: False gives a tuple.

        Returns:
            XDynaUNetOutput: (B, out_channels, F, h, w).

        Raises:
            ValueError: on shapes that do not fit together.
        """
        kept, wanted = (deep.kept, deep.depth) if deep is not None else (None, 0)
        shallow = wanted if kept is not None else 0
        clips = max(len(sample), len(text_tokens), len(image_tokens) if image_tokens is not None else 1)
        self._check_inputs(sample, text_tokens, image_tokens, down_residuals, clips=clips, shallow=shallow)
        f = sample.shape[2]
        if reference_features:
            self._check_reference(reference_features, clips=clips, frames=f)
        context = ClipContext(
            num_frames=f,
            # With a single row a CPU's result depends on how the weights lie in memory; layers take the rows they need.
            time_BC=self._embed_time(timestep, clips if torch.is_grad_enabled() else max(clips, 2)),
            text_BSC=text_tokens,
            image_BSC=image_tokens,
            keys=keys,
            reference=reference_features,
            downsampled=(
                TokenDownsampling(token_downsampling, (sample.shape[3], sample.shape[4]))
                if token_downsampling > 1
                else None
            ),
        )
        x_ZCHW = self.conv_in(rearrange(sample, "b c f h w -> (b f) c h w"))
        if self.position_in is not None:
            x_ZCHW = x_ZCHW + self.position_in(sine_positions(x_ZCHW, self.config.position_channels))
        skips = [x_ZCHW]
        for down_block in self.down_blocks:
            if kept is not None and len(skips) == wanted:
                break
            x_ZCHW, block_skips = down_block(x_ZCHW, context, wanted - len(skips) if kept is not None else None)
            skips += block_skips
        x_ZCHW = to_clips(self.mid_block(x_ZCHW, context) if kept is None else kept, clips, num_frames=f)
        skips = [to_clips(skip, clips, num_frames=f) for skip in skips]
        # Only now: the last skip is also the middle block's input, which the residuals must not reach.
        if mid_residual is not None and kept is None:
            x_ZCHW = add_to_frames(x_ZCHW, mid_residual, num_frames=f)
        for i, residual in enumerate(down_residuals):
            skips[i] = add_to_frames(skips[i], residual, num_frames=f)
        x_ZCHW = run_up_blocks(self.up_blocks, x_ZCHW, skips, context, deep)
        norm_frames = f if self.config.joint_group_norm else 1
        x_ZCHW = self.conv_out(F.silu(clip_group_norm(x_ZCHW, self.conv_norm_out, num_frames=norm_frames)))
        out = rearrange(x_ZCHW, "(b f) c h w -> b c f h w", f=f)
        return XDynaUNetOutput(sample=out) if return_dict else (out,)

    def init_adapter(self) -> None:
        """Put every Dynamics-Adapter into its initial state: W'q = Wq, W'o = 0."""
        for module in self.modules():
            if hasattr(module, "to_q_ff"):
                module.init_adapter()

    def _embed_time(self, timestep: Tensor | float | int, batch: int) -> Tensor:
        t = torch.as_tensor(timestep, device=self.device).reshape(-1)
        return self.time_embedding(self.time_proj(t.expand(batch)).to(self.dtype))

    def _check_inputs(
        self,
        sample: Tensor,
        text: Tensor,
        image: Tensor | None,
        down_residuals: Sequence[Tensor],
        *,
        clips: int,
        shallow: int,
    ) -> None:
        if sample.ndim != 5 or sample.shape[1] != self.config.in_channels:
            raise ValueError(
                f"sample has shape {tuple(sample.shape)}, expected (clips, {self.config.in_channels}, frames, h, w)"
            )
        for name, tokens in (("text_tokens", text), ("image_tokens", image)):
            if tokens is not None and (
                tokens.ndim != 3
                or len(tokens) not in (1, clips)
                or clips % len(sample)
                or tokens.shape[2] != self.config.cross_attention_dim
            ):
                raise ValueError(
                    f"{name} has shape {tuple(tokens.shape)}, expected ({len(sample)} clips, tokens, "
                    f"{self.config.cross_attention_dim})"
                )
        levels, layers = len(self.config.block_out_channels), self.config.layers_per_block
        skips = 1 + levels * layers + levels - 1  # conv_in, every layer, every downsampling
        if shallow >= skips:
            raise ValueError(f"deep.depth is {shallow}, expected less than this UNet's {skips} skip connections")
        skips = shallow or skips
        if down_residuals and len(down_residuals) != skips:
            raise ValueError(f"{len(down_residuals)} down_residuals given, this UNet has {skips} skip connections")

    def _check_reference(self, features: Sequence[Tensor], *, clips: int, frames: int) -> None:
        if self.config.dynamics_adapter:
            raise ValueError(
                "reference_features were given to a UNet with the Dynamics-Adapter, which they replace; build the UNet "
                "with dynamics_adapter=False, or leave them out"
            )
        places = sum(isinstance(module, SpatialTransformerBlock) for module in self.modules())
        if len(features) != places or any(x.ndim != 3 or x.shape[0] != clips for x in features) or frames < 2:
            raise ValueError(
                f"{len(features)} reference_features of shapes {[tuple(x.shape) for x in features[:3]]} ... given for "
                f"{frames} frames, expected one ({clips} clips, tokens, channels) for each of this UNet's {places} "
                "spatial self-attentions, and at least one frame beside the reference; use a ReferenceNet made for it"
            )


def run_up_blocks(
    blocks: nn.ModuleList,
    x_ZCHW: Tensor,
    skips: Sequence[Tensor],
    context: ClipContext,
    deep: DeepFeatures | None = None,
) -> Tensor:
    """All up blocks, each with its own skip connections.

    Args:
        blocks: `UpBlock`s, the lowest level first.
        x_ZCHW: output of the middle block.
        skips: all skip connections that they take, in order of computation, and perhaps others before these.
        context: timestep and tokens of the clips.
        deep: where the input of the layer of its `depth`-th skip connection is kept; if it is there already, `x_ZCHW`
            is that, and `skips` are as many.

    Returns:
        Tensor: (B * F, C, H, W).
    """
    end = len(skips)
    shallow = deep is not None and deep.kept is not None
    if shallow:
        end = sum(len(block.resnets) for block in blocks)  # type: ignore[arg-type, misc]
    for block in blocks:
        resnets = block.resnets
        assert isinstance(resnets, nn.ModuleList)
        start, first = end - len(resnets), 0
        if shallow and deep is not None and start >= deep.depth:
            end = start
            continue
        size = (skips[start - 1].shape[-2], skips[start - 1].shape[-1]) if start else None
        if deep is not None and start < deep.depth <= end:
            first = end - deep.depth
            if deep.kept is None:
                deep.kept = block(x_ZCHW, skips[deep.depth : end], context, None)
            x_ZCHW = deep.kept
        x_ZCHW = block(x_ZCHW, skips[start : end - first], context, size, first)
        end = start
    return x_ZCHW


def sine_positions(like_NCHW: Tensor, channels: int) -> Tensor:
    """Sines and cosines of the position in the image, at 1/2, 1, 2, ... periods per side, rows then columns.

    Args:
        like_NCHW: gives height, width, device and dtype.
        channels: a multiple of 4.

    Returns:
        Tensor: (1, channels, H, W), in [-1, 1].
    """
    maps = []
    for dim in (-2, -1):
        size = like_NCHW.shape[dim]
        places = (torch.arange(size, device=like_NCHW.device, dtype=torch.float32) + 0.5) / size
        angles = places[:, None] * torch.pi * 2.0 ** torch.arange(channels // 4, device=like_NCHW.device)
        waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (size, channels / 2)
        maps.append(waves.T[:, :, None] if dim == -2 else waves.T[:, None, :])
    height, width = like_NCHW.shape[-2:]
    return torch.cat([m.expand(-1, height, width) for m in maps])[None].to(like_NCHW.dtype)


def check_sizes(channels: list[int], attention_levels: list[bool], groups: int, head_counts: tuple[int, ...]) -> None:
    """See whether the sizes of a UNet fit together.

    Args:
        channels: of each level.
        attention_levels: for each level, whether it has spatial transformers.
        groups: of every GroupNorm.
        head_counts: numbers of attention heads in use.

    Raises:
        ValueError: when they do not.
    """
    if len(channels) != len(attention_levels):
        raise ValueError(
            f"block_out_channels has {len(channels)} levels but attention_levels {len(attention_levels)}; "
            "give one entry per level to both"
        )
    bad = [c for c in channels if c % groups or any(c % n for n in head_counts)]
    if bad:
        raise ValueError(
            f"block_out_channels {bad} must be divisible by norm_num_groups={groups} and by the numbers of "
            f"attention heads {head_counts}"
        )
