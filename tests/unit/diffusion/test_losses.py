"""Formulas of training against diffusers, analytic values and loops."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.training_utils import compute_snr

from xdyna.diffusion import losses

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012}


def test_min_snr_weight() -> None:
    scheduler = DDIMScheduler(beta_schedule="linear", **SCHEDULE)
    t = torch.tensor([1, 100, 500, 998])
    snr = compute_snr(scheduler, t)
    expected = torch.stack([snr, 5 * torch.ones(4)]).min(0).values / snr
    torch.testing.assert_close(losses.min_snr_weight(scheduler.alphas_cumprod[t], 5.0), expected)


def test_offset_noise_shifts_each_channel_of_each_clip() -> None:
    noise, offset = torch.randn(2, 3, 4, 5, 5), torch.randn(2, 3)
    shifted = losses.offset_noise(noise, offset, 0.1)
    torch.testing.assert_close((shifted - noise).mean((2, 3, 4)), 0.1 * offset, rtol=1e-4, atol=1e-6)
    assert (shifted - noise).std((2, 3, 4)).max() < 1e-6
    assert torch.equal(losses.offset_noise(noise, offset, 0.0), noise)


def test_clip_losses() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 6)).astype(np.float32)
    ours = losses.clip_losses(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_allclose(ours, [np.mean((x - y) ** 2) for x, y in zip(a, b, strict=True)], rtol=1e-5)


def test_weighted_clip_losses() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 6, 7)).astype(np.float32)
    weights = np.random.default_rng(1).uniform(size=(3, 1, 5, 6, 7)).astype(np.float32)
    ours = losses.clip_losses(torch.from_numpy(a), torch.from_numpy(b), torch.from_numpy(weights)).numpy()
    np.testing.assert_allclose(
        ours, [np.mean(w * (x - y) ** 2) for x, y, w in zip(a, b, weights, strict=True)], rtol=1e-5
    )


def test_person_weights() -> None:
    pose = torch.zeros(2, 2, 3, 64, 64, dtype=torch.uint8)
    pose[0, 0, 1, 30, 30] = 200  # one drawn pixel: cell (3, 3) of the 8 x 8 grid, (7, 7) of 16 x 16
    expected = np.ones((2, 8, 8))
    expected[0, 2:5, 2:5] = 3.0
    weights = losses.person_weights(pose, (8, 8), 3.0)
    assert weights.shape == (2, 1, 2, 8, 8)
    np.testing.assert_allclose(weights[0, 0].numpy(), expected / expected.mean(), rtol=1e-6)
    assert torch.equal(weights[1], torch.ones(1, 2, 8, 8))  # a scene: nobody is there
    assert torch.equal(losses.person_weights(pose, (8, 8), 1.0), torch.ones(2, 1, 2, 8, 8))
    expected = np.ones((2, 16, 16))
    expected[0, 5:10, 5:10] = 3.0
    fine = losses.person_weights(pose, (16, 16), 3.0)[0, 0].numpy()
    np.testing.assert_allclose(fine, expected / expected.mean(), rtol=1e-6)


def test_weights_of_eyes_and_mouth() -> None:
    pose = torch.zeros(1, 1, 3, 64, 64, dtype=torch.uint8)
    pose[0, 0, 1, 30, 30] = 200
    features = torch.zeros_like(pose)
    features[0, 0, 2, 16:24, 32:40] = 90  # cell (2, 4)
    features[0, 0, 0, 60, 0] = 1  # cell (7, 0), where nobody is near
    expected = np.ones((8, 8))
    expected[2:5, 2:5] = 3.0
    expected[2, 4] = expected[7, 0] = 5.0
    weights = losses.person_weights(pose, (8, 8), 3.0, features=features, of_features=5.0)
    np.testing.assert_allclose(weights[0, 0, 0].numpy(), expected / expected.mean(), rtol=1e-6)


def test_kl_against_torch() -> None:
    mean, logvar = torch.randn(2, 50).unbind(0)
    normal = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
    by_image = losses.kl_to_standard_normal(mean.reshape(5, 10), logvar.reshape(5, 10))
    torch.testing.assert_close(by_image, expected.reshape(5, 10).mean(1))


def test_reconstruction_loss_of_a_constant_error() -> None:
    target = torch.rand(2, 3, 16, 16)
    loss = losses.reconstruction_loss(target + 0.25, target, l1=0.5, edges=1.0)
    assert loss.tolist() == pytest.approx([0.25**2 + 0.5 * 0.25] * 2, abs=1e-6)


def test_weighted_reconstruction_loss() -> None:
    """Errors count where the weights are, and nowhere else."""
    target = torch.rand(1, 3, 16, 16)
    output, weights = target.clone(), torch.zeros(1, 1, 16, 16)
    output[..., :8] += 0.5
    weights[..., 8:] = 2.0
    assert float(losses.reconstruction_loss(output, target, l1=0.5, edges=0.0, weights=weights)) == 0
    turned = weights.flip(-1)
    loss = float(losses.reconstruction_loss(output, target, l1=0.5, edges=0.0, weights=turned))
    assert loss == pytest.approx(0.25 + 0.25, rel=1e-5)


def test_reconstruction_loss_sees_lost_edges() -> None:
    """A step edge of height 1 that is missing: all of it by hand."""
    target = torch.zeros(1, 1, 16, 16)
    target[..., 8:] = 1.0
    output = torch.full_like(target, 0.5)
    # Each scale has one column of gradient 1 among (width - 1); the vertical gradients agree.
    edges = sum(1 / (width - 1) for width in (16, 8, 4)) / 6
    loss = float(losses.reconstruction_loss(output, target, l1=1.0, edges=2.0))
    assert loss == pytest.approx(0.25 + 0.5 + 2 * edges, rel=1e-5)


def test_velocity_weight_is_the_ratio_of_the_two_errors() -> None:
    """Predict noise with an error; the v that follows from it is off by so much more."""
    scheduler = DDIMScheduler(beta_schedule="linear", **SCHEDULE)
    for t in (10, 300, 700):
        a = scheduler.alphas_cumprod[t]
        clean, noise, error = torch.randn(3, 2, 1000, dtype=torch.float64).unbind(0)
        noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
        guess = noise + 0.1 * error
        guessed_clean = (noisy - (1 - a).sqrt() * guess) / a.sqrt()
        v, guessed_v = (a.sqrt() * e - (1 - a).sqrt() * x for e, x in ((noise, clean), (guess, guessed_clean)))
        ratio = ((guessed_v - v) ** 2).mean() / ((guess - noise) ** 2).mean()
        assert float(ratio) == pytest.approx(float(losses.velocity_weight(a[None], 1e9)[0]), rel=1e-6)
    assert float(losses.velocity_weight(torch.tensor([0.001]), 60.0)) == 60.0


def test_min_snr_weight_of_velocity() -> None:
    scheduler = DDIMScheduler(beta_schedule="linear", **SCHEDULE)
    t = torch.tensor([20, 900])
    a = scheduler.alphas_cumprod[t]
    # An error e of the noise is one of e / sqrt(a) of v: weighted, the two losses are one.
    weight = losses.min_snr_weight(a, 5.0)
    torch.testing.assert_close(losses.min_snr_weight(a, 5.0, of_velocity=True), weight * a)
