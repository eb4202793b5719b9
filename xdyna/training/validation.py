"""Validation: the loss on held-out clips per band of timesteps, and what is shown of them; the same clips and the same
noise every time."""

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from einops import rearrange
from torch import Tensor, nn

from xdyna.config.contract import ConditionContract
from xdyna.config.data import DataConfig
from xdyna.config.train import TrainConfig
from xdyna.data.cached import paced, read_header
from xdyna.data.clips import build_dataset
from xdyna.data.samples import Sample, collate
from xdyna.data.sources import open_source
from xdyna.evaluation.metrics.regions import RegionQuality
from xdyna.pipelines.xdyna import XDynaPipeline, to_uint8
from xdyna.training.components import Components, as_pipeline
from xdyna.training.draws import VALIDATION
from xdyna.training.meter import band_middles
from xdyna.training.objective import Objective

SEED = 0  # of validation clips and noise: independent of the run's, so that runs can be compared
IMAGE_CLIPS = 16  # clips whose latents give the autoencoder's scaling factor


@dataclass(frozen=True)
class Sampled:
    """What validation sampling gives.

    Attributes:
        scalars: metric -> value.
        sheets: name -> uint8 (H, W, 3) image.
        videos: name -> uint8 (T, H, W, 3).
    """

    scalars: dict[str, float]
    sheets: dict[str, np.ndarray] = field(default_factory=dict)
    videos: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampler:
    """What validation samples and shows; the clips are shared among the processes.

    Attributes:
        clips: how many.
        sample: makes and measures clip number k.
    """

    clips: int
    sample: Callable[[int], Sampled]


def sample_together(sampler: Sampler, *, accelerator: Accelerator) -> Sampled:
    """Sample all clips, each in one of the processes; every process must call it.

    Args:
        sampler: the same in all of them.
        accelerator: of the run.

    Returns:
        Sampled: of all clips in their order, in every process: means of what is measured, without NaN.
    """
    share = range(accelerator.process_index, sampler.clips, accelerator.num_processes)
    own = [(number, sampler.sample(number)) for number in share]
    parts = [part for _, part in sorted(gather_object(own), key=lambda pair: pair[0])]
    values: dict[str, list[float]] = {}
    for part in parts:
        for name, value in part.scalars.items():
            values.setdefault(name, [])
            values[name] += [] if np.isnan(value) else [value]
    return Sampled(
        {name: float(np.mean(known)) for name, known in values.items() if known},
        sheets={name: sheet for part in parts for name, sheet in part.sheets.items()},
        videos={name: video for part in parts for name, video in part.videos.items()},
    )


def validation_data(config: DataConfig) -> DataConfig:
    """The same kind of clips from the validation split, nothing dropped, always as much of the image as fits.

    A cache holds training clips, so that the clips are those of what it was written from: puppets, or the data sets.
    """
    config = paced(config)
    source, manifests = config.source, config.manifests
    if config.cache is not None:
        options = read_header(Path(config.cache)).options
        source, manifests = options.get("source", "puppet"), options.get("manifests", [])
    return dataclasses.replace(
        config,
        source=source,
        manifests=manifests,
        cache=None,
        split="validation",
        drop_image=0.0,
        drop_text=0.0,
        drop_both=0.0,
        drop_face=0.0,
        crop_scale=[1.0, 1.0],
        num_clips=None,
    )


def check_videos(config: TrainConfig) -> None:
    """Read the bytes of all videos that training and validation will show (`data.verify`); what opens them later finds
    that remembered. With footage that may take hours.

    Args:
        config: of the run.

    Raises:
        DataError: options that cannot be met.
    """
    wanted = [config.data] + ([validation_data(config.data)] if config.validation.every else [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when they are opened for use
        for data in wanted:
            if data.verify and data.source == "footage":
                open_source(paced(data))


@torch.no_grad()
def band_losses(
    model: nn.Module, objective: Objective, config: TrainConfig, *, accelerator: Accelerator
) -> dict[str, float]:
    """Mean loss over the validation clips.

    Args:
        model: the objective as accelerate prepared it.
        objective: the same, bare.
        config: settings of the run.
        accelerator: clips are shared among its processes.

    Returns:
        "loss", and "loss_t125" ... the loss at the middle of each band of timesteps (stage `vae` has no bands).
    """
    settings = config.validation
    dataset = build_dataset(validation_data(config.data), seed=SEED)
    middles: list[int | None] = [*band_middles(objective.num_timesteps, settings.bands)] or [None]
    sums = torch.zeros(len(middles), dtype=torch.float64)
    share = range(accelerator.process_index, settings.clips, accelerator.num_processes)
    # Every process runs the model equally often, as sharded models need it; the surplus counts nothing.
    for turn in range(-(-settings.clips // accelerator.num_processes)):
        counts = turn < len(share)
        batch = collate([dataset[share[turn] if counts else 0]]).to(accelerator.device)
        for k, middle in enumerate(middles):
            loss = model(batch, stream=VALIDATION, timestep=middle).sum()
            sums[k] += float(loss) if counts else 0.0
    dtype = torch.float32 if accelerator.device.type == "mps" else torch.float64  # MPS has no float64
    means = (accelerator.reduce(sums.to(accelerator.device, dtype), "sum") / settings.clips).tolist()
    bands = {f"loss_t{middle}": value for middle, value in zip(middles, means, strict=True) if middle is not None}
    return {"loss": sum(means) / len(means), **bands}


def sampled_videos(config: TrainConfig, components: Components, *, contract: ConditionContract) -> Sampler:
    """What makes videos of held-out clips and measures them.

    Args:
        config: settings of the run.
        components: the networks, with the weights that are looked at.
        contract: of the model; gives the guidance scale where the configuration gives none.
    """
    settings = config.validation
    guidance = contract.guidance if settings.guidance is None else settings.guidance
    data = validation_data(config.data)
    people_only = data.source == "puppet" or data.scene_ratio < 1  # footage of scenes alone has nobody to show
    dataset = build_dataset(dataclasses.replace(data, scene_ratio=0.0 if people_only else 1.0), seed=SEED)

    def sample(number: int) -> Sampled:
        clip, mask = dataset.masked(number)
        frames = _generate(as_pipeline(components), clip, config, seed=number, guidance=guidance)
        target, name = _images(clip.pixels[1:]), f"clip{number}"
        return Sampled(
            {
                "psnr_figure": RegionQuality.of(target, frames, mask).psnr,  # NaN: an empty mask, as of footage
                "psnr": RegionQuality.of(target, frames).psnr,
            },
            sheets={name: _sheet(_images(clip.pixels[:1])[0], _images(collate([clip]).pose[0]), frames, target)},
            videos={name: frames},
        )

    return Sampler(settings.videos, sample)


def _generate(pipeline: XDynaPipeline, clip: Sample, config: TrainConfig, *, seed: int, guidance: float) -> np.ndarray:
    shown = collate([clip])
    face = _images(shown.face[0]) if config.shows_faces else None
    generator = torch.Generator().manual_seed(seed)
    reference = _images(clip.pixels[:1])[0]
    videos = pipeline(
        reference,
        _images(shown.pose[0]),
        face,
        num_inference_steps=config.validation.steps,
        guidance_scale=guidance,
        decode_chunk_size=16,
        generator=generator,
        output_type="pt",
    ).frames
    assert isinstance(videos, Tensor)
    return to_uint8(videos[0])


def _sheet(reference: np.ndarray, pose: np.ndarray, frames: np.ndarray, target: np.ndarray) -> np.ndarray:
    picks = np.linspace(0, len(frames) - 1, min(6, len(frames))).round().astype(int)
    blank = np.zeros_like(reference)
    rows = [[reference, *pose[picks]], [blank, *frames[picks]], [blank, *target[picks]]]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)


def reconstructions(config: TrainConfig, components: Components) -> Sampler:
    """What shows held-out frames and their reconstructions. Args: as of `sampled_videos`."""

    def sample(number: int) -> Sampled:
        images = next(held_out_images(config, components))[:8]
        with torch.no_grad():
            decoded = components.vae.decode(components.vae.encode(images).latent_dist.mean).sample
        pair = [np.concatenate(list(_from_unit(x)), axis=1) for x in (images, decoded)]
        return Sampled(
            {"psnr": RegionQuality.of([pair[0]], [pair[1]]).psnr}, sheets={"reconstruction": np.concatenate(pair)}
        )

    return Sampler(1, sample)


def held_out_images(config: TrainConfig, components: Components) -> Iterator[Tensor]:
    """Frames of held-out clips, (N, 3, H, W) float32 in [-1, 1] on the autoencoder's device, clip by clip."""
    data = validation_data(config.data)
    dataset = build_dataset(data, seed=SEED)
    device = next(components.vae.parameters()).device
    for index in range(IMAGE_CLIPS):
        pixels = dataset[index].pixels
        yield (pixels.float() / 127.5 - 1).to(device)


def _images(tensor: Tensor) -> np.ndarray:
    return rearrange(tensor, "t c h w -> t h w c").contiguous().numpy()


def _from_unit(x: Tensor) -> np.ndarray:
    return (
        rearrange(((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8), "n c h w -> n h w c").cpu().numpy()
    )
