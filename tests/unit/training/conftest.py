"""A micro pipeline and hand-made batches."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from xdyna.config.loader import read_yaml
from xdyna.config.model import ModelConfig
from xdyna.data.samples import Batch
from xdyna.pipelines.untrained import build_pipeline
from xdyna.training.stages import Components

MICRO = Path(__file__).parent / "micro.yaml"


@pytest.fixture
def components() -> Components:
    pipeline = build_pipeline(ModelConfig(**read_yaml(MICRO)), seed=0)
    parts = {name: getattr(pipeline, name) for name in Components.__dataclass_fields__ if hasattr(pipeline, name)}
    return Components(**parts)


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    def make(indices: list[int], *, frames: int = 2, scene: bool = False, drop_image: bool = False) -> Batch:
        def images(index: int, count: int, channels: int) -> torch.Tensor:
            generator = torch.Generator().manual_seed(index + 1000 * channels)
            return torch.randint(256, (count, channels, 64, 64), generator=generator, dtype=torch.uint8)

        pose = torch.stack([images(i, frames, 3) for i in indices]).roll(1, 0)
        face = torch.stack([images(i, frames, 6) for i in indices])
        return Batch(
            index=torch.tensor(indices),
            clip_id=[f"clip-{i}" for i in indices],
            kind=["scene" if scene else "human"] * len(indices),
            pixels=torch.stack([images(i, 1 + frames, 3) for i in indices]),
            pose=torch.zeros_like(pose) if scene else pose,
            face=torch.zeros_like(face) if scene else face,
            latents_mean=None,
            latents_std=None,
            drop_image=torch.full((len(indices),), drop_image),
            drop_text=torch.zeros(len(indices), dtype=torch.bool),
            drop_face=torch.zeros(len(indices), dtype=torch.bool),
            caption=[""] * len(indices),
        )

    return make
