"""Batch -> loss. One module per kind of stage, holding all its networks, so that one wrapper (DDP, FSDP, DeepSpeed)
wraps them.

Everything random in a sample's loss (timestep, noise, posterior) is drawn from a generator of (seed, sample index): the
loss does not depend on the batch size, on the number of processes or on where a run was interrupted.

Shape legend: B clips, F = 1 + T frames (frame 0 is the reference), C channels, H W pixels, h w latent grid, S tokens.
"""

import abc
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from einops import rearrange, reduce
from torch import Tensor, nn

from xdyna.config.train import LossConfig
from xdyna.core.device import to_device
from xdyna.data.samples import Batch
from xdyna.diffusion import losses
from xdyna.models.denoiser import Control, Denoiser, Tokens
from xdyna.training.components import Components
from xdyna.training.draws import TRAINING, Draw, Inputs, sample_generator, spread_timestep


class Objective(nn.Module, abc.ABC):
    """Common part: the networks, and the encoders that every stage shares.

    Args:
        components: the networks; frozen and unfrozen already.
        loss: weights of the terms.
        seed: of the run.
    """

    def __init__(self, components: Components, loss: LossConfig, *, seed: int) -> None:
        super().__init__()
        self.components = components
        self.networks = nn.ModuleDict(self.used(components))
        self.loss, self.seed = loss, seed

    @abc.abstractmethod
    def used(self, components: Components) -> dict[str, nn.Module]:
        """Networks that this objective runs; others need not be on the device."""

    @property
    def num_timesteps(self) -> int:
        """Timesteps of the noise schedule; 0 for an objective without noise."""
        return 0

    def timesteps(self, indices: Sequence[int], stream: int = TRAINING) -> list[int]:
        """Timesteps that are drawn for samples, by their indices; [] for an objective without noise."""
        return []

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters that train, by "component.name"."""
        return {name: p for name, p in self.networks.named_parameters() if p.requires_grad}

    @abc.abstractmethod
    def forward(
        self, batch: Batch, *, stream: int = TRAINING, timestep: int | None = None, inputs: Inputs | None = None
    ) -> Tensor:
        """Loss of every sample.

        Args:
            batch: on the networks' device.
            stream: `TRAINING` or `VALIDATION`.
            timestep: the same for all samples instead of drawn ones.
            inputs: as `inputs` makes them from the others; None: made now.

        Returns:
            Tensor: (B,) float32.
        """

    def prepare(self, batch: Batch) -> Batch:
        """What frozen encoders say of a batch, computed once for clips that are shown several times.

        Args:
            batch: on the networks' device.

        Returns:
            Batch: with the same loss.
        """
        return batch

    def follow(self, average: Mapping[str, Tensor]) -> None:
        """Know the run's average, of use where a target is made with it.

        Args:
            average: the EMA weights, or the weights themselves in a run without; by "component.name", changed in place
                whenever a step is taken.
        """

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.networks.parameters()).device

    def _draws_on_gpu(self, stream: int) -> bool:
        """Where noise comes from: in training from the GPU, if there is one (millions of numbers a step); that of
        validation is the same everywhere."""
        return self.device.type == "cuda" and stream == TRAINING

    def _weights(self, batch: Batch, grid: tuple[int, int]) -> Tensor:
        """Weights of the error of the generated frames, float32 (B, 1, T, h, w)."""
        return losses.person_weights(
            batch.pose, grid, self.loss.person, features=batch.face[:, :, :3], of_features=self.loss.face
        )

    @property
    def _weighted(self) -> bool:
        return self.loss.person != 1 or self.loss.face != 1


class VAEObjective(Objective):
    """Stage `vae`: reconstruct single frames (squared error, L1 and edges; small KL term)."""

    def used(self, components: Components) -> dict[str, nn.Module]:
        """Only the autoencoder."""
        return {"vae": components.vae}

    def forward(
        self, batch: Batch, *, stream: int = TRAINING, timestep: int | None = None, inputs: Inputs | None = None
    ) -> Tensor:
        """See `Objective.forward`; `timestep` and `inputs` have no meaning here."""
        vae = self.components.vae
        pixels = batch.pixels
        b = pixels.shape[0]
        frames = rearrange(_to_unit(pixels), "b f c h w -> (b f) c h w")
        posterior = vae.encode(frames).latent_dist
        normal = self._normal(batch, posterior.mean, stream)
        decoded = vae.decode(posterior.mean + posterior.std * normal).sample
        weights = None
        if self._weighted and stream == TRAINING:
            driven = self._weights(batch, (pixels.shape[-2], pixels.shape[-1]))  # not of the references
            weights = rearrange(F.pad(driven, (0, 0, 0, 0, 1, 0), value=1.0), "b 1 f h w -> (b f) 1 h w")
        errors = losses.reconstruction_loss(decoded, frames, l1=self.loss.l1, edges=self.loss.edges, weights=weights)
        kl = losses.kl_to_standard_normal(posterior.mean, posterior.logvar)
        return reduce(errors + self.loss.kl * kl, "(b f) -> b", "mean", b=b)

    def _normal(self, batch: Batch, like: Tensor, stream: int) -> Tensor:
        per_clip = like.shape[0] // len(batch.index)
        device = self.device if self._draws_on_gpu(stream) else "cpu"
        drawn = [
            torch.randn((per_clip, *like.shape[1:]), generator=generator, device=device)
            for generator in (sample_generator(self.seed, i, stream, device) for i in batch.index.tolist())
        ]
        return torch.cat(drawn).to(like)


class DiffusionObjective(Objective):
    """Stages `base`, `dynamics` and `face`: predict the noise (X-Dyna, arXiv 2501.10021, section 3.1), or v where the
    scheduler says so.

    Args:
        components: the networks.
        loss: weighting.
        seed: of the run.
        single_frames: stage `base`: every frame is a clip of its own, without reference frame, motion and control.
        face: run the face ControlNet.
    """

    def __init__(
        self, components: Components, loss: LossConfig, *, seed: int, single_frames: bool = False, face: bool = False
    ) -> None:
        self.single_frames, self.face = single_frames, face
        self._unconditional: Tensor | None = None  # image tokens of an all-zero input, for batches that bring theirs
        super().__init__(components, loss, seed=seed)
        # DDPM's noising for whatever sampler the model has: all of them share its noise schedule.
        self.scheduler = DDPMScheduler.from_config(components.scheduler.config)
        predicted = self.scheduler.config.prediction_type
        if predicted not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"the scheduler has prediction_type={predicted}; training needs 'epsilon' (X-Dyna) or 'v_prediction'"
            )
        self.of_velocity = predicted == "v_prediction"
        if self.of_velocity and loss.velocity is not None:
            raise ValueError(
                f"loss.velocity={loss.velocity:g} weighs errors of predicted noise as those of v, but the scheduler of "
                "this model has prediction_type=v_prediction: its errors are those of v already; set it to null"
            )
        if not self.of_velocity and not float(self.alphas_cumprod.min()) > 0:
            raise ValueError(
                "the scheduler ends in pure noise (rescale_betas_zero_snr), where predicted noise says nothing; give "
                "it prediction_type=v_prediction"
            )

    @property
    def num_timesteps(self) -> int:
        """Timesteps of the noise schedule."""
        return len(self.alphas_cumprod)

    def timesteps(self, indices: Sequence[int], stream: int = TRAINING) -> list[int]:
        """See `Objective.timesteps`."""
        steps = self.num_timesteps
        if self.loss.timesteps == "spread" and stream == TRAINING:
            return [spread_timestep(self.seed, index, steps) for index in indices]
        generators = (sample_generator(self.seed, index, stream) for index in indices)
        return [int(torch.randint(steps, (), generator=generator)) for generator in generators]

    @property
    def alphas_cumprod(self) -> Tensor:
        """a_t, float32 (steps,). The scheduler holds it: DeepSpeed would round a buffer to 16 bit, in which 1 - a of
        the first timesteps is 0."""
        return self.scheduler.alphas_cumprod

    def used(self, components: Components) -> dict[str, nn.Module]:
        """Everything that the stage runs."""
        names = ["vae", "unet", "text_encoder", "image_encoder", "image_projection"]
        if not self.single_frames:
            names += ["pose_controlnet"] + (["face_controlnet"] if self.face else [])
            names += ["reference_net"] if components.reference_net is not None else []
        modules = components.modules()
        return {name: modules[name] for name in names}

    @torch.no_grad()
    def inputs(self, batch: Batch, *, stream: int = TRAINING, timestep: int | None = None) -> Inputs:
        """What `forward` needs beside the batch; the arguments are the same."""
        draw = self._draw(batch, stream)
        t_B = draw.timestep if timestep is None else torch.full_like(draw.timestep, timestep)
        t_B, noise, posterior = (to_device(x, self.device) for x in (t_B, draw.noise, draw.posterior))
        return Inputs(t_B, noise, posterior, self._text_tokens(batch))

    def forward(
        self, batch: Batch, *, stream: int = TRAINING, timestep: int | None = None, inputs: Inputs | None = None
    ) -> Tensor:
        """See `Objective.forward`."""
        if inputs is None:
            inputs = self.inputs(batch, stream=stream, timestep=timestep)
        t_B, noise = inputs.timestep, inputs.noise
        with torch.no_grad():
            latents = self._latents(batch, inputs.posterior)
        tokens = Tokens(inputs.text, self._image_tokens(batch))
        clean = latents[:, :, 1:]
        noisy = self.scheduler.add_noise(clean, noise, t_B)
        prediction = self.predict(latents[:, :, :1], noisy, t_B, tokens, batch)
        target = self.scheduler.get_velocity(clean, noise, t_B) if self.of_velocity else noise
        weights = None
        if self._weighted and stream == TRAINING:
            weights = self._weights(batch, (prediction.shape[-2], prediction.shape[-1]))
        loss_B = losses.clip_losses(prediction, target, weights)
        alphas_B = self.alphas_cumprod[t_B]
        if self.loss.min_snr is not None:
            return loss_B * losses.min_snr_weight(alphas_B, self.loss.min_snr, of_velocity=self.of_velocity)
        if self.loss.velocity is not None:
            return loss_B * losses.velocity_weight(alphas_B, self.loss.velocity)
        return loss_B

    @torch.no_grad()
    def prepare(self, batch: Batch) -> Batch:
        """See `Objective.prepare`: latents, and image tokens where nothing that makes them trains."""
        parts = self.components
        known: dict[str, Any] = {}
        if batch.latents_mean is None and not _trains(parts.vae):
            posterior = parts.vae.encode(rearrange(_to_unit(batch.pixels), "b f c h w -> (b f) c h w")).latent_dist
            mean, std = (
                rearrange(x.float(), "(b f) c h w -> b f c h w", b=len(batch)) for x in (posterior.mean, posterior.std)
            )
            known |= {"latents_mean": mean, "latents_std": std, "pixels": batch.pixels[:, :1]}
        if batch.image_tokens is None and not _trains(parts.image_encoder, parts.image_projection):
            known["image_tokens"] = self.components.encode_image(batch.pixels[:, 0]).float()
        return dataclasses.replace(batch, **known)

    # --- the networks ---------------------------------------------------------------------------------------------

    def predict(
        self,
        reference: Tensor,
        noisy: Tensor,
        t_B: Tensor,
        tokens: Tokens,
        batch: Batch,
        *,
        by: Denoiser | None = None,
    ) -> Tensor:
        """What the denoiser says of noisy latents.

        Args:
            reference: (B, C, 1, h, w) clean latents.
            noisy: (B, C, T, h, w).
            t_B: timesteps.
            tokens: text and image tokens.
            batch: its control images and masks.
            by: other networks than those that train.

        Returns:
            Tensor: (B, C, T, h, w).
        """
        denoiser = self.components if by is None else by
        if self.single_frames:
            return denoiser.denoise_frames(noisy, t_B, tokens)
        controls = [Control(denoiser.pose_controlnet, batch.pose)]
        if self.face:
            assert denoiser.face_controlnet is not None
            controls.append(Control(denoiser.face_controlnet, batch.face, keep=~batch.drop_face))
        return denoiser.denoise_clip(noisy, t_B, tokens, reference_BC1hw=reference, controls=controls)

    # --- the inputs -----------------------------------------------------------------------------------------------

    def _draw(self, batch: Batch, stream: int) -> Draw:
        channels = self.components.unet.config.in_channels
        frames = batch.pose.shape[1]
        factor = 2 ** (len(self.components.vae.config.block_out_channels) - 1)
        grid = (batch.pose.shape[-2] // factor, batch.pose.shape[-1] // factor)
        noises, offsets, posteriors = [], [], []
        for index in batch.index.tolist():
            generator = sample_generator(self.seed, index, stream)
            torch.randint(self.num_timesteps, (), generator=generator)  # the first number is that of `timesteps`
            if self._draws_on_gpu(stream):
                generator = sample_generator(self.seed, index, stream, self.device)
            draw = functools.partial(torch.randn, generator=generator, device=generator.device)
            noises.append(draw((channels, frames, *grid)))
            offsets.append(draw((channels,)))
            posteriors.append(draw((channels, frames + 1, *grid)))
        noise = losses.offset_noise(torch.stack(noises), torch.stack(offsets), self.loss.noise_offset)
        timesteps = torch.tensor(self.timesteps(batch.index.tolist(), stream))
        return Draw(timesteps, noise, torch.stack(posteriors))

    def _latents(self, batch: Batch, normal: Tensor) -> Tensor:
        """Scaled latents of reference and frames, (B, C, F, h, w): a sample of the posterior."""
        vae = self.components.vae
        if batch.latents_mean is not None and batch.latents_std is not None:
            mean, std = (
                rearrange(x.to(normal), "b f c h w -> b c f h w") for x in (batch.latents_mean, batch.latents_std)
            )
        else:
            pixels = _to_unit(batch.pixels).to(vae.dtype)
            posterior = vae.encode(rearrange(pixels, "b f c h w -> (b f) c h w")).latent_dist
            mean, std = (losses.frames_to_clips(x.to(normal), pixels.shape[0]) for x in (posterior.mean, posterior.std))
        return (mean + std * normal) * vae.config.scaling_factor

    def _text_tokens(self, batch: Batch) -> Tensor:
        texts = ["" if drop else text for text, drop in zip(batch.caption, batch.drop_text.tolist(), strict=True)]
        distinct = sorted(set(texts))
        rows = torch.tensor([distinct.index(text) for text in texts])
        return self.components.encode_text(distinct)[to_device(rows, self.device)]

    def _image_tokens(self, batch: Batch) -> Tensor:
        """Tokens of the reference images, (B, S, C); those of an all-zero input where the image is dropped."""
        keep_B = ~batch.drop_image.bool()
        if batch.image_tokens is None:
            return self.components.encode_image(batch.pixels[:, 0], keep=keep_B)
        if self._unconditional is None:  # kept tokens come from frozen networks: these stay what they are
            with torch.no_grad():
                nothing = torch.zeros(1, dtype=torch.bool)
                self._unconditional = self.components.encode_image(batch.pixels[:1, 0], keep=nothing).float()
        return torch.where(rearrange(keep_B, "b -> b 1 1").to(self.device), batch.image_tokens, self._unconditional)


def _trains(*modules: nn.Module) -> bool:
    return any(p.requires_grad for module in modules for p in module.parameters())


def _to_unit(pixels: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1
