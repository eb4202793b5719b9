"""A very small pipeline and a made-up driving figure, for tests of the programs."""

from pathlib import Path

import numpy as np

from xdyna.config.contract import ConditionContract, PoseStyle
from xdyna.config.infer import InferConfig
from xdyna.config.model import ModelConfig
from xdyna.core.progress import Watch
from xdyna.perception.types import Person, PoseTrack
from xdyna.pipelines.controls import Conditions, perceive, prepare
from xdyna.pipelines.crop import published_crop
from xdyna.pipelines.driving import Driving
from xdyna.pipelines.folder import Checkpoint
from xdyna.pipelines.outputs import OutputFiles
from xdyna.pipelines.plan import Plan, Request

BLOCKS = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 8}
SMALL = ModelConfig(
    unet={
        **BLOCKS,
        "sample_size": [4, 4],
        "attention_levels": [True, False],
        "num_attention_heads": 2,
        "motion_heads": 2,
    },
    controlnet={
        **BLOCKS,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "attention_head_dim": 2,
        "conditioning_embedding_out_channels": [4, 4, 4, 4],
    },
    resampler={"dim": 8, "depth": 1, "dim_head": 4, "heads": 2, "num_queries": 4, "embedding_dim": 8, "output_dim": 8},
    text_encoder={"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    image_encoder={
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
        "projection_dim": 8,
    },
    vae={
        "block_out_channels": [4, 4, 4, 4],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": 2,
    },
    scheduler={
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "linear",
        "steps_offset": 1,
        "clip_sample": False,
    },
)


def standing_figure(*, frames: int, fps: float = 10, size: tuple[int, int] = (96, 64)) -> PoseTrack:
    points = {0: (32, 14), 1: (32, 24), 2: (24, 24), 3: (20, 36), 4: (18, 46), 5: (40, 24), 6: (44, 36), 7: (46, 46)}
    points |= {8: (27, 50), 9: (27, 68), 10: (27, 86), 11: (37, 50), 12: (37, 68), 13: (37, 86)}
    body = np.zeros((frames, 18, 3), np.float32)
    for joint, (x, y) in points.items():
        body[:, joint] = (x, y, 1)
    body[:, 4, 1] -= np.arange(frames) * 2
    return PoseTrack(
        body=body,
        hands=np.zeros((frames, 2, 21, 3), np.float32),
        face=np.zeros((frames, 68, 3), np.float32),
        size=size,
        times=np.arange(frames) / fps,
        frame_index=np.arange(frames),
        source="standing figure",
    )


def make_conditions(
    driving: Driving,
    settings: InferConfig,
    *,
    reference: np.ndarray,
    size: tuple[int, int],
    face: bool,
    cache_dir: Path | None,
    person: Person | None = None,
) -> Conditions:
    """Control images of a driving file, by the two steps of the library, with the published crop."""
    contract = ConditionContract(PoseStyle(head=bool(settings.head)))
    checkpoint = Checkpoint(Path("none"), size, True, True, vae_scale=8, max_context=16, contract=contract)
    plan = Plan(
        Request(reference, driving.path),
        settings,
        checkpoint,
        reference,
        size,
        published_crop(reference.shape, size, face=face),
        driving,
        OutputFiles(Path("out.mp4")),
        face,
        person,
    )
    return prepare(perceive(plan, cache_dir=cache_dir, watch=Watch(tell=print)), plan, watch=Watch(tell=print))
