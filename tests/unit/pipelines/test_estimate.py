"""Estimates: what a short run took, remembered, against a clock that is set by hand and against a real run."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.unit.pipelines.test_xdyna import make_pipeline
from xdyna.config.infer import InferConfig
from xdyna.pipelines import estimate as estimates
from xdyna.pipelines.estimate import _clip_bytes, calibrate, remembered, step_kinds
from xdyna.pipelines.folder import TINY, find_checkpoint
from xdyna.pipelines.operations import Operations, Workload, count_operations

SETTINGS = InferConfig(steps=7, guidance=3.0, guidance_interval=[0.2, 0.8], reuse_interval=3, reuse_depth=1)


def made_plan(frames=4, settings=SETTINGS):
    driving = SimpleNamespace(rows=np.arange(frames))
    checkpoint = SimpleNamespace(weight_files=list)
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    return SimpleNamespace(
        settings=settings, size=(16, 16), face=True, driving=driving, checkpoint=checkpoint, fitted=lambda: image
    )


def test_what_a_calibration_says_by_a_clock_set_by_hand(tmp_path):
    """A pass takes 10 s for each branch, 4 s with deep features of before; encoding 3 s, decoding 0.5 s a frame."""
    pipeline, now = make_pipeline(), [0.0]

    def unet(_, inputs, kwargs):
        deep = kwargs["deep"]
        now[0] += len(inputs[3]) * (10.0 if deep is None or deep.kept is None else 4.0)

    def later(seconds):
        return lambda _, inputs: now.__setitem__(0, now[0] + seconds * len(inputs[0]))

    pipeline.unet.register_forward_pre_hook(unet, with_kwargs=True)
    pipeline.image_projection.register_forward_pre_hook(later(1.5))  # two rows
    pipeline.vae.decoder.register_forward_pre_hook(later(0.5))
    path = tmp_path / "folder" / "calibrations.json"
    found = calibrate(pipeline, made_plan(), path=path, clock=lambda: now[0])
    assert found.full == {"1": 10.0, "2": 20.0}
    assert found.shallow == {"1": 4.0, "2": 8.0}
    assert (found.start, found.decode) == (3.0, 0.5)
    device, dtype = torch.device("cpu"), torch.float32
    assert remembered(made_plan(), device, dtype, path=path) == found
    assert remembered(made_plan(frames=3), device, dtype, path=path) is None  # a shorter window
    for other in (replace(SETTINGS, reuse_interval=1), replace(SETTINGS, token_downsampling=2)):
        assert remembered(made_plan(settings=other), device, dtype, path=path) is None
    path.write_text("{")
    assert remembered(made_plan(), device, dtype, path=path) is None
    kinds = step_kinds(made_plan(), [900, 780, 650, 500, 350, 220, 90], 1000)
    assert kinds == [(1, True), (2, True), (2, False), (2, True), (2, False), (2, False), (1, True)]
    assert found.seconds(kinds, windows=2, frames=30) == 3 + 2 * (10 + 20 + 8 + 20 + 8 + 8 + 10) + 15


def test_the_kinds_of_steps_are_those_that_run():
    pipeline, seen = make_pipeline(), []
    pipeline.unet.register_forward_pre_hook(
        lambda _, inputs, kwargs: seen.append((len(inputs[3]), kwargs["deep"].kept is None)), with_kwargs=True
    )
    plan = made_plan()
    pose, face = (torch.zeros(1, 4, c, 16, 16, dtype=torch.uint8) for c in (3, 6))
    pipeline(plan.fitted(), pose, face, num_inference_steps=7, guidance_scale=3.0, guidance_interval=(0.2, 0.8),
             reuse=estimates.Reuse(3, 1), context_frames=4, context_overlap=0, output_type="latent")  # fmt: skip
    assert seen == step_kinds(plan, pipeline.scheduler.timesteps.tolist(), 1000)


LONG = Workload(frames=300, windows=25, context=16, steps=2, branches=1, size=(896, 512), face=True)


def test_operations_of_fewer_keys():
    """Of the shipped model: windows alone take fewer."""
    tiny = find_checkpoint(TINY, lambda folder: None)
    work = Workload(frames=16, windows=1, context=16, steps=2, branches=1, size=(128, 128), face=True)
    full, fewer = (count_operations(tiny, replace(work, token_downsampling=n)) for n in (1, 2))
    assert 0.5 * full.window < fewer.window < full.window
    assert replace(fewer, window=full.window) == full


def test_operations_of_a_long_video_by_hand():
    """A frame goes through the ControlNets once a step, and 192 of them are embedded in the first step alone."""
    operations = Operations(window=100, frame=10, embedding=4, decode=1, channels=8)
    assert operations.sampling(LONG) == 2 * (25 * 100 + 300 * 10) - 192 * 4
    assert operations.sampling(LONG, embedded=False) == 2 * (25 * 100 + 300 * 10)
    assert operations.of_calibrated(LONG) == (11_000 - 768) / (2 * 25 * (100 + 16 * 6))
    assert operations.of_calibrated(LONG, embedded=False) == 11_000 / (2 * 25 * (100 + 16 * 10))
    window = replace(LONG, frames=16, windows=1, steps=10_000)
    assert operations.of_calibrated(window) == pytest.approx(1, abs=1e-4)


def test_memory_that_is_told_does_not_grow_with_the_video(tmp_path):
    """Control images of long videos stand in files; of 192 frames, two ControlNets' embedded ones are kept."""
    (tmp_path / "pose_controlnet").mkdir()
    config = {"_class_name": "ControlNetModel", "block_out_channels": [8]}
    (tmp_path / "pose_controlnet" / "config.json").write_text(json.dumps(config))
    checkpoint = SimpleNamespace(folder=tmp_path, vae_scale=8)

    def told(frames, device="cpu", **given):
        work = replace(LONG, frames=frames)
        return _clip_bytes(checkpoint, work, torch.device(device), torch.bfloat16, **given)

    embedded = 192 * 8 * (112 * 64) * 2 * 2
    assert told(300) == told(1000) == told(1000, "cuda") == embedded
    assert told(1000, embedded=False) == 0
    assert told(6, embedded=False) == 6 * 896 * 512 * 3  # pose maps alone are below 8 MiB
    assert told(6, "cuda", embedded=False) == 0


@pytest.mark.slow
def test_a_calibrated_estimate_is_near_the_run(tmp_path, monkeypatch):
    from xdyna.core.resources import resource
    from xdyna.pipelines.animate import decoded, perceive, prepare, sample
    from xdyna.pipelines.model import load
    from xdyna.pipelines.plan import Request, plan_animation
    from xdyna.pipelines.resume import PartialRun

    monkeypatch.setattr(estimates, "calibrations", lambda: tmp_path / "calibrations.json")
    demo = resource("assets", "demo")
    settings = InferConfig(steps=6, frames=8, scheduler="dpmsolver++")
    model = load("xdyna-tiny", settings)
    files = demo / "reference.png", demo / "driving.npz", tmp_path / "a.mp4"
    request = Request(*files, face_video=demo / "driving.mp4")
    plan = plan_animation(request, settings, model.checkpoint)
    assert estimates.expected(plan, device=model.device, dtype=model.dtype).measured == ""
    calibrate(model.pipeline, plan)
    told = estimates.expected(plan, device=model.device, dtype=model.dtype)
    assert told.measured
    conditions = prepare(perceive(plan), plan)
    begin = estimates.time.perf_counter()
    partial = PartialRun(tmp_path / "a.mp4", "", keep=False)
    latents = sample(model.pipeline, plan, plan.fitted(), conditions, partial=partial)
    assert sum(1 for _ in decoded(model.pipeline, latents, plan, partial)) == 8
    taken = estimates.time.perf_counter() - begin
    print(f"estimated {told.seconds:.2f} s, took {taken:.2f} s: {told.seconds / taken - 1:+.0%}")
    memory = estimates.peak_memory(model.device)["process"]
    print(f"estimated {told.memory / 2**20:.0f} MiB, took {memory / 2**20:.0f} MiB: {told.memory / memory - 1:+.0%}")
    assert told.seconds == pytest.approx(taken, rel=0.5)  # other work on the same cores
    assert told.memory == pytest.approx(memory, rel=0.15)
