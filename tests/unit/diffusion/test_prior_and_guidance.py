import cv2
import numpy as np
import pytest
import torch

from xdyna.diffusion.guidance import classifier_free_guidance, scale_condition
from xdyna.diffusion.prior import gaussian_blur, gaussian_kernel, similarity_prior


@pytest.mark.parametrize("grid", [(12, 20), (5, 9), (8, 8)])
def test_blur_equals_opencv(grid):
    x = np.random.default_rng(0).standard_normal(grid).astype(np.float32)
    expected = cv2.GaussianBlur(x, (9, 9), 18, borderType=cv2.BORDER_REFLECT_101)
    ours = gaussian_blur(torch.from_numpy(x)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_blur_of_tiny_grids():
    """Grids smaller than the kernel's reach: still an average of what is there."""
    x = torch.full((1, 2, 1, 3), 0.7)
    torch.testing.assert_close(gaussian_blur(x), x)
    assert gaussian_blur(torch.randn(1, 1, 2, 2)).abs().max() < 10


def test_kernel():
    kernel = gaussian_kernel(9, 18)
    assert kernel.sum() == pytest.approx(1)
    assert kernel[4] / kernel[0] == pytest.approx(np.exp(0.5 * (4 / 18) ** 2), rel=1e-5)


def test_prior_takes_each_element_from_one_of_both():
    reference = torch.randn(1, 4, 6, 6)
    mask = torch.zeros(1, 4, 3, 6, 6, dtype=torch.bool)
    mask[:, :, 1] = True
    prior = similarity_prior(reference, mask)
    assert torch.equal(prior[:, :, 0], reference)
    assert torch.equal(prior[:, :, 1], gaussian_blur(reference))
    assert torch.equal(prior[:, :, 2], reference)


def test_guidance():
    u, c = torch.randn(3), torch.randn(3)
    torch.testing.assert_close(classifier_free_guidance(u, c, 7.5), 7.5 * c - 6.5 * u)
    torch.testing.assert_close(classifier_free_guidance(u, c, 1.0), c)


def test_condition_scaling():
    images = torch.tensor([10, 20, 60], dtype=torch.uint8)
    torch.testing.assert_close(scale_condition(images, 10, 60), torch.tensor([0, 0.2, 1.0]))
    assert torch.equal(scale_condition(torch.full((2,), 7), 7, 7), torch.zeros(2))
