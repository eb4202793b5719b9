"""The encoders of `XDynaPipeline`: image -> latents and image tokens, text -> text tokens.

Videos are encoded one at a time: a batch could round differently, and each video is to be the one made alone.

Shape legend: N videos, S text or image tokens, c their channels, h w latent grid.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from xdyna.models.denoiser import Denoiser
from xdyna.models.image_tokens import ImageTokenResampler
from xdyna.pipelines.inputs import repeated


class EncodersMixin:
    """What `XDynaPipeline` encodes with; a part of it."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel | None
    tokenizer: CLIPTokenizer | None
    image_encoder: CLIPVisionModelWithProjection | None
    feature_extractor: Any
    image_projection: ImageTokenResampler | None
    image_processor: VaeImageProcessor
    _execution_device: torch.device

    @torch.no_grad()
    def encode_reference(self, image: Image.Image, generator: torch.Generator | None = None) -> Tensor:
        """Latents of the reference: a sample of the VAE's posterior, scaled.

        Args:
            image: at the video's size.
            generator: of the sample.

        Returns:
            Tensor: (1, 4, h, w) float32.
        """
        pixels = self.image_processor.preprocess(image).to(self._execution_device, self.vae.dtype)
        posterior = self.vae.encode(pixels).latent_dist
        return posterior.sample(generator).float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str] | None = None,
        do_classifier_free_guidance: bool = True,
        *,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """CLIP text tokens of prompts.

        Args:
            prompt: one text, or one per video; None is "".
            negative_prompt: of the unconditional branch; None is "".
            do_classifier_free_guidance: whether that branch is wanted.
            prompt_embeds: (N, S, c) to use instead of `prompt`.
            negative_prompt_embeds: (N, S, c) to use instead of `negative_prompt`.

        Returns:
            tuple: (N, S, c) tokens of the prompts, and of the negative prompts (or None).

        Raises:
            ValueError: texts without a text encoder, or another number of negative prompts.
        """
        texts = [prompt or ""] if prompt is None or isinstance(prompt, str) else list(prompt)
        negatives = (
            [negative_prompt or ""]
            if negative_prompt is None or isinstance(negative_prompt, str)
            else list(negative_prompt)
        )
        wants_negative = do_classifier_free_guidance and negative_prompt_embeds is None
        if prompt_embeds is None:
            texts = repeated(texts, max(len(texts), len(negatives)), "prompt")
            rows = zip(repeated(negatives, len(texts), "negative_prompt"), texts, strict=True)
            # Always both: one row alone rounds differently, and the tokens are not to depend on guidance.
            pairs = [self._embed_text([negative, positive]) for negative, positive in rows]
            prompt_embeds = torch.stack([pair[1] for pair in pairs])
            if wants_negative:
                negative_prompt_embeds = torch.stack([pair[0] for pair in pairs])
        elif wants_negative:
            negatives = repeated(negatives, len(prompt_embeds), "negative_prompt")
            negative_prompt_embeds = torch.cat([self._embed_text([text]) for text in negatives])
        return prompt_embeds, negative_prompt_embeds

    def _embed_text(self, texts: Sequence[str]) -> Tensor:
        return Denoiser.of(self).encode_text(texts, device=self._execution_device)

    @torch.no_grad()
    def encode_image(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """Image tokens of the whole image.

        Args:
            image: of any size.

        Returns:
            tuple: `image_embeds`, (1, S, c) tokens of the image; `negative_image_embeds`, (1, S, c) those of an
            all-zero input, for the unconditional branch.

        Raises:
            ValueError: this pipeline has no image encoder.
        """
        both = torch.tensor([False, True])
        tokens = Denoiser.of(self).encode_image([image], keep=both, device=self._execution_device)
        negative, positive = tokens.chunk(2)
        return positive, negative

    def _image_embeds(
        self, images: Sequence[Image.Image] | None, embeds: Tensor | None, negative_embeds: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Tokens of the images, or the ones that were given; None for both in a pipeline without image tokens."""
        if embeds is not None or self.image_projection is None:
            return embeds, negative_embeds
        if images is None:
            raise ValueError("no reference image given; it is needed unless its latents and image tokens are given")
        encoded = [self.encode_image(image) for image in images]
        positive, negative = (torch.cat(rows) for rows in zip(*encoded, strict=True))
        return positive, negative if negative_embeds is None else negative_embeds
