"""Reading a folder of golden tensors, and the rule that fills weights from names.

A weight is not stored but follows from its official name (`rule`): normal numbers from a generator seeded with the
CRC-32 of the name; vectors are 1 + 0.1 a (names ending in "weight") or 0.1 a, others a / sqrt(fan-in).
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler

from xdyna.checkpoints.official import resampler_names
from xdyna.models.image_tokens import ImageTokenResampler
from xdyna.models.unet import XDynaUNet
from xdyna.pipelines.xdyna import Precomputed, XDynaPipeline

CONTROL_CHANNELS = {"pose": 3, "face": 6}
TEXT_TOKENS = 77


def rule(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The weight tensor that belongs to an official name."""
    seed = zlib.crc32(name.encode()) & 0xFFFFFFFF
    a = np.random.RandomState(seed).standard_normal(shape)
    a = np.asarray(a, dtype=np.float32)
    if len(shape) <= 1:
        return torch.from_numpy(np.asarray((1 + 0.1 * a) if name.endswith("weight") else 0.1 * a, dtype=np.float32))
    return torch.from_numpy(np.asarray(a / np.sqrt(np.prod(shape[1:])), dtype=np.float32))


def fill(module: torch.nn.Module) -> torch.nn.Module:
    """Fill a module whose names are the official ones."""
    state = {
        name: tensor if name.endswith("pos_encoder.pe") else rule(name, tuple(tensor.shape))
        for name, tensor in module.state_dict().items()
    }
    module.load_state_dict(state)
    return module.eval()


@dataclass
class Golden:
    """A folder of golden tensors: arrays by `case/name`, and models built from its config.json."""

    folder: Path

    def __post_init__(self) -> None:
        self.arrays = np.load(self.folder / "golden.npz")
        self.config: dict[str, Any] = json.loads((self.folder / "config.json").read_text())
        self.cases = {name.split("/")[0] for name in self.arrays.files}

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(np.asarray(self.arrays[name]))

    def array(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def residuals(self, case: str) -> tuple[list[torch.Tensor], torch.Tensor]:
        count = sum(name.startswith(f"{case}/down_") for name in self.arrays.files)
        return [self.tensor(f"{case}/down_{i}") for i in range(count)], self.tensor(f"{case}/mid")

    def unet(self) -> XDynaUNet:
        sizes = dict(self.config["unet"])
        sizes["num_attention_heads"] = sizes.pop("attention_head_dim")
        return fill(XDynaUNet(**sizes))

    def controlnet(self, kind: str) -> ControlNetModel:
        return fill(ControlNetModel(**self.config["controlnet"], conditioning_channels=CONTROL_CHANNELS[kind]))

    def resampler(self, official_shapes: dict[str, list[int]]) -> ImageTokenResampler:
        """Built from official names, renamed by our map: tests the map as well as the module."""
        resampler = ImageTokenResampler(**self.config["resampler"])
        state = {name: rule(name, tuple(shape)) for name, shape in official_shapes.items()}
        resampler.load_state_dict(resampler_names(state))
        return resampler.eval()

    def pipeline(self, *, face: bool) -> XDynaPipeline:
        scheduler = DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="linear", steps_offset=1, clip_sample=False
        )
        vae = fill(AutoencoderKL(**self.config["vae"]))
        nets = [self.controlnet("pose"), self.controlnet("face") if face else None]
        pipeline = XDynaPipeline(vae, self.unet(), scheduler, nets[0], None, None, face_controlnet=nets[1])
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def sampling(self, case: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments of a call that gives the case's latents, and its facts."""
        meta = json.loads((self.folder / f"{case}.json").read_text())
        arguments = {
            "num_inference_steps": meta["steps"],
            "guidance_scale": float(self.array(f"{case}/guidance_scale")),
            "context_frames": meta["context_frames"],
            "context_overlap": meta["context_overlap"],
            "prompt_embeds": self.tensor(f"{case}/text_cond"),
            "negative_prompt_embeds": self.tensor(f"{case}/text_uncond"),
            "image_embeds": self.tensor(f"{case}/image_cond"),
            "negative_image_embeds": self.tensor(f"{case}/image_uncond"),
            "latents": self.tensor(f"{case}/noise")[:, :, 1:],
            "precomputed": Precomputed(
                reference_latents=self.tensor(f"{case}/ref_latents")[:, :, 0],
                prior=self.tensor(f"{case}/prior")[:, :, 1:],
                offsets=self.array(f"{case}/offsets").tolist(),
            ),
            "output_type": "latent",
        }
        return arguments, meta


def resampler_shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    """Official names and shapes of the Resampler of any size."""
    dim, inner = config["dim"], config["dim_head"] * config["heads"]
    hidden = int(dim * config["ff_mult"])
    shapes: dict[str, list[int]] = {
        "latents": [1, config["num_queries"], dim],
        "proj_in.weight": [dim, config["embedding_dim"]],
        "proj_in.bias": [dim],
        "proj_out.weight": [config["output_dim"], dim],
        "proj_out.bias": [config["output_dim"]],
        "norm_out.weight": [config["output_dim"]],
        "norm_out.bias": [config["output_dim"]],
    }
    for i in range(config["depth"]):
        for norm in ("norm1", "norm2"):
            shapes |= {f"layers.{i}.0.{norm}.{end}": [dim] for end in ("weight", "bias")}
        shapes[f"layers.{i}.0.to_q.weight"] = [inner, dim]
        shapes[f"layers.{i}.0.to_kv.weight"] = [2 * inner, dim]
        shapes[f"layers.{i}.0.to_out.weight"] = [dim, inner]
        shapes |= {f"layers.{i}.1.0.{end}": [dim] for end in ("weight", "bias")}
        shapes[f"layers.{i}.1.1.weight"] = [hidden, dim]
        shapes[f"layers.{i}.1.3.weight"] = [dim, hidden]
    return shapes
