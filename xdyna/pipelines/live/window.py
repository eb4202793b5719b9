"""Denoises one window of a live animation: new frames beside the last ones' end, which stay as they are.

Let z_h be the latents of the held frames as they came out, e_k the noise of frame k (a function of seed and k), and
a_t, s_t the scheduler's signal and noise levels. Before each step t the held part of the window is put back to

    x_t[held] = a_t z_h + s_t e_h        (held_as=noised: `scheduler.add_noise`)   or   z_h   (held_as=clean)

and after the last step to z_h itself: the replacement method of video diffusion (Ho et al., arXiv 2204.03458, section
3.1, without its gradient term). Noised frames are what the network was trained on; clean ones it knows as frame 0 only.

Shape legend: T frames of a window, h w latent grid, B branches of guidance.
"""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from xdyna.config.live import LiveConfig
from xdyna.core.device import to_device
from xdyna.diffusion.guidance import scale_condition
from xdyna.diffusion.prior import similarity_prior
from xdyna.models import cpu_attention
from xdyna.models.attention import CrossAttentionCache
from xdyna.models.controls import ControlResiduals, share_work, to_clip
from xdyna.models.denoiser import Control, Denoiser, control_residuals
from xdyna.models.layers import halve_geglu, use_channels_last
from xdyna.pipelines.denoise import guide
from xdyna.pipelines.options import Embeddings
from xdyna.pipelines.xdyna import XDynaPipeline, to_uint8


def generator_of(seed: int, index: int) -> torch.Generator:
    """The source of what is random of one frame. Args: seed: of the run; index: of the frame. Returns: on the CPU."""
    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
    return torch.Generator("cpu").manual_seed(int(state[0]) >> 1)


class EmbeddedImages:
    """Control images as one ControlNet embeds them, which no timestep enters: each once, those of held frames kept.

    They are scaled by the range of all images so far, as whole videos are by their own; a new range embeds anew.

    Args:
        net: the ControlNet.
    """

    def __init__(self, net: ControlNetModel) -> None:
        share_work(net)
        self.net = net
        self.forget()

    def forget(self) -> None:
        """As if no image had been seen."""
        self._range = 255.0, 0.0
        self._known: dict[bytes, Tensor] = {}

    def of(self, images: np.ndarray) -> Control:
        """Those of one window.

        Args:
            images: uint8 (T, H, W, C).

        Returns:
            Control: images (T, C', h, w) embedded, in the dtype of the network.
        """
        low, high = min(self._range[0], float(images.min())), max(self._range[1], float(images.max()))
        known = self._known if (low, high) == self._range else {}
        names = [image.tobytes() for image in images]
        new = {name: image for name, image in zip(names, images, strict=True) if name not in known}
        if new:
            layer = self.net.controlnet_cond_embedding
            weight = next(layer.parameters())
            pixels = rearrange(torch.from_numpy(np.stack(list(new.values()))), "t h w c -> t c h w")
            scaled = scale_condition(to_device(pixels.contiguous(), weight.device), low, high)
            known = known | dict(zip(new, layer(scaled.to(weight.dtype)), strict=True))
        self._range, self._known = (low, high), {name: known[name] for name in names}
        embedded = torch.stack([known[name] for name in names])
        return Control(self.net, embedded.contiguous(memory_format=torch.channels_last))


class WindowDenoiser:
    """The networks with everything that is the same in all windows.

    Their convolutions are laid out channels last, in place, which is faster, on CPUs nearly twice.

    Args:
        pipeline: the networks.
        fitted: the reference at the video's size, uint8 (H, W, 3).
        looked_at: what the image encoder sees, uint8 (H, W, 3).
        settings: of the run; guidance is a number.
    """

    def __init__(
        self, pipeline: XDynaPipeline, fitted: np.ndarray, looked_at: np.ndarray, settings: LiveConfig
    ) -> None:
        assert settings.guidance is not None, "the checkpoint's own was put in"
        self.pipeline, self.settings, self.scale = pipeline, settings, settings.guidance
        self.device, self.dtype = pipeline._execution_device, pipeline.unet.dtype
        self.denoiser = Denoiser.of(pipeline)
        networks: list[nn.Module] = [pipeline.unet, *self.denoiser.beside_unet()]
        use_channels_last(pipeline.vae, *networks)
        for network in networks:
            halve_geglu(network)
        self.scheduler: Any = copy.deepcopy(pipeline.scheduler)
        accepted = inspect.signature(self.scheduler.step).parameters
        self._takes_generator = "generator" in accepted
        with torch.inference_mode():
            drawn = torch.Generator("cpu").manual_seed(settings.seed)
            self.reference = pipeline.encode_reference(Image.fromarray(fitted), drawn)
            embeds = Embeddings(
                *pipeline.encode_prompt(settings.prompt, settings.negative_prompt),
                *(pipeline.encode_image(Image.fromarray(looked_at)) if pipeline.image_projection else (None, None)),
            ).to(self.device, self.dtype)
            self.tokens = embeds.tokens(0, guided=settings.guidance > 1)
            self.texts = (self.tokens.text[:1] if self.tokens.same_text else self.tokens.text).split(1)
            self.features = self.denoiser.read_reference(self.reference[:, :, None], self.tokens)
        self.keys = CrossAttentionCache()
        nets = {"pose": self.denoiser.pose_controlnet, "face": self.denoiser.face_controlnet}
        self.embedded = {name: EmbeddedImages(net) for name, net in nets.items() if net is not None}

    @cpu_attention.allow()
    @torch.inference_mode()
    def denoise(self, images: dict[str, np.ndarray], *, start: int, held: Tensor | None) -> Tensor:
        """Latents of one window.

        Args:
            images: control images of all T frames by ControlNet, "pose" uint8 (T, H, W, 3), "face" (T, H, W, 6).
            start: number of the window's first frame, held ones included; decides the noise.
            held: (1, 4, k, h, w) latents of the first k frames; None holds none.

        Returns:
            Tensor: (1, 4, T, h, w) float32; the first k frames are `held`, bit by bit.
        """
        count, kept = len(images["pose"]), 0 if held is None else held.shape[2]
        controls = [self.embedded[name].of(values) for name, values in images.items()]
        noise, blurred = self._draw(start, count)
        self.scheduler.set_timesteps(self.settings.steps, device=self.device)
        timesteps = self.scheduler.timesteps
        if self.settings.similarity_prior:
            x = self.scheduler.add_noise(similarity_prior(self.reference, blurred), noise, timesteps[:1])
        else:
            x = noise * self.scheduler.init_noise_sigma
        extra = {"generator": generator_of(self.settings.seed + 1, start)} if self._takes_generator else {}
        reference = self.reference[:, :, None].to(self.dtype)
        for t in timesteps:
            if held is not None:
                x[:, :, :kept] = self._at_level(held, noise[:, :, :kept], t)
            sample = self.scheduler.scale_model_input(x, t).to(self.dtype)
            prediction = self.denoiser.predict(
                sample,
                t,
                self.tokens,
                reference_BC1hw=reference,
                residuals=self._residuals(sample, t, controls),
                features=self.features,
                keys=self.keys,
                token_downsampling=self.settings.token_downsampling,
            )
            x = self.scheduler.step(guide(prediction.float(), self.scale), t, x, return_dict=False, **extra)[0]
        if held is not None:
            x[:, :, :kept] = held
        return x

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> np.ndarray:
        """Frames of latents (1, 4, T, h, w): uint8 (T, H, W, 3).

        Raises:
            ValueError: NaN or infinity.
        """
        vae = self.pipeline.vae
        scaled = rearrange(latents, "1 c t h w -> t c h w") / vae.config.scaling_factor
        decoded = vae.decode(scaled.to(self.device, vae.dtype), return_dict=False)[0].float()
        if not bool(torch.isfinite(decoded).all()):
            raise ValueError("a window came out as NaN or infinity; use another dtype (bfloat16 or float32)")
        return to_uint8((decoded / 2 + 0.5).clamp(0, 1).cpu())

    def forget(self) -> None:
        """As if no window had been made."""
        for embedded in self.embedded.values():
            embedded.forget()

    def _at_level(self, held: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return held if self.settings.held_as == "clean" else self.scheduler.add_noise(held, noise, t.reshape(1))

    def _draw(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Noise and the prior's blurred elements, (1, 4, T, h, w) each."""
        _, channels, height, width = self.reference.shape
        noise, blurred = [], []
        for index in range(start, start + count):
            generator = generator_of(self.settings.seed, index)
            blurred.append(torch.rand((1, channels, height, width), generator=generator) < 0.5)
            noise.append(torch.randn((1, channels, height, width), generator=generator))
        return torch.stack(noise, 2).to(self.device), torch.stack(blurred, 2).to(self.device)

    def _residuals(self, sample: Tensor, t: Tensor, controls: Sequence[Control]) -> ControlResiduals:
        """Of all ControlNets, (B or 1, C, T, ., .): once where the branches have the same text."""
        frames = rearrange(sample, "1 c t h w -> t c h w")
        rows = [to_clip(control_residuals(frames, t, text, controls), 1) for text in self.texts]
        if len(rows) == 1:
            return rows[0]
        down = tuple(torch.cat(level) for level in zip(*(row.down for row in rows), strict=True))
        return ControlResiduals(down, torch.cat([row.mid for row in rows]))
