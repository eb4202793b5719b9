import dataclasses
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from xdyna.config.data import DataConfig, DataError
from xdyna.data.clips import ClipDataset
from xdyna.data.loader import StepSampler, build_loader
from xdyna.data.samples import Batch

Small = Callable[..., DataConfig]


def batches(config: DataConfig, count: int, **options: int) -> list[Batch]:
    return list(itertools.islice(build_loader(config, seed=11, **{"batch_size": 2, **options}), count))


def assert_equal(one: Batch, other: Batch) -> None:
    for entry in dataclasses.fields(Batch):
        a, b = getattr(one, entry.name), getattr(other, entry.name)
        assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, entry.name


def joined(parts: list[Batch]) -> Batch:
    values = {}
    for entry in dataclasses.fields(Batch):
        items = [getattr(part, entry.name) for part in parts]
        if isinstance(items[0], Tensor):
            values[entry.name] = torch.cat(items)
        else:
            values[entry.name] = None if items[0] is None else [item for part in items for item in part]
    return Batch(**values)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_change_nothing(small: Small, workers: int) -> None:
    for one, other in zip(batches(small(), 5), batches(small(workers=workers, prefetch=1), 5), strict=True):
        assert_equal(one, other)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1])
def test_absent_conditions_are_not_carried(small: Small, workers: int) -> None:
    """Those of scenes are one zero, from the worker to the device; among people they are black."""
    [scenes] = batches(small(scene_ratio=1, face="self", workers=workers), 1)
    for maps, channels in ((scenes.pose, 3), (scenes.face, 6)):
        assert maps.shape == (2, 3, channels, 64, 64)
        assert not maps.any()
        assert maps.untyped_storage().nbytes() == 1
    there = scenes.to("meta")
    assert there.face.shape == scenes.face.shape
    assert not any(there.face.stride())
    mixed = batches(small(scene_ratio=0.5, face="self", workers=workers), 4)
    kinds = [(kind, pose.any().item(), face.any().item()) for batch in mixed
             for kind, pose, face in zip(batch.kind, batch.pose, batch.face, strict=True)]  # fmt: skip
    assert set(kinds) == {("human", True, True), ("scene", False, False)}


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_continues_exactly(small: Small, workers: int) -> None:
    config = small(num_clips=5, workers=workers)  # step 3 is in the middle of an epoch
    whole = batches(config, 5)
    for one, other in zip(whole[3:], batches(config, 2, start=6), strict=True):
        assert_equal(one, other)
    with pytest.raises(AssertionError):
        assert_equal(whole[0], whole[3])


def test_two_ranks_see_what_one_of_twice_the_batch_sees(small: Small) -> None:
    alone = batches(small(), 3, batch_size=4)
    ranks = [batches(small(), 3, batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    for one, *parts in zip(alone, *ranks, strict=True):
        assert_equal(one, joined(parts))


def test_accumulation_sees_what_a_larger_batch_sees(small: Small) -> None:
    alone = batches(small(), 2, batch_size=4, start=4)
    parts = batches(small(), 4, batch_size=2, start=4)
    for one, pair in zip(alone, (parts[:2], parts[2:]), strict=True):
        assert_equal(one, joined(pair))


def test_indices_of_the_sampler() -> None:
    def steps(count: int, **options: int) -> list[list[int]]:
        return list(itertools.islice(StepSampler(batch_size=2, **options), count))

    assert steps(3) == [[0, 1], [2, 3], [4, 5]]
    assert steps(2, rank=1, world_size=3) == [[2, 3], [8, 9]]
    assert steps(2, rank=1, world_size=2, start=40) == [[42, 43], [46, 47]]
    together = [steps(4, rank=r, world_size=3, start=12) for r in range(3)]
    assert sorted(np.ravel(together).tolist()) == list(range(12, 36))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"rank": 2, "world_size": 2}, "rank: got 2, expected 0 to world_size - 1 = 1"),
        ({"start": -1}, "start: got -1"),
        ({"world_size": 0}, "world_size: got 0"),
    ],
)
def test_bad_numbers_are_named(options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        StepSampler(**{"batch_size": 1, **options})


@pytest.mark.parametrize("workers", [0, 1])
def test_a_failing_sample_is_one_message(small: Small, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    make = ClipDataset.__getitem__

    def fails_once(self: ClipDataset, index: int) -> object:
        if index == 3:
            raise DataError("the shard is damaged")
        return make(self, index)

    monkeypatch.setattr(ClipDataset, "__getitem__", fails_once)
    loader = iter(build_loader(small(workers=workers), seed=0, batch_size=2, start_method="fork"))
    assert next(loader).index.tolist() == [0, 1]
    with pytest.raises(DataError) as caught:
        next(loader)
    assert str(caught.value) == "sample 3 cannot be made: DataError: the shard is damaged"


def test_a_dead_worker_is_one_message(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClipDataset, "__getitem__", lambda self, index: os._exit(9))
    with pytest.raises(DataError, match=r"makes training data died.*exit code 9\); .*lower data.workers"):
        next(iter(build_loader(small(workers=1), seed=0, batch_size=1, start_method="fork")))


def test_workers_leave_ctrl_c_to_the_training_process(small: Small) -> None:
    others = set(multiprocessing.active_children())
    loader = iter(build_loader(small(workers=1, prefetch=1), seed=0, batch_size=1))
    assert next(loader).index.tolist() == [0]
    (worker,) = set(multiprocessing.active_children()) - others
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGINT)
    assert [next(loader).index.tolist() for _ in range(4)] == [[1], [2], [3], [4]]


def test_to_moves_all_tensors_but_those_that_the_host_reads(small: Small) -> None:
    moved = batches(small(), 1)[0].to("meta")
    devices = {name: value.device.type for name, value in vars(moved).items() if isinstance(value, Tensor)}
    assert len(devices) == 7
    assert {name for name, device in devices.items() if device == "cpu"} == {"index", "drop_text"}
    assert set(devices.values()) == {"cpu", "meta"}
    assert len(moved) == 2
