import math

import numpy as np
import pytest

from xdyna.data.schedule import BLOCK, ClipPlace, ClipPool, Schedule, Sizes, sample_rng


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 1 / 3, 0.7, 1.0])
@pytest.mark.parametrize("seed", [0, 17])
def test_every_block_has_the_ratio(ratio: float, seed: int) -> None:
    schedule = Schedule(seed, ratio)
    scenes = np.array([schedule.slot(i).kind == "scene" for i in range(30 * BLOCK)])
    for blocks in (1, 2, 5):
        counts, turns = scenes.reshape(-1, blocks * BLOCK).sum(1), blocks * BLOCK
        assert counts.min() >= math.floor(turns * ratio + 1e-9)
        assert counts.max() <= math.ceil(turns * ratio - 1e-9)


@pytest.mark.parametrize("ranks", [2, 4, 8, 16, 64])
def test_whoever_sees_every_nth_sample_sees_all_kinds_and_sets(ranks: int) -> None:
    """One of n processes, or a log of every n-th step: as many scenes and clips of each data set as all together."""
    schedule = Schedule(5, 0.25, humans=(ClipPool(share=1.0, count=9), ClipPool(share=1.0, count=9)))
    for rank in (0, 1, ranks - 1):
        slots = [schedule.slot(step * ranks + rank) for step in range(800)]
        assert np.mean([slot.kind == "scene" for slot in slots]) == pytest.approx(0.25, abs=0.06)
        assert np.mean([slot.stock for slot in slots if slot.kind == "human"]) == pytest.approx(0.5, abs=0.08)


def test_sizes_come_in_any_order_and_count_on() -> None:
    """Sizes of steps: shares are met, and the samples of each size are numbered without gaps."""
    sizes = Sizes(3, [2.0, 1.0], step=2)
    places = [sizes.place(index) for index in range(2 * 3 * BLOCK)]
    for number, count in ((0, 4 * BLOCK), (1, 2 * BLOCK)):
        assert [place for size, place in places if size == number] == list(range(count))
    assert all(places[k][0] == places[k + 1][0] for k in range(0, len(places), 2))
    orders = [tuple(size for size, _ in places[k : k + 6]) for k in range(0, len(places), 6)]  # of three steps each
    assert len(set(orders)) > 2


def test_the_seed_moves_the_scenes() -> None:
    orders = {tuple(Schedule(seed, 0.25).slot(i).kind for i in range(8)) for seed in range(40)}
    assert len(orders) > 20


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
