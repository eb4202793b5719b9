"""What a training run needs, before it is run: trainable parameters, and memory of one process.

The networks are built and run on the meta device, so that full size costs neither memory nor time. Saved activations
are not guessed: autograd's own list of what it keeps for the way back is added up (`torch.autograd.graph.
saved_tensors_hooks`), storage by storage, with fused attention and mixed precision as a GPU computes them.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from einops import rearrange
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from xdyna.checkpoints import build
from xdyna.config.model import ModelConfig
from xdyna.config.train import CHECKPOINTING, TrainConfig
from xdyna.models.controls import FACE_CHANNELS, POSE_CHANNELS, merge_residuals, run_controlnet, to_clip
from xdyna.models.reference_net import ReferenceNet
from xdyna.training.checkpointing import set_checkpointing
from xdyna.training.muon import is_matrix
from xdyna.training.stages import Components, count, select_trainable, training_groups

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
        layer: kept besides while the largest recomputed layer is on its way back; 0 without checkpointing.
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
    components = sized_components(config)
    chosen = select_trainable(components, training_groups(config.stage, config.appearance, config.train))
    trainable = count(chosen)
    values = sum(trainable.values())
    used = _used(config, components)
    total = sum(p.numel() for module in used.values() for p in module.parameters())
    return Plan(
        trainable=trainable,
        frozen=total - values,
        weights=FLOAT32 * total,
        gradients=FLOAT32 * values,
        optimizer=_optimizer_bytes(config.optim.name, chosen),
        ema=FLOAT32 * values if config.optim.ema else 0,
        activations=measure_activations(config, components),
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
        f"activations, {config.batch_size} x (1 + {data.frames}) frames of {data.height} x {data.width} px, "
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
        Components: float32, without tokenizer, feature extractor and scheduler, which have no weights.
    """
    model, clip = config.model, config.stage in ("dynamics", "face")
    adapter = config.appearance == "dynamics_adapter" or not clip
    with torch.device(device):
        unet = build.build_unet({**model.unet, "dynamics_adapter": adapter})
        return Components(
            vae=_published(model, "vae", AutoencoderKL),
            unet=unet,
            pose_controlnet=build.build_controlnet(model.controlnet, channels=POSE_CHANNELS),
            face_controlnet=(
                build.build_controlnet(model.controlnet, channels=FACE_CHANNELS) if config.face == "sface" else None
            ),
            text_encoder=_published(model, "text_encoder", lambda **sizes: CLIPTextModel(CLIPTextConfig(**sizes))),
            tokenizer=None,
            image_encoder=_published(
                model, "image_encoder", lambda **sizes: CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes))
            ),
            feature_extractor=None,
            image_projection=build.build_resampler(model.resampler),
            reference_net=ReferenceNet.from_unet(unet) if clip and config.appearance == "reference_net" else None,
            scheduler=None,
        )


def _published(model: ModelConfig, section: str, make: Callable[..., Any]) -> Any:
    return make(**(getattr(model, section) or PUBLISHED[section]))


def _used(config: TrainConfig, components: Components) -> dict[str, nn.Module]:
    """Networks that are on the device in a stage, as `Objective.used` has them."""
    modules = components.modules()
    if config.stage == "vae":
        return {"vae": modules["vae"]}
    unused = {"base": {"pose_controlnet", "face_controlnet"}, "dynamics": {"face_controlnet"}}.get(config.stage, set())
    return {name: module for name, module in modules.items() if name not in unused}


# --- the forward pass -------------------------------------------------------------------------------------------------


def _forward(config: TrainConfig, parts: Components) -> Tensor:
    """The stage's forward pass (xdyna/training/objective.py) on meta tensors; inputs are computed without gradient."""
    b, t, unet = config.batch_size, config.data.frames, parts.unet
    height, width = config.data.height, config.data.width
    if config.stage == "vae":
        pixels = torch.empty(b * (1 + t), 3, height, width)
        return parts.vae.decode(parts.vae.encode(pixels).latent_dist.mean).sample
    factor = 2 ** (len(parts.vae.config.block_out_channels) - 1)
    latents = torch.empty(b, unet.config.in_channels, 1 + t, height // factor, width // factor)
    side = parts.image_encoder.config.image_size
    pictures = torch.empty(b, 3, side, side)
    image = parts.image_projection(parts.image_encoder(pictures, output_hidden_states=True).hidden_states[-2])
    if config.stage == "base":
        single = rearrange(latents[:, :, 1:], "b c t h w -> (b t) c 1 h w")
        text = torch.empty(b * t, TEXT_TOKENS, unet.config.cross_attention_dim)
        return unet(single, torch.empty(b * t), text, image.repeat_interleave(t, dim=0)).sample
    text = torch.empty(b, TEXT_TOKENS, unet.config.cross_attention_dim)
    nets = [parts.pose_controlnet]
    if config.stage == "face":
        assert parts.face_controlnet is not None
        nets.append(parts.face_controlnet)
    moving, text_N = rearrange(latents[:, :, 1:], "b c t h w -> (b t) c h w"), text.repeat_interleave(t, dim=0)
    residuals = merge_residuals(
        [
            run_controlnet(
                net,
                moving,
                torch.empty(b * t),
                text_N,
                torch.empty(b * t, net.config.conditioning_channels, height, width),
            )
            for net in nets
        ]
    )
    clip = to_clip(residuals, b)
    features = parts.reference_net(latents[:, :, 0], text, image) if parts.reference_net is not None else ()
    return unet(
        latents,
        torch.empty(b),
        text,
        image,
        down_residuals=clip.down,
        mid_residual=clip.mid,
        reference_features=features,
    ).sample


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
        if func is F.scaled_dot_product_attention and kwargs.get("attn_mask") is None and len(args) == 3:
            return torch.ops.aten._scaled_dot_product_flash_attention(*args)[0]
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


def measure_activations(config: TrainConfig, components: Components) -> dict[str, Activations]:
    """Bytes that autograd keeps for the backward pass of one micro-step.

    Args:
        config: stage, sizes, batch and precision.
        components: on the meta device, frozen and thawed already; their checkpointing is left at "full".

    Returns:
        dict: policy -> bytes.
    """
    measured, recomputed = {}, 0
    for policy in CHECKPOINTING:  # "none" comes first: the size of a layer is seen there alone
        set_checkpointing(components.unet, components.beside_unet(), policy)
        saved, layer = _run(config, components)
        if policy == "none":
            recomputed = layer if config.stage != "vae" else 0
        measured[policy] = Activations(saved, 0 if policy == "none" else recomputed)
    return measured


def _run(config: TrainConfig, components: Components) -> tuple[int, int]:
    """Bytes saved by the whole pass, and by the largest of the layers that checkpointing can recompute."""
    modules = components.modules().values()
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
        output = _forward(config, components)  # held until here: it keeps the graph
    for handle in handles:
        handle.remove()
    assert output.requires_grad, "nothing that trains reaches the output"
    return counter.total, max(layers)
