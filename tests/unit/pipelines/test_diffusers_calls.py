"""What a user of diffusers takes for granted: batches, callbacks, embeddings, schedulers, offloading, loading."""

import inspect
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    HeunDiscreteScheduler,
)
from diffusers.hooks import apply_group_offloading
from PIL import Image

from tests.tiers import long
from tests.unit.pipelines.test_xdyna import FRAMES, OPTIONS, SIDE, clip, make_pipeline, run, seeded  # noqa: F401
from xdyna.pipelines.inputs import as_images, as_videos
from xdyna.pipelines.xdyna import Precomputed, XDynaPipeline

Clip = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def shared() -> XDynaPipeline:
    return make_pipeline()


@pytest.fixture
def pipeline(shared: XDynaPipeline) -> XDynaPipeline:
    shared.scheduler = DDIMScheduler.from_config(shared.scheduler.config)
    return shared


@pytest.fixture
def clips() -> list[Clip]:
    draw = np.random.default_rng(5)
    sizes = {"image": (20, 30, 3), "pose_video": (FRAMES, SIDE, SIDE, 3), "face_video": (FRAMES, SIDE, SIDE, 6)}
    return [{name: draw.integers(0, 256, size, dtype=np.uint8) for name, size in sizes.items()} for _ in range(3)]


def batch(clips: list[Clip]) -> dict[str, list[np.ndarray]]:
    return {name: [entry[name] for entry in clips] for name in clips[0]}


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheduler", [*long(DDIMScheduler, DPMSolverMultistepScheduler), EulerAncestralDiscreteScheduler]
)
def test_each_video_of_a_batch_is_the_one_made_alone(pipeline: XDynaPipeline, clips: list[Clip], scheduler) -> None:
    """Bit for bit, also where a scheduler keeps a history or draws noise in its steps."""
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    prompts = ["a person", "", "very " * 100]
    together = pipeline(
        **batch(clips),
        prompt=prompts,
        negative_prompt=["bad", "", "ugly"],
        generator=[seeded(seed) for seed in range(3)],
        **{**OPTIONS, "num_inference_steps": 3},
        output_type="pt",
    ).frames
    assert together.shape == (3, FRAMES, 3, SIDE, SIDE)
    for number, (entry, prompt, negative) in enumerate(zip(clips, prompts, ["bad", "", "ugly"], strict=True)):
        texts = {"prompt": prompt, "negative_prompt": negative}
        alone = run(pipeline, entry, seed=number, **texts, num_inference_steps=3, output_type="pt")
        assert torch.equal(together[number], alone), number


def test_one_entry_serves_all_videos(pipeline: XDynaPipeline, clips: list[Clip]) -> None:
    one, other = clips[0], {**clips[0], "image": clips[1]["image"]}
    images = [one["image"], other["image"]]
    generators = [seeded(3), seeded(3)]
    rest = {name: value for name, value in one.items() if name != "image"}
    videos = pipeline(images, **rest, generator=generators, **OPTIONS, output_type="pt").frames
    assert torch.equal(videos[0], run(pipeline, one, seed=3, output_type="pt"))
    assert torch.equal(videos[1], run(pipeline, other, seed=3, output_type="pt"))
    assert not torch.equal(videos[0], videos[1])


def test_every_form_of_a_video_is_the_same_video() -> None:
    """Arrays, tensors, lists of images; numbers from 0 to 255 or from 0 to 1; one video or a batch of one."""
    pose = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)
    tensor = torch.from_numpy(pose).permute(0, 3, 1, 2)
    forms = {
        "PIL": [Image.fromarray(frame) for frame in pose],
        "list of PIL lists": [[Image.fromarray(frame) for frame in pose]],
        "array": pose,
        "arrays": list(pose),
        "float array": pose.astype(np.float32) / 255,
        "batch of arrays": pose[None],
        "list of videos": [pose],
        "tensor": tensor / 255,
        "uint8 tensor": tensor,
        "frames as tensors": list(tensor),
        "batch of tensors": tensor[None],
        "strided": pose[:, ::-1].copy()[:, ::-1],
    }
    for name, form in forms.items():
        [video] = as_videos(form, "pose_video", channels=3)
        assert video.dtype == torch.uint8
        assert torch.equal(video, tensor), name
    assert len(as_videos([pose, pose], "pose_video", channels=3)) == 2
    assert as_videos(pose, "pose_video", channels=3)[0].data_ptr() == tensor.data_ptr(), "a long video is not copied"
    image, first = pose[0], tensor[0]
    for form in (Image.fromarray(image), [image], image[None], image / 255, first, first[None] / 255):
        [converted] = as_images(form)
        np.testing.assert_array_equal(np.asarray(converted), image)
    pose.flags.writeable = False
    before, image = pose.copy(), pose[0]
    as_videos(pose, "pose_video", channels=3)[0].zero_()
    np.testing.assert_array_equal(pose, before)
    torch.set_warn_always(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_images(image)
    torch.set_warn_always(False)


def test_several_videos_of_each_entry(pipeline: XDynaPipeline, clips: list[Clip]) -> None:
    """Two prompts, three videos each: in order, each the one made alone; one of no use is told."""
    call = {**batch(clips[:2]), "prompt": ["a person", "nobody"], **OPTIONS, "output_type": "pt"}
    videos = pipeline(**call, num_videos_per_prompt=3, generator=[seeded(seed) for seed in range(6)]).frames
    for number in range(6):
        alone = run(
            pipeline, clips[number // 3], seed=number, prompt=call["prompt"][number // 3], output_type="pt"
        )  # fmt: skip
        assert torch.equal(videos[number], alone), number
    one = clips[0]
    noise = torch.randn(2, 4, FRAMES, SIDE // 2, SIDE // 2, generator=seeded(7))
    pair = pipeline(
        **one, **OPTIONS, output_type="pt", num_videos_per_prompt=2, latents=noise, generator=[seeded(0), seeded(0)]
    ).frames
    for number in range(2):
        alone = run(pipeline, one, latents=noise[number : number + 1], output_type="pt")
        assert torch.equal(pair[number], alone)
    with pytest.raises(ValueError, match=r"generator has 4 entries for 6 videos; give one per video"):
        pipeline(**call, num_videos_per_prompt=3, generator=[seeded() for _ in range(4)])
    with pytest.raises(ValueError, match="num_videos_per_prompt is 0, expected 1 or more"):
        pipeline(**call, num_videos_per_prompt=0)


@pytest.mark.parametrize("face", [False, True])
def test_height_and_width_cut_and_resize_as_published(pipeline: XDynaPipeline, clips: list[Clip], face: bool) -> None:
    """Against control images that Pillow has cut and resized before: centred, with faces a quarter from above."""
    wide = {"image": clips[0]["image"]}
    draw = np.random.default_rng(6)
    for name, channels in [("pose_video", 3), *([("face_video", 6)] if face else [])]:
        wide[name] = draw.integers(0, 256, (FRAMES, 40, 24, channels), dtype=np.uint8)
    top = (40 - 24) // 4 if face else (40 - 24) // 2

    def resized(frame: np.ndarray) -> np.ndarray:
        planes = [Image.fromarray(frame[top : top + 24, :, channel]) for channel in range(frame.shape[-1])]
        return np.stack([plane.resize((16, 16), Image.Resampling.BILINEAR) for plane in planes], axis=-1)

    ready = {name: value if name == "image" else np.stack([resized(f) for f in value]) for name, value in wide.items()}
    expected = run(pipeline, ready, output_type="pt")
    assert expected.shape[-2:] == (16, 16)
    assert torch.equal(run(pipeline, wide, height=16, width=16, output_type="pt"), expected)
    assert torch.equal(run(pipeline, ready, height=16, output_type="pt"), expected), "the pose video's width"
    factor = pipeline.vae_scale_factor
    with pytest.raises(ValueError, match=f"height is {factor + 1} and width 24; both must be multiples of {factor}"):
        run(pipeline, wide, height=factor + 1)
    with pytest.raises(ValueError, match="width is 0, expected 1 or more"):
        run(pipeline, wide, width=0)


def test_num_frames_takes_the_first_ones(pipeline: XDynaPipeline, clip: Clip) -> None:  # noqa: F811
    short = {**clip, "pose_video": clip["pose_video"][:4], "face_video": clip["face_video"][:4]}
    assert torch.equal(run(pipeline, clip, num_frames=4, output_type="pt"), run(pipeline, short, output_type="pt"))


# --- embeddings, latents ----------------------------------------------------------------------------------------------


def test_embeddings_replace_encoders(pipeline: XDynaPipeline, clip: Clip) -> None:  # noqa: F811
    """`encode_prompt` and `encode_image` by themselves, then a pipeline without encoders: the same video."""
    expected = run(pipeline, clip, prompt="a person", negative_prompt="bad", output_type="latent")
    text = dict(
        zip(("prompt_embeds", "negative_prompt_embeds"), pipeline.encode_prompt("a person", "bad"), strict=True)
    )
    tokens = pipeline.encode_image(Image.fromarray(clip["image"]))
    image = dict(zip(("image_embeds", "negative_image_embeds"), tokens, strict=True))
    encoders = ("text_encoder", "tokenizer", "image_encoder", "feature_extractor", "image_projection")
    without = XDynaPipeline(**{**pipeline.components, **dict.fromkeys(encoders)})
    without.set_progress_bar_config(disable=True)
    assert torch.equal(run(without, clip, **text, **image, output_type="latent"), expected)
    del text["negative_prompt_embeds"]
    with pytest.raises(ValueError, match="no text encoder; give prompt_embeds and negative_prompt_embeds"):
        run(without, clip, **text, **image)
    del image["negative_image_embeds"]
    assert run(without, clip, **text, **image, guidance_scale=1.0).shape == (FRAMES, SIDE, SIDE, 3)


def test_latents_are_the_noise_and_the_reference_may_be_encoded_before(
    pipeline: XDynaPipeline,
    clip: Clip,  # noqa: F811
) -> None:
    noise, reference = torch.randn(1, 4, FRAMES, SIDE // 2, SIDE // 2), torch.randn(1, 4, SIDE // 2, SIDE // 2)
    given = Precomputed(reference_latents=reference, offsets=[0, 1])
    settings = {"output_type": "latent", "similarity_prior": False, "precomputed": given}
    first, again = (run(pipeline, clip, seed=seed, latents=noise, **settings) for seed in (0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, run(pipeline, clip, latents=-noise, **settings))


# --- callbacks --------------------------------------------------------------------------------------------------------


def test_a_callback_reads_and_replaces_embeddings(pipeline: XDynaPipeline, clip: Clip) -> None:  # noqa: F811
    """From step 1 on the tokens of another prompt: as if the two parts had been run one after the other."""
    seen = []

    def replace(pipe, step, timestep, tensors):
        seen.append((step, int(timestep), {name: tuple(value.shape) for name, value in tensors.items()}))
        return {**tensors, "prompt_embeds": pipe.encode_prompt("a cat")[0]} if step == 0 else tensors

    names = pipeline._callback_tensor_inputs
    changed = run(
        pipeline, clip, prompt="a dog", output_type="latent", callback_on_step_end=replace,
        callback_on_step_end_tensor_inputs=names,
    )  # fmt: skip
    assert [entry[0] for entry in seen] == [0, 1]
    assert [entry[1] for entry in seen] == pipeline.scheduler.timesteps.tolist()
    assert list(seen[0][2]) == names
    assert seen[0][2]["latents"] == (1, 4, FRAMES, SIDE // 2, SIDE // 2)
    states = []
    run(pipeline, clip, prompt="a dog", callback_on_step_end=lambda *a: (states.append(a[3]["latents"]), a[3])[1])
    rest = run(
        pipeline, clip, prompt="a cat", output_type="latent", latents=states[0], precomputed=Precomputed(start_step=1)
    )
    assert torch.equal(changed, rest)
    assert not torch.equal(changed, run(pipeline, clip, prompt="a dog", output_type="latent"))


def test_guidance_may_change_between_steps(pipeline: XDynaPipeline, clip: Clip) -> None:  # noqa: F811
    """Switched off (or on) after the first step: the rows of its tokens follow, and the result is that of the parts."""
    for first, second in ((2.0, 0.0), (1.0, 3.0)):
        batches, states = [], []
        handle = pipeline.unet.register_forward_pre_hook(lambda _, inputs: batches.append(inputs[3].shape[0]))  # noqa: B023

        def switch(pipe, step, timestep, tensors):
            pipe._guidance_scale = second  # noqa: B023
            states.append(tensors["latents"])  # noqa: B023
            return tensors

        changed = run(pipeline, clip, guidance_scale=first, output_type="latent", callback_on_step_end=switch)
        handle.remove()
        rows = [2 if scale > 1 else 1 for scale in (first, second)]
        assert batches == [row for row in rows for _ in range(len(batches) // 2)]
        assert pipeline.guidance_scale == second
        rest = run(
            pipeline, clip, guidance_scale=second, output_type="latent", latents=states[0],
            precomputed=Precomputed(start_step=1),
        )  # fmt: skip
        assert torch.equal(changed, rest)


def test_a_callback_may_stop_the_steps(pipeline: XDynaPipeline, clip: Clip) -> None:  # noqa: F811
    states = []

    def stop(pipe, step, timestep, tensors):
        states.append(tensors["latents"])
        pipe._interrupt = step == 1
        return tensors

    out = run(pipeline, clip, num_inference_steps=5, output_type="latent", callback_on_step_end=stop)
    assert len(states) == 2
    assert pipeline.num_timesteps == 5
    assert torch.equal(out, states[1])


# --- schedulers -------------------------------------------------------------------------------------------------------


def test_schedulers_with_noise_of_their_own_follow_the_seed(
    pipeline: XDynaPipeline,
    clip: Clip,  # noqa: F811
) -> None:
    pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config)
    first, again, other = (run(pipeline, clip, seed=seed, output_type="latent") for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_timestep_of_a_second_order_scheduler_runs(
    pipeline: XDynaPipeline,
    clip: Clip,  # noqa: F811
) -> None:
    pipeline.scheduler = HeunDiscreteScheduler.from_config(pipeline.scheduler.config)
    steps = []
    run(
        pipeline, clip, num_inference_steps=3,
        callback_on_step_end=lambda _, step, t, tensors: (steps.append(float(t)), tensors)[1],
    )  # fmt: skip
    assert len(steps) == pipeline.num_timesteps == 5
    assert steps == pipeline.scheduler.timesteps.tolist()


def test_eta_adds_noise(pipeline: XDynaPipeline, clip: Clip) -> None:  # noqa: F811
    plain = run(pipeline, clip, output_type="latent")
    noisy, again = (run(pipeline, clip, eta=1.0, output_type="latent") for _ in range(2))
    assert torch.equal(noisy, again)
    assert not torch.equal(noisy, plain)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [{"offload_type": "block_level", "num_blocks_per_group": 1}, {"offload_type": "leaf_level"}],
    ids=["blocks", "leaves"],
)
def test_group_offloading_gives_the_same_video(clip: Clip, how: dict) -> None:  # noqa: F811
    """The hooks hand on copies of a block's lists: a block may not change its caller's."""
    pipeline = make_pipeline()
    expected = run(pipeline, clip, output_type="pt")
    devices = {"onload_device": torch.device("cpu"), "offload_device": torch.device("cpu")}
    for name in ("unet", "pose_controlnet", "face_controlnet", "vae", "image_projection"):
        getattr(pipeline, name).enable_group_offload(**devices, **how)
    for name in ("text_encoder", "image_encoder"):
        apply_group_offloading(getattr(pipeline, name), **devices, **how)
    assert any(hasattr(module, "_diffusers_hook") for module in pipeline.unet.modules())
    assert torch.equal(run(pipeline, clip, output_type="pt"), expected)


def test_model_offloading_follows_the_order_of_use(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """A second CPU device stands in for an accelerator: what is brought in, in which order, and that all goes back."""
    pipeline = make_pipeline()
    expected = run(pipeline, clip, output_type="pt")
    pipeline.enable_model_cpu_offload(device="cpu:0")
    assert pipeline._execution_device == torch.device("cpu:0")
    modules = {id(module): name for name, module in pipeline.components.items() if isinstance(module, torch.nn.Module)}
    used: list[str] = []
    for hook in pipeline._all_hooks:
        original = hook.hook.pre_forward

        def noted(module, *args, _original=original, **kwargs):
            used.append(modules[id(module)])
            return _original(module, *args, **kwargs)

        monkeypatch.setattr(hook.hook, "pre_forward", noted)
    assert torch.equal(run(pipeline, clip, output_type="pt"), expected)
    assert set(used) == set(modules.values()), "every network is offloaded and comes in when it is used"
    assert list(dict.fromkeys(used))[:4] == ["text_encoder", "image_encoder", "image_projection", "vae"]
    order = pipeline.model_cpu_offload_seq.split("->")
    assert order.index("unet") < order.index("vae")
    assert len(pipeline._all_hooks) == len(modules), "hooks are set again after a call"
    freed: list[bool] = []
    monkeypatch.setattr(pipeline, "maybe_free_model_hooks", lambda: freed.append(True))
    list(pipeline.decode_frames(torch.zeros(1, 4, 3, SIDE // 2, SIDE // 2), chunk=2))
    assert freed == [True], "decoding by itself brings the VAE in, and takes it out again"


def test_layerwise_casting(clip: Clip) -> None:  # noqa: F811
    pipeline = make_pipeline()
    plain = run(pipeline, clip, output_type="pt")
    pipeline.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    stored = [p.dtype for p in pipeline.unet.parameters()]
    assert stored.count(torch.float8_e4m3fn) > len(stored) / 3
    assert pipeline.unet.dtype == torch.float32
    out = run(pipeline, clip, output_type="pt")
    assert 0 < (out - plain).abs().mean() < 0.1


def test_vae_slicing_and_tiling(clip: Clip) -> None:  # noqa: F811
    pipeline = make_pipeline()
    plain = run(pipeline, clip, output_type="pt")
    pipeline.vae.enable_slicing()
    torch.testing.assert_close(run(pipeline, clip, output_type="pt"), plain, atol=1e-5, rtol=1e-5)
    pipeline.vae.enable_tiling()
    assert run(pipeline, clip, output_type="pt").shape == plain.shape


# --- loading ----------------------------------------------------------------------------------------------------------


def test_optional_components_may_be_none_and_survive_saving(
    clip: Clip,  # noqa: F811
    tmp_path: Path,
) -> None:
    pipeline = make_pipeline()
    for name in pipeline._optional_components:
        setattr(pipeline, name, None)
    inputs = {name: value for name, value in clip.items() if name != "face_video"}
    expected = run(pipeline, inputs, output_type="pt")
    pipeline.save_pretrained(tmp_path)
    again = XDynaPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert all(getattr(again, name) is None for name in pipeline._optional_components)
    assert torch.equal(run(again, inputs, output_type="pt"), expected)


def test_from_pretrained_with_variant_dtypes_and_device_map(
    pipeline: XDynaPipeline,
    clip: Clip,  # noqa: F811
    tmp_path: Path,
) -> None:
    pipeline.save_pretrained(tmp_path, variant="fp16")
    assert list(tmp_path.glob("unet/*.fp16.*"))
    for one, default in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
        dtypes = {"unet": one, "default": default}
        again = XDynaPipeline.from_pretrained(tmp_path, variant="fp16", torch_dtype=dtypes, device_map="cpu")
        again.set_progress_bar_config(disable=True)
        assert (again.unet.dtype, again.vae.dtype, again.pose_controlnet.dtype) == (one, default, default)
        assert run(again, clip).std() > 0


def test_diffusers_loads_a_folder_as_a_custom_pipeline(
    pipeline: XDynaPipeline,
    clip: Clip,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`DiffusionPipeline.from_pretrained(folder, custom_pipeline=...)`, with a folder's pipeline.py or a file."""
    pipeline.save_pretrained(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["unet"] == ["xdyna.models.unet", "XDynaUNet"], "folders name these modules; they stay"
    code = tmp_path / "code"
    code.mkdir()
    (code / "pipeline.py").write_text(
        "from xdyna.pipelines.xdyna import XDynaPipeline\n\n__all__ = ['XDynaPipeline']\n"
    )
    expected = run(pipeline, clip, output_type="pt")
    for custom in (code, inspect.getfile(XDynaPipeline)):
        loaded = DiffusionPipeline.from_pretrained(
            tmp_path / "model", custom_pipeline=str(custom), trust_remote_code=True
        )
        loaded.set_progress_bar_config(disable=True)
        assert type(loaded).__name__ == "XDynaPipeline"
        assert torch.equal(run(loaded, clip, output_type="pt"), expected)
