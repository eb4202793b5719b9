"""What the pipeline encodes and decodes, compared with direct calls of diffusers, transformers and Pillow."""

import inspect

import numpy as np
import pytest
import torch
from PIL import Image

from tests.process.small import SMALL
from xdyna.models.denoiser import Tokens
from xdyna.pipelines import denoise, prepare
from xdyna.pipelines.untrained import build_pipeline
from xdyna.pipelines.xdyna import Precomputed, XDynaPipeline

SIDE, FRAMES = 32, 6
OPTIONS = {"num_inference_steps": 1, "context_frames": 4, "context_overlap": 1, "output_type": "latent"}


@pytest.fixture(scope="module")
def pipeline() -> XDynaPipeline:
    pipeline = build_pipeline(SMALL, seed=3)
    for name in ("vae", "unet", "pose_controlnet", "face_controlnet", "text_encoder", "image_encoder"):
        getattr(pipeline, name).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.nn.init.normal_(pipeline.vae.quant_conv.bias, std=1.0)  # mean and variance far from zero
        for parameter in pipeline.image_encoder.parameters():  # CLIP's own start hardly reacts to the image
            torch.nn.init.normal_(parameter, std=0.3)
        for parameter in pipeline.text_encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def wide() -> Image.Image:
    """60 px wide, 40 px high, with much to see at its left and right ends."""
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def poses(frames: int = FRAMES) -> np.ndarray:
    return np.random.default_rng(2).integers(5, 100, (frames, SIDE, SIDE, 3), dtype=np.uint8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def direct_image_tokens(pipeline: XDynaPipeline, picture: Image.Image) -> torch.Tensor:
    """Row of zero pixels, row of the image; the two go through CLIP one at a time."""
    pixels = pipeline.feature_extractor(images=picture, return_tensors="pt").pixel_values
    rows = []
    for values in (torch.zeros(1, 3, 32, 32), pixels):
        states = pipeline.image_encoder(values, output_hidden_states=True).hidden_states
        assert len(states) == 3  # input of the first layer, outputs of both layers
        rows.append(pipeline.image_projection(states[1]))
    return torch.cat(rows)


@torch.no_grad()
def direct_text_tokens(pipeline: XDynaPipeline, text: str) -> torch.Tensor:
    ids = pipeline.tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    assert ids.shape == (1, 77)
    return pipeline.text_encoder(ids).last_hidden_state


def spy_on_tokens(monkeypatch: pytest.MonkeyPatch) -> list[Tokens]:
    """Tokens of each call of `predict_noise`, which then predicts ones (row 0) and twos (row 1)."""
    seen = []

    def predict(unet, latents, reference, timestep, *, tokens, **kwargs):
        seen.append(tokens)
        values = torch.arange(1.0, tokens.text.shape[0] + 1)[:, None, None, None, None]
        return values.expand(-1, *latents.shape[1:])

    monkeypatch.setattr(denoise, "predict_noise", predict)
    return seen


def test_image_tokens_are_those_of_the_last_layer_but_one(pipeline, wide):
    positive, negative = pipeline.encode_image(wide)
    tokens = torch.cat([negative, positive])
    expected = direct_image_tokens(pipeline, wide)
    assert tokens.shape == (2, 4, 8)
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-4)
    black = direct_image_tokens(pipeline, Image.new("RGB", wide.size))[1]
    assert not torch.allclose(tokens[0], black, atol=1e-2)  # a black image is not zero once it is normalised
    assert not torch.allclose(tokens[0], torch.zeros(4, 8), atol=1e-2)  # zero pixels are not zero tokens


def test_image_tokens_are_of_the_whole_picture(pipeline, wide, monkeypatch):
    seen = spy_on_tokens(monkeypatch)
    square = {"size": {"height": 32, "width": 32}, "do_center_crop": False}  # CLIP sees the ends as well
    for name, value in square.items():
        monkeypatch.setattr(pipeline.feature_extractor, name, value)
    pipeline(wide, poses(), **OPTIONS, generator=seeded())
    torch.testing.assert_close(seen[0].image, direct_image_tokens(pipeline, wide), atol=1e-5, rtol=1e-4)
    cut = direct_image_tokens(pipeline, wide.crop((10, 0, 50, 40)))
    assert not torch.allclose(seen[0].image, cut, atol=1e-2)


def test_text_tokens_are_clips(pipeline):
    rows = pipeline.encode_prompt("a person dances", "blurry")
    for row, text in zip(rows, ("a person dances", "blurry"), strict=True):
        torch.testing.assert_close(row, direct_text_tokens(pipeline, text), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(rows[0], rows[1], atol=1e-2)


@pytest.mark.parametrize("guidance", [7.5, 1.0])
def test_rows_of_guidance(pipeline, wide, monkeypatch, guidance):
    """Row 0 is the negative prompt with zero pixels, row 1 the prompt with the image; without guidance: row 1."""
    seen = spy_on_tokens(monkeypatch)
    texts = {"prompt": "a person dances", "negative_prompt": "blurry"}
    pipeline(wide, poses(), **texts, **OPTIONS, guidance_scale=guidance, generator=seeded())
    text = torch.cat([direct_text_tokens(pipeline, text) for text in ("blurry", "a person dances")])
    image = direct_image_tokens(pipeline, wide)
    wanted = slice(None) if guidance > 1 else slice(1, 2)
    torch.testing.assert_close(seen[0].text, text[wanted], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen[0].image, image[wanted], atol=1e-5, rtol=1e-4)


def test_guidance_moves_away_from_row_0(pipeline, wide, monkeypatch):
    """Predictions 1 (row 0) and 2 (row 1) at scale 7.5 give 1 + 7.5 (2 - 1)."""
    spy_on_tokens(monkeypatch)
    noise = []
    original = pipeline.scheduler.step

    def step(model_output, *args, **kwargs):
        noise.append(model_output)
        return original(model_output, *args, **kwargs)

    step.__signature__ = inspect.signature(original)  # the pipeline looks for `eta` in it
    monkeypatch.setattr(pipeline.scheduler, "step", step)
    pipeline(wide, poses(), **OPTIONS, generator=seeded())
    torch.testing.assert_close(noise[0], torch.full((1, 4, FRAMES, 4, 4), 8.5))


@torch.no_grad()
def test_reference_latents_are_a_sample_of_the_posterior(pipeline, wide):
    picture = wide.resize((SIDE, SIDE))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
    posterior = pipeline.vae.encode(pixels).latent_dist
    factor = pipeline.vae.config.scaling_factor
    assert factor == pytest.approx(0.18215)
    latents = pipeline.encode_reference(picture, seeded(5))
    drawn = torch.randn(posterior.mean.shape, generator=seeded(5))
    torch.testing.assert_close(latents, (posterior.mean + posterior.std * drawn) * factor, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(latents, posterior.mode() * factor, atol=1e-3)
    assert not torch.allclose(latents, pipeline.encode_reference(picture, seeded(6)), atol=1e-3)


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((60, 40), (10, 0, 50, 40)),
        ((40, 60), (0, 10, 40, 50)),
        ((50, 50), (0, 0, 50, 50)),
        ((48, 32), (8, 0, 40, 32)),
        ((32, 48), (0, 8, 32, 40)),
        ((32, 32), (0, 0, 32, 32)),
    ],
    ids=["wide", "high", "square", "wide, cut alone", "high, cut alone", "as it is"],
)
def test_reference_of_another_aspect_is_cut_in_the_middle(pipeline, monkeypatch, size, box):
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    spy_on_tokens(monkeypatch)
    given = []
    original = pipeline.encode_reference

    def spy(cut, generator=None):
        given.append((cut, generator))
        return original(cut, generator)

    monkeypatch.setattr(pipeline, "encode_reference", spy)
    generator = seeded()
    pipeline(picture, poses(), **OPTIONS, generator=generator)
    [(cut, used)] = given
    expected = picture.crop(box).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    assert cut.size == expected.size == (SIDE, SIDE)
    # At the border the filter reaches one pixel beyond the box, where a cut image ends; ties may round either way.
    inner = (slice(1, -1), slice(1, -1))
    ours, theirs = (np.asarray(entry).astype(int) for entry in (cut, expected))
    np.testing.assert_allclose(ours[inner], theirs[inner], atol=1)
    if box[2] - box[0] == SIDE:
        np.testing.assert_array_equal(ours, theirs)
    assert used is generator


def test_half_of_the_priors_elements_are_blurred(pipeline, wide, monkeypatch):
    spy_on_tokens(monkeypatch)
    asked = []
    original = prepare.mix_prior

    def spy(reference, blurred):
        asked.append((reference, blurred))
        return original(reference, blurred)

    monkeypatch.setattr(prepare, "mix_prior", spy)
    latents = torch.randn(1, 4, 4, 4, generator=seeded(9))
    frames = 64
    pipeline(
        wide, poses(frames), **OPTIONS, generator=seeded(),
        precomputed=Precomputed(reference_latents=latents),
    )  # fmt: skip
    assert all(torch.equal(reference, latents) for reference, _ in asked)
    blurred = torch.cat([part for _, part in asked], dim=2)
    assert blurred.shape == (1, 4, frames, 4, 4)
    assert blurred.dtype == torch.bool
    share = blurred.float()
    assert share.mean() == pytest.approx(0.5, abs=0.04)  # 5 standard deviations of 4096 throws
    for dim in range(1, 5):  # drawn for each element by itself, not for whole frames, channels or images
        others = [d for d in range(5) if d != dim]
        assert share.mean(dim=others).sub(0.5).abs().max() < 0.35
        assert (share.std(dim=dim, correction=0) > 0).float().mean() > 0.8


@pytest.mark.parametrize("net", ["pose_controlnet", "face_controlnet"])
def test_the_value_range_is_that_of_all_frames(pipeline, wide, monkeypatch, net):
    """A bright pixel of the last frame alone scales the first window's condition, too."""
    channels = 3 if net == "pose_controlnet" else 6
    frames = np.random.default_rng(4).integers(5, 100, (FRAMES, SIDE, SIDE, channels), dtype=np.uint8)
    frames[-1, 3, 4, 1] = 205
    low = int(frames.min())
    given = []
    original = getattr(pipeline, net).forward

    def spy(sample, timestep, *args, controlnet_cond, **kwargs):
        given.append(controlnet_cond.clone())
        return original(sample, timestep, *args, controlnet_cond=controlnet_cond, **kwargs)

    monkeypatch.setattr(getattr(pipeline, net), "forward", spy)
    clip = {"pose_video": frames} if channels == 3 else {"pose_video": poses(), "face_video": frames}
    pipeline(wide, **clip, **OPTIONS, generator=seeded(), precomputed=Precomputed(offsets=[0]))
    expected = torch.from_numpy((frames[:4].astype(np.float32) - low) / (205 - low)).permute(0, 3, 1, 2)
    torch.testing.assert_close(given[0], expected)
    assert torch.cat(given).max() == 1


def test_window_offsets_reach_both_schedules(pipeline, wide, monkeypatch):
    """Offset by offset: the windows of the steps are those of the schedule by hand."""
    planned = []

    def predict(unet, latents, *args, windows, **kwargs):
        planned.append(windows)
        return torch.zeros(2, *latents.shape[1:])

    monkeypatch.setattr(denoise, "predict_noise", predict)
    given = Precomputed(offsets=[0, 1])
    for schedule in ("uniform", "uniform_open"):
        options = {**OPTIONS, "num_inference_steps": 2, "context_schedule": schedule}
        pipeline(wide, poses(8), **options, generator=seeded(), precomputed=given)
    assert [[window[0] for window in windows] for windows in planned] == [[0, 3, 6], [1, 4, 7], [0, 3, 4], [0, 1, 4]]


@torch.no_grad()
def test_decoding_undoes_the_scaling(pipeline):
    latents = torch.randn(1, 4, 5, 4, 4, generator=seeded())
    decoded = torch.cat(list(pipeline.decode_frames(latents, chunk=2)))
    pictures = torch.cat([pipeline.vae.decode(latents[:, :, i] / 0.18215).sample for i in range(5)])
    expected = (pictures / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(decoded, expected, atol=1e-4, rtol=1e-4)
    unscaled = (pipeline.vae.decode(latents[:, :, 0]).sample / 2 + 0.5).clamp(0, 1)
    assert not torch.allclose(decoded[:1], unscaled, atol=1e-2)


def test_decoding_goes_by_chunks(pipeline):
    latents = torch.randn(1, 4, 5, 4, 4, generator=seeded())
    assert [len(part) for part in pipeline.decode_frames(latents, chunk=2)] == [2, 2, 1]
