"""Which weights a program uses, and loading them strictly."""

import inspect
import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError

from xdyna.checkpoints.component import WRONG_PARTS, load_component, reason_of
from xdyna.checkpoints.io import check_folder
from xdyna.config.contract import PREDICTION_TYPES, ConditionContract, read_contract
from xdyna.core.errors import UsageError, WeightsError
from xdyna.core.files import file_sha256, parse_json
from xdyna.core.resources import pretrained
from xdyna.pipelines.memory import save_memory
from xdyna.pipelines.xdyna import XDynaPipeline

OFFICIAL, TINY = pretrained("xdyna"), pretrained("xdyna-tiny")
UNTRAINED_MARK = "UNTRAINED"  # file in a checkpoint folder whose weights are random or unfinished; says which


@dataclass(frozen=True)
class Checkpoint:
    """A pipeline folder in diffusers layout.

    Attributes:
        folder: where it is.
        size: default video size (H, W) in pixels.
        has_face: whether it has a face ControlNet.
        untrained: whether its weights are random, or their training is not finished.
        vae_scale: pixels per latent.
        max_context: largest number of generated frames in one window.
        contract: what it was trained with and is sampled with, see there.
        has_tiny_decoder: whether it has a `tiny_vae`.
    """

    folder: Path
    size: tuple[int, int]
    has_face: bool
    untrained: bool
    vae_scale: int
    max_context: int
    contract: ConditionContract = field(default_factory=ConditionContract)
    has_tiny_decoder: bool = False

    def weight_files(self) -> list[Path]:
        """All weight files, in a fixed order."""
        return sorted(self.folder.rglob("*.safetensors"))

    def hashes(self, files: Iterable[Path] | None = None) -> dict[str, str]:
        """SHA-256 of every weight file (or of `files`), by its path inside the folder."""
        files = self.weight_files() if files is None else files
        return {str(path.relative_to(self.folder)): file_sha256(path) for path in files}


def named_folder(name: str | Path) -> Path:
    """A pipeline folder: as named where it is there, else a kept or shipped one of that name, else as named.

    Args:
        name: a path, or the name of a folder of `pretrained/` with or without that: "xdyna-tiny".
    """
    path = Path(name)
    kept = pretrained(path.as_posix().removeprefix("pretrained/"))
    return kept if not path.exists() and not path.is_absolute() and kept.is_dir() else path


def find_checkpoint(folder: Path | None, build_tiny: Callable[[Path], Any]) -> Checkpoint:
    """The checkpoint to use: the one named, else converted official weights, else xdyna-tiny.

    Args:
        folder: named by the user, or None.
        build_tiny: makes the tiny checkpoint in a folder where it does not exist yet.

    Returns:
        Checkpoint: checked for completeness, not loaded.

    Raises:
        UsageError: when the named folder does not exist.
        WeightsError: when the folder is incomplete or holds another kind of pipeline.
    """
    if folder is None:
        folder = OFFICIAL if OFFICIAL.is_dir() else TINY
        if folder == TINY and not (TINY / "model_index.json").is_file():
            try:
                build_tiny(TINY)
            except WeightsError:
                if not (TINY / "model_index.json").is_file():  # else another run has just made it
                    raise
    elif not (folder := named_folder(folder)).is_dir():
        raise UsageError(
            f"--checkpoint {folder}: no such folder. Expected a pipeline folder with model_index.json; make one from "
            "the official files with scripts/convert.py, or leave --checkpoint out"
        )
    check_folder(folder)
    index = json.loads((folder / "model_index.json").read_text())
    if index.get("_class_name") != "XDynaPipeline":
        kind = index.get("_class_name")
        raise WeightsError(f"{folder} holds a {kind}, expected an XDynaPipeline; convert it with scripts/convert.py")
    if absent := [name for name in _needed_parts() if (index.get(name) or [None, None])[1] is None]:
        raise WeightsError(f"{folder}: model_index.json names no {', '.join(absent)}; an XDynaPipeline needs them")
    unet, vae = (_read_config(folder / name / "config.json", keys) for name, keys in _READ.items())
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    path = folder / "scheduler" / "scheduler_config.json"
    scheduler = _read_config(path, ()) if path.is_file() else {}
    contract = _agreeing(read_contract(folder), scheduler, folder)
    height, width = contract.size or (side * scale for side in unet["sample_size"])
    has_face = index.get("face_controlnet", [None, None])[1] is not None and contract.face != "none"
    untrained = (folder / UNTRAINED_MARK).is_file()
    tiny = index.get("tiny_vae", [None, None])[1] is not None
    return Checkpoint(folder, (height, width), has_face, untrained, scale, unet["motion_max_frames"], contract, tiny)


# What is read of a configuration before its network is loaded.
_READ = {"unet": ("sample_size", "motion_max_frames"), "vae": ("block_out_channels",)}


def _read_config(path: Path, keys: Iterable[str]) -> dict[str, Any]:
    """A configuration that holds these keys."""
    config = parse_json(path.read_bytes())
    if absent := [key for key in keys if not config.get(key)]:
        raise WeightsError(f"{path} has no {', '.join(absent)}; it belongs to another model, or is damaged")
    if isinstance(config.get("sample_size"), int):
        config["sample_size"] = [config["sample_size"]] * 2
    return config


def _needed_parts() -> list[str]:
    """Parts without which there is no pipeline."""
    optional = set(XDynaPipeline._optional_components)
    return [name for name in inspect.signature(XDynaPipeline).parameters if name not in optional]


def _agreeing(contract: ConditionContract, scheduler: Mapping[str, Any], folder: Path) -> ConditionContract:
    """The contract, which must not contradict the scheduler's configuration."""
    predicts = scheduler.get("prediction_type", "epsilon")
    if predicts not in PREDICTION_TYPES:
        raise WeightsError(
            f"{folder}: its scheduler's prediction_type is {predicts!r}, expected one of {', '.join(PREDICTION_TYPES)}"
        )
    if contract.prediction_type not in (None, predicts):
        raise WeightsError(
            f"{folder}: conditions.json says prediction_type={contract.prediction_type}, its scheduler {predicts}; "
            "expected the same: mend the one that is wrong"
        )
    return contract


def checkpoint_of(pipeline: DiffusionPipeline) -> Checkpoint:
    """What a loaded pipeline is, in the words of its folder.

    Args:
        pipeline: what `from_pretrained` gave, or one that was put together.

    Returns:
        Checkpoint: of the pipeline as it is now; its folder is only a name where there is none.
    """
    folder = Path(str(getattr(pipeline.config, "_name_or_path", None) or type(pipeline).__name__))
    unet, scale = pipeline.unet.config, pipeline.vae_scale_factor
    contract = _agreeing(pipeline.contract, pipeline.scheduler.config, folder)
    height, width = contract.size or (side * scale for side in unet.sample_size)
    has_face = pipeline.face_controlnet is not None and contract.face != "none"
    untrained = (folder / UNTRAINED_MARK).is_file()
    tiny = pipeline.tiny_vae is not None
    return Checkpoint(folder, (height, width), has_face, untrained, scale, unet.motion_max_frames, contract, tiny)


def load_pipeline(
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype,
    face: bool,
    low_memory: bool = False,
) -> XDynaPipeline:
    """Load a checkpoint: every weight must be there, fit and be a finite number.

    Args:
        checkpoint: what `find_checkpoint` found.
        device: where to.
        dtype: floating-point type of all networks.
        face: load the face ControlNet.
        low_memory: see `save_memory`.

    Returns:
        XDynaPipeline: ready to run.

    Raises:
        WeightsError: on missing, unexpected, mis-shaped or non-finite weights.
    """
    index = json.loads((checkpoint.folder / "model_index.json").read_text())
    parts: dict[str, Any] = {}
    for name, entry in index.items():
        if name.startswith("_") or entry[1] is None:
            continue
        if name == "face_controlnet" and not face:
            parts[name] = None
        elif list((checkpoint.folder / name).glob("*.safetensors")):
            parts[name] = load_component(checkpoint.folder / name, *entry, dtype=dtype)
    try:
        pipeline: XDynaPipeline = XDynaPipeline.from_pretrained(checkpoint.folder, **parts)
    except WRONG_PARTS as error:
        raise WeightsError(
            f"{checkpoint.folder} cannot be loaded: {reason_of(error)} (is this another release, or a damaged copy?)"
        ) from error
    if low_memory:
        save_memory(pipeline, device)
    else:
        pipeline.to(device)
    return pipeline


def save_pipeline(
    pipeline: DiffusionPipeline, folder: Path, *, untrained: bool = False, contract: ConditionContract | None = None
) -> None:
    """Write a pipeline folder completely or not at all.

    Args:
        pipeline: what to write.
        folder: must not exist.
        untrained: mark the weights as random.
        contract: of the pipeline from now on; None for its own.

    Raises:
        WeightsError: the folder exists already, or cannot be written (full disk, ...).
    """
    if folder.exists():
        raise WeightsError(f"{folder} exists already; remove it or choose another folder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            temporary = Path(scratch) / folder.name
            for part in pipeline.components.values():
                if isinstance(part, torch.nn.Module):
                    for parameter in part.parameters():  # channels_last weights cannot be stored as they are
                        parameter.data = parameter.data.contiguous()
            if contract is not None:
                pipeline.contract = contract
            pipeline.save_pretrained(temporary)
            if untrained:
                (temporary / UNTRAINED_MARK).write_text(
                    "the weights are untrained; the video will show noise, not a person.\n"
                )
            temporary.rename(folder)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{folder} cannot be written: {error}; nothing of it was kept") from error
