"""Whole runs of `scripts/train.py` in this process, with a micro model, and what they leave."""

import csv
import json
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

from xdyna.cli import train
from xdyna.config.loader import compose
from xdyna.config.train import TrainConfig
from xdyna.core.program import run
from xdyna.training.components import Components
from xdyna.training.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
MICRO = ROOT / "tests" / "unit" / "training" / "micro.yaml"

CONFIG = """# @package _global_
defaults:
  - _self_
  - override /data: puppet
stage: {stage}
init: {init}
out: {out}
model: {model}
data: {{height: 64, width: 64, frames: 2, video_frames: 8, scene_ratio: 0.5}}
batch: 2
max_steps: 6
save_every: 2
log_every: 1
seed: 3
optim: {{lr: 1.0e-3, warmup: 2, schedule: cosine, ema: 0.9}}
validation: {{every: 3, clips: 2, bands: 2, videos: 1, steps: 2}}
"""


def build(settings: TrainConfig) -> Components:
    return STAGES[settings.stage].build(settings)


def config(tmp_path: Path, name: str, *, stage: str = "dynamics", init: str = "null") -> Path:
    model = "{" + ", ".join(f"{k}: {v}" for k, v in _flat(MICRO).items()) + "}"
    path = tmp_path / "experiment" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(CONFIG.format(stage=stage, init=init, out=tmp_path / name, model=model))
    return path


def _flat(path: Path) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in yaml.safe_load(path.read_text()).items()}


def given(path: Path) -> list[str]:
    """What chooses that configuration on a command line."""
    return ["--config-dir", str(path.parents[1]), f"experiment={path.stem}"]


def read(path: Path, *overrides: str) -> TrainConfig:
    chosen = [f"experiment={path.stem}", *overrides]
    return compose(TrainConfig, "train", chosen, config_dir=path.parents[1]).config


def go(path: Path, *more: str) -> int:
    return run(train.main, [*given(path), "--cpu", "--debug", *more])


def losses(folder: Path) -> list[tuple[str, str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [tuple(row) for row in csv.reader(file)][1:]  # type: ignore[misc]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    return load_file(newest / "weights.safetensors")
