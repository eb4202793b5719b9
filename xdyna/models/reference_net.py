"""ReferenceNet: the paper's ablation `w/RefNet`, in which a second, trained UNet reads the reference image (X-Dyna,
arXiv 2501.10021, table 4; after Hu et al., Animate-Anyone, arXiv 2311.17117, section 3.2).

    r_i = LayerNorm(hidden tokens) before the i-th spatial self-attention of UNet_ref(x_ref, t = 0, text, image tokens)

The backbone, an `XDynaUNet(dynamics_adapter=False)`, concatenates r_i to the keys and values of its own i-th spatial
self-attention in frames 1..T (`xdyna/models/attention.py`). Timestep and reference are fixed, so that the features are
computed once per clip. Guidance acts on the tokens alone, as with the Dynamics-Adapter: each half reads the reference
through its own tokens.

Shape legend: B clips, C channels, h w latent grid, L = h * w tokens of a level, S text or image tokens.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

from xdyna.models.blocks import build_levels
from xdyna.models.layers import BlockOptions, ClipContext, FeatureRecorder, SpatialTransformer
from xdyna.models.unet import XDynaUNet, check_sizes, run_up_blocks

SHARED_SIZES = (
    "in_channels",
    "block_out_channels",
    "layers_per_block",
    "attention_levels",
    "transformer_layers",
    "num_attention_heads",
    "cross_attention_dim",
    "norm_num_groups",
    "norm_eps",
    "image_tokens",
)


class ReferenceNet(ModelMixin, ConfigMixin):
    """2-D UNet that gives its self-attention inputs. Parameter names are the backbone's; it ends at the last of them.

    Its features leave the layers on their inside, so that FSDP cannot wrap these singly; DDP and ZeRO-2 can train it.

    The arguments are those of `XDynaUNet`, and must be the same as the backbone's.

    Raises:
        ValueError: on sizes that do not fit together, or no level with attention.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["ResnetBlock", "SpatialTransformer"]

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        attention_levels: Sequence[bool] = (True, True, True, False),
        transformer_layers: int = 1,
        num_attention_heads: int = 8,
        cross_attention_dim: int = 768,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        image_tokens: bool = True,
    ) -> None:
        super().__init__()
        channels = list(block_out_channels)
        check_sizes(channels, list(attention_levels), norm_num_groups, (num_attention_heads,))
        if not any(attention_levels):
            raise ValueError(
                f"attention_levels is {list(attention_levels)}: a ReferenceNet is read at its self-attentions; give it "
                "at least one level with them"
            )
        options = BlockOptions(
            time_dim=channels[0] * 4,
            heads=num_attention_heads,
            context_dim=cross_attention_dim,
            transformer_layers=transformer_layers,
            groups=norm_num_groups,
            norm_eps=norm_eps,
            joint_group_norm=False,
            dynamics_adapter=False,
            image_tokens=image_tokens,
            motion_heads=1,
            motion_blocks=0,
            motion_attentions=0,
            motion_max_frames=0,
            motion=False,
        )
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.time_proj = Timesteps(channels[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(channels[0], options.time_dim)
        self.down_blocks, self.mid_block, self.up_blocks = build_levels(
            channels,
            attention_levels,
            layers=layers_per_block,
            options=options,
            highest=list(attention_levels).index(True),
        )
        last = [m for m in self.up_blocks.modules() if isinstance(m, SpatialTransformer)][-1]
        last.end_at_read()

    @classmethod
    def from_unet(cls, unet: XDynaUNet) -> "ReferenceNet":
        """A ReferenceNet for a backbone, with a copy of its weights: the state that training starts from.

        Args:
            unet: the backbone; its motion modules, adapter and output layers have no counterpart.

        Returns:
            ReferenceNet: on the backbone's device, in its dtype.

        Source: Animate-Anyone, section 3.2 (initialised from the backbone's Stable Diffusion weights).
        """
        with torch.device(unet.device):
            net = cls(**{name: unet.config[name] for name in SHARED_SIZES})
        if net.dtype != unet.dtype:
            net = net.to(unet.dtype)
        weights = unet.state_dict()
        net.load_state_dict({name: weights[name] for name in net.state_dict()})
        return net

    def forward(self, sample: Tensor, text_tokens: Tensor, image_tokens: Tensor | None = None) -> tuple[Tensor, ...]:
        """Read the reference.

        Args:
            sample: (B, in_channels, h, w) clean latents of the reference image, frame 0 of the backbone's input.
            text_tokens: (B, S, cross_attention_dim), as the backbone gets them.
            image_tokens: (B, S', cross_attention_dim), as the backbone gets them, or None.

        Returns:
            tuple[Tensor, ...]: `reference_features` for `XDynaUNet`: one (B, L, C) per spatial self-attention, in order
            of computation.

        Raises:
            ValueError: on latents or tokens of another shape.
        """
        batch = sample.shape[0]
        if sample.ndim != 4 or sample.shape[1] != self.config.in_channels or text_tokens.shape[0] != batch:
            raise ValueError(
                f"a ReferenceNet was given latents of shape {tuple(sample.shape)} and text tokens of shape "
                f"{tuple(text_tokens.shape)}; expected (clips, {self.config.in_channels}, h, w) and (clips, tokens, "
                f"{self.config.cross_attention_dim})"
            )
        recorder = FeatureRecorder()
        t_B = torch.zeros(batch, dtype=torch.long, device=sample.device)
        context = ClipContext(
            num_frames=1,
            time_BC=self.time_embedding(self.time_proj(t_B).to(self.dtype)),
            text_BSC=text_tokens,
            image_BSC=image_tokens,
            recorder=recorder,
        )
        x_BCHW = self.conv_in(sample)
        skips = [x_BCHW]
        for down_block in self.down_blocks:
            x_BCHW, block_skips = down_block(x_BCHW, context)
            skips += block_skips
        x_BCHW = self.mid_block(x_BCHW, context)
        run_up_blocks(self.up_blocks, x_BCHW, skips, context)
        return tuple(recorder.features[place] for place in sorted(recorder.features))
