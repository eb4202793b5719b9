"""What is logged of losses: means since the last line, of all clips, by kind and by band of timesteps."""

import json
from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator

from xdyna.config.train import OptimConfig, TrainConfig
from xdyna.data.samples import Batch, collate
from xdyna.training.components import Components
from xdyna.training.groups import select_trainable
from xdyna.training.meter import LossMeter
from xdyna.training.stages import STAGES
from xdyna.training.trainer import Trainer


def test_means_of_what_was_seen() -> None:
    meter = LossMeter(steps=1000, bands=4)
    assert meter.names == ["loss_human", "loss_scene", "loss_t125", "loss_t375", "loss_t625", "loss_t875"]
    members = meter.members(["human", "scene", "human"], [0, 249, 999])
    assert members.tolist() == [[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1]]
    losses = torch.tensor([1.0, 2.0, 6.0])
    meter.add(3.0, 0.5, (members @ losses).tolist(), members.sum(1).tolist())
    meter.add(1.0, 1.5, [4.0, 0.0, 0.0, 4.0, 0.0, 0.0], [4, 0, 0, 4, 0, 0])
    kept = json.loads(json.dumps(meter.state_dict()))
    expected = {
        "loss": 2.0, "grad_norm": 1.0, "loss_human": 11 / 6, "loss_scene": 2.0, "loss_t125": 1.5, "loss_t375": 1.0,
        "loss_t875": 6.0,
    }  # fmt: skip
    assert meter.line() == pytest.approx(expected)
    assert meter.line() == {}
    meter.load_state_dict(kept)
    assert meter.line() == pytest.approx(expected)
    assert LossMeter(steps=0, bands=4).members(["scene"], []).tolist() == [[0], [1]]


@pytest.mark.parametrize("timesteps", ["independent", "spread"])
def test_a_step_tells_apart_what_its_clips_are(
    timesteps: str, components: Components, make_batch: Callable[..., Batch], tmp_path: object
) -> None:
    """Two micro-steps of both kinds, against the losses of single clips and the timesteps that the objective draws."""
    config = TrainConfig(batch=6, micro_batch=3, optim=OptimConfig(ema=0.0, warmup=0))
    config.loss.timesteps = timesteps
    groups = select_trainable(components, ["motion"])
    objective = STAGES["dynamics"].objective(components, config.loss, seed=3)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    trainer = Trainer(config, objective, groups, accelerator=accelerator, run_dir=tmp_path)  # type: ignore[arg-type]
    clips = [make_batch([index], scene=index in (1, 2, 4)) for index in range(6)]
    singles = [(float(objective(c).detach()), c.kind[0], int(objective.inputs(c).timestep)) for c in clips]
    assert objective.timesteps(list(range(6))) == [t for _, _, t in singles]
    trainer.step(iter([_joined(clips[:3]), _joined(clips[3:])]))
    line = trainer.meter.line()
    assert line["loss"] == pytest.approx(sum(loss for loss, _, _ in singles) / 6, rel=1e-5)
    for kind in ("human", "scene"):
        mine = [loss for loss, other, _ in singles if other == kind]
        assert line[f"loss_{kind}"] == pytest.approx(sum(mine) / len(mine), rel=1e-5)
    bands: dict[int, list[float]] = {}
    for loss, _, t in singles:
        bands.setdefault(125 + t // 250 * 250, []).append(loss)
    assert {name: value for name, value in line.items() if "loss_t" in name} == pytest.approx(
        {f"loss_t{middle}": sum(mine) / len(mine) for middle, mine in bands.items()}, rel=1e-5
    )


def _joined(batches: list[Batch]) -> Batch:
    def sample(batch: Batch) -> object:
        values = {n: v if v is None else v[0] for n, v in vars(batch).items()}
        return type("Row", (), {**values, "index": int(batch.index[0])})

    return collate([sample(batch) for batch in batches])  # type: ignore[misc]
