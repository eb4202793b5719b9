"""Precompute training clips with an autoencoder's latents (`scripts/cache.py`)."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from tqdm import tqdm

from xdyna.config.data import DataConfig
from xdyna.config.loader import load_config
from xdyna.core.errors import UsageError
from xdyna.core.quiet import quiet_libraries
from xdyna.data.cache import TokenMaker, token_digest, vae_digest, write_cache
from xdyna.data.clips import build_dataset
from xdyna.models.image_tokens import image_tokens
from xdyna.pipelines.folder import load_component, pick_device

_FRAMES_AT_ONCE = 16  # fixed: rounding depends on it, and a continued cache must have the same bytes


@dataclass
class CacheConfig:
    """Settings of `scripts/cache.py`.

    Attributes:
        data: what is rendered or read; see `DataConfig`.
    """

    data: DataConfig = field(default_factory=DataConfig)


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


def main(argv: Sequence[str]) -> int:
    """Run `scripts/cache.py`. Args: argv: without the program's name. Returns: exit code."""
    args = _parser().parse_args(argv)
    try:
        config = load_config(CacheConfig, None, args.overrides)
        dataset = build_dataset(config.data, seed=args.seed)
    except ValueError as error:
        raise UsageError(str(error)) from error
    quiet_libraries()
    encoder = Encoder(args.vae, pick_device(args.device))
    tokens = ImageTokens(args.vae, pick_device(args.device)).maker() if args.tokens else None
    with tqdm(total=args.clips, unit="clip", desc="caching") as bar:
        write_cache(
            args.out,
            dataset,
            clips=args.clips,
            encode=encoder,
            vae=vae_digest(encoder.vae),
            tokens=tokens,
            progress=lambda done: bar.update(done - bar.n) and None,
        )
    size = sum(path.stat().st_size for path in args.out.glob("*.safetensors"))
    print(
        f"{args.clips} clips in {args.out}, {size / 2**20:.1f} MiB; train with data.source=cache data.cache={args.out}"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="cache.py",
        description="Make training clips and encode them once. Interrupted, it continues with the same command.",
    )
    p.add_argument("--vae", type=Path, required=True, metavar="DIR", help="autoencoder or pipeline folder")
    p.add_argument("--tokens", action="store_true", help="keep the image tokens of every frame, too (--vae PIPELINE)")
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="the cache")
    p.add_argument("--clips", type=int, required=True, metavar="N", help="number of clips, humans and scenes together")
    p.add_argument("--seed", type=int, default=0, help="of clips and crops (%(default)s)")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    p.add_argument("overrides", nargs="*", metavar="data.key=value", help="what is kept, e.g. data.face=cross")
    return p
