import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, DPMSolverMultistepScheduler
from PIL import Image

from xdyna.checkpoints import build
from xdyna.models.denoiser import Denoiser, Tokens
from xdyna.models.image_tokens import ImageTokenResampler
from xdyna.models.unet import XDynaUNet
from xdyna.pipelines import denoise
from xdyna.pipelines.residuals import Condition, ControlResidualCache
from xdyna.pipelines.xdyna import Precomputed, XDynaPipeline, to_uint8

OPTIONS = {"num_inference_steps": 2, "context_frames": 4, "context_overlap": 1, "decode_chunk_size": 3}
FRAMES, SIDE = 6, 16


def make_pipeline() -> XDynaPipeline:
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 16), "layers_per_block": 1, "cross_attention_dim": 8, "norm_num_groups": 4}
    control = {
        **sizes,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "attention_head_dim": 2,
        "conditioning_embedding_out_channels": (4, 4),
    }
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
    )
    tokenizer = build.build_tokenizer()
    text = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**text, "num_hidden_layers": 2, "image_size": 32, "patch_size": 16, "projection_dim": 8}
    image_encoder, processor = build.build_image_encoder(vision)
    pipeline = XDynaPipeline(
        vae=vae,
        unet=XDynaUNet(**sizes, attention_levels=(True, False), num_attention_heads=2, motion_heads=2),
        scheduler=DDIMScheduler(1000, 0.00085, 0.012, "linear", steps_offset=1, clip_sample=False),
        pose_controlnet=ControlNetModel(**control, conditioning_channels=3),
        face_controlnet=ControlNetModel(**control, conditioning_channels=6),
        text_encoder=build.build_text_encoder(text, tokenizer),
        tokenizer=tokenizer,
        image_encoder=image_encoder,
        feature_extractor=processor,
        image_projection=ImageTokenResampler(
            dim=8, depth=1, dim_head=4, heads=2, num_queries=4, embedding_dim=8, output_dim=8
        ),
    )
    for net in (pipeline.unet, pipeline.pose_controlnet, pipeline.face_controlnet):
        for parameter in net.parameters():  # nothing stays at its silent initial value
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
        net.eval()
    for name in ("vae", "text_encoder", "image_encoder", "image_projection"):
        getattr(pipeline, name).eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline() -> XDynaPipeline:
    return make_pipeline()


@pytest.fixture
def clip() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (20, 30, 3), dtype=np.uint8),
        "pose_video": rng.integers(0, 256, (FRAMES, SIDE, SIDE, 3), dtype=np.uint8),
        "face_video": rng.integers(0, 256, (FRAMES, SIDE, SIDE, 6), dtype=np.uint8),
    }


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def run(pipeline, clip, *, seed=0, **settings):
    """The one video of a call (latents with their leading 1)."""
    settings = {**OPTIONS, "output_type": "np", **settings}
    frames = pipeline(**clip, generator=seeded(seed), **settings).frames
    assert len(frames) == 1
    return frames if settings["output_type"] == "latent" else frames[0]


def test_output_types_agree(pipeline, clip):
    array = run(pipeline, clip)
    assert array.shape == (FRAMES, SIDE, SIDE, 3)
    assert array.dtype == np.float32
    assert 0 <= array.min() < array.max() <= 1
    tensor = run(pipeline, clip, output_type="pt")
    assert tensor.shape == (FRAMES, 3, SIDE, SIDE)
    np.testing.assert_array_equal(tensor.numpy().transpose(0, 2, 3, 1), array)
    pictures = run(pipeline, clip, output_type="pil")
    np.testing.assert_array_equal(np.stack([np.asarray(p) for p in pictures]), (array * 255).round().astype(np.uint8))
    np.testing.assert_array_equal(to_uint8(tensor), (array * 255).round().astype(np.uint8))
    [frames] = pipeline(**clip, **OPTIONS, generator=seeded(), return_dict=False)
    np.testing.assert_array_equal([np.asarray(p) for p in frames[0]], [np.asarray(p) for p in pictures])
    latents = run(pipeline, clip, output_type="latent")
    assert latents.shape == (1, 4, FRAMES, SIDE // 2, SIDE // 2)
    torch.testing.assert_close(torch.cat(list(pipeline.decode_frames(latents, chunk=4))), tensor, atol=1e-5, rtol=1e-5)


def test_the_seed_decides_everything(pipeline, clip):
    first, again, other = run(pipeline, clip), run(pipeline, clip), run(pipeline, clip, seed=1)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_window_offsets_follow_the_seed(pipeline, clip, monkeypatch):
    drawn = []
    original = denoise.predict_noise

    def spy(*args, windows, **kwargs):
        drawn.append(windows)
        return original(*args, windows=windows, **kwargs)

    monkeypatch.setattr("xdyna.pipelines.denoise.predict_noise", spy)
    plans = []
    for seed in (0, 0, 1):
        drawn.clear()
        run(pipeline, clip, seed=seed, num_inference_steps=5, output_type="latent")
        plans.append(list(drawn))
    assert plans[0] == plans[1] != plans[2]
    assert len({str(windows) for windows in plans[0]}) > 1  # a new offset for each step


def test_face_frames_and_pose_frames_matter(pipeline, clip):
    base = run(pipeline, clip, output_type="latent")
    for name in ("pose_video", "face_video", "image"):
        changed = {**clip, name: 255 - clip[name]}
        assert not torch.allclose(run(pipeline, changed, output_type="latent"), base, atol=1e-4), name
    without_face = {name: value for name, value in clip.items() if name != "face_video"}
    assert not torch.allclose(run(pipeline, without_face, output_type="latent"), base, atol=1e-4)


def test_guidance_of_one_runs_one_half(pipeline, clip, monkeypatch):
    batches = []
    original = pipeline.unet.forward

    def spy(sample, *args, **kwargs):
        batches.append(sample.shape[0])
        return original(sample, *args, **kwargs)

    monkeypatch.setattr(pipeline.unet, "forward", spy)
    conditional = run(pipeline, clip, guidance_scale=1.0, output_type="latent")
    assert set(batches) == {1}
    batches.clear()
    near_one = run(pipeline, clip, guidance_scale=1 + 1e-6, output_type="latent")
    assert set(batches) == {1}  # a single row with the tokens of two branches
    torch.testing.assert_close(conditional, near_one, atol=1e-4, rtol=1e-4)


def test_controlnet_runs_once_per_frame_and_step(pipeline, clip, monkeypatch):
    """Windows overlap and both branches share the empty prompt: each frame passes the ControlNet once per step."""
    pictures = []
    original = pipeline.pose_controlnet.forward

    def spy(sample, *args, **kwargs):
        pictures.append(sample.shape[0])
        return original(sample, *args, **kwargs)

    monkeypatch.setattr(pipeline.pose_controlnet, "forward", spy)
    run(pipeline, clip)
    assert sum(pictures) == FRAMES * OPTIONS["num_inference_steps"]
    pictures.clear()
    run(pipeline, clip, prompt="a person")
    assert sum(pictures) == 2 * FRAMES * OPTIONS["num_inference_steps"]


@torch.no_grad()
def test_cached_residuals_equal_direct_ones(pipeline, clip):
    """Per window, per half, without any cache: the same residuals."""
    pictures = torch.from_numpy(clip["pose_video"]).permute(0, 3, 1, 2)
    tokens = Tokens(torch.randn(2, 5, 8), None)
    latents = torch.randn(1, 4, FRAMES, SIDE // 2, SIDE // 2)
    windows = [[0, 1, 2, 3], [3, 4, 5, 0]]
    cache = ControlResidualCache([Condition(pipeline.pose_controlnet, pictures)], tokens)
    cache.start(windows)
    scaled = pictures.float()
    scaled = (scaled - scaled.min()) / (scaled.max() - scaled.min())
    for window in windows:
        residuals = cache.window(latents, torch.tensor(500), window)
        for half in range(2):
            down, mid = pipeline.pose_controlnet(
                latents[0, :, window].transpose(0, 1),
                torch.tensor(500),
                encoder_hidden_states=tokens.text[half].expand(4, -1, -1),
                controlnet_cond=scaled[window],
                return_dict=False,
            )
            for ours, theirs in zip((*residuals.down, residuals.mid), (*down, mid), strict=True):
                torch.testing.assert_close(ours[half], theirs.transpose(0, 1), atol=1e-5, rtol=1e-4)
    assert not cache._frames  # nothing is kept beyond its last window


@torch.no_grad()
def test_predictions_are_averaged_over_windows():
    """A network that returns a number per window: frames get the mean of the windows that hold them."""

    class Numbers(torch.nn.Module):
        dtype = torch.float32
        calls = 0

        def __call__(self, sample, *args, **kwargs):
            self.calls += 1
            out = torch.full_like(sample, float(self.calls))
            out[:, :, 0] = 1000  # the reference's prediction must not get anywhere
            return type("Out", (), {"sample": out})

    latents, reference = torch.zeros(1, 4, 5, 2, 2), torch.zeros(1, 4, 1, 2, 2)
    tokens = Tokens(torch.zeros(1, 1, 1), None)
    windows = [[0, 1, 2], [2, 3, 4], [4, 0, 1]]
    prediction = denoise.predict_noise(
        Denoiser(unet=Numbers(), pose_controlnet=None), latents, reference, torch.tensor(1),
        windows=windows, tokens=tokens, controls=ControlResidualCache([], tokens),
    )  # fmt: skip
    assert prediction[0, 0, :, 0, 0].tolist() == [2.0, 2.0, 1.5, 2.0, 2.5]


def test_continuing_equals_running_through(pipeline, clip):
    options = {"num_inference_steps": 4, "output_type": "latent"}
    states = []

    def keep(_, step, __, state):
        states.append(state["latents"].clone())
        return state

    whole = run(pipeline, clip, **options, callback_on_step_end=keep)
    rest = run(pipeline, clip, **options, latents=states[1], precomputed=Precomputed(start_step=2))
    assert torch.equal(rest, whole)


def test_callback_may_replace_latents(pipeline, clip):
    def halved(_, __, ___, state):
        return {"latents": state["latents"] / 2}

    plain = run(pipeline, clip, num_inference_steps=1, output_type="latent")
    out = run(pipeline, clip, num_inference_steps=1, output_type="latent", callback_on_step_end=halved)
    torch.testing.assert_close(out, plain / 2)


def test_other_scheduler(pipeline, clip):
    original = pipeline.scheduler
    try:
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(original.config)
        assert run(pipeline, clip).shape == (FRAMES, SIDE, SIDE, 3)
    finally:
        pipeline.scheduler = original


def test_open_windows_and_pure_noise(pipeline, clip):
    base = run(pipeline, clip, output_type="latent")
    for change in ({"context_schedule": "uniform_open"}, {"similarity_prior": False}):
        out = run(pipeline, clip, **change, output_type="latent")
        assert out.isfinite().all()
        assert not torch.allclose(out, base, atol=1e-4), change


def test_one_frame(pipeline, clip):
    one = {"image": clip["image"], "pose_video": clip["pose_video"][:1]}
    assert run(pipeline, one).shape == (1, SIDE, SIDE, 3)


def test_save_and_load_give_the_same_video(pipeline, clip, tmp_path):
    pipeline.save_pretrained(tmp_path)
    again = XDynaPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(run(again, clip), run(pipeline, clip))


def test_bfloat16_runs(clip):
    pipeline = make_pipeline().to(torch.bfloat16)
    assert run(pipeline, clip).std() > 0


def test_reference_may_be_pil_and_is_center_cropped(pipeline, clip):
    from_array = run(pipeline, clip)
    np.testing.assert_array_equal(run(pipeline, {**clip, "image": Image.fromarray(clip["image"])}), from_array)


@pytest.mark.parametrize("face", [False, True])
def test_another_aspect_is_cut_as_the_programs_cut_it(pipeline, clip, face, monkeypatch):
    """Twice the video's height: centred without face control, a quarter of the slack from above with it."""
    tall = np.random.default_rng(1).integers(0, 256, (2 * SIDE + 6, SIDE, 3), dtype=np.uint8)
    given = []
    original = pipeline.encode_reference
    monkeypatch.setattr(pipeline, "encode_reference", lambda image, g: (given.append(image), original(image, g))[1])
    inputs = {name: value for name, value in clip.items() if face or name != "face_video"}
    run(pipeline, {**inputs, "image": tall}, output_type="latent")
    top = (SIDE + 6) // (4 if face else 2)
    np.testing.assert_array_equal(np.asarray(given[0]), tall[top : top + SIDE])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pose_video": np.zeros((2, 16, 15, 3), np.uint8), "face_video": None}, "16x15.*multiples of 2"),
        ({"pose_video": np.zeros((2, 16, 16, 4), np.uint8)}, r"pose_video has shape \(2, 16, 16, 4\)"),
        ({"pose_video": torch.zeros(2, 16, 16, 3)}, r"pose_video has shape .* a tensor \(frames, 3, H, W\)"),
        ({"pose_video": np.zeros((0, 16, 16, 3), np.uint8)}, "at least one frame"),
        ({"pose_video": []}, "pose_video is an empty list"),
        ({"pose_video": "dance.mp4"}, "pose_video is a str; expected the frames"),
        ({"pose_video": np.zeros((2, 16, 16, 3), np.int32)}, "expected uint8"),
        ({"pose_video": np.full((2, 16, 16, 3), 2, np.float32)}, r"values from 2 to 2, expected \[0, 1\]"),
        ({"pose_video": [Image.new("RGB", (16, 16)), Image.new("RGB", (16, 18))]}, "images of one kind and size"),
        ({"face_video": np.zeros((2, 16, 16, 6), np.uint8)}, "must agree"),
        ({"image": None}, "no reference image"),
        ({"image": [Image.new("RGB", (16, 16))] * 2, "prompt": ["a"] * 3}, "image has 2 entries for 3 videos"),
        ({"prompt": 3}, "prompt is a int"),
        ({"prompt": "a", "prompt_embeds": torch.zeros(1, 77, 8)}, "prompt and prompt_embeds were both given"),
        ({"prompt_embeds": torch.zeros(77, 8)}, "prompt_embeds have shape"),
        ({"num_frames": 7}, "num_frames is 7, expected 1 to 6"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "has \\['noise'\\], expected some of"),
    ],
)
def test_inputs_are_checked(pipeline, clip, change, message):
    with pytest.raises(ValueError, match=message):
        run(pipeline, {**clip, **change})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"latents": torch.zeros(1, 4, 1, 8, 8)}, r"latents have shape \(1, 4, 1, 8, 8\), expected \(1, 4, 6, 8, 8\)"),
        ({"prior": torch.zeros(1, 4, 9, 8, 8)}, "prior have shape"),
        ({"reference_latents": torch.zeros(1, 4, 9, 8)}, r"reference latents have shape .* expected \(1, 4, 8, 8\)"),
        ({"start_step": 1}, "start_step is 1 of 2 steps without latents"),
        ({"latents": torch.zeros(1, 4, 6, 8, 8), "start_step": 7}, "start_step is 7 of 2 steps"),
        ({"offsets": [1, 2, 3]}, "3 window offsets given for 2 steps"),
    ],
)
def test_precomputed_values_are_checked(pipeline, clip, given, message):
    latents = given.pop("latents", None)
    with pytest.raises(ValueError, match=message):
        run(pipeline, clip, latents=latents, precomputed=Precomputed(**given))


@pytest.mark.parametrize("change", [{"num_inference_steps": 0}, {"decode_chunk_size": 0}, {"context_frames": 0}])
def test_numbers_are_checked(pipeline, clip, change):
    with pytest.raises(ValueError, match="expected 1 or more"):
        run(pipeline, clip, **change)


@pytest.mark.parametrize("reference", [np.full((20, 30, 3), 9.0), np.zeros((20, 30), np.uint8), "me.jpg"])
def test_reference_type_is_checked(pipeline, clip, reference):
    with pytest.raises(ValueError, match="the image"):
        run(pipeline, {**clip, "image": reference})


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_nan_is_told_and_not_drawn(clip, part):
    """A black video would look like a result: NaN from half precision or broken weights is an error."""
    broken = make_pipeline()
    target = broken.unet.conv_out.bias if part == "unet" else broken.vae.decoder.conv_out.bias
    with torch.no_grad():
        target[0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinity; use another dtype"):
        run(broken, clip)


def test_more_checks(pipeline, clip):
    with pytest.raises(ValueError, match="output_type 'mp4' is unknown"):
        run(pipeline, clip, output_type="mp4")
    without = make_pipeline()
    without.face_controlnet = None
    with pytest.raises(ValueError, match="no face ControlNet"):
        run(without, clip)
    without.text_encoder = None
    with pytest.raises(ValueError, match="no text encoder"):
        run(without, {k: v for k, v in clip.items() if k != "face_video"})
