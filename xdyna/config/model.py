"""Sizes of the networks (`configs/model/*.yaml`)."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class ModelConfig:
    """Sizes of every network of a pipeline: each section holds plain keyword arguments; empty: the published sizes.

    Attributes:
        unet: of `XDynaUNet`.
        controlnet: of both ControlNets (without their condition channels).
        resampler: of the image-token Resampler.
        text_encoder: of CLIP's text model.
        image_encoder: of CLIP's vision model.
        vae: of the autoencoder.
        scheduler: of the noise scheduler.
    """

    unet: dict[str, Any] = field(default_factory=dict)
    controlnet: dict[str, Any] = field(default_factory=dict)
    resampler: dict[str, Any] = field(default_factory=dict)
    text_encoder: dict[str, Any] = field(default_factory=dict)
    image_encoder: dict[str, Any] = field(default_factory=dict)
    vae: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
