"""What animates: a pipeline folder on a device, with the scheduler and the LoRA weights that were asked for."""

import difflib
import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch

from xdyna.config.infer import InferConfig
from xdyna.core.device import pick_device, pick_dtype
from xdyna.core.errors import UsageError
from xdyna.core.files import file_sha256
from xdyna.core.progress import Watch
from xdyna.core.resources import pretrained
from xdyna.models.kernels import require_kernel
from xdyna.pipelines.attention import Run, in_use, settle
from xdyna.pipelines.compiling import compile_networks, require_compiler
from xdyna.pipelines.folder import Checkpoint, checkpoint_of, find_checkpoint, load_pipeline
from xdyna.pipelines.lora import LORA_FILE
from xdyna.pipelines.untrained import build_untrained
from xdyna.pipelines.xdyna import XDynaPipeline

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "deis": "DEISMultistepScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lcm": "LCMScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""Short names of diffusers' classes."""


class Model:
    """Weights that are loaded when the first animation needs them, or a pipeline that is loaded already.

    Args:
        checkpoint: the pipeline folder, or that of the pipeline.
        settings: device, dtype, attention, face, scheduler and lora count.
        pipeline: a loaded one, used as it is: device, dtype, attention, scheduler and LoRA are its own.

    Attributes:
        checkpoint: as given.
        device: where the networks run.
        dtype: of the networks.

    Raises:
        UsageError: a device, scheduler or LoRA file that is not there; a scheduler or LoRA for a loaded pipeline.
    """

    def __init__(self, checkpoint: Checkpoint, settings: InferConfig, *, pipeline: XDynaPipeline | None = None) -> None:
        self.checkpoint, self.settings, self.given = checkpoint, settings, pipeline
        if pipeline is not None:
            if settings.low_memory:
                raise UsageError(
                    "low_memory is asked for with a loaded pipeline, which is where it is already; call "
                    "xdyna.pipelines.memory.save_memory(pipeline, device) and leave low_memory out"
                )
            if settings.compile != "none":
                raise UsageError(
                    f"compile={settings.compile} is asked for with a loaded pipeline; call pipeline.unet."
                    "compile_repeated_blocks() and leave compile out"
                )
            if settings.scheduler is not None or settings.lora:
                raise UsageError(
                    f"scheduler={settings.scheduler} and lora={settings.lora} are asked for with a loaded pipeline, "
                    "which has its own; set pipeline.scheduler and call pipeline.load_lora_weights instead"
                )
            self.device, self.dtype = pipeline._execution_device, pipeline.unet.dtype
            return
        self.device = pick_device(settings.device)
        self.dtype = pick_dtype(settings.dtype, self.device)
        if settings.attention != "auto":
            require_kernel(settings.attention, self.device, self.dtype)
        self.scheduler = scheduler_class(settings.scheduler) if settings.scheduler is not None else None
        self.lora = [parse_lora(entry) for entry in settings.lora]
        self._merged = False

    def check_fits(self, settings: InferConfig) -> None:
        """See whether an animation's settings ask for the networks that this model has.

        Raises:
            UsageError: another scheduler, LoRA, low_memory or compile, or face control that the model was made without.
        """
        for name in ("scheduler", "lora", "low_memory", "compile"):
            mine, asked = getattr(self.settings, name), getattr(settings, name)
            if mine != asked:
                raise UsageError(
                    f"{name}={asked!r} is asked for, but the model was made with {mine!r}; make it with the same "
                    "settings: load(checkpoint, settings)"
                )
        if self.settings.face is False and settings.face is not False and self.checkpoint.has_face:
            raise UsageError(
                f"face={settings.face} is asked for, but the model was made with face=False; give face=False here, too"
            )

    @cached_property
    def pipeline(self) -> XDynaPipeline:
        """The pipeline itself: the one that was given, or loaded strictly."""
        if self.given is not None:
            return self.given
        settings = self.settings
        face = self.checkpoint.has_face and settings.face is not False
        pipeline = load_pipeline(
            self.checkpoint,
            device=self.device,
            dtype=self.dtype,
            face=face,
            low_memory=settings.low_memory,
        )
        if self.scheduler is not None:
            pipeline.scheduler = self.scheduler.from_config(pipeline.scheduler.config)
        names = self._adapters()
        for name, (path, _) in zip(names, self.lora, strict=True):
            _load_lora(pipeline, path, name)
        if names:
            pipeline.set_adapters(names, [scale for _, scale in self.lora])
        if settings.compile != "none":
            require_compiler(self.device)
            nets = (pipeline.unet, pipeline.pose_controlnet, pipeline.face_controlnet)
            compile_networks([net for net in nets if net is not None])
        return pipeline

    def settle_attention(self, name: str, run: Run, *, kept: dict[str, str] | None = None) -> dict[str, str]:
        """Let the networks use the kernels that are asked for; a given pipeline keeps its own.

        Args:
            name: of a kernel, or "auto".
            run: shapes of the animation.
            kept: kernels of an interrupted run.

        Returns:
            dict: see `xdyna.pipelines.attention.settle`.
        """
        if self.given is not None:
            return in_use(self.given)
        return settle(self.pipeline, name, run, kept=kept)

    def merge_lora(self) -> None:
        """Add the LoRA weights to those they go with, once and for good, so that they cost nothing in a step.

        In 16 bits the sums are rounded as weights are. A given pipeline keeps its own as they are.
        """
        if self.given is None and self.lora and not self._merged:
            self.pipeline.fuse_lora(adapter_names=self._adapters())
            self.pipeline.unload_lora_weights()
            self._merged = True

    def _adapters(self) -> list[str]:
        return [f"lora_{number}" for number in range(len(self.lora))]

    def hashes(self, watch: Watch | None = None) -> dict[str, str]:
        """SHA-256 of every weight file, LoRA files included; of a given pipeline, of each part as it is now."""
        watch = watch or Watch()
        if self.given is not None:
            return dict(_part_hashes(self.given, watch))
        if not hasattr(self, "_hashes"):
            files = self.checkpoint.weight_files()

            def told() -> Any:
                for number, path in enumerate(files):
                    watch.step("hashing weights", number, len(files))
                    yield path
                watch.step("hashing weights", len(files), len(files))

            self._hashes = self.checkpoint.hashes(told())
            self._hashes |= {f"lora {path.name}": file_sha256(path) for path, _ in self.lora}
        return self._hashes


def load(
    checkpoint: str | Path | diffusers.DiffusionPipeline | None = None, settings: InferConfig | None = None
) -> Model:
    """Choose the weights of one or many animations.

    Args:
        checkpoint: pipeline folder, or the name of one in pretrained/ ("xdyna-tiny"), or a loaded pipeline; None takes
            the converted official weights where they are, else xdyna-tiny.
        settings: see `Model`.

    Returns:
        Model: checked for completeness; loaded when it is first used.

    Raises:
        UsageError: no such folder, or another kind of pipeline.
        WeightsError: the folder is incomplete or holds another kind of pipeline.
    """
    if isinstance(checkpoint, diffusers.DiffusionPipeline) and type(checkpoint).__name__ == XDynaPipeline.__name__:
        found = checkpoint_of(checkpoint)
        if not isinstance(checkpoint, XDynaPipeline):  # diffusers' custom_pipeline=FILE makes a copy of the class
            checkpoint = XDynaPipeline(**checkpoint.components)
        return Model(found, settings or InferConfig(), pipeline=checkpoint)
    if not isinstance(checkpoint, str | Path | None):
        raise UsageError(
            f"the model is a {type(checkpoint).__name__}; expected a pipeline folder, its name, an XDynaPipeline or "
            "what xdyna.load gave"
        )
    folder = Path(checkpoint) if checkpoint is not None else None
    return Model(find_checkpoint(folder, build_untrained), settings or InferConfig())


def _part_hashes(pipeline: XDynaPipeline, watch: Watch) -> Iterator[tuple[str, str]]:
    """SHA-256 of what each part of a pipeline computes with: tensors, strengths of adapters, the scheduler."""
    parts = sorted(pipeline.components.items())
    for number, (name, part) in enumerate(parts):
        watch.step("hashing weights", number, len(parts))
        digest = hashlib.sha256()
        if isinstance(part, torch.nn.Module):
            for key, tensor in sorted(part.state_dict().items()):
                if tensor.is_meta:
                    raise UsageError(
                        "the pipeline is offloaded part by part, so its weights cannot be told; use "
                        "enable_model_cpu_offload or enable_group_offload, or give the folder as the model"
                    )
                digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            adapters = [
                (key, module.scaling, module.active_adapters)
                for key, module in part.named_modules()
                if hasattr(module, "scaling") and hasattr(module, "active_adapters")
            ]
            digest.update(repr(adapters).encode())
        elif isinstance(part, diffusers.SchedulerMixin):
            entries = {"class": type(part).__name__, **part.config}
            digest.update(json.dumps(entries, sort_keys=True, default=str).encode())
        else:
            continue
        yield name, digest.hexdigest()
    watch.step("hashing weights", len(parts), len(parts))


def scheduler_class(name: str) -> type[Any]:
    """diffusers' scheduler class of a name: one of `SCHEDULERS`, or the class itself.

    Raises:
        UsageError: an unknown name; the message has the nearest.
    """
    found = getattr(diffusers, SCHEDULERS.get(name.lower(), name), None)
    if isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin):
        return found
    known = [*SCHEDULERS, *(entry for entry in dir(diffusers) if entry.endswith("Scheduler"))]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UsageError(
        f"scheduler={name}: unknown; expected one of {', '.join(SCHEDULERS)}, or a scheduler class of diffusers{hint}"
    )


def parse_lora(entry: str) -> tuple[Path, float]:
    """File and scale of "FILE" or "FILE:SCALE"; FILE may be a name of `pretrained/`, as "xdyna-tiny-few-step".

    Raises:
        UsageError: no such file, or a scale that is no number.
    """
    name, colon, scale = entry.rpartition(":")
    path, factor = _lora_file(entry), 1.0
    if colon and not path.exists():
        path = _lora_file(name)
        try:
            factor = float(scale)
        except ValueError as error:
            raise UsageError(f"--lora {entry}: {scale!r} is no number; expected FILE or FILE:SCALE") from error
    if not path.is_file():
        raise UsageError(f"--lora {entry}: no such file {path}; expected LoRA weights (.safetensors)")
    if path.suffix != ".safetensors":
        raise UsageError(f"--lora {entry}: expected a .safetensors file")
    return path, factor


def _lora_file(name: str) -> Path:
    """The file as it was given, else that of a folder of this name, here or in `pretrained/`."""
    for path in (Path(name), Path(name) / LORA_FILE, pretrained(name) / LORA_FILE):
        if path.is_file():
            return path
    return Path(name)


def _load_lora(pipeline: XDynaPipeline, path: Path, name: str) -> None:
    try:
        pipeline.load_lora_weights(str(path.parent.resolve()), weight_name=path.name, adapter_name=name)
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"--lora {path}: these weights do not fit this model ({reason})") from error
