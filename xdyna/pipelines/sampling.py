"""Control images and a plan -> the frames of one video: denoised, decoded, resumable, by one or more processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image

from xdyna.core.progress import Watch
from xdyna.core.scratch import drop_pages
from xdyna.pipelines.controls import Conditions
from xdyna.pipelines.options import Precomputed, Reuse
from xdyna.pipelines.plan import Plan
from xdyna.pipelines.resume import PartialRun
from xdyna.pipelines.solvers import solver_state
from xdyna.pipelines.xdyna import XDynaPipeline, XDynaPipelineOutput, to_uint8


def sample(
    pipeline: XDynaPipeline,
    plan: Plan,
    fitted: np.ndarray,
    conditions: Conditions,
    *,
    partial: PartialRun | None = None,
    watch: Watch | None = None,
) -> torch.Tensor:
    """Denoise; goes on from a partial result of the same run.

    Args:
        pipeline: the networks.
        plan: the animation.
        fitted: the reference at the video's size, uint8 (H, W, 3).
        conditions: control images.
        partial: where finished steps are kept; None for nowhere.
        watch: told of each window as "denoising".

    Returns:
        Tensor: (1, 4, T, h, w) latents, scaled.
    """
    settings, watch = plan.settings, watch or Watch()
    assert settings.guidance is not None, "the checkpoint's own was put in"
    assert settings.steps is not None, "the checkpoint's own were put in"
    generator = torch.Generator("cpu").manual_seed(settings.seed)
    done, latents, solver = 0, None, None
    if partial is not None:
        h, w = (side // pipeline.vae_scale_factor for side in plan.size)
        latents = partial.resumed((1, pipeline.unet.config.in_channels, len(conditions.pose), h, w))
        done, solver = partial.state.steps, partial.solver()
        partial.within_steps = settings.reuse_interval == 1  # deep features are in memory alone
        if solver_state(pipeline.scheduler, generator) is None:
            name = type(pipeline.scheduler).__name__
            watch.say(f"note: the state of a {name} cannot be stored; an interrupted run starts over")
        if done or partial.state.parts:
            watch.say(f"going on after {_how_far(partial, plan)} (found {partial.folder})")

    def after_step(_: Any, step: int, __: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if partial is not None:
            # Between two steps in which all layers run, deep features are in memory alone: there no run can go on.
            kept = solver_state(pipeline.scheduler, generator) if (step + 1) % settings.reuse_interval == 0 else None
            partial.step_done(step + 1, kept, whole=kept is not None or step + 1 == pipeline.num_timesteps)
        if watch.show is not None:
            watch.show(_middle_frame(pipeline, state["latents"]))
        return state

    looked_at = plan.reference if plan.checkpoint.contract.reference == "whole" else fitted  # by the image encoder
    with _reporting(pipeline, watch):
        sampled = pipeline(
            looked_at,
            conditions.pose,
            conditions.face,
            prompt=settings.prompt,
            negative_prompt=settings.negative_prompt,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            guidance_interval=settings.guidance_interval,
            reuse=Reuse(settings.reuse_interval, settings.reuse_depth),
            token_downsampling=settings.token_downsampling,
            context_frames=settings.context_frames,
            context_overlap=settings.context_overlap,
            context_schedule=settings.context_schedule,
            similarity_prior=settings.similarity_prior,
            generator=generator,
            latents=latents,
            precomputed=Precomputed(
                reference_latents=pipeline.encode_reference(Image.fromarray(fitted), generator),
                start_step=done,
                solver=solver,
            ),
            callback_on_step_end=after_step,
            output_type="latent",
            store=partial,
        )
    assert isinstance(sampled, XDynaPipelineOutput)
    assert isinstance(sampled.frames, torch.Tensor)
    return sampled.frames


def _middle_frame(pipeline: XDynaPipeline, latents: torch.Tensor) -> np.ndarray:
    """The frame in the middle, by the quickest decoder there is: (1, 4, T, h, w) -> uint8 (H, W, 3)."""
    middle = latents.shape[2] // 2
    (frame,) = pipeline.decode_frames(latents[:, :, middle : middle + 1], decoder="auto")
    return np.asarray(to_uint8(frame)[0])


def decoded(pipeline: XDynaPipeline, latents: torch.Tensor, plan: Plan, partial: PartialRun) -> Iterator[np.ndarray]:
    """Decode, each process its share of the frames; goes on from what a partial result has.

    Args:
        pipeline: the networks.
        latents: (1, 4, T, h, w) of `sample`.
        plan: the animation.
        partial: where the frames are kept.

    Yields:
        Every frame, uint8 (H, W, 3), in process 0; nothing in the others.
    """
    chunk, count, ranks = plan.settings.vae_chunk, latents.shape[2], partial.ranks
    shape = (count, *plan.size, 3)
    kept = partial.frames(shape) if ranks.rank == 0 else None
    start = partial.state.frames
    if kept is not None:
        yield from (frame.numpy() for frame in kept[:start])
    for turn in range(start, count, chunk * ranks.world):
        bounds = [min(turn + rank * chunk, count) for rank in range(ranks.world + 1)]
        made = torch.zeros(chunk, *shape[1:], dtype=torch.uint8)
        own = latents[:, :, bounds[ranks.rank] : bounds[ranks.rank + 1]]
        for part in pipeline.decode_frames(own, chunk=chunk, decoder=plan.settings.decoder) if own.shape[2] else ():
            made[: len(part)] = torch.from_numpy(to_uint8(part))
        for first, last, frames in zip(bounds, bounds[1:], ranks.gather(made) or (), strict=False):
            assert kept is not None
            kept[first:last] = frames[: last - first]
        partial.decoded(bounds[-1])
        drop_pages()
        if kept is not None:
            yield from (frame.numpy() for frame in kept[turn : bounds[-1]])


def _how_far(partial: PartialRun, plan: Plan) -> str:
    state, settings = partial.state, plan.settings
    told = [f"step {state.steps} of {settings.steps}"]
    if state.parts:
        told.append(f"{len(state.parts)} parts of the next")  # windows, or branches of guidance where these run apart
    if state.frames:
        told.append(f"{state.frames} of {len(plan.driving.rows)} frames decoded")
    return ", ".join(told)


class _WindowCounter:
    """Stands in for the pipeline's bar, and hands its counts on."""

    def __init__(self, total: int, watch: Watch) -> None:
        self.done, self.total, self.watch = 0, total, watch

    def __enter__(self) -> "_WindowCounter":
        self.watch.step("denoising", 0, self.total)
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, count: int = 1) -> None:
        self.done += count
        self.watch.step("denoising", self.done, self.total)


@contextmanager
def _reporting(pipeline: XDynaPipeline, watch: Watch) -> Iterator[None]:
    """While the block runs, the pipeline reports its windows to the watch instead of showing a bar."""
    pipeline.progress_bar = lambda iterable=None, total=None: _WindowCounter(total, watch)
    try:
        yield
    finally:
        del pipeline.progress_bar
