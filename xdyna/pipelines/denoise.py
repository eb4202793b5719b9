"""The sampling loop: noise prediction over overlapping windows, guidance, scheduler steps.

The videos of a batch advance side by side, each exactly as it would alone.

Shape legend: N videos, S tokens, c their channels, B branches of guidance (2 = [unconditional, conditional], or 1),
T generated frames, h w latent grid.
Nothing here draws random numbers: noise and window offsets come in (see `prepare.py`).
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from diffusers import DDIMScheduler, SchedulerMixin
from einops import rearrange
from torch import Tensor

from xdyna.core.ranks import Ranks
from xdyna.core.scratch import drop_pages
from xdyna.diffusion.guidance import classifier_free_guidance
from xdyna.models.controls import ControlResiduals
from xdyna.models.deep import DeepReuse
from xdyna.models.denoiser import Denoiser, Tokens
from xdyna.pipelines.options import Savings
from xdyna.pipelines.residuals import EMBEDDED_FRAMES, Condition, ControlResidualCache
from xdyna.pipelines.resume import BLOCK, ClipStore, blocks


def predict_noise(
    denoiser: Denoiser,
    latents: Tensor,
    reference: Tensor,
    timestep: Tensor,
    *,
    windows: Sequence[Sequence[int]],
    tokens: Tokens,
    controls: ControlResidualCache,
    reference_features: Sequence[Tensor] = (),
    deep: DeepReuse | None = None,
    step: int = 0,
    apart: bool = False,
    token_downsampling: int = 1,
    on_window: Callable[[], Any] = lambda: None,
    store: ClipStore | None = None,
    batch: int = 1,
) -> Tensor:
    """Noise prediction for all frames, averaged over the windows that hold each frame.

    Several processes share the windows; where there are fewer windows than processes, the branches, too. Process 0
    collects the predictions and averages them in the order of the windows, so that their sum is that of one process.

    Args:
        denoiser: the networks.
        latents: (1, 4, T, h, w) noisy latents, scaled for the network.
        reference: (1, 4, 1, h, w) clean latents of the reference; joins every window as frame 0.
        timestep: scalar.
        windows: lists of frame numbers that together hold every frame, all of one length.
        tokens: text and image tokens per branch.
        controls: residual cache of the clip.
        reference_features: of `Denoiser.read_reference`; empty without a ReferenceNet.
        deep: deep features kept between steps; None computes all of them.
        step: number of the step, for the store, and to decide whether they are computed anew.
        apart: the branches of guidance run one after the other, in less memory.
        token_downsampling: of spatial self-attention, see `XDynaUNet.forward`; 1 is exact.
        on_window: called after each window (progress).
        store: where the predictions are kept, and the processes; None: in memory, one process.
        batch: windows per forward pass; 1 with `deep` or `apart`.

    Returns:
        Tensor: (B, 4, T, h, w) float32.
    """
    store, reference = store or ClipStore(), reference.to(denoiser.unet.dtype)
    ranks, rows, reuse = store.ranks, tokens.text.shape[0], deep or DeepReuse(1, 1)
    depth, branches = reuse.start(step, windows, rows), [slice(0, rows)]
    if apart or len(windows) < ranks.world:
        branches = [slice(row, row + 1) for row in range(rows)]
    if len(branches) > 1 or reuse.interval > 1:
        batch = 1
    window = (latents.shape[1], len(windows[0]), *latents.shape[3:])
    predictions = store.empty("predictions", (len(windows), rows, *window), like=latents) if ranks.rank == 0 else None
    done = store.done(step)
    parts = [(k, branch) for k in range(len(windows)) for branch in branches]
    left = [(k, branch) for k, branch in parts if not done.issuperset(_numbers(k, branch, rows))]
    for _ in range(len(windows) - len({k for k, _ in left})):
        on_window()
    bounds = [rank * len(left) // ranks.world for rank in range(ranks.world + 1)]
    shares = [left[first:last] for first, last in pairwise(bounds)]
    controls.start([windows[k] for k, _ in shares[ranks.rank]], depth=depth)
    for turn in range(0, max(map(len, shares)), batch):
        made = _predict_windows(
            denoiser, latents, reference, timestep, [(windows[k], b) for k, b in shares[ranks.rank][turn:][:batch]],
            tokens=tokens, controls=controls, features=reference_features, reuse=reuse,
            token_downsampling=token_downsampling,
        )  # fmt: skip
        for share, outputs in zip(shares, _collect(ranks, made, (batch, rows // len(branches), *window)), strict=False):
            for (k, branch), out in zip(share[turn:][:batch], outputs, strict=False):
                assert predictions is not None
                predictions[k, branch] = out
                store.add(step, _numbers(k, branch, rows))
                if branch.stop == rows:
                    on_window()
        drop_pages()
    noise = store.empty("noise", (rows, *latents.shape[1:]), like=latents)
    for frames in blocks(latents.shape[2]):
        if predictions is not None:
            noise[:, :, frames] = _average(predictions, windows, frames)
        if ranks.world > 1:
            noise[:, :, frames] = ranks.broadcast(noise[:, :, frames].contiguous().cpu())
        drop_pages()
    return noise


def _numbers(window: int, branch: slice, rows: int) -> range:
    """Numbers of the parts of a step: row `b` of window `k` is part `k * rows + b`."""
    return range(window * rows, (window + 1) * rows)[branch]


def _predict_windows(
    denoiser: Denoiser,
    latents: Tensor,
    reference: Tensor,
    timestep: Tensor,
    parts: Sequence[tuple[Sequence[int], slice]],
    *,
    tokens: Tokens,
    controls: ControlResidualCache,
    features: Sequence[Tensor],
    reuse: DeepReuse,
    token_downsampling: int,
) -> list[Tensor]:
    """Predictions of some windows in one forward pass, (B, 4, frames, h, w) float32 each; all of the same branches."""
    if not parts:
        return []
    count, branch = len(parts), parts[0][1]
    own = tokens.rows(branch)
    residuals = [_branch(controls.window(latents, timestep, list(window)), branch) for window, _ in parts]
    noisy = torch.cat([latents[:, :, list(window)] for window, _ in parts]).to(own.text.device, reference.dtype)
    if count == 1:
        out = denoiser.predict(
            noisy,
            timestep,
            own,
            reference_BC1hw=reference,
            residuals=residuals[0],
            features=[feature[branch] for feature in features],
            keys=controls.keys(branch),
            deep=reuse.of(list(parts[0][0]), branch.start),
            token_downsampling=token_downsampling,
        )
        return [out.float()]

    def side_by_side(levels: Sequence[Tensor]) -> Tensor:
        """(B or 1, ...) of each window -> (B * windows or windows, ...)."""
        return torch.stack(list(levels), dim=1).flatten(0, 1)

    given = [r for r in residuals if r is not None]
    out = denoiser.predict(
        noisy,
        timestep,
        Tokens(
            own.text.repeat_interleave(count, 0),
            own.image.repeat_interleave(count, 0) if own.image is not None else None,
        ),
        reference_BC1hw=reference.expand(count, -1, -1, -1, -1),
        residuals=ControlResiduals(
            tuple(side_by_side(levels) for levels in zip(*(r.down for r in given), strict=True)),
            side_by_side([r.mid for r in given]),
        )
        if given
        else None,
        features=[feature[branch].repeat_interleave(count, 0) for feature in features],
        keys=controls.keys(branch, count),
        token_downsampling=token_downsampling,
    )
    return list(rearrange(out.float(), "(b k) c t h w -> k b c t h w", k=count))


def _collect(ranks: Ranks, made: list[Tensor], shape: tuple[int, ...]) -> Sequence[Sequence[Tensor]]:
    """What each process has made, in process 0; nothing in the others. `shape`: of as many as one can make."""
    if ranks.world == 1:
        return [made]
    padded = torch.zeros(shape)
    for number, tensor in enumerate(made):
        padded[number] = tensor
    return [list(each) for each in ranks.gather(padded) or ()]


def _average(predictions: Tensor, windows: Sequence[Sequence[int]], frames: slice) -> Tensor:
    """Mean over the windows that hold each of some frames: (windows, B, 4, C, h, w) -> (B, 4, frames, h, w)."""
    size = frames.stop - frames.start
    total = torch.zeros(*predictions.shape[1:3], size, *predictions.shape[4:], device=predictions.device)
    count = torch.zeros(size, device=predictions.device)
    for prediction, window in zip(predictions, windows, strict=True):
        held = [(place, frame - frames.start) for place, frame in enumerate(window) if 0 <= frame - frames.start < size]
        if held:
            places, positions = (list(numbers) for numbers in zip(*held, strict=True))
            total[:, :, positions] += prediction[:, :, places]
            count[positions] += 1
    return total / count[:, None, None]


def _branch(residuals: ControlResiduals | None, branch: slice) -> ControlResiduals | None:
    """Those of some branches of guidance; a single row serves all."""
    if residuals is None or len(residuals.mid) == 1:
        return residuals
    return ControlResiduals(tuple(level[branch] for level in residuals.down), residuals.mid[branch])


def guide(prediction: Tensor, scale: float) -> Tensor:
    """Combine the branches: (B, 4, T, h, w) -> (1, 4, T, h, w)."""
    if prediction.shape[0] == 1:
        return prediction
    unconditional, conditional = prediction.chunk(2)
    return classifier_free_guidance(unconditional, conditional, scale)


class VideoSampler:
    """Takes the steps of one video.

    Args:
        denoiser: the networks.
        scheduler: this video's own (it may keep a history), timesteps set.
        reference: (1, C, 1, h, w) latents of the reference.
        conditions: ControlNets with their control images.
        windows: frame numbers of each window, for each step.
        generator: of schedulers that draw noise in their steps.
        eta: of DDIM, 0 draws no noise.
        savings: what is computed less often, or in smaller parts.
    """

    def __init__(
        self,
        *,
        denoiser: Denoiser,
        scheduler: SchedulerMixin,
        reference: Tensor,
        conditions: Sequence[Condition],
        windows: Sequence[Sequence[Sequence[int]]],
        generator: torch.Generator | None,
        eta: float,
        savings: Savings | None = None,
    ) -> None:
        self.savings = savings or Savings()
        self._deep = DeepReuse(self.savings.reuse.interval, self.savings.reuse.depth)
        self.denoiser = denoiser
        self.scheduler = scheduler
        self.reference = reference
        self.conditions = conditions
        self.windows = windows
        accepted = inspect.signature(scheduler.step).parameters
        self.extra = {k: v for k, v in {"eta": eta, "generator": generator}.items() if k in accepted}
        # DDIM looks at one element at a time; other solvers keep a history, or draw noise, of the whole clip.
        pure = isinstance(scheduler, DDIMScheduler) and not eta and not scheduler.config.thresholding
        self._block = BLOCK if pure else sys.maxsize
        self._controls: ControlResidualCache | None = None
        self._features: tuple[Tensor, ...] = ()

    def step(
        self,
        latents: Tensor,
        number: int,
        timestep: Tensor,
        *,
        tokens: Tokens,
        scale: float,
        on_window: Callable[[], Any] = lambda: None,
        store: ClipStore | None = None,
        batch: int = 1,
    ) -> Tensor:
        """Take one denoising step.

        Args:
            latents: (1, C, T, h, w).
            number: of the step.
            timestep: its timestep.
            tokens: of this video, with 2 rows for guidance.
            scale: of guidance.
            on_window: called after each window (progress).
            store: where what is made stands; None for in memory.
            batch: windows per forward pass.

        Returns:
            Tensor: (1, C, T, h, w).
        """
        store = store or ClipStore()
        if self._controls is None or self._controls.tokens is not tokens:
            self._controls = ControlResidualCache(
                self.conditions,
                tokens,
                chunk=self.savings.control_chunk,
                embedded_frames=0 if self.savings.apart else EMBEDDED_FRAMES,
            )
            features = self.denoiser.read_reference(self.reference, tokens)
            self._features = tuple(feature.to(self.denoiser.unet.dtype) for feature in features)
        prediction = predict_noise(
            self.denoiser,
            self._scaled(latents, timestep, store),
            self.reference,
            timestep,
            windows=self.windows[number],
            tokens=tokens,
            controls=self._controls,
            reference_features=self._features,
            deep=self._deep,
            step=number,
            apart=self.savings.apart,
            token_downsampling=self.savings.token_downsampling,
            on_window=on_window,
            store=store,
            batch=batch,
        )
        after = store.latents(latents)
        for frames in blocks(latents.shape[2], self._block):
            noise, before = (x[:, :, frames].to(self.reference.device) for x in (prediction, latents))
            noise = guide(noise, scale)
            after[:, :, frames] = self.scheduler.step(noise, timestep, before, return_dict=False, **self.extra)[0]
            drop_pages()
        return after

    def _scaled(self, latents: Tensor, timestep: Tensor, store: ClipStore) -> Tensor:
        """What the networks are shown: the latents themselves, but for schedulers that scale them."""
        first = latents[:, :, :1]
        if self.scheduler.scale_model_input(first, timestep) is first:
            return latents
        scaled = store.empty("scaled", latents.shape, like=latents)
        for frames in blocks(latents.shape[2]):
            scaled[:, :, frames] = self.scheduler.scale_model_input(latents[:, :, frames], timestep)
        return scaled
