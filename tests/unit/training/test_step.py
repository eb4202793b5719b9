"""One optimizer step of the loop, on hand-made batches: rate, clipping, accumulation, average, batches left out."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from xdyna.config.train import OptimConfig, TrainConfig, ValidationConfig
from xdyna.data.samples import Batch
from xdyna.training.components import Components
from xdyna.training.ema import ema_decay
from xdyna.training.groups import select_trainable
from xdyna.training.stages import STAGES
from xdyna.training.trainer import Trainer

MakeBatch = Callable[..., Batch]
MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def make_trainer(components: Components, tmp_path: Path) -> MakeTrainer:
    start = {name: module.state_dict() for name, module in components.modules().items()}
    start = {name: {k: t.clone() for k, t in state.items()} for name, state in start.items()}

    def make(*, accumulation: int = 1, on_nan: str = "stop", clip: float = 0.0) -> Trainer:
        for name, module in components.modules().items():
            module.load_state_dict(start[name])
        config = TrainConfig(
            accumulation=accumulation,
            on_nan=on_nan,
            max_steps=100,
            seed=3,
            optim=OptimConfig(lr=1e-3, warmup=4, clip=clip, ema=0.5),
            validation=ValidationConfig(every=0),
        )
        groups = select_trainable(components, ["motion", "pose_controlnet"])
        objective = STAGES[config.stage].objective(components, config.loss, seed=config.seed)
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
        return Trainer(config, objective, groups, accelerator=accelerator, run_dir=tmp_path)

    return make


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in trainer.parameters.items() if p.grad is not None}


def values(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.parameters.items()}


def norm(tensors: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float((t.double() ** 2).sum()) for t in tensors.values()))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[name]) for name, t in one.items())


def steps(trainer: Trainer, batches: Iterator[Batch], count: int) -> list[dict[str, float]]:
    done = []
    for _ in range(count):
        done.append(trainer.step(batches))
        trainer.progress.step += 1
    return done


def test_each_step_has_the_gradient_of_its_own_batch(make_trainer: MakeTrainer, make_batch: MakeBatch) -> None:
    trainer = make_trainer()
    steps(trainer, iter([make_batch([0, 1])]), 1)
    trainer.optimizer.zero_grad()
    trainer.objective(make_batch([2, 3])).mean().backward()
    expected = gradients(trainer)
    trainer.objective(make_batch([8, 9])).mean().backward()  # left over: the step must not add to it
    (told,) = steps(trainer, iter([make_batch([2, 3])]), 1)
    torch.testing.assert_close(gradients(trainer), expected, rtol=0, atol=1e-7)
    assert told["loss"] > 0


def test_rates_begin_with_the_first_share_of_the_warm_up(make_trainer: MakeTrainer, make_batch: MakeBatch) -> None:
    trainer = make_trainer()
    told = steps(trainer, iter([make_batch([0])] * 6), 6)
    assert [t["lr"] for t in told] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3])


def test_clipping(make_trainer: MakeTrainer, make_batch: MakeBatch) -> None:
    trainer = make_trainer(clip=1e-3)
    trainer.objective(make_batch([0])).mean().backward()
    before = norm(gradients(trainer))
    assert before > 1e-2
    (told,) = steps(trainer, iter([make_batch([0])]), 1)
    assert told["grad_norm"] == pytest.approx(before, rel=1e-4)
    assert norm(gradients(trainer)) == pytest.approx(1e-3, rel=1e-3)


def test_fsdp_clips_by_the_norm_of_all_shards(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate would take the norm of this process's shard: the model itself must be asked."""
    trainer = make_trainer(clip=2.0)
    asked = []
    monkeypatch.setattr(
        trainer.model, "clip_grad_norm_", lambda largest: asked.append(largest) or torch.tensor(7.0), raising=False
    )
    monkeypatch.setattr(type(trainer.accelerator), "distributed_type", DistributedType.FSDP)
    assert trainer._clip() == 7.0
    assert asked == [2.0]


def test_the_average_follows(make_trainer: MakeTrainer, make_batch: MakeBatch) -> None:
    trainer = make_trainer()
    average = values(trainer)
    for step in range(1, 4):
        steps(trainer, iter([make_batch([step])]), 1)
        decay = ema_decay(step, decay=0.5, warmup=True)
        average = {name: decay * average[name] + (1 - decay) * p for name, p in values(trainer).items()}
    assert trainer.ema is not None
    torch.testing.assert_close(trainer.ema.state_dict(), average)
    assert not same(average, values(trainer))


def test_accumulation_is_a_larger_batch(make_trainer: MakeTrainer, make_batch: MakeBatch) -> None:
    trainer = make_trainer()
    whole = make_batch([0, 1, 2, 3])
    (told,) = steps(trainer, iter([whole]), 1)
    expected, weights = gradients(trainer), values(trainer)
    trainer = make_trainer(accumulation=2)
    (parts,) = steps(trainer, iter([_rows(whole, 0, 2), _rows(whole, 2, 4)]), 1)
    torch.testing.assert_close(gradients(trainer), expected, rtol=1e-4, atol=1e-6)
    assert parts["loss"] == pytest.approx(told["loss"], rel=1e-5)
    torch.testing.assert_close(values(trainer), weights, rtol=0, atol=2e-5)


def test_a_checkpoint_has_what_the_loop_remembers(make_trainer: MakeTrainer, make_batch: MakeBatch) -> None:
    trainer = make_trainer()
    steps(trainer, iter([make_batch([0]), make_batch([1])]), 2)
    trainer.progress.samples, trainer.progress.best_metric, trainer.progress.best_step = 2, 0.5, 1
    trainer.save(is_best=False)
    again = make_trainer()
    assert again.resume()
    assert again.progress == trainer.progress
    assert len(again.guard.state_dict()["history"]) == 2
    assert again.guard.state_dict() == trainer.guard.state_dict()


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_step_left_out_leaves_nothing_behind(
    bad: int, make_trainer: MakeTrainer, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Micro-step `bad` of three is NaN: the weights stay, all three batches are used up, the next step is as ever."""
    first, second = [make_batch([i]) for i in (0, 1, 2)], [make_batch([i]) for i in (3, 4, 5)]
    trainer = make_trainer(accumulation=3, on_nan="skip")
    trainer.progress.step = 1
    steps(trainer, iter(second), 1)
    expected = values(trainer)

    trainer = make_trainer(accumulation=3, on_nan="skip")
    forward = type(trainer.objective).forward
    monkeypatch.setattr(
        type(trainer.objective),
        "forward",
        lambda self, batch: forward(self, batch) * (math.nan if batch.index.tolist() == [bad] else 1.0),
    )
    before, batches = values(trainer), iter([*first, *second])
    (told,) = steps(trainer, batches, 1)
    assert told["skipped"] == 1.0
    assert math.isnan(told["loss"])
    assert same(values(trainer), before)
    steps(trainer, batches, 1)
    assert next(batches, None) is None
    assert same(values(trainer), expected)


def _rows(batch: Batch, first: int, last: int) -> Batch:
    rows = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    return Batch(**{name: value[first:last] if value is not None else None for name, value in rows.items()})


def test_losses_are_read_behind_the_backward_passes(
    make_trainer: MakeTrainer, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host waits for the device once per step, when all its work but the update is queued."""
    trainer, events = make_trainer(accumulation=2), []
    backward, reduce, step = trainer.accelerator.backward, trainer.accelerator.reduce, trainer.optimizer.step
    monkeypatch.setattr(trainer.accelerator, "backward", lambda loss: (events.append("backward"), backward(loss)))
    monkeypatch.setattr(trainer.accelerator, "reduce", lambda *args: (events.append("read"), reduce(*args))[1])
    monkeypatch.setattr(trainer.optimizer, "step", lambda: (events.append("update"), step()))
    (told,) = steps(trainer, iter([make_batch([0]), make_batch([1])]), 1)
    assert events == ["backward", "backward", "read", "update"]
    assert isinstance(told["loss"], float)
