"""What a training run needs, before it is run: trainable parameters, and memory of one process.

The networks are built and run on the meta device, so that full size costs neither memory nor time. Saved activations
are not guessed: autograd's own list of what it keeps for the backward pass is added up (`torch.autograd.graph.
saved_tensors_hooks`), storage by storage, with fused attention and mixed precision as a GPU computes them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from xdyna.checkpoints import build
from xdyna.config.model import ModelConfig
from xdyna.config.train import CHECKPOINTING, TrainConfig
from xdyna.data.samples import Batch
from xdyna.models.controls import FACE_CHANNELS, POSE_CHANNELS
from xdyna.models.denoiser import Tokens
from xdyna.models.image_tokens import tokens_of_pixels
from xdyna.models.reference_net import ReferenceNet
from xdyna.training.checkpointing import set_checkpointing
from xdyna.training.components import Components
from xdyna.training.groups import count, select_trainable
from xdyna.training.muon import is_matrix
from xdyna.training.objective import DiffusionObjective, Objective
from xdyna.training.stages import STAGES

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FLOAT32 = 4  # bytes per value: weights, gradients and the average are kept in float32
ADAM_BYTES = {"adamw": 8, "adamw8bit": 2}  # two moments
MUON_BYTES = 4  # one momentum for a matrix; all else has AdamW's
TEXT_TOKENS = 77
# Sizes of the published frozen parts, which are loaded and not built, so that configs/model/sd15.yaml leaves them out.
PUBLISHED: dict[str, dict[str, Any]] = {
    "vae": {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
    },
    "text_encoder": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "vocab_size": 49408,
    },
    "image_encoder": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 1024,
    },
}


@dataclass(frozen=True)
class Activations:
    """Memory of the activations of one micro-step, in bytes.

    Attributes:
        saved: kept from the forward pass for the backward pass.
        layer: kept besides while the largest recomputed layer is in its backward pass; 0 without checkpointing.
    """

    saved: int
    layer: int

    @property
    def peak(self) -> int:
        """Both together."""
        return self.saved + self.layer


@dataclass(frozen=True)
class Plan:
    """Needs of one process, in values and bytes.

    Attributes:
        trainable: values per group.
        frozen: values of all networks that are on the device and do not train.
        weights: bytes of all weights.
        gradients: bytes of all gradients.
        optimizer: bytes of the optimizer's state.
        ema: bytes of the average.
        activations: by checkpointing policy.
    """

    trainable: dict[str, int]
    frozen: int
    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: dict[str, Activations]

    @property
    def state(self) -> int:
        """Bytes that do not depend on the batch."""
        return self.weights + self.gradients + self.optimizer + self.ema

    def peak(self, policy: str) -> int:
        """Bytes at the beginning of the backward pass: state and activations, without workspaces."""
        return self.state + self.activations[policy].peak


def make_plan(config: TrainConfig) -> Plan:
    """Count and measure a run on the meta device.

    Args:
        config: of the run; the sizes are those of its section `model`.

    Returns:
        Plan: for one process.
    """
    stage, components = STAGES[config.stage], sized_components(config)
    stage.add_what_trains(components, config)
    chosen = select_trainable(components, stage.chosen_groups(config.appearance, config.train))
    trainable = count(chosen)
    values = sum(trainable.values())
    objective = stage.objective(components, config.loss, seed=config.seed)
    total = sum(p.numel() for p in objective.parameters())
    return Plan(
        trainable=trainable,
        frozen=total - values,
        weights=FLOAT32 * total,
        gradients=FLOAT32 * values,
        optimizer=_optimizer_bytes(config.optim.name, chosen),
        ema=FLOAT32 * values if config.optim.ema else 0,
        activations=measure_activations(config, objective),
    )


def _optimizer_bytes(name: str, groups: Mapping[str, Mapping[str, Tensor]]) -> int:
    sizes = [(is_matrix(p), p.numel()) for parameters in groups.values() for p in parameters.values()]
    if name == "muon":
        return sum((MUON_BYTES if matrix else ADAM_BYTES["adamw"]) * values for matrix, values in sizes)
    return ADAM_BYTES[name] * sum(values for _, values in sizes)


def describe(config: TrainConfig) -> str:
    """A table of what a run trains and needs.

    Args:
        config: of the run; the sizes are those of its section `model`.

    Returns:
        str: several lines; GB are 10^9 bytes.
    """
    plan, data = make_plan(config), config.data
    lines = [f"stage {config.stage}, appearance {config.appearance}, face {config.face}", "", "trainable parameters"]
    lines += [f"  {group:<18}{values / 1e6:>10.2f} M" for group, values in plan.trainable.items()]
    lines += [
        f"  {'together':<18}{sum(plan.trainable.values()) / 1e6:>10.2f} M",
        f"  {'(frozen)':<18}{plan.frozen / 1e6:>10.2f} M",
        "",
        "memory of one process, independent of the batch",
    ]
    state = {"weights": plan.weights, "gradients": plan.gradients, config.optim.name: plan.optimizer, "ema": plan.ema}
    lines += [f"  {name:<18}{_gb(size)}" for name, size in {**state, "together": plan.state}.items()]
    lines += [
        "",
        f"activations, {config.share(1).micro_batch} x (1 + {data.frames}) frames of {data.height} x {data.width} px, "
        f"precision {config.precision}",
        f"  {'checkpointing':<18}{'saved':>13}{'recomputed':>13}{'peak with all':>15}",
    ]
    for policy, activations in plan.activations.items():
        mark = "  <- this run" if policy == config.checkpointing else ""
        peak = _gb(plan.peak(policy))
        lines.append(f"  {policy:<18}{_gb(activations.saved)}{_gb(activations.layer)}{peak:>15}{mark}")
    return "\n".join([*lines, "", "Workspaces and fragmentation come on top: leave about a tenth of the memory free."])


def _gb(size: int) -> str:
    return f"{size / 1e9:>10.2f} GB"


# --- the networks -----------------------------------------------------------------------------------------------------


def sized_components(config: TrainConfig, *, device: str | torch.device = "meta") -> Components:
    """All networks of a run in their sizes, with random weights: no files are read.

    Args:
        config: of the run; the sizes are those of its section `model`, or published ones.
        device: where they are made.

    Returns:
        Components: float32, with all that has no weights, too.
    """
    model, clip = config.model, STAGES[config.stage].moves
    adapter = config.appearance == "dynamics_adapter" or not clip
    with torch.device(device):
        unet = build.build_unet({**model.unet, "dynamics_adapter": adapter})
        image_encoder = _published(
            model, "image_encoder", lambda **sizes: CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes))
        )
        networks: dict[str, Any] = {
            "vae": _published(model, "vae", AutoencoderKL),
            "unet": unet,
            "pose_controlnet": build.build_controlnet(model.controlnet, channels=POSE_CHANNELS),
            "face_controlnet": (
                build.build_controlnet(model.controlnet, channels=FACE_CHANNELS) if config.face == "sface" else None
            ),
            "text_encoder": _published(model, "text_encoder", lambda **sizes: CLIPTextModel(CLIPTextConfig(**sizes))),
            "image_encoder": image_encoder,
            "image_projection": build.build_resampler(model.resampler),
            "reference_net": ReferenceNet.from_unet(unet) if clip and config.appearance == "reference_net" else None,
        }
    return Components(
        **networks,
        tokenizer=build.build_tokenizer(),
        feature_extractor=build.build_feature_extractor(image_encoder.config.image_size),
        scheduler=build.build_scheduler(model.scheduler),
    )


def _published(model: ModelConfig, section: str, make: Callable[..., Any]) -> Any:
    return make(**(getattr(model, section) or PUBLISHED[section]))


# --- the forward pass -------------------------------------------------------------------------------------------------


def _forward(config: TrainConfig, objective: Objective) -> Tensor:
    """The stage's forward pass on meta tensors; inputs are computed without gradient."""
    b, t, parts = config.share(1).micro_batch, config.data.frames, objective.components
    height, width = config.data.height, config.data.width
    if not isinstance(objective, DiffusionObjective):
        pixels = torch.empty(b * (1 + t), 3, height, width)
        return parts.vae.decode(parts.vae.encode(pixels).latent_dist.mean).sample
    factor = 2 ** (len(parts.vae.config.block_out_channels) - 1)
    channels, grid = parts.unet.config.in_channels, (height // factor, width // factor)
    side = parts.image_encoder.config.image_size
    tokens = Tokens(
        torch.empty(b, TEXT_TOKENS, parts.unet.config.cross_attention_dim),
        tokens_of_pixels(torch.empty(b, 3, side, side), parts.image_encoder, parts.image_projection),
    )
    return objective.predict(
        torch.empty(b, channels, 1, *grid),
        torch.empty(b, channels, t, *grid),
        torch.empty(b),
        tokens,
        _blank_batch(b, t, height, width),
    )


def _blank_batch(clips: int, frames: int, height: int, width: int) -> Batch:
    """Clips without content."""
    nothing = torch.zeros(clips, dtype=torch.bool)
    return Batch(
        index=torch.zeros(clips, dtype=torch.int64),
        clip_id=[""] * clips,
        kind=["human"] * clips,
        pixels=torch.empty(clips, 1, 3, height, width, dtype=torch.uint8),
        pose=torch.empty(clips, frames, POSE_CHANNELS, height, width, dtype=torch.uint8),
        face=torch.empty(clips, frames, FACE_CHANNELS, height, width, dtype=torch.uint8),
        latents_mean=None,
        latents_std=None,
        drop_image=nothing,
        drop_text=nothing,
        drop_face=nothing,
        caption=[""] * clips,
    )


class _AsOnGPU(TorchFunctionMode):
    """Fused attention, and mixed precision by the lists of PyTorch's CUDA autocast, for meta tensors (which have none).

    Source: https://docs.pytorch.org/docs/stable/amp.html, "CUDA Ops that can autocast".
    """

    LOW = (F.linear, F.conv2d, F.scaled_dot_product_attention, torch.matmul, torch.bmm, torch.baddbmm)
    FULL = (F.layer_norm, F.group_norm, F.softmax, torch.softmax)
    WIDEST = (torch.cat, torch.stack)

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.dtype != torch.float32:
            if func in self.LOW:
                args, kwargs = _cast((args, kwargs), self.dtype)
            elif func in self.FULL:
                args, kwargs = _cast((args, kwargs), torch.float32)
            elif func in self.WIDEST:
                widest = torch.float32 if any(x.dtype == torch.float32 for x in args[0]) else self.dtype
                args = _cast(args, widest)
        if func is F.scaled_dot_product_attention and kwargs.get("attn_mask") is None:
            qkv = (*args, *(kwargs[name] for name in ("query", "key", "value") if name in kwargs))
            if len(qkv) == 3:
                return torch.ops.aten._scaled_dot_product_flash_attention(*qkv)[0]
        return func(*args, **kwargs)


def _cast(tree: Any, dtype: torch.dtype) -> Any:
    if isinstance(tree, Tensor):
        return tree.to(dtype) if tree.is_floating_point() else tree
    if isinstance(tree, dict):
        return {name: _cast(value, dtype) for name, value in tree.items()}
    return type(tree)(_cast(value, dtype) for value in tree) if isinstance(tree, tuple | list) else tree


# --- saved activations ------------------------------------------------------------------------------------------------


class SavedBytes:
    """Adds up what autograd keeps while `counting()`; every storage once, those of `known` tensors not at all."""

    def __init__(self, known: Iterator[Tensor]) -> None:
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}
        self.total = 0

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:  # the graph keeps the storage, so that its address is not used again
            self._seen.add(storage._cdata)
            self.total += storage.nbytes()
        return tensor

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Inside the block, saved tensors are counted."""
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor):
            yield


def measure_activations(config: TrainConfig, objective: Objective) -> dict[str, Activations]:
    """Bytes that autograd keeps for the backward pass of one micro-step.

    Args:
        config: stage, sizes, batch and precision.
        objective: its networks are on the meta device, frozen and unfrozen already; their checkpointing is left at
            "full".

    Returns:
        dict: policy -> bytes.
    """
    measured, recomputed, components = {}, 0, objective.components
    for policy in CHECKPOINTING:  # "none" comes first: the size of a layer is seen there alone
        set_checkpointing(components.unet, components.beside_unet(), policy)
        saved, layer = _run(config, objective)
        if policy == "none":
            recomputed = layer if config.stage != "vae" else 0
        measured[policy] = Activations(saved, 0 if policy == "none" else recomputed)
    return measured


def _run(config: TrainConfig, objective: Objective) -> tuple[int, int]:
    """Bytes saved by the whole pass, and by the largest of the layers that checkpointing can recompute."""
    modules = objective.components.modules().values()
    counter = SavedBytes(t for m in modules for t in (*m.parameters(), *m.buffers()))
    before: dict[nn.Module, int] = {}
    layers = [0]

    def enter(module: nn.Module, _: Any) -> None:
        before[module] = counter.total

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        layers.append(counter.total - before[module])

    handles = []
    for module in modules:
        for name, layer in module.named_modules():
            if name.split(".")[-2:-1] in (["resnets"], ["attentions"], ["motion_modules"]):
                handles += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
    with torch.device("meta"), _AsOnGPU(DTYPES[config.precision]), counter.counting():
        output = _forward(config, objective)  # held until here: it keeps the graph
    for handle in handles:
        handle.remove()
    assert output.requires_grad, "nothing that trains reaches the output"
    return counter.total, max(layers)
