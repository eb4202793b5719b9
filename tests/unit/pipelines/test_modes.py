"""Guidance on an interval, solvers with a history, deep features kept between steps, low memory, the tiny decoder."""

import copy

import pytest
import torch
from diffusers import AutoencoderTiny
from diffusers.models.attention import FeedForward
from torch import nn

from tests.unit.pipelines.test_xdyna import clip, make_pipeline, run, seeded  # noqa: F401  (clip is a fixture)
from xdyna.models.attention import DynamicsAdapterAttention
from xdyna.models.controls import run_controlnet, shallow_residuals
from xdyna.models.deep import DeepFeatures
from xdyna.pipelines.bench_modes import published_step_bytes
from xdyna.pipelines.memory import peak_bytes, save_memory
from xdyna.pipelines.model import SCHEDULERS, scheduler_class
from xdyna.pipelines.options import Precomputed, Reuse
from xdyna.pipelines.solvers import SolverState, restore_solver, solver_state

LATENT = {"output_type": "latent", "num_inference_steps": 6}


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


def rows_per_call(pipeline):
    """Branches of every pass through the UNet from now on."""
    rows = []
    hook = pipeline.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[3])))
    return rows, hook


def test_guidance_on_an_interval_equals_switching_it_by_hand(pipeline, clip):  # noqa: F811
    """Timesteps of 6 steps: 835, 669, 503, 337, 171, 5 (leading, offset 1): [0.3, 0.7] holds the 2nd to the 4th."""
    rows, hook = rows_per_call(pipeline)
    out = run(pipeline, clip, guidance_scale=3.0, guidance_interval=(0.3, 0.7), **LATENT)
    hook.remove()
    share = [int(t) / 1000 for t in pipeline.scheduler.timesteps]
    inside = [0.3 <= value <= 0.7 for value in share]
    assert inside == [False, True, True, True, False, False]
    windows = len(rows) // 6
    assert rows == [1 + guided for guided in inside for _ in range(windows)]

    def switch(pipe, step, _, __):
        pipe._guidance_scale = 3.0 if step + 1 < 6 and inside[step + 1] else 1.0
        return {}

    by_hand = run(pipeline, clip, guidance_scale=1.0, callback_on_step_end=switch, **LATENT)
    assert torch.equal(out, by_hand)
    with pytest.raises(ValueError, match="low < high"):
        run(pipeline, clip, guidance_interval=(0.7, 0.3))


@pytest.mark.parametrize("name", [*SCHEDULERS, "dpmsolver++ sde"])
@torch.no_grad()
def test_any_solver_goes_on_with_the_same_bytes(pipeline, clip, name):  # noqa: F811
    """The state goes through tensors and JSON into a scheduler and a generator that have seen nothing."""
    original = pipeline.scheduler
    short, _, kind = name.partition(" ")
    more = {"algorithm_type": "sde-dpmsolver++"} if kind else {}
    fresh = scheduler_class(short).from_config(original.config, **more)
    kept = {}
    generator = seeded()

    def keep(pipe, step, __, state):
        kept[step] = (state["latents"].clone(), copy.deepcopy(solver_state(pipe.scheduler, generator)))
        return state

    options = {"guidance_scale": 1.0, **LATENT}
    try:
        pipeline.scheduler = copy.deepcopy(fresh)
        whole = pipeline(**clip, generator=generator, context_frames=4, context_overlap=1, callback_on_step_end=keep,
                         **options).frames  # fmt: skip
        for step in (0, 3):
            latents, state = kept[step]
            assert isinstance(state, SolverState)
            pipeline.scheduler = copy.deepcopy(fresh)
            given = Precomputed(start_step=step + 1, solver=state)
            assert torch.equal(run(pipeline, clip, latents=latents, precomputed=given, **options), whole)
        if name in ("dpmsolver++", "unipc"):  # their history matters: without it the bytes are others
            given = Precomputed(start_step=4)
            assert not torch.equal(run(pipeline, clip, latents=kept[3][0], precomputed=given, **options), whole)
    finally:
        pipeline.scheduler = original


def test_a_state_that_cannot_be_stored_or_is_anothers(pipeline):
    scheduler = copy.deepcopy(pipeline.scheduler)
    state = solver_state(scheduler)
    scheduler.process = object()
    assert solver_state(scheduler) is None
    with pytest.raises(ValueError, match="process"):
        restore_solver(scheduler, state, device=torch.device("cpu"))


def unet_inputs(unet, rows=2, frames=3, side=4):
    context = unet.config.cross_attention_dim
    g = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=g)

    sizes = [(8, side), (8, side), (8, side // 2), (16, side // 2)]
    return {
        "sample": draw(rows, 4, frames, side, side),
        "text_tokens": draw(rows, 5, context),
        "image_tokens": draw(rows, 4, context),
        "down_residuals": [draw(1, c, frames - 1, s, s) for c, s in sizes],
        "mid_residual": draw(1, 16, frames - 1, side // 2, side // 2),
    }


@pytest.mark.parametrize("depth", [1, 2, 3])
@torch.no_grad()
def test_kept_features_equal_a_full_pass_with_them_put_in(pipeline, depth):
    """The reference runs every layer, and a hook puts the earlier features in front of the layer of that skip."""
    unet = pipeline.unet
    first = unet_inputs(unet)
    second = {**first, "sample": first["sample"] + 1}
    deep = DeepFeatures(depth)
    assert torch.equal(unet(timestep=500, deep=deep, **first).sample, unet(timestep=500, **first).sample)
    layers = [resnet for block in unet.up_blocks for resnet in block.resnets]
    layer, channels = layers[len(layers) - depth], deep.kept.shape[1]
    stood = {}

    def put(_, inputs):
        stood["before"] = inputs[0][:, :channels]
        return (torch.cat([deep.kept, inputs[0][:, channels:]], dim=1), *inputs[1:])

    hook = layer.register_forward_pre_hook(put)
    want = unet(timestep=400, **second).sample
    hook.remove()
    assert not torch.equal(stood["before"], deep.kept)
    less = {**second, "down_residuals": second["down_residuals"][:depth], "mid_residual": None}
    assert torch.equal(unet(timestep=400, deep=deep, **less).sample, want)
    with pytest.raises(ValueError, match="less than this UNet's 4"):
        unet(timestep=400, deep=DeepFeatures(4, deep.kept), **second)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@torch.no_grad()
def test_the_first_residuals_alone_are_those_of_the_whole_net(pipeline, depth):
    net = pipeline.face_controlnet
    g = torch.Generator().manual_seed(2)
    inputs = (
        torch.randn(3, 4, 4, 4, generator=g),
        torch.tensor(300),
        torch.randn(1, 5, 8, generator=g),
        torch.rand(3, 6, 8, 8, generator=g),
    )
    got = shallow_residuals(net, *inputs, depth=depth).down
    want = run_controlnet(net, *inputs).down
    assert len(got) == depth
    assert all(torch.equal(one, other) for one, other in zip(got, want, strict=False))


def test_reuse_runs_fewer_layers_and_goes_on_with_the_same_bytes(pipeline, clip):  # noqa: F811
    calls = []
    hook = pipeline.unet.mid_block.register_forward_pre_hook(lambda *_: calls.append(1))
    kept, options = {}, {"reuse": Reuse(3, 1), "guidance_scale": 2.0, **LATENT}

    def keep(_, step, __, state):
        kept[step] = state["latents"].clone()
        return state

    whole = run(pipeline, clip, callback_on_step_end=keep, **options)
    windows = 2
    assert len(calls) == windows * 2  # steps 0 and 3
    hook.remove()
    given = Precomputed(start_step=3)
    assert torch.equal(run(pipeline, clip, latents=kept[2], precomputed=given, **options), whole)
    exact = run(pipeline, clip, **{**options, "reuse": Reuse(1, 1)})
    assert 0 < (whole - exact).norm() < 0.2 * exact.norm()
    plain = run(pipeline, clip, guidance_scale=2.0, **LATENT)
    assert torch.equal(exact, plain)


def test_fewer_keys_at_the_highest_resolution_alone(pipeline, clip, monkeypatch):  # noqa: F811
    seen, attention = set(), DynamicsAdapterAttention._attend

    def noting(self, q, k, v):
        seen.add((q.shape[1], k.shape[1]))
        return attention(self, q, k, v)

    monkeypatch.setattr(DynamicsAdapterAttention, "_attend", noting)
    options = {**LATENT, "num_inference_steps": 2}
    exact = run(pipeline, clip, **options)
    places, seen_before = max(q for q, k in seen if q == k), set(seen)
    seen.clear()
    assert not torch.equal(run(pipeline, clip, token_downsampling=2, **options), exact)
    assert seen - seen_before == {(places, places // 4)}
    assert seen_before - seen == {(places, places)}
    assert torch.equal(run(pipeline, clip, token_downsampling=1, **options), exact)
    fewer = run(pipeline, clip, token_downsampling=2, **options)
    several = run(pipeline, clip, token_downsampling=2, window_batch=2, **options)
    torch.testing.assert_close(several, fewer, rtol=0, atol=1e-4)
    assert (fewer - exact).abs().max() > 1e-3
    with pytest.raises(ValueError, match="token_downsampling is 0"):
        run(pipeline, clip, token_downsampling=0, **options)


def test_the_tiny_decoder(pipeline, clip, tmp_path):  # noqa: F811
    torch.manual_seed(0)
    tiny = AutoencoderTiny(encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4),
                           num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))  # fmt: skip
    with pytest.raises(ValueError, match="has no tiny_vae"):
        run(pipeline, clip, decoder="tiny")
    usual = run(pipeline, clip, decoder="auto")
    parts = {**pipeline.components, "tiny_vae": tiny.eval()}
    own = type(pipeline)(**parts)
    own.set_progress_bar_config(disable=True)
    own.save_pretrained(tmp_path / "pipe")
    loaded = type(pipeline).from_pretrained(tmp_path / "pipe")
    loaded.set_progress_bar_config(disable=True)
    latents = run(loaded, clip, output_type="latent")
    want = tiny.decode(latents[0].movedim(1, 0)).sample / 2 + 0.5
    for decoder in ("tiny", "auto"):
        got = torch.from_numpy(run(loaded, clip, decoder=decoder)).movedim(-1, 1)
        torch.testing.assert_close(got, want.clamp(0, 1))
    assert (run(loaded, clip) == usual).all()
    assert isinstance(loaded.tiny_vae, nn.Module)


def test_low_memory_gives_the_same_video(pipeline, clip, monkeypatch):  # noqa: F811
    options = {"guidance_scale": 3.0, "negative_prompt": "blurred", "output_type": "latent"}
    want = run(pipeline, clip, **options)
    low = make_pipeline()
    save_memory(low, torch.device("cpu"))
    rows, _ = rows_per_call(low)
    frames = []
    low.pose_controlnet.register_forward_pre_hook(lambda _, inputs: frames.append(len(inputs[0])))
    inner = []
    for layer in low.unet.modules():
        if isinstance(layer, FeedForward):
            layer.net[0].register_forward_pre_hook(lambda _, inputs: inner.append(inputs[0].shape))
    monkeypatch.setattr("xdyna.pipelines.xdyna.CONTROL_CHUNK", 1)
    got = run(low, clip, **options)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert set(rows) == {1}
    assert set(frames) == {1}
    assert max(shape[0] for shape in inner) == 1 or len(inner) > len(rows)


def test_live_bytes_are_counted_by_storage():
    def function():
        a = torch.empty(1000, device="meta")
        view = a.view(10, 100)
        del a
        b = view + 1  # 8000 bytes now
        del view
        return (b + 1).sum()

    assert peak_bytes(function) == 8004  # the sum is a number of 4 bytes
    query = torch.empty(1, 1, 4096, 8, device="meta")
    assert peak_bytes(lambda: nn.functional.scaled_dot_product_attention(query, query, query)) < 4096 * 4096


@pytest.mark.slow
def test_low_memory_at_the_published_shape():
    """16 frames of 896 x 512, both ControlNets, float16: the UNet's weights and all that is alive in a step."""
    assert published_step_bytes(low_memory=True) <= 6.5e9 < published_step_bytes(low_memory=False)
