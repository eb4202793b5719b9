"""The pipeline folder that a stage hands on."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from xdyna.config.train import TrainConfig
from xdyna.core.errors import UsageError
from xdyna.pipelines.folder import save_pipeline
from xdyna.pipelines.lora import LORA_FILE
from xdyna.training.components import Components, as_pipeline, save_lora, without_lora
from xdyna.training.stages import STAGES
from xdyna.training.state import Progress, refuse_non_finite
from xdyna.training.validation import held_out_images


def export(
    components: Components, folder: Path, *, config: TrainConfig, progress: Progress, extra: dict[str, Any]
) -> None:
    """Write the pipeline folder that a stage hands on: EMA weights, prepared for the next stage.

    Args:
        components: the networks, with the EMA weights where there are any; prepared in place.
        folder: must not exist; it appears complete or not at all.
        config: settings of the run.
        progress: how far the run is.
        extra: more entries for `training.json` in the folder.

    Raises:
        UsageError: the folder exists.
        CheckpointError: a network has NaN or infinity in it.
        WeightsError: it cannot be written.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists already; remove it or choose another folder")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed here
    networks = {name: dict(module.named_parameters()) for name, module in components.modules().items()}
    refuse_non_finite(networks, what=f"the pipeline of step {progress.step}")
    stage = STAGES[config.stage]
    trained = stage.chosen_groups(config.appearance, config.train)
    measured = stage.hand_over(components, held_out_images(config, components), trained=trained)
    whole = dataclasses.replace(components, unet=without_lora(components.unet))
    save_pipeline(as_pipeline(whole), unfinished, contract=stage.contract(config, components))
    if trained == ("lora",):
        save_lora(components.unet, unfinished / LORA_FILE)
    done = dataclasses.asdict(progress)
    note = {"stage": config.stage, "progress": done, **measured, **extra, "config": dataclasses.asdict(config)}
    (unfinished / "training.json").write_text(json.dumps(note, indent=1, default=str) + "\n")
    unfinished.rename(folder)


def whole_components(components: Components, weights: dict[str, Tensor] | None, config: TrainConfig) -> Components:
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
    built = STAGES[config.stage].build(config)
    for name, module in built.modules().items():
        own = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
        if own:  # networks that the stage does not run are as they were
            module.load_state_dict(own)
    return built
