"""Loss on held-out clips, per band of timesteps; the same clips and the same noise every time."""

import dataclasses
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from xdyna.config.data import DataConfig
from xdyna.config.train import TrainConfig
from xdyna.data.cached import read_header
from xdyna.data.clips import build_dataset
from xdyna.data.samples import collate
from xdyna.training.draws import VALIDATION
from xdyna.training.objective import Objective

SEED = 0  # of validation clips and noise: independent of the run's, so that runs can be compared


def validation_data(config: DataConfig) -> DataConfig:
    """The same kind of clips from the validation split, nothing dropped, always as much of the picture as fits.

    A cache holds training clips, so that the clips are those of what it was written from: puppets, or the data sets.
    """
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
    steps = objective.num_timesteps
    middles: list[int | None] = [None]
    if steps:
        middles = [int((band + 0.5) * steps / settings.bands) for band in range(settings.bands)]
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
