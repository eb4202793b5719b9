"""Precompute training clips with an autoencoder's latents."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from tqdm import tqdm

from xdyna.config.preprocess import CacheConfig
from xdyna.core.errors import UsageError
from xdyna.data.cache import TokenMaker, token_digest, vae_digest, write_cache
from xdyna.data.clips import build_dataset
from xdyna.models.image_tokens import image_tokens
from xdyna.pipelines.folder import load_component, pick_device

_FRAMES_AT_ONCE = 16  # fixed: rounding depends on it, and a continued cache must have the same bytes


class Encoder:
    """An autoencoder as `write_cache` wants it.

    Args:
        folder: of the autoencoder in diffusers layout, or of a pipeline that holds one as `vae`.
        device: where it runs, in float32.

    Raises:
        UsageError: no such folder.
        WeightsError: weights that do not fit.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        if (folder / "model_index.json").is_file():
            folder = folder / "vae"
        if not (folder / "config.json").is_file():
            raise UsageError(
                f"--vae {folder}: no autoencoder there; expected a folder with config.json and safetensors, or a "
                f"pipeline folder"
            )
        self.vae: Any = load_component(folder, "diffusers", "AutoencoderKL", dtype=torch.float32).to(device)
        self.device = device

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (N, 3, H, W) -> mean and standard deviation of the posterior, (N, 4, h, w) each, unscaled."""
        posteriors = [
            self.vae.encode(part.to(self.device).float() / 127.5 - 1).latent_dist
            for part in pixels.split(_FRAMES_AT_ONCE)
        ]
        return torch.cat([each.mean for each in posteriors]), torch.cat([each.std for each in posteriors])


class ImageTokens:
    """The image encoder and the Resampler of a pipeline folder.

    Args:
        folder: pipeline folder.
        device: where they run, in float32.

    Raises:
        UsageError: no pipeline folder.
        WeightsError: weights that do not fit.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        try:
            index = json.loads((folder / "model_index.json").read_text())
            names = {part: index[part] for part in ("image_encoder", "image_projection", "feature_extractor")}
        except (OSError, ValueError, KeyError) as error:
            raise UsageError(
                f"--tokens: {folder} is no pipeline folder with image_encoder, image_projection and feature_extractor "
                f"({type(error).__name__}: {error}); give one to --vae, or leave --tokens out"
            ) from error
        self.parts = {
            part: load_component(folder / part, *names[part], dtype=torch.float32).to(device)
            for part in ("image_encoder", "image_projection")
        }
        self.extractor = getattr(transformers, names["feature_extractor"][1]).from_pretrained(
            folder / "feature_extractor", local_files_only=True
        )

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> tokens (N, S, D)."""
        encoder, projection = self.parts.values()
        parts = pixels.split(_FRAMES_AT_ONCE)
        return torch.cat(
            [image_tokens(p, extractor=self.extractor, encoder=encoder, projection=projection) for p in parts]
        )

    def maker(self) -> TokenMaker:
        """As `write_cache` wants it."""
        return TokenMaker(self, token_digest(*self.parts.values()))


def cache_clips(config: CacheConfig, *, vae: Path, out: Path, clips: int, keep_tokens: bool) -> str:
    """Make training clips and encode them once; an interrupted call goes on.

    Args:
        config: what is made or read, and where the networks run.
        vae: folder of the autoencoder, or of a pipeline.
        out: the cache.
        clips: number of clips, humans and scenes together.
        keep_tokens: keep the image tokens of every frame, too; `vae` is a pipeline folder then.

    Returns:
        What there is now, in a sentence.

    Raises:
        UsageError: data that cannot be read, or no such folder.
        WeightsError: weights that do not fit.
    """
    try:
        dataset = build_dataset(config.data, seed=config.seed)
    except ValueError as error:
        raise UsageError(str(error)) from error
    device = pick_device(config.device)
    encoder = Encoder(vae, device)
    tokens = ImageTokens(vae, device).maker() if keep_tokens else None
    with tqdm(total=clips, unit="clip", desc="caching") as bar:
        write_cache(
            out,
            dataset,
            clips=clips,
            encode=encoder,
            vae=vae_digest(encoder.vae),
            tokens=tokens,
            progress=lambda done: bar.update(done - bar.n) and None,
        )
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    return f"{clips} clips in {out}, {size / 2**20:.1f} MiB; train with data=cache data.cache={out}"
