"""LoRA files for the UNet (motion modules and Dynamics-Adapter included) and the text encoder.

Reading, fusing and unloading are diffusers'. What is ours are the names: a LoRA of Stable Diffusion 1.5, of
AnimateDiff's motion modules (diffusers' names) or of this UNet (peft's, diffusers' or kohya's names) finds its layers,
and one that does not fit is refused instead of being left out in silence.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders import StableDiffusionLoraLoaderMixin
from peft import PeftConfig
from torch import Tensor, nn

LORA_FILE = "lora.safetensors"
"""The weights in a folder that is given as a LoRA, and what training writes where a LoRA is all that it trained."""
PEFT_CONFIG, PEFT_WEIGHTS, PEFT_PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
_FACTOR = re.compile(r"(?:\.lora_(A|B)|[._]lora\.(down|up)|\.lora_linear_layer\.(down|up))\.weight$")
_KINDS = {"A": "A", "down": "A", "B": "B", "up": "B"}


class LoraLoaderMixin(StableDiffusionLoraLoaderMixin):
    """`load_lora_weights` and its relatives, for `XDynaPipeline`."""

    @classmethod
    def lora_state_dict(
        cls, pretrained_model_name_or_path_or_dict: str | Path | dict[str, Tensor], **kwargs: Any
    ) -> tuple[Any, ...]:
        """Read a LoRA; see `StableDiffusionLoraLoaderMixin.lora_state_dict`, whose arguments and values these are.

        Args:
            pretrained_model_name_or_path_or_dict: a file or folder of diffusers, kohya or peft, or its tensors.
            kwargs: diffusers' own.

        Returns:
            tuple: tensors under "unet." and "text_encoder.", alphas, and the metadata where asked for.
        """
        source, config = pretrained_model_name_or_path_or_dict, None
        if not isinstance(source, dict) and (Path(source) / PEFT_CONFIG).is_file():
            config = PeftConfig.from_pretrained(str(source)).to_dict()
            kwargs.setdefault("weight_name", PEFT_WEIGHTS)
        state, alphas, *metadata = super().lora_state_dict(source, **kwargs)
        if not any(name.startswith(("unet.", "text_encoder.")) for name in state):  # peft knows the UNet alone
            state = {f"unet.{name.removeprefix(PEFT_PREFIX)}": value for name, value in state.items()}
        if metadata and config is not None:
            metadata = [{f"unet.{name}": value for name, value in config.items()}]
        return state, alphas, *metadata

    @classmethod
    def load_lora_into_unet(
        cls,
        state_dict: Mapping[str, Tensor],
        network_alphas: Mapping[str, float] | None,
        unet: nn.Module,
        adapter_name: str | None = None,
        _pipeline: Any = None,
        low_cpu_mem_usage: bool = False,
        hotswap: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Put the UNet's part of a LoRA into it; arguments as in `StableDiffusionLoraLoaderMixin`.

        Raises:
            ValueError: a tensor that belongs to no layer of this UNet, or has another shape than the layer needs.
        """
        fitted, metadata = _fitted(state_dict, network_alphas, unet, "unet", metadata)
        if fitted:
            super().load_lora_into_unet(
                fitted,
                network_alphas=None,
                unet=unet,
                adapter_name=adapter_name,
                _pipeline=_pipeline,
                low_cpu_mem_usage=low_cpu_mem_usage,
                hotswap=hotswap,
                metadata=metadata,
            )

    @classmethod
    def load_lora_into_text_encoder(
        cls,
        state_dict: Mapping[str, Tensor],
        network_alphas: Mapping[str, float] | None,
        text_encoder: nn.Module | None,
        prefix: str | None = None,
        lora_scale: float = 1.0,
        adapter_name: str | None = None,
        _pipeline: Any = None,
        low_cpu_mem_usage: bool = False,
        hotswap: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Put the text encoder's part of a LoRA into it; arguments as in `StableDiffusionLoraLoaderMixin`.

        Raises:
            ValueError: as `load_lora_into_unet`; or a pipeline without a text encoder.
        """
        prefix = prefix or cls.text_encoder_name
        fitted, metadata = _fitted(state_dict, network_alphas, text_encoder, prefix, metadata)
        if fitted:
            super().load_lora_into_text_encoder(
                fitted,
                network_alphas=None,
                text_encoder=text_encoder,
                prefix=prefix,
                lora_scale=lora_scale,
                adapter_name=adapter_name,
                _pipeline=_pipeline,
                low_cpu_mem_usage=low_cpu_mem_usage,
                hotswap=hotswap,
                metadata=metadata,
            )


def _fitted(
    state: Mapping[str, Tensor],
    alphas: Mapping[str, float] | None,
    net: nn.Module | None,
    prefix: str,
    metadata: Mapping[str, Any] | None,
) -> tuple[dict[str, Tensor], Mapping[str, Any] | None]:
    """A network's part of a LoRA under the names of its layers, and peft's settings for it."""
    factors = {name.removeprefix(f"{prefix}."): v for name, v in state.items() if name.startswith(f"{prefix}.")}
    if not factors:
        return {}, None
    if net is None:
        raise ValueError(f"the LoRA has a part for the {prefix.replace('_', ' ')}, which this pipeline does not have")
    names = _layer_names(net)
    pairs = _pairs(factors, net, names)
    if metadata is None or not any(name.startswith(f"{prefix}.") for name in metadata):
        own = {k.removeprefix(f"{prefix}."): v for k, v in (alphas or {}).items() if k.startswith(f"{prefix}.")}
        settings = _fold_alphas(pairs, {_layer(name, names): value for name, value in own.items()})
        metadata = {f"{prefix}.{name}": value for name, value in settings.items()}
    return {f"{prefix}.{layer}.lora_{kind}.weight": value for (layer, kind), value in pairs.items()}, metadata


def _layer_names(net: nn.Module) -> dict[str, str]:
    """Names of all layers with weights, by what `_squashed` makes of them."""
    layers = [
        name
        for name, module in net.named_modules()
        if getattr(module, "weight", None) is not None and not re.search(r"base_layer|lora_", name)
    ]
    names = {_squashed(name): name for name in layers}
    return names | {_squashed(name)[:-1]: name for name in layers if name.endswith(".to_out.0")}


def _pairs(factors: Mapping[str, Tensor], net: nn.Module, names: Mapping[str, str]) -> dict[tuple[str, str], Tensor]:
    """By layer and factor ("A" or "B"), names and shapes checked."""
    pairs: dict[tuple[str, str], Tensor] = {}
    for name, value in factors.items():
        match = _FACTOR.search(name)
        if match is None:
            raise ValueError(f"the LoRA has a tensor {name!r}; expected pairs of factors (lora_A / lora_B, down / up)")
        kind = _KINDS[next(group for group in match.groups() if group)]
        pairs[_layer(name, names), kind] = value
    for layer in {layer for layer, _ in pairs}:
        weight = net.get_submodule(layer).weight
        assert isinstance(weight, Tensor)
        shape = tuple(weight.shape)
        down, up = pairs.get((layer, "A")), pairs.get((layer, "B"))
        if down is None or up is None:
            raise ValueError(f"the LoRA has one of two factors for {layer}; expected lora_A and lora_B (down and up)")
        if (up.shape[0], *down.shape[1:]) != shape or up.shape[1] != down.shape[0]:
            raise ValueError(
                f"the LoRA's factors for {layer} have shapes {tuple(down.shape)} and {tuple(up.shape)}, which do not "
                f"make its weight of shape {shape}; it was made for a model of another size"
            )
    return pairs


def _layer(name: str, names: Mapping[str, str]) -> str:
    """Name of the layer that a tensor or an alpha belongs to."""
    path = _FACTOR.sub("", name.removesuffix(".alpha")).replace(".processor", "").removeprefix("text_model.")
    path = re.sub(r"self_attn\.to_(q|k|v|out)$", r"self_attn.\1_proj", path)  # diffusers' names in a text encoder
    if re.search(r"motion[._]modules", path) and "temporal" not in path:  # diffusers' names of motion modules
        path = re.sub(r"(motion[._]modules\.\d+\.)", r"\1temporal_transformer.", path)
        path = re.sub(r"\.attn([12])\.", lambda match: f".attention_blocks.{int(match[1]) - 1}.", path)
    layer = names.get(_squashed(path))
    if layer is None:
        raise ValueError(
            f"the LoRA has a tensor {name!r}, but the network has no such layer; it was made for another model"
        )
    return layer


def _squashed(name: str) -> str:
    """Without separators: kohya writes "_" for "."."""
    return name.replace(".", "").replace("_", "")


def _fold_alphas(pairs: dict[tuple[str, str], Tensor], alphas: Mapping[str, float]) -> dict[str, Any]:
    """Multiply each up factor by alpha / rank, in place of an alpha per layer. Returns: peft's settings for that."""
    ranks = {layer: value.shape[0] for (layer, kind), value in pairs.items() if kind == "A"}
    for layer, rank in ranks.items():
        if alphas.get(layer, rank) != rank:
            pairs[layer, "B"] = pairs[layer, "B"] * (alphas[layer] / rank)
    [(usual, _)] = Counter(ranks.values()).most_common(1)
    others = {f"^{re.escape(layer)}": rank for layer, rank in ranks.items() if rank != usual}
    settings: dict[str, Any] = {"r": usual, "lora_alpha": usual, "rank_pattern": others, "alpha_pattern": others}
    return settings | {"target_modules": list(ranks)}
