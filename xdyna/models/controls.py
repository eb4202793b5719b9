"""Pose and face ControlNets: how they are built, and the one place where their residuals meet (Zhang et al.,
arXiv 2302.05543; X-Dyna sections 3.3 and 3.4).

Both are diffusers' ControlNetModel with the published names and shapes; the pose net sees 3 condition channels, the
face net (S-Face) 6: [local patches, global patch]. Neither mixes frames, so each generated frame is one batch row.

Shape legend: B clips, F = 1 + T frames (frame 0 = reference), N images, C channels, h w grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ControlNetModel
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from einops import rearrange
from torch import Tensor, nn

from xdyna.models.attention import attend

POSE_CHANNELS = 3
FACE_CHANNELS = 6


@dataclass(frozen=True)
class ControlResiduals:
    """What ControlNets add to the UNet.

    Attributes:
        down: one (N, C, ., .) per skip connection, highest resolution first.
        mid: (N, C, ., .) for the middle block.
    """

    down: tuple[Tensor, ...]
    mid: Tensor

    def select(self, rows: Sequence[int]) -> "ControlResiduals":
        """The residuals of some images, in the given order."""
        return ControlResiduals(tuple(d[rows] for d in self.down), self.mid[rows])


class ConditionEmbedding(ControlNetConditioningEmbedding):
    """diffusers' condition embedding with the same layers; what is embedded already passes through it."""

    def __init__(self, embedding: ControlNetConditioningEmbedding) -> None:
        nn.Module.__init__(self)
        self.conv_in, self.blocks, self.conv_out = embedding.conv_in, embedding.blocks, embedding.conv_out

    def forward(self, conditioning: Tensor) -> Tensor:
        """Args: conditioning: (N, 3 or 6, 8h, 8w), or (N, C, h, w) embedded. Returns: (N, C, h, w)."""
        return conditioning if conditioning.shape[1] == self.conv_out.out_channels else super().forward(conditioning)


class ControlAttnProcessor(AttnProcessor2_0):
    """Attention of a ControlNet by the kernel that is chosen; text that all images share has its keys made once."""

    _attention_backend: AttentionBackendName | None = None
    _parallel_config: Any = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """As diffusers'. Args: hidden_states: (N, L, C); encoder_hidden_states: (N, S, D). Returns: (N, L, C)."""
        if attention_mask is not None or hidden_states.ndim != 3:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        text = encoder_hidden_states if encoder_hidden_states is not None else hidden_states
        if text is hidden_states or text.stride(0):  # rows of their own; `expand` gives rows that are one in memory
            q_NLC, k_NSC, v_NSC = attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)
            return attn.to_out[0](attend(q_NLC, k_NSC, v_NSC, heads=attn.heads, backend=self._attention_backend))
        q_1XC = rearrange(attn.to_q(hidden_states), "n l c -> 1 (n l) c")
        keys = attn.to_k(text[:1]), attn.to_v(text[:1])
        out_1XC = attend(q_1XC, *keys, heads=attn.heads, backend=self._attention_backend)
        return attn.to_out[0](rearrange(out_1XC, "1 (n l) c -> n l c", n=len(hidden_states)))


def share_work(controlnet: ControlNetModel) -> None:
    """Let a ControlNet take conditions that it has embedded before, text keys serve all images, kernels be chosen.

    Names and weights stay as they are, and so do attention processors that somebody chose.
    """
    if isinstance(controlnet.controlnet_cond_embedding, ConditionEmbedding):
        return
    controlnet.controlnet_cond_embedding = ConditionEmbedding(controlnet.controlnet_cond_embedding)
    for module in controlnet.modules():
        if isinstance(module, Attention) and type(module.processor) is AttnProcessor2_0:
            module.set_processor(ControlAttnProcessor())


def run_controlnet(
    controlnet: ControlNetModel, sample: Tensor, timestep: Tensor, text_tokens: Tensor, condition: Tensor
) -> ControlResiduals:
    """Residuals of one ControlNet.

    Args:
        controlnet: pose or face net.
        sample: (N, 4, h, w) noisy latents of generated frames (never of the reference).
        timestep: scalar, in training steps.
        text_tokens: (1 or N, S, cross_attention_dim); one row serves all images.
        condition: (N, 3 or 6, 8h, 8w) in [0, 1]; or, after `share_work`, (N, C, h, w) that it embedded before.

    Returns:
        ControlResiduals: for the N images.
    """
    expected, embedding = controlnet.config.conditioning_channels, controlnet.controlnet_cond_embedding
    embedded = isinstance(embedding, ConditionEmbedding) and condition.shape[1] == embedding.conv_out.out_channels
    if condition.shape[1] != expected and not embedded:
        raise ValueError(f"the condition has {condition.shape[1]} channels, this ControlNet expects {expected}")
    down, mid = controlnet(
        sample,
        timestep,
        encoder_hidden_states=text_tokens.expand(sample.shape[0], -1, -1),
        controlnet_cond=condition,
        return_dict=False,
    )
    return ControlResiduals(tuple(down), mid)


def shallow_residuals(
    controlnet: ControlNetModel, sample: Tensor, timestep: Tensor, text_tokens: Tensor, condition: Tensor, *, depth: int
) -> ControlResiduals:
    """The first residuals of one ControlNet, for a UNet whose deep features are kept (`DeepFeatures`).

    Args:
        controlnet: pose or face net.
        sample: see `run_controlnet`.
        timestep: scalar.
        text_tokens: see `run_controlnet`.
        condition: see `run_controlnet`.
        depth: how many residuals; blocks that these do not need are left out.

    Returns:
        ControlResiduals: `down` equals the first ones of `run_controlnet`; `mid` has no channels.
    """
    rows = sample.shape[0]
    embedded = controlnet.time_proj(timestep.reshape(-1).expand(rows)).to(sample.dtype)
    time_NC = controlnet.time_embedding(embedded)
    text = text_tokens.expand(rows, -1, -1)
    x_NChw = controlnet.conv_in(sample) + controlnet.controlnet_cond_embedding(condition)
    found = [x_NChw]
    for block in controlnet.down_blocks:
        if len(found) >= depth:
            break
        more = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
        x_NChw, features = block(hidden_states=x_NChw, temb=time_NC, **more)
        found += features
    outputs = zip(controlnet.controlnet_down_blocks, found[:depth], strict=False)
    return ControlResiduals(tuple(layer(x) for layer, x in outputs), sample.new_empty(rows, 0, 1, 1))


def merge_residuals(residuals: Sequence[ControlResiduals]) -> ControlResiduals:
    """Sum the residuals of several ControlNets (pose + face).

    Raises:
        ValueError: when there is nothing to merge, or the nets do not have the same layout.
    """
    if not residuals:
        raise ValueError("merge_residuals was given no ControlNet output")
    first = residuals[0]
    for other in residuals[1:]:
        if [d.shape for d in (*other.down, other.mid)] != [d.shape for d in (*first.down, first.mid)]:
            raise ValueError("the ControlNets' residuals have different shapes: their architectures do not match")
    down = tuple(torch.stack(level).sum(0) if len(level) > 1 else level[0] for level in _levels(residuals))
    mids = [r.mid for r in residuals]
    return ControlResiduals(down, torch.stack(mids).sum(0) if len(mids) > 1 else mids[0])


def mask_residuals(residuals: ControlResiduals, keep_N: Tensor) -> ControlResiduals:
    """Set the residuals of some of the N images to zero: the ControlNet is left out there.

    Args:
        residuals: (N, C, ., .) each.
        keep_N: bool (N,); False where it is left out.

    Returns:
        ControlResiduals: kept ones are equal bit by bit.
    """
    keep = rearrange(keep_N, "n -> n 1 1 1")
    return ControlResiduals(tuple(level * keep for level in residuals.down), residuals.mid * keep)


def _levels(residuals: Sequence[ControlResiduals]) -> list[tuple[Tensor, ...]]:
    return list(zip(*(r.down for r in residuals), strict=True))


def to_clip(residuals: ControlResiduals, num_clips: int) -> ControlResiduals:
    """Reorder (B * T, C, ., .) residuals into clips, (B, C, T, ., .), as the UNet takes them. No copy is made."""
    down = tuple(rearrange(d, "(b t) c h w -> b c t h w", b=num_clips) for d in residuals.down)
    return ControlResiduals(down, rearrange(residuals.mid, "(b t) c h w -> b c t h w", b=num_clips))


def add_to_frames(hidden: Tensor, residual: Tensor, *, num_frames: int) -> Tensor:
    """Add a ControlNet residual to the frames it was computed for.

    Args:
        hidden: (B * F, C, h, w) UNet features; changed in place when no gradient is being recorded.
        residual: (B, C, T, h, w) for frames 1..T, or (B, C, F, h, w) for all frames. Fewer rows, by which B can be
            divided, are the clips of each branch.
        num_frames: F.

    Returns:
        Tensor: (B * F, C, h, w).

    Raises:
        ValueError: when the residual has another number of frames.
    """
    clips = len(residual)
    x_NBFCHW = rearrange(hidden, "(n b f) c h w -> n b f c h w", b=clips, f=num_frames)
    residual_BTCHW = rearrange(residual, "b c t h w -> b t c h w")
    skipped = num_frames - residual_BTCHW.shape[1]
    if skipped not in (0, 1):
        raise ValueError(
            f"ControlNet residuals cover {residual_BTCHW.shape[1]} frames, expected {num_frames - 1} (the generated "
            f"ones) or {num_frames} (all)"
        )
    if torch.is_grad_enabled():
        x_NBFCHW = torch.cat([x_NBFCHW[:, :, :skipped], x_NBFCHW[:, :, skipped:] + residual_BTCHW], dim=2)
    else:
        x_NBFCHW[:, :, skipped:] += residual_BTCHW
    return rearrange(x_NBFCHW, "n b f c h w -> (n b f) c h w")
