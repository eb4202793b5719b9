"""Builds the folder `pretrained/xdyna-tiny` with untrained weights: the same classes and files as a trained one."""

from pathlib import Path

import torch

from xdyna.checkpoints import build
from xdyna.config.loader import load_model
from xdyna.config.model import ModelConfig
from xdyna.models.controls import FACE_CHANNELS, POSE_CHANNELS
from xdyna.pipelines.folder import save_pipeline
from xdyna.pipelines.xdyna import XDynaPipeline


def build_pipeline(config: ModelConfig, *, seed: int) -> XDynaPipeline:
    """A whole pipeline with random weights.

    Args:
        config: sizes of every part.
        seed: the same seed gives the same weights. The global random state is left as it was.

    Returns:
        XDynaPipeline: in float32 on the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = build.build_unet(config.unet)
        unet.init_adapter()
        tokenizer = build.build_tokenizer()
        image_encoder, feature_extractor = build.build_image_encoder(config.image_encoder)
        return XDynaPipeline(
            vae=build.build_vae(config.vae),
            unet=unet,
            scheduler=build.build_scheduler(config.scheduler),
            pose_controlnet=build.build_controlnet(config.controlnet, channels=POSE_CHANNELS),
            face_controlnet=build.build_controlnet(config.controlnet, channels=FACE_CHANNELS),
            text_encoder=build.build_text_encoder(config.text_encoder, tokenizer),
            tokenizer=tokenizer,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
            image_projection=build.build_resampler(config.resampler),
        )


def build_untrained(folder: Path, *, seed: int = 0) -> None:
    """Write an untrained tiny pipeline (float16) and mark it as untrained.

    Args:
        folder: must not exist yet.
        seed: of the weights.
    """
    pipeline = build_pipeline(load_model("tiny"), seed=seed)
    pipeline.to(torch.float16)
    save_pipeline(pipeline, folder, untrained=True)
