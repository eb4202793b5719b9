"""One optimizer step of the loop, on hand-made batches: rate, clipping, accumulation, average, batches left out."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType
from torch import Tensor

from xdyna.config.train import OptimConfig, TrainConfig, ValidationConfig
from xdyna.data.samples import Batch
from xdyna.training import resumable
from xdyna.training.components import Components
from xdyna.training.ema import ema_decay
from xdyna.training.errors import CheckpointError, NonFiniteLossError
from xdyna.training.groups import select_trainable
from xdyna.training.stages import STAGES
from xdyna.training.trainer import Trainer

MakeBatch = Callable[..., Batch]
MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def make_trainer(components: Components, tmp_path: Path) -> MakeTrainer:
    start = {name: module.state_dict() for name, module in components.modules().items()}
    start = {name: {k: t.clone() for k, t in state.items()} for name, state in start.items()}

    def make(
        *, accumulation: int = 1, on_nan: str = "stop", clip: float = 0.0, max_norm_ratio: float | None = None
    ) -> Trainer:
        for name, module in components.modules().items():
            module.load_state_dict(start[name])
        config = TrainConfig(
            batch=accumulation,
            micro_batch=1,
            on_nan=on_nan,
            max_steps=100,
            seed=3,
            optim=OptimConfig(lr=1e-3, warmup=4, clip=clip, max_norm_ratio=max_norm_ratio, ema=0.5),
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


def state(trainer: Trainer) -> dict[str, Tensor]:
    """Weights, EMA weights and the optimizer's moments."""
    assert trainer.ema is not None
    found = {**values(trainer), **{f"ema.{name}": t.clone() for name, t in trainer.ema.state_dict().items()}}
    for number, moments in trainer.optimizer.state_dict()["state"].items():
        found |= {f"{number}.{name}": t.clone() for name, t in moments.items()}
    return found


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
    """accelerate would take the norm of this process's shard: the model itself must be asked, and clip nothing yet."""
    trainer = make_trainer(clip=2.0)
    asked = []
    monkeypatch.setattr(
        trainer.model, "clip_grad_norm_", lambda largest: asked.append(largest) or torch.tensor(7.0), raising=False
    )
    monkeypatch.setattr(type(trainer.accelerator), "distributed_type", DistributedType.FSDP)
    assert trainer._norm() == 7.0
    assert asked == [math.inf]


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
    before, drawn = state(trainer), torch.rand(3)
    assert len(trainer.optimizer.param_groups) == 2
    again = make_trainer()
    assert again.resume()
    assert torch.equal(torch.rand(3), drawn)
    assert same(state(again), before)
    assert again.progress == trainer.progress
    assert len(again.guard.state_dict()["losses"]) == 2
    assert again.guard.state_dict() == trainer.guard.state_dict()
    assert again.meter.state_dict()["taken"] == 2
    assert again.meter.line() == trainer.meter.line()


class _NaNBehind(torch.autograd.Function):
    """The same values, whose gradient is NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * math.nan


@pytest.mark.parametrize("of", ["loss", "gradient"])
@pytest.mark.parametrize("bad", [0, 2])
def test_a_step_left_out_leaves_nothing_behind(
    bad: int, of: str, make_trainer: MakeTrainer, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Micro-step `bad` of three is NaN: weights, optimizer and EMA stay, the batches are used up, the next step is as
    ever."""
    first, second = [make_batch([i]) for i in (0, 1, 2)], [make_batch([i]) for i in (3, 4, 5)]
    trainer = make_trainer(accumulation=3, on_nan="skip")
    steps(trainer, iter([make_batch([7])] * 3), 1)
    trainer.progress.step = 1
    steps(trainer, iter(second), 1)
    expected = values(trainer)

    trainer = make_trainer(accumulation=3, on_nan="skip")
    steps(trainer, iter([make_batch([7])] * 3), 1)  # so that the optimizer has moments
    trainer.progress.step = 0
    spoil(monkeypatch, trainer, lambda batch: batch.index.tolist() == [bad], of=of)
    before, batches = state(trainer), iter([*first, *second])
    (told,) = steps(trainer, batches, 1)
    assert told["skipped"] == 1.0
    assert math.isnan(told["loss"])
    assert same(state(trainer), before)
    steps(trainer, batches, 1)
    assert next(batches, None) is None
    assert same(values(trainer), expected)


def spoil(patch: pytest.MonkeyPatch, trainer: Trainer, which: Callable[[Batch], bool], *, of: str) -> None:
    """Make the loss of some batches NaN, or leave it as it is and make its gradient NaN."""
    kind = type(trainer.objective)
    forward = kind.forward

    def spoiled(self: Any, batch: Batch) -> Tensor:
        losses = forward(self, batch)
        if not which(batch):
            return losses
        return losses * math.nan if of == "loss" else _NaNBehind.apply(losses)

    patch.setattr(kind, "forward", spoiled)


def test_gradients_that_are_nan_stop_the_run(
    make_trainer: MakeTrainer, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default at once, with a loss that is finite; where steps are skipped after ten."""
    trainer = make_trainer(clip=1.0)
    spoil(monkeypatch, trainer, lambda batch: True, of="gradient")
    before = state(trainer)
    with pytest.raises(NonFiniteLossError, match=r"gradient norm is nan in step 1.*clip-4"):
        trainer.step(iter([make_batch([4])]))
    assert same(state(trainer), before)
    trainer = make_trainer(clip=1.0, on_nan="skip")
    with pytest.raises(NonFiniteLossError, match="10 steps in a row"):
        steps(trainer, iter([make_batch([4])] * 10), 10)
    assert same(values(trainer), {name: before[name] for name in values(trainer)})


def test_cap_of_the_norm_relative_to_the_run(make_trainer: MakeTrainer, make_batch: MakeBatch) -> None:
    """The quantile is a thousandth of this step's norm: clipped to one and a half thousandths; plain without it."""
    trainer = make_trainer(max_norm_ratio=1.5)
    trainer.objective(make_batch([0])).mean().backward()
    before = norm(gradients(trainer))
    trainer.guard.load_state_dict({"losses": [1.0] * 8, "norms": [before / 1000] * 8, "skipped": 0})
    (told,) = steps(trainer, iter([make_batch([0])]), 1)
    assert told["grad_norm"] == pytest.approx(before, rel=1e-4)
    assert norm(gradients(trainer)) == pytest.approx(1.5 * before / 1000, rel=1e-3)


def test_scaled_gradients_that_overflow_lower_the_scale(
    make_trainer: MakeTrainer, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float16's way, with its scaler on the CPU: the step is left out, and the next one is taken."""
    trainer, scaler = make_trainer(clip=1e-3), torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer.optimizer = AcceleratedOptimizer(trainer.optimizer.optimizer, device_placement=False, scaler=scaler)
    monkeypatch.setattr(trainer.accelerator, "_optimizers", [trainer.optimizer])
    monkeypatch.setattr(trainer.accelerator, "scaler", scaler)
    monkeypatch.setattr(trainer.accelerator, "native_amp", True)
    monkeypatch.setattr(type(trainer.accelerator), "mixed_precision", "fp16")
    trainer.guard.scaled = True
    spoil(monkeypatch, trainer, lambda batch: batch.index.tolist() == [1], of="gradient")
    before = state(trainer)
    assert "skipped" in trainer.step(iter([make_batch([1])]))
    assert scaler.get_scale() == 512.0
    assert same(state(trainer), before)
    told = trainer.step(iter([make_batch([0])]))
    assert 1e-2 < told["grad_norm"] < 100, "unscaled"
    assert norm(gradients(trainer)) == pytest.approx(1e-3, rel=1e-3)
    assert not same(values(trainer), before)
    assert scaler.get_scale() == 512.0


@pytest.mark.parametrize("where", ["weights", "ema", "optimizer"])
def test_nothing_is_saved_that_is_not_finite(where: str, make_trainer: MakeTrainer, make_batch: MakeBatch) -> None:
    trainer = make_trainer()
    steps(trainer, iter([make_batch([0])]), 1)
    trainer.save(is_best=False)
    assert trainer.ema is not None
    name = next(iter(trainer.parameters))
    if where == "optimizer":
        trainer.optimizer.state_dict()["state"][0]["exp_avg"].view(-1)[-1] = math.inf
    else:
        tensors = trainer.parameters if where == "weights" else trainer.ema.state_dict()
        tensors[name].data.view(-1)[0] = math.nan
    trainer.progress.step += 1
    shown = f"{where}.{name}" if where != "optimizer" else "optimizer.0.exp_avg"
    with pytest.raises(CheckpointError, match=rf"the state of step 2 has NaN or infinity in {shown} \(1 of"):
        trainer.save(is_best=False)
    assert [path.name for path in (trainer.run_dir / "checkpoints").iterdir()] == ["step-00000001"]


def test_the_average_is_exported(
    make_trainer: MakeTrainer, make_batch: MakeBatch, components: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, written = make_trainer(), {}
    steps(trainer, iter([make_batch([0])]), 1)
    monkeypatch.setattr(resumable, "export", lambda *_, **__: written.update(values(trainer)))
    trainer.export(components, trainer.run_dir / "final")
    assert trainer.ema is not None
    assert same(written, trainer.ema.state_dict())
    assert not same(written, values(trainer))


def test_a_pipeline_that_is_not_finite_is_not_exported(make_trainer: MakeTrainer, components: Components) -> None:
    trainer = make_trainer()
    components.vae.decoder.conv_out.bias.data[0] = math.nan
    with pytest.raises(
        CheckpointError, match=r"the pipeline of step 0 has NaN or infinity in vae.decoder.conv_out.bias"
    ):
        trainer.export(components, trainer.run_dir / "final")
    assert not (trainer.run_dir / "final").exists()


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
