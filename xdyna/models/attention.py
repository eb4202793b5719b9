"""Spatial attention of X-Dyna: the Dynamics-Adapter, and text + image cross-attention.

Shape legend: B clips, F frames of a clip (frame 0 is the reference image), L tokens of one frame (L = h * w),
C channels, N heads, D head width (C = N * D), S text or image tokens.

Dynamics-Adapter (X-Dyna, arXiv 2501.10021, section 3.2). With Q, K, V the frozen projections of a frame, K0, V0 those
of frame 0 of the same clip and Q' = W'q x:

    out = Wo softmax(Q K^T / sqrt(D)) V  +  W'o softmax(Q' K0^T / sqrt(D)) V0

Only W'q (`to_q_ff`, starts as a copy of `to_q`) and W'o (`to_out_ff`, starts at zero) are trained. The parameter names
are those of the published checkpoints, so that their files (and SD1.5 LoRA files) load without renaming.

ReferenceNet (the paper's ablation `w/RefNet`, after Animate-Anyone, arXiv 2311.17117, section 3.2). With x the tokens
of a frame, r those that enter the same self-attention of the ReferenceNet and [;] concatenation over tokens:

    out = Wo softmax(Q K^T / sqrt(D)) V,  Q = Wq x,  K = Wk [x; r],  V = Wv [x; r]     frames 1..T
    out = Wo softmax(Q K^T / sqrt(D)) V,  Q = Wq x,  K = Wk x,       V = Wv x          frame 0

Token downsampling (ToDo: Smith et al., arXiv 2402.13573), where it is asked for, not exact: K and V of a frame's own
self-attention are those of means over n x n places. The adapter's branch always sees all of K0 and V0: from means it
loses the reference's details.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)
from einops import rearrange, repeat
from torch import Tensor, nn

from xdyna.models import cpu_attention
from xdyna.models.kernels import require_kernel

# Fused attention kernels index the batch with a 16-bit grid dimension: larger batches are cut.
MAX_ATTENTION_BATCH = 32768
# Training on a CPU in bfloat16, PyTorch's fused kernel is up to 9 times slower than plain products for short sequences.
SHORT_SEQUENCE = 256
# Training on a GPU, fused kernels give a whole block of threads to each of the many sequences of a few frames.
FEW_FRAMES = 8


def _kernel(q_BLC: Tensor, k_BSC: Tensor, v_BSC: Tensor, heads: int, backend: AttentionBackendName | None) -> Tensor:
    q, k, v = (rearrange(x, "b l (n d) -> b l n d", n=heads) for x in (q_BLC, k_BSC, v_BSC))
    chosen = backend or _AttentionBackendRegistry.get_active_backend()[0]
    if q.requires_grad and backend is None and chosen == AttentionBackendName.NATIVE:  # nobody chose: the fastest
        longest = max(q.shape[1], k.shape[1])
        plain = None
        if q.device.type == "cuda" and longest <= FEW_FRAMES:
            plain = _sums
        elif q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[1] <= SHORT_SEQUENCE:
            plain = _products
        if plain is not None:
            q, k, v = (rearrange(x, "b l n d -> b n l d") for x in (q, k, v))
            return rearrange(plain(q, k, v), "b n l d -> b l (n d)")
    if chosen == AttentionBackendName.NATIVE and cpu_attention.allowed() and cpu_attention.suits(q, k):
        return rearrange(cpu_attention.attention(q, k, v, backend=backend), "b l n d -> b l (n d)")
    return rearrange(dispatch_attention_fn(q, k, v, backend=backend), "b l n d -> b l (n d)")


def _sums(q_BNLD: Tensor, k_BNSD: Tensor, v_BNSD: Tensor) -> Tensor:
    """Attention over a few tokens, without matrix products."""
    with torch.autocast(q_BNLD.device.type, enabled=False):  # it would copy the factors to float32 for the sums
        scores_BNLS = (q_BNLD[..., :, None, :] * k_BNSD[..., None, :, :]).sum(-1) * q_BNLD.shape[-1] ** -0.5
        return (scores_BNLS.softmax(-1)[..., None] * v_BNSD[..., None, :, :]).sum(-2)


def _products(q_BNLD: Tensor, k_BNSD: Tensor, v_BNSD: Tensor) -> Tensor:
    scores_BNLS = (q_BNLD * q_BNLD.shape[-1] ** -0.5) @ k_BNSD.transpose(-1, -2)
    return scores_BNLS.softmax(-1) @ v_BNSD


def attend(
    q_BLC: Tensor, k_BSC: Tensor, v_BSC: Tensor, *, heads: int, backend: AttentionBackendName | None = None
) -> Tensor:
    """Multi-head attention, softmax(Q K^T / sqrt(D)) V. The only place that chooses an attention kernel.

    Args:
        q_BLC: queries, (B, L, C) with C = heads * D.
        k_BSC: keys, (B, S, C).
        v_BSC: values, (B, S, C).
        heads: number of heads.
        backend: kernel of diffusers' attention dispatcher; None takes the one in force (`attention_backend(...)`,
            DIFFUSERS_ATTN_BACKEND), without any of these PyTorch's own.

    Returns:
        Tensor: (B, L, C).
    """
    if q_BLC.shape[0] <= MAX_ATTENTION_BATCH:
        return _kernel(q_BLC, k_BSC, v_BSC, heads, backend)
    chunks = (x.split(MAX_ATTENTION_BATCH) for x in (q_BLC, k_BSC, v_BSC))
    return torch.cat([_kernel(q, k, v, heads, backend) for q, k, v in zip(*chunks, strict=True)])


class HeadAttnProcessor:
    """Computes the heads of an attention layer; diffusers writes the chosen backend into it.

    A layer may call it more than once with queries, keys and values of its own: the maths of the heads is the
    processor's, what attends to what is the layer's.
    """

    _attention_backend: AttentionBackendName | None = None
    _parallel_config: Any = None

    def __call__(self, attn: "AttentionBase", q_BLC: Tensor, k_BSC: Tensor, v_BSC: Tensor) -> Tensor:
        """Args: attn: the layer; the rest as in `attend`. Returns: (B, L, C)."""
        return attend(q_BLC, k_BSC, v_BSC, heads=attn.heads, backend=self._attention_backend)


class AttentionBase(nn.Module, AttentionModuleMixin):
    """Projections shared by every attention of the model; subclasses say what attends to what.

    Args:
        dim: channels C of the queries and of the output.
        heads: number of heads N; must divide `dim`.
        context_dim: channels of keys and values before projection (default: `dim`).
    """

    _default_processor_cls = HeadAttnProcessor
    _available_processors: ClassVar = [HeadAttnProcessor]
    _supports_qkv_fusion = False  # the adapter's branches read single projections

    def __init__(self, dim: int, *, heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"attention over {dim} channels cannot be split into {heads} heads; choose a divisor")
        self.heads = heads
        self.processor = HeadAttnProcessor()
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])

    def set_use_memory_efficient_attention_xformers(
        self, use_memory_efficient_attention_xformers: bool, attention_op: Any = None
    ) -> None:
        """Hook that diffusers' `enable_xformers_memory_efficient_attention` calls on every sub-module.

        Args:
            use_memory_efficient_attention_xformers: False goes back to the backend in force.
            attention_op: not used.

        Raises:
            ValueError: when xformers is asked for and not installed.
        """
        if use_memory_efficient_attention_xformers:
            require_kernel("xformers")
        self.processor._attention_backend = (
            AttentionBackendName.XFORMERS if use_memory_efficient_attention_xformers else None
        )

    def _attend(self, q_BLC: Tensor, k_BSC: Tensor, v_BSC: Tensor) -> Tensor:
        return self.processor(self, q_BLC, k_BSC, v_BSC)


@dataclass(frozen=True)
class TokenDownsampling:
    """Means of n x n places of one level's grid; tokens of other levels stay as they are.

    Attributes:
        factor: n.
        grid: (h, w) of the level.
    """

    factor: int
    grid: tuple[int, int]

    def __call__(self, x_ZLC: Tensor) -> Tensor:
        """Args: x_ZLC: (Z, L, C). Returns: (Z, S, C), S = ceil(h / n) * ceil(w / n) where L = h * w, else L."""
        h, w = self.grid
        if x_ZLC.shape[1] != h * w:
            return x_ZLC
        x_ZChw = rearrange(x_ZLC, "z (h w) c -> z c h w", h=h, w=w)
        means = F.avg_pool2d(x_ZChw, self.factor, ceil_mode=True)
        return rearrange(means, "z c h w -> z (h w) c")


class DynamicsAdapterAttention(AttentionBase):
    """Spatial self-attention per frame, plus the Dynamics-Adapter branch to the reference frame (see the file's head).

    Args:
        dim: channels C.
        heads: number of heads.
        adapter: False removes the branch (the paper's `w/IP-A` ablation), leaving plain self-attention.
    """

    def __init__(self, dim: int, *, heads: int, adapter: bool = True) -> None:
        super().__init__(dim, heads=heads)
        self.adapter = adapter
        if adapter:
            self.to_q_ff = nn.Linear(dim, dim, bias=False)
            self.to_out_ff = nn.Linear(dim, dim)
            self.init_adapter()

    @torch.no_grad()
    def init_adapter(self) -> None:
        """Initial state of the adapter: W'q a copy of Wq, W'o zero, so that the branch adds nothing yet."""
        self.to_q_ff.weight.copy_(self.to_q.weight)
        self.to_out_ff.weight.zero_()
        self.to_out_ff.bias.zero_()

    def forward(
        self,
        x_ZLC: Tensor,
        *,
        num_frames: int,
        reference_BLC: Tensor | None = None,
        downsampled: "TokenDownsampling | None" = None,
    ) -> Tensor:
        """Attend within each frame, and to the reference.

        Args:
            x_ZLC: (B * F, L, C), frames of a clip adjacent.
            num_frames: F.
            reference_BLC: (B, L, C) what the ReferenceNet's self-attention of this place was given; None without one.
            downsampled: what a frame's own keys and values are computed from; None: all its tokens.

        Returns:
            Tensor: (B * F, L, C).
        """
        seen_ZSC = x_ZLC if downsampled is None else downsampled(x_ZLC)
        k_ZSC, v_ZSC = self.to_k(seen_ZSC), self.to_v(seen_ZSC)
        if reference_BLC is not None:
            return self.to_out[0](self._attend_with_reference(x_ZLC, k_ZSC, v_ZSC, reference_BLC, num_frames))
        out_ZLC = self.to_out[0](self._attend(self.to_q(x_ZLC), k_ZSC, v_ZSC))
        if not self.adapter:
            return out_ZLC
        # All F * L queries of a clip look at the same keys, so that K0 and V0 are never repeated per frame.
        q_BXC = rearrange(self.to_q_ff(x_ZLC), "(b f) l c -> b (f l) c", f=num_frames)
        if seen_ZSC is x_ZLC:
            k0_BLC, v0_BLC = (rearrange(t, "(b f) l c -> b f l c", f=num_frames)[:, 0] for t in (k_ZSC, v_ZSC))
        else:
            x0_BLC = rearrange(x_ZLC, "(b f) l c -> b f l c", f=num_frames)[:, 0]
            k0_BLC, v0_BLC = self.to_k(x0_BLC), self.to_v(x0_BLC)
        ref_ZLC = rearrange(self._attend(q_BXC, k0_BLC, v0_BLC), "b (f l) c -> (b f) l c", f=num_frames)
        return out_ZLC + self.to_out_ff(ref_ZLC)

    def _attend_with_reference(
        self, x_ZLC: Tensor, k_ZSC: Tensor, v_ZSC: Tensor, reference_BLC: Tensor, num_frames: int
    ) -> Tensor:
        def moving(own_ZSC: Tensor, shared_BLC: Tensor) -> Tensor:
            own_BTSC = rearrange(own_ZSC, "(b f) s c -> b f s c", f=num_frames)[:, 1:]
            shared_BTLC = repeat(shared_BLC, "b l c -> b t l c", t=num_frames - 1)
            return rearrange(torch.cat([own_BTSC, shared_BTLC], dim=2), "b t s c -> (b t) s c")

        q_BFLC, k_BFSC, v_BFSC = (
            rearrange(t, "(b f) l c -> b f l c", f=num_frames) for t in (self.to_q(x_ZLC), k_ZSC, v_ZSC)
        )
        still_BLC = self._attend(q_BFLC[:, 0], k_BFSC[:, 0], v_BFSC[:, 0])
        q_YLC = rearrange(q_BFLC[:, 1:], "b t l c -> (b t) l c")
        k_YSC, v_YSC = moving(k_ZSC, self.to_k(reference_BLC)), moving(v_ZSC, self.to_v(reference_BLC))
        out_BTLC = rearrange(self._attend(q_YLC, k_YSC, v_YSC), "(b t) l c -> b t l c", t=num_frames - 1)
        return rearrange(torch.cat([still_BLC[:, None], out_BTLC], dim=1), "b f l c -> (b f) l c")


@dataclass(frozen=True)
class TokenKeys:
    """Keys and values that one cross-attention makes of the tokens.

    Attributes:
        text: two (B or 1, S, C).
        image: two (B or 1, S', C), or None without an image branch.
    """

    text: tuple[Tensor, Tensor]
    image: tuple[Tensor, Tensor] | None


class CrossAttentionCache:
    """Keys and values of the tokens of one video, which no timestep enters: each layer computes its own once.

    Made anew for other tokens; a layer whose weights changed since (LoRA that a step's callback loads, scales or takes
    away) computes them again. Filled in the first forward pass, where weights that are kept elsewhere are at hand.
    """

    def __init__(self) -> None:
        self._keys: dict[int, tuple[list[Any], TokenKeys]] = {}

    def get(
        self, place: int, layer: "TextImageCrossAttention", text_BSC: Tensor, image_BSC: Tensor | None
    ) -> TokenKeys:
        """Those of one layer. Args: place: its number in the UNet; the rest as in `TextImageCrossAttention.keys`."""
        state = _weights_state(layer)
        known = self._keys.get(place)
        if known is None or known[0] != state:
            known = self._keys[place] = state, layer.keys(text_BSC, image_BSC)
        return known[1]


def _weights_state(layer: nn.Module) -> list[Any]:
    """What tells whether the projections of tokens are the ones they were: parameters, their versions, LoRA scales."""
    state: list[Any] = []
    for name in ("to_k", "to_v", "to_k_ip", "to_v_ip"):
        module: Any  # what peft puts in place of a layer has more than a Module
        for module in getattr(layer, name, nn.Identity()).modules():
            for parameter in module.parameters(recurse=False):
                state += [_Same(parameter), 0 if parameter.is_inference() else parameter._version]
            if hasattr(module, "scaling"):  # a LoRA layer of peft
                state += [dict(module.scaling), list(module.active_adapters), module.disable_adapters]
    return state


@dataclass(frozen=True, eq=False)
class _Same:
    """A tensor that is equal to itself alone, and lives as long as it is compared with."""

    tensor: Tensor

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.tensor is other.tensor

    __hash__ = None  # type: ignore[assignment]


class TextImageCrossAttention(AttentionBase):
    """Cross-attention to text tokens and, with weights of their own, to image tokens (IP-Adapter, arXiv 2308.06721).

        out = Wo ( softmax(Q Kt^T / sqrt(D)) Vt + softmax(Q Ki^T / sqrt(D)) Vi )

    Args:
        dim: channels C of the queries.
        heads: number of heads.
        context_dim: channels of the tokens.
        image_tokens: False leaves out the image branch (a plain text-to-image UNet).
    """

    def __init__(self, dim: int, *, heads: int, context_dim: int, image_tokens: bool = True) -> None:
        super().__init__(dim, heads=heads, context_dim=context_dim)
        self.image_tokens = image_tokens
        if image_tokens:
            self.to_k_ip = nn.Linear(context_dim, dim, bias=False)
            self.to_v_ip = nn.Linear(context_dim, dim, bias=False)

    def keys(self, text_BSC: Tensor, image_BSC: Tensor | None) -> TokenKeys:
        """Keys and values of tokens.

        Args:
            text_BSC: (B or 1, S, context_dim), the same for every frame of a clip; one row serves all clips.
            image_BSC: (B or 1, S', context_dim), or None to leave the image branch out.

        Returns:
            TokenKeys: of this layer.
        """
        text = self.to_k(text_BSC), self.to_v(text_BSC)
        if not self.image_tokens or image_BSC is None:
            return TokenKeys(text, None)
        return TokenKeys(text, (self.to_k_ip(image_BSC), self.to_v_ip(image_BSC)))

    def forward(self, x_ZLC: Tensor, keys: TokenKeys, *, num_frames: int) -> Tensor:
        """Attend to the tokens of the clip.

        Args:
            x_ZLC: (B * F, L, C); or fewer clips, for each branch of which the tokens have rows.
            keys: what `keys` gave for the tokens.
            num_frames: F.

        Returns:
            Tensor: (B * F, L, C), B the larger of the rows of queries and of tokens.
        """
        # One row of keys per clip, not per frame: the frames' queries are laid side by side instead.
        q_BXC = rearrange(self.to_q(x_ZLC), "(b f) l c -> b (f l) c", f=num_frames)
        out_BXC = self._attend_rows(q_BXC, *keys.text)
        if keys.image is not None:
            image_BXC = self._attend_rows(q_BXC, *keys.image)
            clips = max(len(out_BXC), len(image_BXC))
            out_BXC = _for_branches(out_BXC, clips) + _for_branches(image_BXC, clips)
        return rearrange(self.to_out[0](out_BXC), "b (f l) c -> (b f) l c", f=num_frames)

    def _attend_rows(self, q_BXC: Tensor, k_BSC: Tensor, v_BSC: Tensor) -> Tensor:
        rows = k_BSC.shape[0]
        if rows == 1:  # one row of keys serves all rows of queries
            out_1YC = self._attend(rearrange(q_BXC, "b x c -> 1 (b x) c"), k_BSC, v_BSC)
            return rearrange(out_1YC, "1 (b x) c -> b x c", b=q_BXC.shape[0])
        return self._attend(_for_branches(q_BXC, rows), k_BSC, v_BSC)


def _for_branches(x_BXC: Tensor, clips: int) -> Tensor:
    """The clips of one branch for each of them; a single one without a copy."""
    return x_BXC.expand(clips, -1, -1) if len(x_BXC) == 1 else x_BXC.repeat(clips // len(x_BXC), 1, 1)


def expand_frames(x_BC: Tensor, num_frames: int) -> Tensor:
    """Repeat one row per clip for each of its frames: (B, ...) -> (B * F, ...)."""
    return repeat(x_BC, "b ... -> (b f) ...", f=num_frames)
