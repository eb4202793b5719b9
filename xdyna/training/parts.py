"""Parts of `scripts/train.py` that connect training with pipeline folders: start, validation videos, export."""

import dataclasses
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from xdyna.config.train import TrainConfig
from xdyna.core.errors import ConfigError, UsageError
from xdyna.data.clips import build_dataset
from xdyna.data.samples import Sample
from xdyna.evaluation.metrics.regions import RegionQuality
from xdyna.models.reference_net import ReferenceNet
from xdyna.models.unet import XDynaUNet
from xdyna.pipelines import untrained as tiny
from xdyna.pipelines.folder import find_checkpoint, load_pipeline, named_folder, save_pipeline
from xdyna.pipelines.xdyna import XDynaPipeline, to_uint8
from xdyna.training.errors import TrainingWarning
from xdyna.training.handover import hand_over
from xdyna.training.initial import initialise
from xdyna.training.loop import Sampled, Trainer
from xdyna.training.stages import Components, training_groups
from xdyna.training.validation import SEED, validation_data

SCALE_CLIPS = 16  # clips whose latents give the autoencoder's scaling factor


def build_components(config: TrainConfig) -> Components:
    """The networks that a run starts from, float32 on the CPU.

    Args:
        config: `init` names a pipeline folder, or `model` gives the sizes of random networks.

    Returns:
        Components: fitted to `appearance` and `face`.

    Raises:
        UsageError: the folder is missing, or has not the parts that the configuration asks for.
    """
    if config.init is None:
        if not (config.model.unet and config.model.vae):
            raise ConfigError(
                "init is null, and the model section has no sizes for every network (model=sd15 stands on published "
                "weights): give init=FOLDER, or model=tiny"
            )
        pipeline = tiny.build_pipeline(config.model, seed=config.seed)
    else:
        folder = named_folder(config.init)
        if not folder.is_dir():
            raise UsageError(
                f"init: {folder} does not exist; run the stage before this one first, or give init=FOLDER "
                "(scripts/convert.py --initial makes one from Stable Diffusion 1.5)"
            )
        checkpoint = find_checkpoint(folder, tiny.build_untrained)
        pipeline = load_pipeline(checkpoint, device=torch.device("cpu"), dtype=torch.float32, face=True)
        _tell_of_other_sizes(pipeline, config)
    names = [entry.name for entry in dataclasses.fields(Components)]
    parts: dict[str, Any] = {name: getattr(pipeline, name, None) for name in names}
    missing = [n for n in names if parts[n] is None and n not in ("face_controlnet", "reference_net")]
    if missing:
        raise UsageError(f"{config.init} has no {', '.join(missing)}; training needs them")
    components = Components(**parts)
    if config.init is None:
        initialise(components, seed=config.seed)
    components = _for_ablation(components, config)
    if config.channels_last:
        use_channels_last(components)
    return components


def use_channels_last(components: Components) -> None:
    """Lay out the weights of all convolutions channels last, in place."""
    for module in components.modules().values():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)


def _tell_of_other_sizes(pipeline: XDynaPipeline, config: TrainConfig) -> None:
    """Warn where the model section says something else than the folder that counts."""
    differ = []
    for part in ("unet", "vae", "scheduler"):
        own = getattr(pipeline, part).config
        for name, value in getattr(config.model, part).items():
            there = own.get(name, value)
            there = list(there) if isinstance(there, tuple) else there
            if there != value:
                differ.append(f"{part}.{name} is {there} there, {value} in the model section")
    if differ:
        warnings.warn(
            f"{config.init} has other settings than the configuration, and keeps them: {'; '.join(differ)}",
            TrainingWarning,
            stacklevel=2,
        )


def _for_ablation(components: Components, config: TrainConfig) -> Components:
    has_adapter = components.unet.config.dynamics_adapter
    if config.stage in ("dynamics", "face"):
        if config.appearance != "dynamics_adapter" and has_adapter:
            components.unet = _without_adapter(components.unet)
        if config.appearance == "reference_net" and components.reference_net is None:
            if config.stage == "face":
                raise UsageError(f"{config.init} has no ReferenceNet; start from its own stage=dynamics")
            components.reference_net = ReferenceNet.from_unet(components.unet)
        if config.appearance == "dynamics_adapter" and not has_adapter:
            raise UsageError(f"{config.init} has no Dynamics-Adapter; choose appearance=ip_adapter or another init")
    if config.face != "sface":
        components.face_controlnet = None
    return components


def _without_adapter(unet: XDynaUNet) -> XDynaUNet:
    sizes = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    plain = XDynaUNet(**{**sizes, "dynamics_adapter": False})
    weights = unet.state_dict()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    return plain


def initial_hashes(config: TrainConfig) -> dict[str, str]:
    """sha256 of the weight files that a run starts from."""
    if config.init is None:
        return {}
    return find_checkpoint(named_folder(config.init), tiny.build_untrained).hashes()


def as_pipeline(components: Components) -> XDynaPipeline:
    """A pipeline around the networks (shared, not copied)."""
    pipeline = XDynaPipeline(
        **{entry.name: getattr(components, entry.name) for entry in dataclasses.fields(components)}
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sampler(config: TrainConfig, components: Components) -> Callable[[int], Sampled] | None:
    """What makes validation videos; None for stages that make none."""
    settings = config.validation
    if config.stage == "vae":
        return lambda step: _reconstructions(config, components)
    if config.stage not in ("dynamics", "face") or not settings.videos:
        return None
    data = validation_data(config.data)
    people_only = data.source == "puppet" or data.scene_ratio < 1  # footage of scenes alone has nobody to show
    dataset = build_dataset(dataclasses.replace(data, scene_ratio=0.0 if people_only else 1.0), seed=SEED)

    def sample(step: int) -> Sampled:
        pipeline = as_pipeline(components)
        psnr, whole, rows = [], [], []
        for index in range(settings.videos):
            clip, mask = dataset.masked(index)
            frames = _generate(pipeline, clip, config, index)
            target = _pictures(clip.pixels[1:])
            psnr.append(RegionQuality.of(target, frames, mask).psnr)
            whole.append(RegionQuality.of(target, frames).psnr)
            rows.append((_pictures(clip.pixels[:1])[0], _pictures(clip.pose), frames, target))
        scalars = {"psnr": float(np.mean(whole))}
        if seen := [value for value in psnr if not np.isnan(value)]:  # masks of footage may be empty
            scalars = {"psnr_figure": float(np.mean(seen)), **scalars}
        return Sampled(
            scalars,
            sheets={f"clip{k}": _sheet(*row) for k, row in enumerate(rows)},
            videos={f"clip{k}": row[2] for k, row in enumerate(rows)},
        )

    return sample


def _generate(pipeline: XDynaPipeline, clip: Sample, config: TrainConfig, seed: int) -> np.ndarray:
    settings = config.validation
    face = _pictures(clip.face) if config.stage == "face" else None
    generator = torch.Generator().manual_seed(seed)
    reference = _pictures(clip.pixels[:1])[0]
    videos = pipeline(
        reference,
        _pictures(clip.pose),
        face,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
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


def _reconstructions(config: TrainConfig, components: Components) -> Sampled:
    pictures = next(_scale_pictures(config, components))[:8]
    with torch.no_grad():
        decoded = components.vae.decode(components.vae.encode(pictures).latent_dist.mean).sample
    pair = [np.concatenate(list(_from_unit(x)), axis=1) for x in (pictures, decoded)]
    return Sampled(
        {"psnr": RegionQuality.of([pair[0]], [pair[1]]).psnr}, sheets={"reconstruction": np.concatenate(pair)}
    )


def _scale_pictures(config: TrainConfig, components: Components) -> Iterator[Tensor]:
    data = validation_data(config.data)
    dataset = build_dataset(data, seed=SEED)
    device = next(components.vae.parameters()).device
    for index in range(SCALE_CLIPS):
        pixels = dataset[index].pixels
        yield (pixels.float() / 127.5 - 1).to(device)


def export(
    trainer: Trainer, components: Components, folder: Path, *, config: TrainConfig, extra: dict[str, Any]
) -> None:
    """Write the pipeline folder that a stage hands on: averaged weights, prepared for the next stage.

    Args:
        trainer: holds the averages and the progress.
        components: the networks; left with the averaged weights.
        folder: must not exist; it appears complete or not at all.
        config: settings of the run.
        extra: more entries for `training.json` in the folder.

    Raises:
        UsageError: the folder exists.
        WeightsError: it cannot be written.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists already; remove it or choose another folder")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed here
    with trainer.averaged():
        trained = training_groups(config.stage, config.appearance, config.train)
        measured = hand_over(config.stage, components, _scale_pictures(config, components), trained=trained)
        save_pipeline(as_pipeline(components), unfinished)
        progress = dataclasses.asdict(trainer.progress)
        note = {"stage": config.stage, "progress": progress, **measured, **extra, "config": dataclasses.asdict(config)}
        (unfinished / "training.json").write_text(json.dumps(note, indent=1, default=str) + "\n")
        unfinished.rename(folder)


def whole(components: Components, weights: dict[str, Tensor] | None, config: TrainConfig) -> Components:
    """The networks of a run, whole.

    Args:
        components: of the run; under FSDP they hold shards.
        weights: `Trainer.gathered`.
        config: settings of the run.

    Returns:
        Components: the given ones where `weights` is None, else new ones with these weights, on the CPU.
    """
    if weights is None:
        return components
    built = build_components(config)
    for name, module in built.modules().items():
        own = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
        if own:  # networks that the stage does not run are as they were
            module.load_state_dict(own)
    return built


def _pictures(tensor: Tensor) -> np.ndarray:
    return rearrange(tensor, "t c h w -> t h w c").contiguous().numpy()


def _from_unit(x: Tensor) -> np.ndarray:
    return (
        rearrange(((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8), "n c h w -> n h w c").cpu().numpy()
    )
