"""The denoiser straight from its equations, as the published sampler computes it: nothing shared, cached or fused.

Tests hold the fast path against it, and benchmarks measure what the exact savings bring; nothing else imports it. It
reads the weights of the networks' layers and none of their `forward`s that know a saving: every branch of guidance runs
the ControlNets of every window from pixels on, residuals are padded with zeros for the reference frame on the CPU, the
keys of tokens and of the reference frame are repeated for each frame, each projection is a product of its own, and
the clip is laid out anew for every temporal attention.

Shape legend: B branches, F = 1 + T frames (frame 0 = reference), Z = B * F, C channels, L tokens of a frame, S tokens.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from xdyna.models.blocks import DownBlock, MidBlock, UpBlock
from xdyna.models.denoiser import Control, Denoiser, Tokens
from xdyna.models.layers import ResnetBlock, SpatialTransformer, SpatialTransformerBlock
from xdyna.models.motion import MotionModule, TemporalSelfAttention, TemporalTransformerBlock
from xdyna.models.unet import XDynaUNet, sine_positions


def naive_noise(
    denoiser: Denoiser,
    latents: Tensor,
    reference: Tensor,
    timestep: Tensor,
    *,
    windows: Sequence[Sequence[int]],
    tokens: Tokens,
    controls: Sequence[Control],
) -> Tensor:
    """Noise prediction of one step, averaged over the windows that hold each frame.

    Args:
        denoiser: the networks; a ReferenceNet is not read.
        latents: (1, C, T, h, w) noisy latents, scaled for the network.
        reference: (1, C, 1, h, w) clean latents of the reference.
        timestep: scalar.
        windows: lists of frame numbers.
        tokens: a row per branch of guidance.
        controls: ControlNets with the whole clip's images, (T, C, 8h, 8w) float in [0, 1].

    Returns:
        Tensor: (B, C, T, h, w) float32.
    """
    rows = tokens.text.shape[0]
    total = torch.zeros(rows, *latents.shape[1:])
    count = torch.zeros(latents.shape[2])
    for window in windows:
        frames = list(window)
        noisy = repeat(latents[:, :, frames], "1 c t h w -> b c t h w", b=rows)
        sample = torch.cat([repeat(reference, "1 c 1 h w -> b c 1 h w", b=rows), noisy], dim=2)
        residuals = _padded_residuals(noisy, timestep, tokens.text, controls, frames)
        out = naive_unet(denoiser.unet, sample, timestep, tokens, residuals)
        total[:, :, frames] += out[:, :, 1:].float().cpu()
        count[frames] += 1
    return (total / count[:, None, None]).to(latents.device)


def _padded_residuals(
    noisy_BCThw: Tensor, timestep: Tensor, text_BSC: Tensor, controls: Sequence[Control], frames: list[int]
) -> list[Tensor]:
    """(Z, C, ., .) per skip connection and, last, for the middle block; zeros for the reference; empty without nets."""
    b, _, t = noisy_BCThw.shape[:3]
    sample = rearrange(noisy_BCThw, "b c t h w -> (b t) c h w")
    text = repeat(text_BSC, "b s c -> (b t) s c", t=t)
    total: list[Tensor] = []
    for control in controls:
        images = repeat(control.images[frames].to(sample), "t c h w -> (b t) c h w", b=b)
        down, mid = control.net(sample, timestep, encoder_hidden_states=text, controlnet_cond=images, return_dict=False)
        padded = []
        for residual in (*down, mid):
            clip = rearrange(residual, "(b t) c h w -> b t c h w", b=b)
            zeros = torch.zeros(clip[:, :1].shape).to(clip)
            padded.append(rearrange(torch.cat([zeros, clip], dim=1), "b f c h w -> (b f) c h w"))
        total = [first + other for first, other in zip(total, padded, strict=True)] if total else padded
    return total


def naive_unet(
    unet: XDynaUNet, sample: Tensor, timestep: Tensor, tokens: Tokens, residuals: Sequence[Tensor] = ()
) -> Tensor:
    """What `XDynaUNet` gives for the same weights.

    Args:
        unet: the weights.
        sample: (B, C, F, h, w).
        timestep: scalar.
        tokens: a row per clip.
        residuals: (Z, C, ., .) for each skip connection and the middle block; or none.

    Returns:
        Tensor: (B, C, F, h, w).
    """
    b, _, f, _, _ = sample.shape
    time_BC = unet.time_embedding(unet.time_proj(timestep.reshape(1).expand(b)).to(sample.dtype))
    time_ZC = repeat(time_BC, "b c -> (b f) c", f=f)
    each = tokens.per_frame(f)
    x_ZCHW = unet.conv_in(rearrange(sample, "b c f h w -> (b f) c h w"))
    if unet.position_in is not None:
        x_ZCHW = x_ZCHW + unet.position_in(sine_positions(x_ZCHW, unet.config.position_channels))
    skips = [x_ZCHW]
    for down in unet.down_blocks:
        assert isinstance(down, DownBlock)
        for i in range(len(down.resnets)):
            x_ZCHW = _layer(down, i, x_ZCHW, time_ZC, each, f)
            skips.append(x_ZCHW)
        if down.downsamplers is not None:
            x_ZCHW = down.downsamplers[0].conv(x_ZCHW)  # type: ignore[operator, union-attr]
            skips.append(x_ZCHW)
    mid = unet.mid_block
    x_ZCHW = _layer(mid, 0, x_ZCHW, time_ZC, each, f)
    x_ZCHW = _resnet(mid.resnets[1], x_ZCHW, time_ZC, f)  # type: ignore[arg-type]
    if residuals:
        x_ZCHW = x_ZCHW + residuals[-1]
        skips = [skip + residual for skip, residual in zip(skips, residuals[:-1], strict=True)]
    for up in unet.up_blocks:
        assert isinstance(up, UpBlock)
        for i in range(len(up.resnets)):
            x_ZCHW = _layer(up, i, torch.cat([x_ZCHW, skips.pop()], dim=1), time_ZC, each, f)
        if up.upsamplers is not None:
            larger = F.interpolate(x_ZCHW, size=skips[-1].shape[-2:], mode="nearest")
            x_ZCHW = up.upsamplers[0].conv(larger)  # type: ignore[operator, union-attr]
    x_ZCHW = unet.conv_out(F.silu(_norm(unet.conv_norm_out, x_ZCHW, f if unet.config.joint_group_norm else 1)))
    return rearrange(x_ZCHW, "(b f) c h w -> b c f h w", f=f)


def _layer(
    block: DownBlock | MidBlock | UpBlock, i: int, x_ZCHW: Tensor, time_ZC: Tensor, tokens_Z: Tokens, f: int
) -> Tensor:
    x_ZCHW = _resnet(block.resnets[i], x_ZCHW, time_ZC, f)  # type: ignore[arg-type]
    if block.attentions is not None:
        x_ZCHW = _spatial(block.attentions[i], x_ZCHW, tokens_Z, f)  # type: ignore[arg-type]
    if block.motion_modules is not None and isinstance(motion := block.motion_modules[i], MotionModule) and f > 1:
        x_ZCHW = _motion(motion, x_ZCHW, f)
    return x_ZCHW


def _norm(norm: nn.GroupNorm, x_ZCHW: Tensor, frames: int) -> Tensor:
    """In float32, over the given number of frames together."""
    x_BCFHW = rearrange(x_ZCHW, "(b f) c h w -> b c f h w", f=frames).float()
    out = F.group_norm(x_BCFHW, norm.num_groups, norm.weight.float(), norm.bias.float(), norm.eps).to(x_ZCHW.dtype)
    return rearrange(out, "b c f h w -> (b f) c h w")


def _resnet(resnet: ResnetBlock, x_ZCHW: Tensor, time_ZC: Tensor, f: int) -> Tensor:
    frames = f if resnet.joint_group_norm else 1
    h = resnet.conv1(F.silu(_norm(resnet.norm1, x_ZCHW, frames)))
    h = h + resnet.time_emb_proj(F.silu(time_ZC))[:, :, None, None]
    h = resnet.conv2(F.silu(_norm(resnet.norm2, h, frames)))
    return h + (x_ZCHW if resnet.conv_shortcut is None else resnet.conv_shortcut(x_ZCHW))


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (rearrange(x, "b l (n d) -> b n l d", n=heads) for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b n l d -> b l (n d)")


def _spatial(transformer: SpatialTransformer, x_ZCHW: Tensor, tokens_Z: Tokens, f: int) -> Tensor:
    h, w = x_ZCHW.shape[-2:]
    x_ZLC = rearrange(transformer.proj_in(transformer.norm(x_ZCHW)), "z c h w -> z (h w) c")
    for block in transformer.transformer_blocks:
        assert isinstance(block, SpatialTransformerBlock)
        x_ZLC = x_ZLC + _self_attention(block, block.norm1(x_ZLC), f)
        x_ZLC = x_ZLC + _cross_attention(block, block.norm2(x_ZLC), tokens_Z)
        x_ZLC = x_ZLC + block.ff(block.norm3(x_ZLC))
    return x_ZCHW + transformer.proj_out(rearrange(x_ZLC, "z (h w) c -> z c h w", h=h, w=w).contiguous())


def _self_attention(block: SpatialTransformerBlock, x_ZLC: Tensor, f: int) -> Tensor:
    attn = block.attn1
    k, v = attn.to_k(x_ZLC), attn.to_v(x_ZLC)
    out_ZLC = attn.to_out[0](_attention(attn.to_q(x_ZLC), k, v, attn.heads))
    if not attn.adapter:
        return out_ZLC
    k0, v0 = (repeat(rearrange(t, "(b f) l c -> b f l c", f=f)[:, 0], "b l c -> (b f) l c", f=f) for t in (k, v))
    return out_ZLC + attn.to_out_ff(_attention(attn.to_q_ff(x_ZLC), k0, v0, attn.heads))


def _cross_attention(block: SpatialTransformerBlock, x_ZLC: Tensor, tokens_Z: Tokens) -> Tensor:
    attn = block.attn2
    q = attn.to_q(x_ZLC)
    out = _attention(q, attn.to_k(tokens_Z.text), attn.to_v(tokens_Z.text), attn.heads)
    if attn.image_tokens and tokens_Z.image is not None:
        out = out + _attention(q, attn.to_k_ip(tokens_Z.image), attn.to_v_ip(tokens_Z.image), attn.heads)
    return attn.to_out[0](out)


def _motion(module: MotionModule, x_ZCHW: Tensor, f: int) -> Tensor:
    transformer = module.temporal_transformer
    x_BFCHW = rearrange(x_ZCHW, "(b f) c h w -> b f c h w", f=f)
    moving = rearrange(x_BFCHW[:, 1:], "b t c h w -> (b t) c h w")
    t, (h, w) = f - 1, moving.shape[-2:]
    x_YLC = transformer.proj_in(rearrange(transformer.norm(moving), "y c h w -> y (h w) c"))
    for block in transformer.transformer_blocks:
        assert isinstance(block, TemporalTransformerBlock)
        for attention, norm in zip(block.attention_blocks, block.norms, strict=True):
            x_YLC = x_YLC + _temporal_attention(attention, norm(x_YLC), t)  # type: ignore[arg-type]
        x_YLC = x_YLC + block.ff(block.ff_norm(x_YLC))
    out = rearrange(transformer.proj_out(x_YLC), "y (h w) c -> y c h w", h=h, w=w).contiguous() + moving
    out_BTCHW = rearrange(out, "(b t) c h w -> b t c h w", t=t)
    return rearrange(torch.cat([x_BFCHW[:, :1], out_BTCHW], dim=1), "b f c h w -> (b f) c h w")


def _temporal_attention(attention: TemporalSelfAttention, x_YLC: Tensor, t: int) -> Tensor:
    places = x_YLC.shape[1]
    x_PTC = attention.pos_encoder(rearrange(x_YLC, "(b t) l c -> (b l) t c", t=t))
    q, k, v = attention.to_q(x_PTC), attention.to_k(x_PTC), attention.to_v(x_PTC)
    # More sequences at once than the grid of a fused kernel has places.
    chunks = zip(*(x.split(32768) for x in (q, k, v)), strict=True)
    attended = [_attention(query, key, value, attention.heads) for query, key, value in chunks]
    out_PTC = attention.to_out[0](torch.cat(attended))
    return rearrange(out_PTC, "(b l) t c -> (b t) l c", l=places)
