"""What is generated for each held-out clip, with one part of the method switched off at a time, and kept in files.

A result is used again only where everything that made it is the same: weights, settings, inputs (by their bytes).
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from einops import rearrange

from xdyna import __version__
from xdyna.config.contract import PoseStyle
from xdyna.core.atomic import atomic_output
from xdyna.models.attention import DynamicsAdapterAttention
from xdyna.models.unet import XDynaUNet
from xdyna.perception.errors import PerceptionError
from xdyna.perception.types import read_npz
from xdyna.pipelines.xdyna import XDynaPipeline, to_uint8
from xdyna.puppets.heldout import HeldOut, Task, cross_driven, self_driven

Driving = Literal["self", "exact", "aligned"]
Way = Literal["sample", "copy", "vae"]


@dataclass(frozen=True)
class Variant:
    """One row of the report.

    Attributes:
        label: for people.
        driving: "self", or cross-driven by the truth's keypoints ("exact") or by the driving person's, aligned.
        way: "sample" with the pipeline, "copy" the reference to every frame, or "vae": the truth through the
            autoencoder, which no sampling can beat.
        pose: False blanks the skeletons.
        face: False leaves out the face ControlNet.
        adapter: False sets the Dynamics-Adapter's output projection W'o to zero.
    """

    label: str
    driving: Driving = "self"
    way: Way = "sample"
    pose: bool = True
    face: bool = True
    adapter: bool = True


VARIANTS: dict[str, Variant] = {
    "full": Variant("(a) full"),
    "copy": Variant("(b) reference copied", way="copy"),
    "no_pose": Variant("(c) pose blanked", pose=False),
    "no_adapter": Variant("(d) adapter off", adapter=False),
    "no_face": Variant("without C_F", face=False),
    "vae": Variant("(e) truth through the VAE", way="vae"),
    "cross_exact": Variant("(a) exact keypoints", driving="exact"),
    "cross_aligned": Variant("(a) driver's keypoints, aligned", driving="aligned"),
    "cross_copy": Variant("(b) reference copied", driving="exact", way="copy"),
    "cross_vae": Variant("(e) truth through the VAE", driving="exact", way="vae"),
}


@dataclass(frozen=True)
class Settings:
    """What all results of a report have in common.

    Attributes:
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        seed: the noise of clip k follows from (seed, k), and is the same for all variants.
        frames: T.
        size: (H, W), px.
        weights: hash of all weights.
        dtype: floating-point type of the networks.
        scheduler: where it is not the checkpoint's own.
        lora: SHA-256 of a LoRA's file, and its scale where that is not 1; "" for none.
        token_downsampling: see `XDynaPipeline`; 1 is exact.
    """

    steps: int
    guidance: float
    seed: int
    frames: int
    size: tuple[int, int]
    weights: str
    dtype: str
    scheduler: str = ""
    lora: str = ""
    token_downsampling: int = 1


@dataclass
class Bench:
    """Generates variants of clips.

    Attributes:
        pipeline: the model.
        settings: see there.
        folder: where results are kept.
        style: of the pose maps: that of the model's contract.
    """

    pipeline: XDynaPipeline
    settings: Settings
    folder: Path
    style: PoseStyle = field(default_factory=PoseStyle)
    _tasks: dict[tuple[HeldOut, Driving], Task] = field(default_factory=dict)

    def task(self, entry: HeldOut, driving: Driving) -> Task:
        """The rendered inputs and truth of a clip; those of the last clip are kept in memory."""
        if any(kept != entry for kept, _ in self._tasks):
            self._tasks.clear()
        if (entry, driving) not in self._tasks:
            frames, size = self.settings.frames, self.settings.size
            if driving == "self":
                task = self_driven(entry, frames=frames, size=size, style=self.style)
            else:
                task = cross_driven(entry, frames=frames, size=size, aligned=driving == "aligned", style=self.style)
            self._tasks[entry, driving] = task
        return self._tasks[entry, driving]

    def path(self, number: int, name: str) -> Path:
        """File of a result."""
        return self.folder / f"{number:02d}_{name}.npz"

    def kept(self, number: int, name: str, entry: HeldOut) -> np.ndarray | None:
        """The result in its file, if it is there, undamaged, and still what would come out."""
        path = self.path(number, name)
        if not path.is_file():
            return None
        try:
            arrays = read_npz(path, keys=("frames", "fingerprint"))
        except PerceptionError:
            return None
        same = str(arrays["fingerprint"]) == self._fingerprint(number, name, entry)
        return arrays["frames"] if same else None

    def make(self, number: int, name: str, entry: HeldOut) -> np.ndarray:
        """Generate a variant of a clip, uint8 (T, H, W, 3), and write it to its file."""
        frames = self._generate(number, VARIANTS[name], self.task(entry, VARIANTS[name].driving))
        fingerprint = np.array(self._fingerprint(number, name, entry))
        with atomic_output(self.path(number, name), overwrite=True) as path, path.open("wb") as file:
            np.savez_compressed(file, frames=frames, fingerprint=fingerprint)
        return frames

    def _generate(self, number: int, variant: Variant, task: Task) -> np.ndarray:
        if variant.way == "copy":
            return np.repeat(task.reference[None], self.settings.frames, axis=0)
        if variant.way == "vae":
            return reconstruct(self.pipeline, task.truth.frames)
        face = task.face if variant.face and self.pipeline.face_controlnet is not None else None
        with contextlib.nullcontext() if variant.adapter else adapter_off(self.pipeline.unet):
            videos = self.pipeline(
                task.reference,
                task.pose if variant.pose else np.zeros_like(task.pose),
                face,
                num_inference_steps=self.settings.steps,
                guidance_scale=self.settings.guidance,
                token_downsampling=self.settings.token_downsampling,
                generator=torch.Generator().manual_seed(self.settings.seed * 100_000 + number),
                output_type="pt",
            ).frames
        assert isinstance(videos, torch.Tensor)
        return to_uint8(videos[0])

    def _fingerprint(self, number: int, name: str, entry: HeldOut) -> str:
        variant = VARIANTS[name]
        task = self.task(entry, variant.driving)
        usual = {"scheduler": "", "lora": "", "token_downsampling": 1}  # left out: as before there were these
        settings = {name: value for name, value in asdict(self.settings).items() if usual.get(name) != value}
        facts = {**settings, **asdict(variant), "label": "", "number": number, "version": __version__}
        digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16)
        for images in (task.reference, task.pose, task.face, task.truth.frames):
            digest.update(hashlib.blake2b(images.tobytes(), digest_size=16).digest())
        return digest.hexdigest()


@contextlib.contextmanager
def adapter_off(unet: XDynaUNet) -> Iterator[None]:
    """Inside the block the Dynamics-Adapter adds nothing: W'o (weight and bias) is zero everywhere."""
    attentions = [module for module in unet.modules() if isinstance(module, DynamicsAdapterAttention)]
    outputs = [attention.to_out_ff for attention in attentions if attention.adapter]
    kept = [[parameter.detach().clone() for parameter in output.parameters()] for output in outputs]
    try:
        with torch.no_grad():
            for output in outputs:
                for parameter in output.parameters():
                    parameter.zero_()
        yield
    finally:
        with torch.no_grad():
            for output, values in zip(outputs, kept, strict=True):
                for parameter, value in zip(output.parameters(), values, strict=True):
                    parameter.copy_(value)


@torch.no_grad()
def reconstruct(pipeline: XDynaPipeline, frames: np.ndarray) -> np.ndarray:
    """Images through the autoencoder (mean of the posterior) and back: uint8 (T, H, W, 3) both."""
    made = []
    for frame in frames:
        pixels = torch.from_numpy(rearrange(frame, "h w c -> 1 c h w")).float() / 127.5 - 1
        latents = pipeline.vae.encode(pixels.to(pipeline.vae.device, pipeline.vae.dtype)).latent_dist.mean
        latents = rearrange(latents.float() * pipeline.vae.config.scaling_factor, "1 c h w -> 1 c 1 h w")
        made += [to_uint8(part) for part in pipeline.decode_frames(latents)]
    return np.concatenate(made)
