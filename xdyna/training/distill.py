"""Consistency distillation: a student that answers in a few steps what its teacher answers in many.

    f(x, t)  = c_skip(t) x + c_out(t) x_0(x, t)         c_skip = d^2 / (s^2 + d^2), c_out = s / sqrt(s^2 + d^2)
    target   = f_ema(x', t'),  x' = teacher's DDIM from x at t to t'       (x' itself where t' is the end)
    loss     = huber(f_student(x, t) - target)

with s = 10 t, d = 0.5 as in diffusers' LCMScheduler, which samples the result; x_0(x, t) is what a network says of the
clean latents. Sources: Song et al., arXiv 2303.01469, algorithm 2; k-step skipping, guidance folded in: Luo et al.,
arXiv 2310.04378, section 4; for video, Wang et al., arXiv 2402.00769. Huber: Song & Dhariwal, arXiv 2310.14189.

The teacher is the model that the run starts from, the target the run's EMA weights (the student's own without EMA).
Both share with the student all weights that do not train. What is sampled for is shown, too: the first step's latents
begin from noised copies of the reference, and short windows may begin with frames that are known already.

Shape legend: B clips, C channels, T generated frames, h w latent grid.
"""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from diffusers import LCMScheduler
from torch import Tensor, nn

from xdyna.config.train import LossConfig
from xdyna.core.device import to_device
from xdyna.data.samples import Batch
from xdyna.diffusion import losses
from xdyna.diffusion.prior import similarity_prior
from xdyna.models.denoiser import Denoiser, Tokens
from xdyna.models.unet import XDynaUNet
from xdyna.training.components import Components
from xdyna.training.draws import TRAINING, Inputs
from xdyna.training.objective import DiffusionObjective

END = -1  # the timestep of clean latents
SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0  # LCMScheduler's
_STREAM = 23  # of random numbers that choose windows and starts


@dataclass(frozen=True)
class Shown:
    """How one clip is shown.

    Attributes:
        frames: its first so many.
        held: of these, so many are known already: given clean, and not part of the loss.
        prior: whether noise is added to copies of the reference, if the timestep is the first of sampling.
        blurred: bool (C, T, h, w), see `similarity_prior`.
    """

    frames: int
    held: int
    prior: bool
    blurred: Tensor


@dataclass(frozen=True)
class Window:
    """Clips that are shown alike; the first `held` frames are known.

    Attributes:
        reference: (B, C, 1, h, w) clean latents.
        clean: (B, C, T, h, w) latents of the frames.
        start: the same, or what noise is added to instead.
        noise: (B, C, T, h, w).
        tokens: text and image tokens.
        unconditional: those of the unconditional branch; None without guidance.
        batch: control images and masks.
        held: frames that are known.
    """

    reference: Tensor
    clean: Tensor
    start: Tensor
    noise: Tensor
    tokens: Tokens
    unconditional: Tokens | None
    batch: Batch
    held: int

    def with_known(self, x: Tensor, known: Tensor) -> Tensor:
        """x with the frames that are known, (B, C, T, h, w)."""
        return torch.cat([known[:, :, : self.held], x[:, :, self.held :]], dim=2) if self.held else x


def boundary_scalings(t_B: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out of LCMScheduler. Args: t_B: timesteps >= 0. Returns: two of its shape, float32."""
    scaled = t_B.float() * TIMESTEP_SCALING
    total = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, scaled / total.sqrt()


def frozen_copy(components: Components, *, lora: bool) -> Denoiser:
    """The networks, frozen, with copies of the weights that train; all others are shared.

    Args:
        components: the networks, groups unfrozen already.
        lora: keep LoRA layers; False: the networks without them.
    """
    memo = {
        id(tensor): tensor
        for module in components.modules().values()
        for tensor in (*module.parameters(), *module.buffers())
        if not tensor.requires_grad
    }
    copies = {
        name: copy.deepcopy(module, memo).requires_grad_(False)
        for name, module in Denoiser.of(components).modules().items()
        if any(p.requires_grad for p in module.parameters())
    }
    if not lora and "unet" in copies:
        unet = cast(XDynaUNet, copies["unet"])
        if getattr(unet, "peft_config", None):
            unet.unload_lora()
    return dataclasses.replace(Denoiser.of(components), **cast(dict[str, Any], copies))


class ConsistencyObjective(DiffusionObjective):
    """Stage `distill`. Args: as of `DiffusionObjective`; `loss.distill` has the settings."""

    def __init__(self, components: Components, loss: LossConfig, *, seed: int, face: bool = False) -> None:
        super().__init__(components, loss, seed=seed, face=face)
        self.settings = loss.distill
        schedule = LCMScheduler.from_config(components.scheduler.config)
        schedule.set_timesteps(self.settings.points)
        self.points: list[int] = schedule.timesteps.tolist()  # falling
        self.teacher, self.target = (frozen_copy(components, lora=lora) for lora in (False, True))
        self.copies = nn.ModuleDict(
            {
                f"{role}_{name}": module
                for role, networks in (("teacher", self.teacher), ("target", self.target))
                for name, module in networks.modules().items()
                if module is not components.modules().get(name)
            }
        )

    def follow(self, average: Mapping[str, Tensor]) -> None:
        """See `Objective.follow`: the target's weights are these tensors from now on."""
        for name, module in self.target.modules().items():
            for key, parameter in module.named_parameters():
                if (value := average.get(f"{name}.{key}")) is not None:
                    parameter.data = value.data

    def timesteps(self, indices: Sequence[int], stream: int = TRAINING) -> list[int]:
        """See `Objective.timesteps`: points of the student's schedule."""
        return [self._point(t) for t in super().timesteps(indices, stream)]

    def _point(self, t: int) -> int:
        """The point of 0 .. steps - 1: each has an equal share of them."""
        return self.points[len(self.points) - 1 - t * len(self.points) // self.num_timesteps]

    def forward(
        self, batch: Batch, *, stream: int = TRAINING, timestep: int | None = None, inputs: Inputs | None = None
    ) -> Tensor:
        """See `Objective.forward`; `timestep` is moved to the nearest point of the schedule below or at it."""
        if inputs is None:
            point = None if timestep is None else self._point(timestep)
            inputs = self.inputs(batch, stream=stream, timestep=point)
        with torch.no_grad():
            latents = self._latents(batch, inputs.posterior)
        losses_by_rows = [
            (rows, self._window_loss(window, inputs.timestep[rows], stream))
            for rows, window in self._windows(batch, latents, inputs, stream)
        ]
        order = torch.tensor([row for rows, _ in losses_by_rows for row in rows]).argsort()
        return torch.cat([loss for _, loss in losses_by_rows])[to_device(order, self.device)]

    # --- what is shown --------------------------------------------------------------------------------------------

    def _shown(self, index: int, shape: tuple[int, ...], stream: int) -> Shown:
        settings, frames = self.settings, shape[1]
        rng = np.random.default_rng([self.seed if stream == TRAINING else 0, index, stream, _STREAM])
        short, held, prior = rng.random(3)
        is_short = short < settings.windows and settings.window_frames <= frames
        return Shown(
            frames=settings.window_frames if is_short else frames,
            held=settings.held_frames if is_short and held < settings.held else 0,
            prior=prior < settings.prior,
            blurred=torch.from_numpy(rng.random(shape) < 0.5),
        )

    def _windows(
        self, batch: Batch, latents: Tensor, inputs: Inputs, stream: int
    ) -> Iterator[tuple[list[int], Window]]:
        """The clips by what is shown of them: rows of the batch, and their window."""
        shown = [self._shown(i, tuple(inputs.noise.shape[1:]), stream) for i in batch.index.tolist()]
        tokens = Tokens(inputs.text, self._image_tokens(batch))
        unconditional = None
        if self._guidance > 1:
            every = torch.ones(len(batch), dtype=torch.bool)
            dropped = dataclasses.replace(batch, drop_image=every.to(batch.drop_image.device), drop_text=every)
            with torch.no_grad():
                unconditional = Tokens(self._text_tokens(dropped), self._image_tokens(dropped))
        first = self.points[0]
        for frames, held in sorted({(each.frames, each.held) for each in shown}):
            rows = [row for row, each in enumerate(shown) if (each.frames, each.held) == (frames, held)]
            reference, clean = latents[rows, :, :1], latents[rows, :, 1 : 1 + frames]
            blurred = to_device(torch.stack([shown[row].blurred[:, :frames] for row in rows]), latents.device)
            uses = torch.tensor([shown[row].prior for row in rows]).to(latents.device)
            uses = uses & (inputs.timestep[rows] == first)
            start = torch.where(_wide(uses), similarity_prior(reference[:, :, 0], blurred), clean)
            yield (
                rows,
                Window(
                    reference=reference,
                    clean=clean,
                    start=torch.cat([clean[:, :, :held], start[:, :, held:]], dim=2),
                    noise=inputs.noise[rows, :, :frames],
                    tokens=_rows(tokens, rows),
                    unconditional=None if unconditional is None else _rows(unconditional, rows),
                    batch=_part(batch, rows, frames),
                    held=held,
                ),
            )

    # --- the loss -------------------------------------------------------------------------------------------------

    def _window_loss(self, window: Window, t_B: Tensor, stream: int) -> Tensor:
        noisy = self.scheduler.add_noise(window.start, window.noise, t_B)
        with torch.no_grad():
            target = self._target(window, noisy, t_B)
        student = self._consistency(self.components, window, noisy, t_B)
        weights = None
        if self._weighted and stream == TRAINING:
            weights = self._weights(window.batch, (noisy.shape[-2], noisy.shape[-1]))[:, :, window.held :]
        return losses.huber_losses(
            student[:, :, window.held :], target[:, :, window.held :], self.settings.huber, weights
        )

    def _target(self, window: Window, noisy: Tensor, t_B: Tensor) -> Tensor:
        """f_ema at the point below, of what the teacher makes of the noisy latents."""
        below = torch.tensor([*self.points[1:], END], device=t_B.device)
        number_B = (t_B[:, None] == torch.tensor(self.points, device=t_B.device)).int().argmax(1)
        end_B = below[number_B]
        x, now_B, count = noisy, t_B, self.settings.solver_steps
        for step in range(1, count + 1):
            next_B = t_B + torch.div((end_B - t_B) * step, count, rounding_mode="trunc")
            x = self._ddim(window, x, now_B, next_B)
            x = window.with_known(x, self._noised(window.clean, window.noise, next_B))
            now_B = next_B
        if bool((end_B == END).all()):
            return x
        f = self._consistency(self.target, window, x, end_B.clamp(min=0))
        return torch.where(_wide(end_B == END), x, f)

    def _consistency(self, denoiser: Denoiser, window: Window, x: Tensor, t_B: Tensor) -> Tensor:
        """f of a network, float32; the frames that are known are given clean."""
        x = window.with_known(x, window.clean)
        out = self.predict(window.reference, x, t_B, window.tokens, window.batch, by=denoiser)
        skip, scale = (_wide(value) for value in boundary_scalings(t_B))
        return skip * x + scale * self._clean(x, out.float(), t_B)

    def _ddim(self, window: Window, x: Tensor, t_B: Tensor, next_B: Tensor) -> Tensor:
        """The teacher's step of DDIM (arXiv 2010.02502, eq. 12 without noise), with its guidance."""
        out = self.predict(window.reference, x, t_B, window.tokens, window.batch, by=self.teacher).float()
        if window.unconditional is not None:
            free = self.predict(window.reference, x, t_B, window.unconditional, window.batch, by=self.teacher).float()
            out = free + self._guidance * (out - free)
        clean = self._clean(x, out, t_B)
        signal, noise = (_wide(value) for value in self._levels(t_B))
        return self._noised(clean, (x - signal * clean) / noise, next_B)

    def _clean(self, x: Tensor, out: Tensor, t_B: Tensor) -> Tensor:
        """The clean latents that a prediction stands for."""
        signal, noise = (_wide(value) for value in self._levels(t_B))
        return signal * x - noise * out if self.of_velocity else (x - noise * out) / signal

    def _noised(self, clean: Tensor, noise: Tensor, t_B: Tensor) -> Tensor:
        signal, level = (_wide(value) for value in self._levels(t_B))
        return signal * clean + level * noise

    def _levels(self, t_B: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(a_t) and sqrt(1 - a_t), (B,); at `END` a = 1."""
        a_B = torch.where(t_B == END, 1.0, self.alphas_cumprod.to(t_B.device)[t_B.clamp(min=0)])
        return a_B.sqrt(), (1 - a_B).sqrt()

    @property
    def _guidance(self) -> float:
        return 1.0 if self.settings.guidance is None else self.settings.guidance


def _wide(values_B: Tensor) -> Tensor:
    return values_B.reshape(-1, 1, 1, 1, 1)


def _rows(tokens: Tokens, rows: list[int]) -> Tokens:
    return Tokens(tokens.text[rows], tokens.image[rows] if tokens.image is not None else None)


def _part(batch: Batch, rows: list[int], frames: int) -> Batch:
    """What control images need of some clips: the first frames."""
    return dataclasses.replace(
        batch,
        index=batch.index[rows],
        clip_id=[batch.clip_id[row] for row in rows],
        pose=batch.pose[rows, :frames],
        face=batch.face[rows, :frames],
        drop_face=batch.drop_face[rows],
    )
