import numpy as np
import pytest

from xdyna.puppets.world.physics import acceleration, step_matrix, swing


def analytic_release(time: np.ndarray, *, start: float, target: float, frequency: float, damping: float) -> np.ndarray:
    """A damped oscillator let go at rest, textbook solution."""
    ring = frequency * np.sqrt(1 - damping**2)
    phase = np.arctan2(damping, np.sqrt(1 - damping**2))
    swing_out = np.exp(-damping * frequency * time) * np.cos(ring * time - phase) / np.cos(phase)
    return target + (start - target) * swing_out


@pytest.mark.parametrize("step", [1 / 96, 1 / 24, 1 / 6])
@pytest.mark.parametrize(("frequency", "damping"), [(3.0, 0.05), (6.5, 0.24), (14.0, 0.6), (9.0, 0.0)])
def test_a_step_response_is_the_textbook_one_at_any_step(step: float, frequency: float, damping: float) -> None:
    count = round(2 / step)
    targets = np.concatenate([[0.4], np.full(count, -0.1)])[:, None]
    angles = swing(targets, frequency=np.array([[frequency]]), damping=np.array([[damping]]), step=step)[1:, 0, 0]
    time = np.arange(count) * step
    expected = analytic_release(time, start=0.4, target=-0.1, frequency=frequency, damping=damping)
    np.testing.assert_allclose(angles, expected, atol=1e-9)


def test_a_chain_follows_fine_numerical_integration() -> None:
    """Semi-implicit Euler in 400 substeps per step; the lower segment aims at the upper one of the step's start."""
    rng = np.random.default_rng(0)
    step, fine = 1 / 24, 400
    frequency, damping = np.array([[5.0, 8.0]]), np.array([[0.2, 0.3]])
    targets = rng.uniform(-0.3, 0.3, (20, 1))
    angle, speed = np.full(2, targets[0, 0]), np.zeros(2)
    expected = [angle.copy()]
    for k in range(19):
        aim = np.array([targets[k, 0], angle[0]])
        for _ in range(fine):
            speed += step / fine * (-(frequency[0] ** 2) * (angle - aim) - 2 * damping[0] * frequency[0] * speed)
            angle = angle + step / fine * speed
        expected.append(angle.copy())
    result = swing(targets, frequency=frequency, damping=damping, step=step)[:, 0]
    np.testing.assert_allclose(result, expected, atol=3e-3)


def test_at_rest_it_stays() -> None:
    angles = swing(np.full((30, 2), 0.2), frequency=np.full((2, 3), 7.0), damping=np.full((2, 3), 0.2), step=1 / 24)
    np.testing.assert_allclose(angles, 0.2, atol=1e-12)


def test_acceleration_of_a_parabola_and_a_sine() -> None:
    time = np.arange(200) / 100
    np.testing.assert_allclose(acceleration(3 * time**2 + time, 0.01)[1:-1], 6.0, atol=1e-9)
    np.testing.assert_allclose(acceleration(np.sin(2 * time), 0.01)[1:-1], -4 * np.sin(2 * time)[1:-1], atol=1e-3)


@pytest.mark.parametrize(("frequency", "damping"), [(0.0, 0.2), (-1.0, 0.2), (5.0, 1.0), (5.0, -0.1)])
def test_impossible_springs_are_refused(frequency: float, damping: float) -> None:
    with pytest.raises(ValueError, match="expected frequencies above 0 and ratios"):
        step_matrix(np.array([frequency]), np.array([damping]), 0.1)
