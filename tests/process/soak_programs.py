"""What `soak` kills, and what these programs are given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml

from tests.process.small import standing_figure
from xdyna.config.model import ModelConfig
from xdyna.media import VideoWriter
from xdyna.pipelines.folder import save_pipeline
from xdyna.pipelines.untrained import build_pipeline
from xdyna.puppets.world.render import render_clip

MICRO = Path(__file__).resolve().parents[2] / "tests" / "unit" / "training" / "micro.yaml"
SECONDS = 300  # of one run, at most
LONG_FRAMES = 300


@dataclass(frozen=True)
class Program:
    """What is killed.

    Attributes:
        command: arguments after the interpreter; {inputs} and {out} are folders. The same command goes on.
        results: patterns below {out} of the files that must come out equal.
        finished: a pattern below {out}: the run has come to its end.
        begun: what it says when its start-up is over, and kills begin; "": they come at any time.
        kept: the file below {out} that is written whenever work is kept; "" where nobody asks what a kill costs.
        steps: of denoising, where `kept` is given.
        seconds: of one run, at most.
    """

    command: str
    results: tuple[str, ...]
    finished: str
    begun: str = ""
    kept: str = ""
    steps: int = 2
    seconds: float = SECONDS


PROGRAMS = {
    "train": Program(
        "scripts/train.py --config-dir {inputs} experiment=soak out={out}/run --cpu --resume",
        ("run/final/**/*.safetensors", "run/checkpoints/step-000012/weights.safetensors"),
        "run/final/model_index.json",
    ),
    "infer": Program(
        "scripts/infer.py --ref {inputs}/ref.png --drive {inputs}/driving.npz --checkpoint {inputs}/pipeline "
        "--steps 20 --out {out}/video.mp4",
        ("video.mp4",),
        "video.mp4",
    ),
    "long": Program(
        "scripts/infer.py --ref {inputs}/ref.png --drive {inputs}/long.npz --checkpoint {inputs}/pipeline "
        "--steps 2 guidance=1 --out {out}/video.mp4",
        ("video.mp4", "video.grid.mp4", "video.sheet.png"),
        "video.mp4",
        begun="denoising",
        kept="video.partial/state.json",
        seconds=3600,
    ),
    "tiny": Program(
        "scripts/infer.py --ref assets/demo/reference.png --ref-keypoints {inputs}/tiny_ref.npz --drive "
        "{inputs}/tiny.npz --checkpoint xdyna-tiny preset=few_step --size 128x128 --out {out}/video.mp4",
        ("video.mp4", "video.grid.mp4", "video.sheet.png"),
        "video.mp4",
        begun="denoising",
        kept="video.partial/state.json",
        seconds=3600,
    ),
    "preprocess": Program(
        "scripts/preprocess.py {inputs}/footage --out {out}/set --workers 2 preprocess.min_frames=8 "
        "preprocess.min_side=64 preprocess.min_motion=0 preprocess.max_text=1 preprocess.max_camera=9",
        ("set/manifest.parquet", "set/skipped.parquet", "set/dataset.json", "set/README.md", "set/clips/**/*.npz"),
        "set/dataset.json",
    ),
    "eval": Program(
        "scripts/eval.py --generated {inputs}/generated --truth {inputs}/footage --out {out} "
        "--metrics psnr,ssim,temporal_ratio,flicker,warping_error",
        ("report.csv",),
        "report.md",
    ),
    "convert": Program(
        "scripts/convert.py --pipeline {inputs}/pipeline --out {out}/made --dtype float16",
        ("made/**/*.safetensors", "made/**/*.json"),
        "made/model_index.json",
    ),
    "puppets": Program("scripts/puppets.py alignment --pairs 3 --image {out}/table.png", ("table.png",), "table.png"),
    "page": Program("tests/process/page_job.py {inputs} {out}", ("result.mp4",), "result.mp4"),
}


def make_inputs(folder: Path) -> None:
    """A pipeline, a configuration, an image, keypoints, footage and videos to judge."""
    save_pipeline(build_pipeline(ModelConfig(**yaml.safe_load(MICRO.read_text())), seed=0), folder / "pipeline")
    settings = {
        "defaults": ["_self_", {"override /data": "puppet"}],
        "stage": "dynamics",
        "init": str(folder / "pipeline"),
        "model": yaml.safe_load(MICRO.read_text()),
        "data": {"height": 64, "width": 64, "frames": 2, "video_frames": 8, "scene_ratio": 0.5, "workers": 2},
        "batch": 2,
        "max_steps": 12,
        "save_every": 1,
        "log_every": 1,
        "validation": {"every": 4, "clips": 2, "bands": 2, "videos": 1, "steps": 2},
    }
    (folder / "experiment").mkdir()
    text = yaml.safe_dump(settings, sort_keys=False)
    (folder / "experiment" / "soak.yaml").write_text(f"# @package _global_\n{text}")
    image = np.indices((96, 64)).sum(0)[..., None] * np.array([1, 1, 0.5])
    cv2.imwrite(str(folder / "ref.png"), image.astype(np.uint8))
    standing_figure(frames=40).save(folder / "driving.npz")
    standing_figure(frames=LONG_FRAMES).save(folder / "long.npz")
    standing_figure(frames=1).save(folder / "tiny_ref.npz")
    standing_figure(frames=LONG_FRAMES).save(folder / "tiny.npz")
    for number in range(3):
        frames = render_clip(number, number, number, frames=24, size=(128, 128)).frames
        for kind, shown in (("footage", frames), ("generated", frames // 2)):
            (folder / kind).mkdir(exist_ok=True)
            with VideoWriter(folder / kind / f"{number}.mp4", fps=12, size=(128, 128)) as writer:
                for frame in shown:
                    writer.write(frame)
