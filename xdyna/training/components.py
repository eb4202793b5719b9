"""The networks of a run: where they come from, and the pipeline that they make."""

import copy
import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SchedulerMixin
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

from xdyna.config.train import TrainConfig, check_size
from xdyna.core.atomic import write_file
from xdyna.core.errors import ConfigError, UsageError
from xdyna.models.denoiser import Denoiser
from xdyna.models.image_tokens import ImageTokenResampler
from xdyna.models.unet import XDynaUNet
from xdyna.pipelines import untrained as tiny
from xdyna.pipelines.folder import find_checkpoint, load_pipeline, named_folder
from xdyna.pipelines.xdyna import XDynaPipeline
from xdyna.training.errors import TrainingWarning
from xdyna.training.initial import initialise


@dataclass(eq=False, kw_only=True)
class Components(Denoiser):
    """The networks of a pipeline as training sees them: the denoiser with all its encoders, and what is around it.

    Attributes:
        vae: autoencoder.
        text_encoder: CLIP text model, always frozen.
        tokenizer: its tokenizer.
        image_encoder: CLIP vision model.
        feature_extractor: its preprocessing, on images.
        image_projection: the Resampler.
        scheduler: its config holds the noise schedule.
    """

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    image_encoder: CLIPVisionModelWithProjection
    feature_extractor: Any
    image_projection: ImageTokenResampler
    scheduler: SchedulerMixin


def load_components(config: TrainConfig) -> Components:
    """The networks that a run starts from, float32 on the CPU.

    Args:
        config: `init` names a pipeline folder, or `model` gives the sizes of random networks.

    Returns:
        Components: as the folder has them; `Stage.build` fits them to the configuration.

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
        check_size(config.data, checkpoint.size, str(folder))
        pipeline = load_pipeline(checkpoint, device=torch.device("cpu"), dtype=torch.float32, face=True)
        _tell_of_other_sizes(pipeline, config)
    names = [entry.name for entry in dataclasses.fields(Components)]
    parts: dict[str, Any] = {name: getattr(pipeline, name, None) for name in names}
    missing = [n for n in names if parts[n] is None and n not in ("face_controlnet", "reference_net")]
    if missing:
        raise UsageError(f"{config.init} has no {', '.join(missing)}; training needs them")
    components = Components(**parts)
    if config.init is None:
        initialise(components.vae, components.unet, seed=config.seed)
    return components


LORA = "default"  # name of the adapter that trains


def add_lora(unet: XDynaUNet, rank: int) -> None:
    """Put LoRA layers on all linear layers and convolutions, in place; they change nothing yet.

    Args:
        unet: gets them.
        rank: of each; alpha is the same, so that the factors are what is added.
    """
    layers = [name for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), LORA)


def without_lora(unet: XDynaUNet) -> XDynaUNet:
    """The same network with its LoRA layers in its weights; a copy, where it has any."""
    if not getattr(unet, "peft_config", None):
        return unet
    fused = copy.deepcopy(unet)
    fused.fuse_lora()
    fused.unload_lora()
    return fused


def save_lora(unet: XDynaUNet, path: Path) -> None:
    """Write the LoRA layers alone, float16, as `load_lora_weights` and `--lora` read them.

    Raises:
        FileError: it cannot be written.
    """
    layers = get_peft_model_state_dict(unet, adapter_name=LORA)
    halves = {f"unet.{name}": value.detach().half().contiguous().cpu() for name, value in layers.items()}
    write_file(path, save(halves, {"format": "pt"}))


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


def without_adapter(unet: XDynaUNet) -> XDynaUNet:
    """The same UNet without Dynamics-Adapter (the ablations)."""
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
