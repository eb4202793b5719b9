"""The loss of a batch."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from xdyna.config.train import LossConfig
from xdyna.data.samples import Batch
from xdyna.models.denoiser import Tokens
from xdyna.training.components import Components
from xdyna.training.draws import TRAINING, VALIDATION, sample_generator, spread_timestep
from xdyna.training.groups import select_trainable
from xdyna.training.objective import DiffusionObjective
from xdyna.training.stages import STAGES

MakeBatch = Callable[..., Batch]


def randomised(components: Components) -> Components:
    """Zero layers filled, so that every branch has a say."""
    generator = torch.Generator().manual_seed(5)
    for module in components.modules().values():
        for p in module.parameters():
            if not p.any():
                p.data = 0.1 * torch.randn(p.shape, generator=generator)
    return components


@pytest.mark.parametrize("stage", ["vae", "base", "dynamics", "face"])
def test_the_loss_of_a_clip_does_not_depend_on_its_batch(
    stage: str, components: Components, make_batch: MakeBatch
) -> None:
    objective = STAGES[stage].objective(randomised(components), LossConfig(kl=0.1), seed=3)
    with torch.no_grad():
        together = objective(make_batch([4, 7, 9]).to("cpu"))
        # Conditions are made from the batch's order in this fixture, so single clips take them from the triple.
        triple = make_batch([4, 7, 9])
        alone = [objective(_row(triple, k))[0] for k in range(3)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-5, atol=1e-6)


def _row(batch: Batch, k: int) -> Batch:
    rows = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    return Batch(**{name: value[k : k + 1] if value is not None else None for name, value in rows.items()})


def test_against_diffusers_and_a_loop_by_hand(components: Components, make_batch: MakeBatch) -> None:
    """The whole stage `face`, written out for one clip with diffusers' scheduler and no helper of the objective."""
    parts, batch = randomised(components), make_batch([6], frames=3)
    objective = DiffusionObjective(parts, LossConfig(), seed=1, face=True)
    draw = objective._draw(batch, TRAINING)
    with torch.no_grad():
        loss = objective(batch)
        pixels = batch.pixels[0].float() / 127.5 - 1
        posterior = parts.vae.encode(pixels).latent_dist
        scale = parts.vae.config.scaling_factor
        latents = (posterior.mean + posterior.std * draw.posterior[0].transpose(0, 1)) * scale  # (F, C, h, w)
        noise = draw.noise[0].transpose(0, 1)
        scheduler = DDIMScheduler.from_config(parts.scheduler.config)
        noisy = scheduler.add_noise(latents[1:], noise, draw.timestep.expand(3))
        picture = batch.pixels[0, 0].permute(1, 2, 0).numpy()
        clip = parts.feature_extractor(images=picture, return_tensors="pt").pixel_values
        image = parts.image_projection(parts.image_encoder(clip, output_hidden_states=True).hidden_states[-2])
        ids = parts.tokenizer([""], padding="max_length", max_length=77, return_tensors="pt").input_ids
        text = parts.text_encoder(ids)[0]
        down, mid = None, None
        for net, pictures in ((parts.pose_controlnet, batch.pose[0]), (parts.face_controlnet, batch.face[0])):
            values = pictures.float()
            values = (values - values.min()) / (values.max() - values.min())
            assert net is not None
            d, m = net(noisy, draw.timestep, text.expand(3, -1, -1), values, return_dict=False)
            down, mid = (d, m) if down is None else ([a + b for a, b in zip(down, d, strict=True)], mid + m)
        assert down is not None
        out = parts.unet(
            torch.cat([latents[:1], noisy]).transpose(0, 1)[None],
            draw.timestep,
            text,
            image,
            down_residuals=[d.transpose(0, 1)[None] for d in down],
            mid_residual=mid.transpose(0, 1)[None],
        ).sample[0, :, 1:]
    expected = ((out - noise.transpose(0, 1)) ** 2).mean()
    torch.testing.assert_close(loss[0], expected, rtol=2e-5, atol=1e-6)


def test_dropping_the_image_gives_the_tokens_of_zeros(components: Components, make_batch: MakeBatch) -> None:
    objective = STAGES["dynamics"].objective(components, LossConfig(), seed=0)
    assert isinstance(objective, DiffusionObjective)
    with torch.no_grad():
        dropped = objective._image_tokens(make_batch([1, 2], drop_image=True))
        kept = objective._image_tokens(make_batch([1, 2]))
        zeros = torch.zeros(1, 3, 32, 32)
        hidden = components.image_encoder(zeros, output_hidden_states=True).hidden_states[-2]
        expected = components.image_projection(hidden).expand(2, -1, -1)
    torch.testing.assert_close(dropped, expected)
    assert not torch.allclose(kept[0], kept[1])


def test_min_snr_scales_each_clip(components: Components, make_batch: MakeBatch) -> None:
    batch = make_batch([0, 1, 2])
    plain = DiffusionObjective(components, LossConfig(), seed=0)
    weighted = DiffusionObjective(components, LossConfig(min_snr=5.0), seed=0)
    with torch.no_grad():
        ratio = weighted(batch) / plain(batch)
    a = plain.alphas_cumprod[plain._draw(batch, TRAINING).timestep].numpy().astype(np.float64)
    snr = a / (1 - a)
    np.testing.assert_allclose(ratio.numpy(), np.minimum(snr, 5) / snr, rtol=1e-5)


@pytest.mark.parametrize("term", ["person", "face"])
def test_the_person_weighs_in_training_alone(term: str, components: Components, make_batch: MakeBatch) -> None:
    parts, batch = randomised(components), make_batch([0, 1], scene=True)
    drawn = batch.pose if term == "person" else batch.face
    drawn[0, :, :, :8, :8] = 255  # a skeleton or a face in the corner; the second clip is a scene
    plain, weighted = (DiffusionObjective(parts, LossConfig(**{term: weight}), seed=0) for weight in (1.0, 5.0))
    with torch.no_grad():
        ratio = weighted(batch) / plain(batch)
        assert torch.equal(weighted(batch, stream=VALIDATION), plain(batch, stream=VALIDATION))
    assert abs(float(ratio[0]) - 1) > 1e-3
    assert float(ratio[1]) == pytest.approx(1.0, abs=1e-6)


def test_streams_and_seeds_give_different_noise() -> None:
    first = torch.randn(4, generator=sample_generator(0, 1))
    assert torch.equal(first, torch.randn(4, generator=sample_generator(0, 1)))
    for other in (sample_generator(1, 1), sample_generator(0, 2), sample_generator(0, 1, VALIDATION)):
        assert not torch.equal(first, torch.randn(4, generator=other))
    # Validation is the same in every run.
    a, b = (torch.randn(4, generator=sample_generator(seed, 1, VALIDATION)) for seed in (0, 9))
    assert torch.equal(a, b)


def test_each_sample_has_noise_of_its_own(components: Components, make_batch: MakeBatch) -> None:
    draw = DiffusionObjective(components, LossConfig(), seed=0)._draw(make_batch([4, 5]), TRAINING)
    for drawn in (draw.noise, draw.posterior):
        assert abs(float(torch.corrcoef(drawn.flatten(1))[0, 1])) < 0.2


def test_what_validation_and_a_given_timestep_draw(components: Components, make_batch: MakeBatch) -> None:
    """Validation has its own noise, the same for every seed of the run; a given timestep is that of all clips."""
    batch = make_batch([4, 5])
    for stage in ("vae", "base"):
        one, other = (STAGES[stage].objective(components, LossConfig(), seed=seed) for seed in (1, 2))
        with torch.no_grad():
            assert not torch.equal(one(batch), other(batch))
            assert torch.equal(one(batch, stream=VALIDATION), other(batch, stream=VALIDATION))
            assert not torch.equal(one(batch, stream=VALIDATION), one(batch))
    objective = DiffusionObjective(randomised(components), LossConfig(min_snr=5.0), seed=1)
    plain = DiffusionObjective(components, LossConfig(), seed=1)
    with torch.no_grad():
        ratio = objective(batch, timestep=20) / plain(batch, timestep=20)
    a = float(plain.alphas_cumprod[20])
    assert ratio.tolist() == pytest.approx([5 * (1 - a) / a] * 2, rel=1e-5)


def test_latents_of_a_cache_are_the_autoencoders(components: Components, make_batch: MakeBatch) -> None:
    batch = make_batch([3, 6])
    objective = DiffusionObjective(randomised(components), LossConfig(), seed=1)
    with torch.no_grad():
        expected = objective(batch)
        pixels = batch.pixels.float() / 127.5 - 1
        posteriors = [components.vae.encode(clip).latent_dist for clip in pixels]
    cached = dataclasses.replace(
        batch,
        pixels=batch.pixels[:, :1],
        latents_mean=torch.stack([p.mean for p in posteriors]),
        latents_std=torch.stack([p.std for p in posteriors]),
    )
    with torch.no_grad():
        torch.testing.assert_close(objective(cached), expected, rtol=1e-5, atol=1e-6)


def test_dropping_the_text_gives_the_tokens_of_no_text(components: Components, make_batch: MakeBatch) -> None:
    objective = STAGES["dynamics"].objective(components, LossConfig(), seed=0)
    assert isinstance(objective, DiffusionObjective)
    batch = dataclasses.replace(make_batch([1, 2]), caption=["dance", "dance"], drop_text=torch.tensor([False, True]))
    with torch.no_grad():
        kept, dropped = objective._text_tokens(batch)
        torch.testing.assert_close(dropped, objective.components.encode_text([""])[0])
    assert not torch.allclose(kept, dropped)


def test_dropping_the_face_is_training_without_its_controlnet(components: Components, make_batch: MakeBatch) -> None:
    parts = randomised(components)
    with_face = DiffusionObjective(parts, LossConfig(), seed=1, face=True)
    without = DiffusionObjective(parts, LossConfig(), seed=1)
    batch = make_batch([1, 2, 3])
    mixed = dataclasses.replace(batch, drop_face=torch.tensor([False, True, False]))
    assert parts.face_controlnet is not None
    losses = with_face(mixed)
    with torch.no_grad():
        kept, left_out = with_face(batch), without(batch)
    torch.testing.assert_close(losses.detach(), torch.stack([kept[0], left_out[1], kept[2]]), rtol=1e-5, atol=1e-6)
    assert float((kept - left_out).abs().min()) > 1e-4
    parameter = next(parts.face_controlnet.parameters())
    for k, learns in ((0, True), (1, False)):
        (gradient,) = torch.autograd.grad(losses[k], parameter, retain_graph=True)
        assert bool(gradient.any()) == learns


def test_the_noise_schedule_is_not_rounded_with_the_weights(components: Components) -> None:
    objective = DiffusionObjective(components, LossConfig(), seed=0).to(torch.bfloat16)
    assert float(1 - objective.alphas_cumprod[0]) == pytest.approx(0.00085, rel=1e-3)


def test_single_frames_run_neither_motion_nor_control(components: Components, make_batch: MakeBatch) -> None:
    objective = STAGES["base"].objective(components, LossConfig(), seed=0)
    select_trainable(components, ["motion", "pose_controlnet"])
    batch = make_batch([0])
    with torch.no_grad():
        before = objective(batch)
        for p in [p for p in components.unet.parameters() if p.requires_grad] + list(
            components.pose_controlnet.parameters()
        ):
            p.add_(1.0)
        assert torch.equal(before, objective(batch))


@pytest.mark.long
def test_overfitting_one_clip(components: Components, make_batch: MakeBatch) -> None:
    """Gradient, optimizer and objective fit together: the loss on one clip falls below 5 % of its start."""
    torch.manual_seed(0)
    groups = select_trainable(components, [*STAGES["dynamics"].groups("dynamics_adapter"), "unet"])
    objective = STAGES["dynamics"].objective(components, LossConfig(), seed=0)
    parameters = [p for group in groups.values() for p in group.values()]
    optimizer = torch.optim.AdamW(parameters, lr=5e-3, weight_decay=0.0)
    batch, losses = make_batch([0], frames=2), []
    for _ in range(250):
        optimizer.zero_grad()
        loss = objective(batch, timestep=500).mean()  # the same noise each time: it can be learned by heart
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[-10:]) < 0.05 * losses[0]


def test_velocity_is_what_diffusers_calls_so(components: Components, make_batch: MakeBatch) -> None:
    """The loss of a network that predicts v is its error against the scheduler's own v."""
    components.scheduler = DDIMScheduler(
        beta_schedule="linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction"
    )
    objective = DiffusionObjective(randomised(components), LossConfig(), seed=1)
    batch = make_batch([3, 5], frames=2)
    predicted = []
    objective.predict = lambda *args: predicted.append(torch.ones_like(args[1])) or predicted[-1]  # type: ignore[method-assign]
    with torch.no_grad():
        loss = objective(batch)
        draw = objective._draw(batch, TRAINING)
        clean = objective._latents(batch, draw.posterior)[:, :, 1:]
    v = components.scheduler.get_velocity(clean, draw.noise, draw.timestep)
    torch.testing.assert_close(loss, ((1 - v) ** 2).mean(dim=(1, 2, 3, 4)), rtol=1e-5, atol=1e-6)


def test_another_prediction_type_is_refused(components: Components) -> None:
    components.scheduler = DDIMScheduler(beta_schedule="linear", prediction_type="sample")
    with pytest.raises(ValueError, match="prediction_type=sample"):
        STAGES["dynamics"].objective(components, LossConfig(), seed=0)


def test_errors_of_v_are_not_weighted_as_such_again(components: Components) -> None:
    components.scheduler = DDIMScheduler(beta_schedule="linear", prediction_type="v_prediction")
    with pytest.raises(ValueError, match=r"loss\.velocity=60"):
        STAGES["dynamics"].objective(components, LossConfig(velocity=60.0), seed=0)


def test_spread_timesteps() -> None:
    """Neighbours lie evenly apart, and every timestep comes equally often."""
    for first in (0, 17, 12345):
        drawn = sorted(spread_timestep(3, first + k, 1000) for k in range(8))
        gaps = np.diff([*drawn, drawn[0] + 1000])
        assert gaps.max() < 1000 * 2.2 / 8
    counts = np.bincount([spread_timestep(3, k, 10) for k in range(10_000)], minlength=10)
    assert abs(counts - 1000).max() < 10
    assert spread_timestep(4, 0, 1000) != spread_timestep(3, 0, 1000)


def test_timesteps_are_spread_in_training_alone(components: Components, make_batch: MakeBatch) -> None:
    apart, spread = (
        DiffusionObjective(components, LossConfig(timesteps=how), seed=3) for how in ("independent", "spread")
    )
    drawn = spread._draw(make_batch([6, 7]), TRAINING).timestep.tolist()
    assert drawn == [spread_timestep(3, index, 1000) for index in (6, 7)] != apart.timesteps([6, 7])
    assert spread.timesteps([6, 7], VALIDATION) == apart.timesteps([6, 7], VALIDATION)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_every_noise_schedule_trains_as_diffusers_has_it(
    beta_schedule: str, prediction_type: str, components: Components, make_batch: MakeBatch
) -> None:
    """What the network is shown and what it is to predict, against diffusers' formulas for this schedule; and a step of
    the optimizer on it lowers the loss of its own noise."""
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "prediction_type": prediction_type}
    components.scheduler = DDIMScheduler(beta_schedule=beta_schedule, **settings)
    objective = DiffusionObjective(randomised(components), LossConfig(), seed=2)
    batch = make_batch([3, 5], frames=2)
    shown, predict = [], objective.predict
    objective.predict = lambda *args: shown.append(args[1]) or predict(*args)  # type: ignore[method-assign]
    with torch.no_grad():
        loss = objective(batch)
        draw = objective._draw(batch, TRAINING)
        clean = objective._latents(batch, draw.posterior)
        noisy = components.scheduler.add_noise(clean[:, :, 1:], draw.noise, draw.timestep)
        out = predict(clean[:, :, :1], noisy, draw.timestep, objective_tokens(objective, batch), batch)
    target = draw.noise
    if prediction_type == "v_prediction":
        target = components.scheduler.get_velocity(clean[:, :, 1:], draw.noise, draw.timestep)
    torch.testing.assert_close(shown[0], noisy, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(loss, ((out - target) ** 2).mean(dim=(1, 2, 3, 4)), rtol=1e-5, atol=1e-6)
    groups = select_trainable(components, ["motion", "pose_controlnet"])
    optimizer = torch.optim.SGD([p for group in groups.values() for p in group.values()], lr=1e-3)
    objective(batch).mean().backward()
    optimizer.step()
    with torch.no_grad():
        assert float(objective(batch).mean()) < float(loss.mean())


def objective_tokens(objective: DiffusionObjective, batch: Batch) -> Tokens:
    return Tokens(objective._text_tokens(batch), objective._image_tokens(batch))


def test_noise_that_hides_everything_needs_v(components: Components) -> None:
    """At the last timestep of such a schedule the noise is the input itself."""
    components.scheduler = DDIMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="prediction_type=v_prediction"):
        STAGES["dynamics"].objective(components, LossConfig(), seed=0)
