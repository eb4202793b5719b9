import math

import numpy as np
import pytest

from xdyna.data.schedule import ClipPlace, ClipPool, Schedule, sample_rng


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 1 / 3, 0.7, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 17])
def test_every_window_has_the_ratio(ratio: float, seed: int) -> None:
    schedule = Schedule(seed, ratio)
    scenes = np.array([schedule.slot(i).kind == "scene" for i in range(400)])
    for length in (1, 2, 3, 4, 7, 16, 40, 100):
        counts = np.convolve(scenes, np.ones(length, int), mode="valid")
        assert counts.min() >= math.floor(length * ratio + 1e-9)
        assert counts.max() <= math.ceil(length * ratio - 1e-9)


def test_the_seed_moves_the_scenes() -> None:
    orders = {tuple(Schedule(seed, 0.25).slot(i).kind for i in range(8)) for seed in range(40)}
    assert len(orders) == 4  # a pattern of four can begin at four places


def test_finite_sets_are_shown_in_whole_permutations() -> None:
    schedule = Schedule(3, 0.25, humans=(ClipPool(count=7),), scenes=(ClipPool(count=5),))
    slots = [schedule.slot(i) for i in range(400)]
    for kind, count in (("human", 7), ("scene", 5)):
        numbers = [slot.number for slot in slots if slot.kind == kind]
        epochs = [numbers[k : k + count] for k in range(0, len(numbers) - count, count)]
        assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 10  # shuffled anew each time
    other = [Schedule(4, 0.25, humans=(ClipPool(count=7),), scenes=(ClipPool(count=5),)).slot(i) for i in range(400)]
    assert other != slots


def test_endless_sets_have_no_numbers() -> None:
    assert Schedule(0, 0.0).slot(12) == ClipPlace("human", None)
    assert Schedule(0, 1.0).slot(12) == ClipPlace("scene", None)


def test_generators_of_samples_epochs_and_offsets_differ() -> None:
    first = sample_rng(5, 0).random()
    assert first == sample_rng(5, 0).random()
    assert first not in (sample_rng(5, 1).random(), sample_rng(6, 0).random())
    # numpy pads short seeds with zeros: a tag of zero would make these the stream of sample 0
    assert np.random.default_rng([5, 0, 0]).random() == first
    assert np.random.default_rng([5, 0, 1]).random() != first
