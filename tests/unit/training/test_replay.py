"""Replay of clips: against a list that keeps everything."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType

from xdyna.config.train import LossConfig, OptimConfig, ReplayConfig, TrainConfig
from xdyna.core.errors import ConfigError
from xdyna.data.samples import Batch
from xdyna.training.components import Components
from xdyna.training.groups import select_trainable
from xdyna.training.objective import DiffusionObjective
from xdyna.training.replay import Replay
from xdyna.training.trainer import Trainer

MakeBatch = Callable[..., Batch]


def numbered(make_batch: MakeBatch, plan: Replay, step: int) -> Iterator[Batch]:
    """Fresh clips whose pixels tell their number."""
    for micro_step in itertools.count(plan.first_step(step) * plan.accumulation):
        first = micro_step * plan.fresh
        batch = make_batch(list(range(first, first + plan.fresh)), frames=1)
        batch.pixels[:] = torch.arange(first, first + plan.fresh).reshape(-1, 1, 1, 1, 1).to(torch.uint8)
        yield batch


def shown(batch: Batch) -> list[int]:
    numbers = batch.pixels[:, 0, 0, 0, 0].tolist()
    assert batch.clip_id == [f"clip-{number}" for number in numbers]  # names and tensors are of the same clips
    return numbers


@pytest.mark.parametrize("accumulation", [1, 2])
def test_batches(make_batch: MakeBatch, accumulation: int) -> None:
    plan = Replay(clips=9, fresh=2, batch_size=6, seed=3, accumulation=accumulation)  # 8 clips are kept: 4 batches
    made = plan.batches(numbered(make_batch, plan, 0), step=0, prepare=lambda batch: batch)
    seen: list[int] = []
    for micro_step, batch in enumerate(itertools.islice(made, 40)):
        numbers = shown(batch)
        fresh = [2 * micro_step, 2 * micro_step + 1]
        assert numbers[:2] == fresh
        kept = range(max(0, 2 * micro_step - 6), 2 * micro_step) if micro_step else range(2)
        assert set(numbers[2:]) <= set(kept)
        assert batch.index.tolist() == list(range(6 * micro_step, 6 * micro_step + 6))
        seen += numbers
    counts = [seen.count(number) for number in range(10, 70)]
    assert 2.4 < sum(counts) / len(counts) < 3.6  # 6 showings for 2 new clips
    assert max(counts) > min(counts)


@pytest.mark.parametrize(("accumulation", "step"), [(1, 2), (1, 9), (2, 5), (3, 1)])
def test_a_resumed_run_sees_the_same(make_batch: MakeBatch, accumulation: int, step: int) -> None:
    plan = Replay(clips=8, fresh=2, batch_size=6, seed=3, accumulation=accumulation)
    whole = plan.batches(numbered(make_batch, plan, 0), step=0, prepare=lambda batch: batch)
    later = plan.batches(numbered(make_batch, plan, step), step=step, prepare=lambda batch: batch)
    skipped = itertools.islice(whole, step * accumulation, None)
    for ours, expected in itertools.islice(zip(later, skipped, strict=False), 8):
        assert shown(ours) == shown(expected)
        assert torch.equal(ours.index, expected.index)


def test_processes_choose_for_themselves() -> None:
    plans = [Replay(clips=64, fresh=2, batch_size=8, seed=3, rank=rank, world_size=2) for rank in (0, 1)]
    assert plans[0].picks(20).tolist() != plans[1].picks(20).tolist()
    every = torch.cat([plan.indices(step) for step in range(3) for plan in plans]).tolist()
    assert every == list(range(48))


@pytest.mark.parametrize("trained", [["motion"], ["motion", "resampler"]])
def test_what_is_kept_of_a_clip_has_the_same_loss(
    components: Components, make_batch: MakeBatch, trained: list[str]
) -> None:
    select_trainable(components, trained)
    objective = DiffusionObjective(components, LossConfig(person=2.0, face=4.0), seed=1, face=True)
    batch = make_batch([3, 8], frames=2)
    batch.drop_image[1] = True
    kept = objective.prepare(batch)
    assert kept.pixels.shape[1] == 1
    assert kept.latents_mean is not None
    assert (kept.image_tokens is None) == ("resampler" in trained)
    with torch.no_grad():
        torch.testing.assert_close(objective(kept), objective(batch), rtol=1e-5, atol=1e-6)


def test_an_autoencoder_that_trains_is_not_asked(components: Components, make_batch: MakeBatch) -> None:
    select_trainable(components, ["vae_encoder"])
    objective = DiffusionObjective(components, LossConfig(), seed=1)
    assert objective.prepare(make_batch([3])).latents_mean is None


def test_settings() -> None:
    with pytest.raises(ConfigError, match="less than replay"):
        ReplayConfig(clips=3, fresh=4)
    with pytest.raises(ConfigError, match="does not fit into the 2 clips that each of 1 processes"):
        TrainConfig(replay=ReplayConfig(clips=8, fresh=4), batch=2)
    with pytest.raises(ConfigError, match=r"loss\.face"):
        TrainConfig(stage="dynamics", loss=LossConfig(face=2.0))
    assert TrainConfig(stage="vae", loss=LossConfig(face=2.0)).data.face == "self"


def test_refused_where_networks_are_divided() -> None:
    config = TrainConfig(replay=ReplayConfig(clips=8, fresh=1), optim=OptimConfig(ema=0))
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP)
    with pytest.raises(ConfigError, match=r"set replay\.clips=0"):
        Trainer(config, None, {}, accelerator=accelerator, run_dir=Path())  # type: ignore[arg-type]
