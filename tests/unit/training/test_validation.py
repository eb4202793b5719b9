"""Losses on held-out clips."""

import dataclasses
import warnings
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from xdyna.config.data import DataConfig
from xdyna.config.train import LossConfig, OptimConfig, TrainConfig, ValidationConfig
from xdyna.data.clips import build_dataset
from xdyna.data.samples import collate
from xdyna.puppets.world import SPLITS
from xdyna.training import processes, validation
from xdyna.training import trainer as training
from xdyna.training.components import Components
from xdyna.training.draws import VALIDATION
from xdyna.training.errors import TrainingWarning
from xdyna.training.groups import select_trainable
from xdyna.training.stages import STAGES
from xdyna.training.trainer import Trainer
from xdyna.training.validation import SEED, Sampled, Sampler, band_losses, sample_together, validation_data

DATA = DataConfig(
    height=64,
    width=64,
    frames=2,
    video_frames=8,
    scene_ratio=0.5,
    drop_image=1.0,
    drop_text=0.0,
    drop_face=1.0,
    num_clips=2,
)


def settings(**changes: object) -> TrainConfig:
    data = dataclasses.replace(DATA)
    return TrainConfig(data=data, validation=ValidationConfig(every=1, clips=3, bands=2), **changes)  # type: ignore[arg-type]


def test_held_out_whole_and_with_all_conditions() -> None:
    config = validation_data(DATA)
    assert (config.split, config.num_clips, config.crop_scale) == ("validation", None, [1.0, 1.0])
    dataset = build_dataset(config, seed=SEED)
    for index in range(6):
        take = dataset.take(index)
        assert take.video.identity in SPLITS["validation"]  # type: ignore[attr-defined]
        assert (take.drop_image, take.drop_text, take.drop_face) == (False, False, False)
        assert take.video.crop.box == (0, 0, 64, 64)  # type: ignore[attr-defined]


def test_bands_are_measured_at_their_middle_with_the_noise_of_validation(components: Components) -> None:
    config = settings()
    objective = STAGES["dynamics"].objective(components, LossConfig(), seed=7)
    told = band_losses(objective, objective, config, accelerator=Accelerator(cpu=True))
    dataset = build_dataset(validation_data(config.data), seed=SEED)
    expected = {}
    with torch.no_grad():
        for middle in (250, 750):
            losses = [objective(collate([dataset[k]]), stream=VALIDATION, timestep=middle) for k in range(3)]
            expected[f"loss_t{middle}"] = float(torch.cat(losses).mean())
    expected["loss"] = sum(expected.values()) / 2
    assert told == pytest.approx(expected, rel=1e-5)


def test_the_average_is_measured_and_the_weights_come_back(
    components: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(optim=OptimConfig(ema=0.9))
    groups = select_trainable(components, ["motion"])
    objective = STAGES["dynamics"].objective(components, config.loss, seed=0)
    trainer = Trainer(config, objective, groups, accelerator=Accelerator(cpu=True), run_dir=tmp_path)
    assert trainer.ema is not None
    average = {name: tensor.clone() for name, tensor in trainer.ema.state_dict().items()}
    with torch.no_grad():
        for parameter in trainer.parameters.values():
            parameter.add_(1.0)
    seen = []

    def measure(*_: object, **__: object) -> dict[str, float]:
        seen.append(all(torch.equal(p, average[name]) for name, p in trainer.parameters.items()))
        return {"loss": 1.0}

    monkeypatch.setattr(training, "band_losses", measure)
    trainer.progress.step = 1
    assert trainer._validate(None, last=False), "the first is the best, and kept"
    assert not trainer._validate(None, last=False), "no better"
    assert seen == [True, True]
    assert all(torch.equal(p, average[name] + 1.0) for name, p in trainer.parameters.items())
    assert (trainer.progress.best_metric, trainer.progress.best_step) == (1.0, 1)


def test_clips_are_shared_among_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes make five clips, each one once; all get the same: means without NaN, in the clips' order."""

    def made(number: int) -> Sampled:
        image = np.full((2, 2, 3), number, np.uint8)
        figure = float("nan") if number == 1 else 10.0 * number
        return Sampled({"psnr_figure": figure, "psnr": float(number)}, sheets={f"clip{number}": image})

    asked: list[list[int]] = []
    monkeypatch.setattr(validation, "gather_object", lambda own: own)
    for rank in range(3):
        asked.append([])
        sampler = Sampler(5, lambda number: (asked[-1].append(number), made(number))[1])
        place = SimpleNamespace(process_index=rank, num_processes=3)
        sample_together(sampler, accelerator=place)  # type: ignore[arg-type]
    assert asked == [[0, 3], [1, 4], [2]]
    everything = [(number, made(number)) for rank in asked for number in rank]
    monkeypatch.setattr(validation, "gather_object", lambda own: everything)
    place = SimpleNamespace(process_index=2, num_processes=3)
    told = sample_together(Sampler(5, made), accelerator=place)  # type: ignore[arg-type]
    assert told.scalars == {"psnr_figure": 22.5, "psnr": 2.0}
    assert list(told.sheets) == [f"clip{k}" for k in range(5)]


@pytest.mark.parametrize(
    ("environment", "warned"),
    [({"MASTER_ADDR": "127.0.0.1"}, True), ({}, False), ({"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "1"}, False)],
)
def test_fewer_processes_than_asked_for_are_said(
    environment: dict[str, str], warned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `accelerate launch --cpu --num_processes 2` leaves: an address, and no world."""
    for name in ("MASTER_ADDR", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        processes.make_accelerator(settings(), cpu=True)
    told = [str(w.message) for w in caught if issubclass(w.category, TrainingWarning)]
    assert [text[:18] for text in told] == (["one process trains"] if warned else [])


def test_nobody_waits_for_hours() -> None:
    assert timedelta(minutes=10) <= processes.WAIT_FOR_MAIN <= timedelta(minutes=15)
