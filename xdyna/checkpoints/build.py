"""Models from a model config (configs/model/*.yaml): one function per part, sizes as plain keyword arguments."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from xdyna.models.image_tokens import ImageTokenResampler
from xdyna.models.unet import XDynaUNet

Part = TypeVar("Part")
Sizes = Mapping[str, Any]

# SD1.5's ControlNet: diffusers' defaults except for what they leave to the file.
SD15_CONTROLNET = {"cross_attention_dim": 768}
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def build_unet(sizes: Sizes) -> XDynaUNet:
    """The video UNet. Args: sizes: arguments of `XDynaUNet`."""
    return _build(XDynaUNet, sizes, "unet")


def build_controlnet(sizes: Sizes, *, channels: int) -> ControlNetModel:
    """A ControlNet for a condition of `channels` channels (3 pose, 6 face)."""
    return _build(ControlNetModel, {**SD15_CONTROLNET, **sizes, "conditioning_channels": channels}, "controlnet")


def build_resampler(sizes: Sizes) -> ImageTokenResampler:
    """The Resampler."""
    return _build(ImageTokenResampler, sizes, "resampler")


def build_vae(sizes: Sizes) -> AutoencoderKL:
    """The autoencoder."""
    return _build(AutoencoderKL, sizes, "vae")


def build_scheduler(sizes: Sizes) -> DDIMScheduler:
    """The noise scheduler."""
    return _build(DDIMScheduler, sizes, "scheduler")


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that knows single bytes only: for the tiny model, which has no vocabulary to stand on."""
    printable = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
    symbols = printable + [chr(256 + n) for n in range(256 - len(printable))]  # CLIP's byte alphabet
    words = [*symbols, *(s + "</w>" for s in symbols), BOS, EOS]
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], bos_token=BOS, eos_token=EOS, model_max_length=77
    )


def build_text_encoder(sizes: Sizes, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text model for a tokenizer."""
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = _build(CLIPTextConfig, {**sizes, **ids, "vocab_size": len(tokenizer)}, "text_encoder")
    return CLIPTextModel(config)


def build_image_encoder(sizes: Sizes) -> tuple[CLIPVisionModelWithProjection, CLIPImageProcessorPil]:
    """A CLIP vision model and the preprocessing for it."""
    config = _build(CLIPVisionConfig, sizes, "image_encoder")
    return CLIPVisionModelWithProjection(config), build_feature_extractor(config.image_size)


def build_feature_extractor(side: int) -> CLIPImageProcessorPil:
    """Preprocessing for an image encoder of images of `side` x `side` px."""
    # The PIL variant: it needs no torchvision and gives the same numbers everywhere.
    return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def _build(make: Callable[..., Part], sizes: Sizes, section: str) -> Part:
    valid = [name for name in inspect.signature(make).parameters if name not in ("self", "kwargs")]
    for name in sizes:
        if name not in valid:
            near = difflib.get_close_matches(name, valid, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; valid keys: {', '.join(valid)}"
            raise ValueError(f"model config, section {section!r}: unknown key {name!r}{hint}")
    return make(**sizes)
