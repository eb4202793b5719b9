"""The conditional denoiser: what the video UNet and the networks beside it say about noisy latents.

    e(x_t, t) = UNet([x_ref, x_t], t, text, image; sum_k m_k C_k(x_t, t, text, c_k), R(x_ref, text, image))[frames 1..T]

x_ref are the clean latents of the reference (frame 0), x_t the noisy ones of the generated frames; `text` and `image`
the CLIP tokens of prompt and reference; C_k the ControlNets (pose; face), c_k their control images scaled to [0, 1] by
each clip's own range, m_k masks of dropped conditions; R the ReferenceNet of the ablation `w/RefNet` (X-Dyna, CVPR
2025, arXiv 2501.10021, section 3). In sampling the rows are the branches of guidance (unconditional, conditional), in
training the clips. Sampling keeps the ControlNets' residuals of a step (`ControlResidualCache`, xdyna/pipelines) and
the ReferenceNet's features of a video; training and the memory plan run all of it at once (`denoise_clip`).

Shape legend: B clips or branches, T generated frames, N = B * T images, C channels, h w latent grid, H W pixels,
S tokens, D their channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from diffusers import ControlNetModel
from einops import rearrange, repeat
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from xdyna.core.device import to_device
from xdyna.diffusion.guidance import condition_range, scale_condition
from xdyna.models.attention import CrossAttentionCache
from xdyna.models.controls import ControlResiduals, mask_residuals, merge_residuals, run_controlnet, to_clip
from xdyna.models.deep import DeepFeatures
from xdyna.models.image_tokens import ImageTokenResampler, image_tokens
from xdyna.models.reference_net import ReferenceNet
from xdyna.models.unet import XDynaUNet


@dataclass(frozen=True)
class Tokens:
    """Text and image tokens, one row per clip or branch of guidance.

    Attributes:
        text: (B, S, D).
        image: (B, S', D) or None.
    """

    text: Tensor
    image: Tensor | None

    @cached_property
    def same_text(self) -> bool:
        """True when all rows have the same text, so that ControlNets need to run only once."""
        return len(self.text) == 1 or bool((self.text == self.text[:1]).all())

    @property
    def distinct_text(self) -> Tensor:
        """(B or 1, S, D): one row where all are the same."""
        return self.text[:1] if self.same_text else self.text

    def rows(self, rows: slice) -> "Tokens":
        """Some rows; itself for all of them."""
        if rows == slice(0, len(self.text)):
            return self
        return Tokens(self.text[rows], self.image[rows] if self.image is not None else None)

    def per_frame(self, frames: int) -> "Tokens":
        """A row for each of `frames` frames of each clip."""
        image = repeat(self.image, "b s d -> (b t) s d", t=frames) if self.image is not None else None
        return Tokens(repeat(self.text, "b s d -> (b t) s d", t=frames), image)


@dataclass(frozen=True)
class Control:
    """One ControlNet and what it is shown.

    Attributes:
        net: pose or face ControlNet.
        images: (B, T, C, H, W), control images of whole clips, of any range; or (N, C, H, W) float in [0, 1].
        keep: bool (B,), False where the condition is dropped; None keeps all.
    """

    net: ControlNetModel
    images: Tensor
    keep: Tensor | None = None


def control_residuals(
    noisy_NChw: Tensor, timestep: Tensor, text_NSD: Tensor, controls: Sequence[Control]
) -> ControlResiduals:
    """Residuals of all ControlNets together.

    Args:
        noisy_NChw: noisy latents of generated frames.
        timestep: scalar or (N,).
        text_NSD: text tokens; one row serves all images.
        controls: with images (N, C, H, W) float in [0, 1], and `keep` (N,).

    Returns:
        ControlResiduals: for the N images.
    """
    outputs = []
    for control in controls:
        residuals = run_controlnet(control.net, noisy_NChw, timestep, text_NSD, control.images.to(noisy_NChw.dtype))
        outputs.append(residuals if control.keep is None else mask_residuals(residuals, control.keep))
    return merge_residuals(outputs)


@dataclass(eq=False, kw_only=True)
class Denoiser:
    """The networks of the conditional denoiser, and what they compute together.

    Attributes:
        unet: the video UNet.
        pose_controlnet: C_P.
        face_controlnet: C_F; None where there is none.
        reference_net: of the ablation `w/RefNet`, for a UNet without the Dynamics-Adapter; else None.
        text_encoder: CLIP text model; None where text tokens are given.
        tokenizer: its tokenizer.
        image_encoder: CLIP vision model; None where image tokens are given.
        feature_extractor: its preprocessing.
        image_projection: the Resampler.
    """

    unet: XDynaUNet
    pose_controlnet: ControlNetModel
    face_controlnet: ControlNetModel | None = None
    text_encoder: CLIPTextModel | None = None
    tokenizer: CLIPTokenizer | None = None
    image_encoder: CLIPVisionModelWithProjection | None = None
    feature_extractor: Any = None
    image_projection: ImageTokenResampler | None = None
    reference_net: ReferenceNet | None = None

    @staticmethod
    def of(networks: Any) -> "Denoiser":
        """The denoiser of a pipeline, or of anything else with networks of these names; they are shared."""
        return Denoiser(**{entry.name: getattr(networks, entry.name) for entry in fields(Denoiser)})

    def modules(self) -> dict[str, nn.Module]:
        """The networks that are there, by name."""
        return {name: module for name, module in vars(self).items() if isinstance(module, nn.Module)}

    def beside_unet(self) -> list[nn.Module]:
        """The networks that feed the UNet in every step: ControlNets and ReferenceNet, those that are there."""
        nets = (self.pose_controlnet, self.face_controlnet, self.reference_net)
        return [net for net in nets if net is not None]

    # --- tokens ---------------------------------------------------------------------------------------------------

    def encode_text(self, texts: Sequence[str], *, device: torch.device | None = None) -> Tensor:
        """CLIP text tokens.

        Args:
            texts: one per row.
            device: where the encoder runs; None: where its weights are.

        Returns:
            Tensor: (rows, S, D) on that device.

        Raises:
            ValueError: there is no text encoder.
        """
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError("this pipeline has no text encoder; give prompt_embeds and negative_prompt_embeds")
        ids = self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return self.text_encoder(to_device(ids, device or next(self.text_encoder.parameters()).device))[0]

    def encode_image(
        self,
        images: Tensor | Sequence[Image.Image],
        *,
        keep: Tensor | None = None,
        device: torch.device | None = None,
    ) -> Tensor:
        """Tokens of reference images, see `image_tokens`.

        Args:
            images: uint8 (B, 3, H, W), or B images of PIL.
            keep: bool (B,), False for the tokens of an all-zero input; (K * B,) for K rows of each image.
            device: where the encoder runs; None: where its weights are.

        Returns:
            Tensor: (B or K * B, S, D).

        Raises:
            ValueError: there is no image encoder.
        """
        if self.image_encoder is None or self.feature_extractor is None or self.image_projection is None:
            raise ValueError("this pipeline has no image encoder; give image_embeds and negative_image_embeds")
        return image_tokens(
            images,
            extractor=self.feature_extractor,
            encoder=self.image_encoder,
            projection=self.image_projection,
            keep=keep,
            device=device,
        )

    # --- noise ----------------------------------------------------------------------------------------------------

    def read_reference(self, reference_BC1hw: Tensor, tokens: Tokens) -> tuple[Tensor, ...]:
        """Features of the ReferenceNet, which neither timestep nor window enters: once per video is enough.

        Args:
            reference_BC1hw: clean latents of the reference; one row serves all.
            tokens: text and image tokens.

        Returns:
            tuple[Tensor, ...]: one (B, h * w, C) per spatial self-attention; empty without a ReferenceNet.
        """
        if self.reference_net is None:
            return ()
        rows, dtype = tokens.text.shape[0], self.reference_net.dtype  # which need not be the UNet's
        reference = reference_BC1hw[:, :, 0].to(dtype).expand(rows, -1, -1, -1)
        image = tokens.image.to(dtype) if tokens.image is not None else None
        return self.reference_net(reference, tokens.text.to(dtype), image)

    def predict(
        self,
        noisy_BCThw: Tensor,
        timestep: Tensor,
        tokens: Tokens,
        *,
        reference_BC1hw: Tensor,
        residuals: ControlResiduals | None,
        features: Sequence[Tensor] = (),
        keys: CrossAttentionCache | None = None,
        deep: DeepFeatures | None = None,
        token_downsampling: int = 1,
    ) -> Tensor:
        """The UNet's prediction for the generated frames.

        Args:
            noisy_BCThw: noisy latents; fewer rows than of tokens are the clips of each branch, see `XDynaUNet`.
            timestep: scalar or (B,).
            tokens: text and image tokens.
            reference_BC1hw: clean latents of the reference, as many rows as the noisy ones.
            residuals: of the ControlNets, (B or 1, C, T, ., .) each; None without them.
            features: of `read_reference`.
            keys: of the video, kept from window to window and step to step; None for none.
            deep: what is kept of this window in an earlier step; the residuals are then as many as it reads.
            token_downsampling: of spatial self-attention, see `XDynaUNet.forward`; 1 is exact.

        Returns:
            Tensor: (B, C, T, h, w).
        """
        out = self.unet(
            torch.cat([reference_BC1hw, noisy_BCThw], dim=2),
            timestep,
            tokens.text if len(noisy_BCThw) == len(tokens.text) else tokens.distinct_text,
            tokens.image,
            keys=keys,
            down_residuals=residuals.down if residuals else (),
            mid_residual=residuals.mid if residuals else None,
            reference_features=features,
            deep=deep,
            token_downsampling=token_downsampling,
        ).sample
        rows, noise = max(len(tokens.text), len(noisy_BCThw)), out[:, :, 1:]
        return noise if len(noise) == rows else noise.repeat(rows // len(noise), 1, 1, 1, 1)  # nothing tells them apart

    def denoise_clip(
        self, noisy_BCThw: Tensor, t_B: Tensor, tokens: Tokens, *, reference_BC1hw: Tensor, controls: Sequence[Control]
    ) -> Tensor:
        """The whole equation, for clips with timesteps of their own.

        Args:
            noisy_BCThw: noisy latents.
            t_B: timesteps.
            tokens: text and image tokens.
            reference_BC1hw: clean latents of the references.
            controls: with images (B, T, C, H, W) of whole clips; each clip is scaled by its own range.

        Returns:
            Tensor: (B, C, T, h, w).
        """
        clips, frames = noisy_BCThw.shape[0], noisy_BCThw.shape[2]
        flat = [
            Control(
                control.net,
                rearrange(scale_condition(control.images, *condition_range(control.images)), "b t ... -> (b t) ..."),
                repeat(control.keep, "b -> (b t)", t=frames) if control.keep is not None else None,
            )
            for control in controls
        ]
        residuals = control_residuals(
            rearrange(noisy_BCThw, "b c t h w -> (b t) c h w"),
            repeat(t_B, "b -> (b t)", t=frames),
            repeat(tokens.text, "b s d -> (b t) s d", t=frames),
            flat,
        )
        return self.predict(
            noisy_BCThw,
            t_B,
            tokens,
            reference_BC1hw=reference_BC1hw,
            residuals=to_clip(residuals, clips),
            features=self.read_reference(reference_BC1hw, tokens),
        )

    def denoise_frames(self, noisy_BCThw: Tensor, t_B: Tensor, tokens: Tokens) -> Tensor:
        """Every frame as a clip of its own: without reference, motion and ControlNets (the 2-D UNet).

        Args:
            noisy_BCThw: noisy latents.
            t_B: timesteps.
            tokens: text and image tokens.

        Returns:
            Tensor: (B, C, T, h, w).
        """
        frames = noisy_BCThw.shape[2]
        each = tokens.per_frame(frames)
        images = rearrange(noisy_BCThw, "b c t h w -> (b t) c 1 h w")
        out = self.unet(images, repeat(t_B, "b -> (b t)", t=frames), each.text, each.image).sample
        return rearrange(out, "(b t) c 1 h w -> b c t h w", t=frames)
