"""Benchmark of the modes (`preset=exact|fast|...|few_step`): seconds, memory and distance to exact, all in one run.

The same clip is animated by each mode in turn, at the size and frames of the first, so that only the way of sampling
differs. Memory is what is alive in tensors at a time, weights not counted (`LiveBytes`), in a pass of its own.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from xdyna.checkpoints.build import build_controlnet
from xdyna.config.infer import InferConfig
from xdyna.config.loader import compose, load_model
from xdyna.core.atomic import check_output, write_file
from xdyna.core.install import install_xdyna
from xdyna.core.manifest import versions
from xdyna.core.resources import resource
from xdyna.media.frame_metrics import psnr
from xdyna.media.image import write_png
from xdyna.media.sheet import grid_frame
from xdyna.models.controls import FACE_CHANNELS, POSE_CHANNELS
from xdyna.models.denoiser import Denoiser, Tokens
from xdyna.models.unet import XDynaUNet
from xdyna.pipelines.animate import sample
from xdyna.pipelines.bench import compare, fill_zeros
from xdyna.pipelines.controls import Conditions, perceive, prepare
from xdyna.pipelines.denoise import predict_noise
from xdyna.pipelines.folder import save_pipeline
from xdyna.pipelines.memory import PARTS, LiveBytes, peak_bytes, split_feed_forward
from xdyna.pipelines.model import Model, load
from xdyna.pipelines.plan import Plan, Request, plan_animation
from xdyna.pipelines.residuals import EMBEDDED_FRAMES, Condition, ControlResidualCache
from xdyna.pipelines.untrained import build_pipeline
from xdyna.pipelines.xdyna import CONTROL_CHUNK, to_uint8

MODES = ("exact", "fast", "preview", "lowmem")
DISTILLED = {"xdyna-tiny": "few_step"}
"""Checkpoints that have a mode of their own: the preset whose LoRA was distilled from them."""
SHOWN = 6  # frames of a mode in the image


def bench_random(sizes: str, **options: Any) -> list[dict[str, Any]]:
    """`bench_modes` of a model of these sizes with random weights, which is written to a temporary folder.

    Args:
        sizes: name in `configs/model`.
        options: of `bench_modes`.

    Returns:
        list: as there. Distances are those of images without meaning.
    """
    with tempfile.TemporaryDirectory() as folder:
        pipeline = build_pipeline(load_model(sizes), seed=0)
        for net in (pipeline.unet, pipeline.pose_controlnet, pipeline.face_controlnet):
            assert net is not None
            fill_zeros(net)
        save_pipeline(pipeline, Path(folder) / sizes, untrained=True)
        del pipeline
        return bench_modes(str(Path(folder) / sizes), **options, label=f"random weights, {sizes}")


def bench_modes(
    checkpoint: str, *, frames: int, rounds: int, device: str, dtype: str, out: Path, label: str | None = None
) -> list[dict[str, Any]]:
    """Animate the demo's puppet in every mode, and write a table, a plot and an image.

    Args:
        checkpoint: pipeline folder or its name.
        frames: of the clip.
        rounds: timed animations of each mode, in turn; one more measures memory and warms up. On a CPU, seconds are
            those of the process, which other programs disturb least.
        device: see `InferConfig`.
        dtype: see `InferConfig`.
        out: folder for modes.json, modes.md and modes.png.
        label: of the checkpoint in these; None takes its name.

    Returns:
        list: a row per mode, as in modes.json.

    Raises:
        FileError: `out` is no folder that can be made.
        OSError: the same.
    """
    check_output(out)
    out.mkdir(parents=True, exist_ok=True)  # a folder that cannot be made is told before minutes of work
    own = DISTILLED.get(Path(checkpoint).name)
    modes = (*MODES, own) if own else MODES
    runs = {mode: _Run(mode, checkpoint, frames=frames, device=device, dtype=dtype) for mode in modes}
    videos, peaks = {}, {}
    for mode, run in runs.items():
        meter = LiveBytes()
        with meter:
            videos[mode] = run()
        peaks[mode] = meter.peak
    seconds = compare(runs, pairs=rounds, device=runs["exact"].model.device)
    rows = []
    for mode, video in videos.items():
        distance = float(np.mean([psnr(_error(a, b)) for a, b in zip(video, videos["exact"], strict=True)]))
        ratios = [own / exact for own, exact in zip(seconds[mode], seconds["exact"], strict=True)]
        row: dict[str, Any] = {
            "mode": mode,
            "seconds": round(median(seconds[mode]), 2),
            "of_exact": round(median(ratios), 3),
        }
        row |= {"range": [round(min(ratios), 3), round(max(ratios), 3)], "tensor_bytes": peaks[mode]}
        rows.append({**row, "psnr_to_exact": None if mode == "exact" else round(min(distance, 100.0), 2)})
    facts: dict[str, Any] = {
        "checkpoint": label or checkpoint,
        "frames": frames,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
    }
    facts |= {"device": str(runs["exact"].model.device), "dtype": str(runs["exact"].model.dtype)}
    write_file(out / "modes.json", (json.dumps({**facts, "versions": versions(), "modes": rows}, indent=1)).encode())
    write_file(out / "modes.md", table(rows).encode())
    write_png(out / "modes.png", contact_sheet(videos), overwrite=True)
    _plot(rows, out / "plot.png")
    return rows


class _Run:
    """Samples and decodes the demo's clip in one mode; controls are made once."""

    def __init__(self, mode: str, checkpoint: str, *, frames: int, device: str, dtype: str) -> None:
        words = [f"preset={mode}", f"frames={frames}", f"device={device}", f"dtype={dtype}"]
        same = ["height=null", "width=null", "fps=null", "guidance=null"]  # as the checkpoint has them
        settings = compose(InferConfig, "infer", [*words, *same]).config
        self.model: Model = load(checkpoint, settings)
        demo = resource("assets", "demo")
        request = Request(demo / "reference.png", demo / "driving.npz", face_video=demo / "driving.mp4")
        self.plan: Plan = plan_animation(request, settings, self.model.checkpoint)
        self.conditions: Conditions = prepare(perceive(self.plan), self.plan)
        self.model.settle_attention(self.plan.settings.attention, self.plan.run_shapes())

    def __call__(self) -> np.ndarray:
        pipeline, settings = self.model.pipeline, self.plan.settings
        latents = sample(pipeline, self.plan, self.plan.fitted(), self.conditions)
        parts = pipeline.decode_frames(latents, chunk=settings.vae_chunk, decoder=settings.decoder)
        return np.concatenate([to_uint8(part) for part in parts])


def _error(one: np.ndarray, other: np.ndarray) -> float:
    """Mean squared error of two frames."""
    return float(np.mean((one.astype(np.float64) - other) ** 2))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| mode | seconds | of exact (range) | tensors alive | PSNR to exact |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        low, high = row["range"]
        distance = "-" if row["psnr_to_exact"] is None else f"{row['psnr_to_exact']:.1f} dB"
        lines.append(
            f"| {row['mode']} | {row['seconds']:.1f} | {row['of_exact']:.2f} ({low:.2f} - {high:.2f}) | "
            f"{row['tensor_bytes'] / 1e6:.0f} MB | {distance} |"
        )
    return "\n".join(lines) + "\n"


def contact_sheet(videos: dict[str, np.ndarray]) -> np.ndarray:
    """A row of frames for each mode. Args: videos: uint8 (T, H, W, 3) each. Returns: uint8 (H', W', 3)."""
    rows = []
    for mode, video in videos.items():
        chosen = np.linspace(0, len(video) - 1, min(SHOWN, len(video))).round().astype(int)
        rows.append(grid_frame({f"{mode} {number}": video[number] for number in chosen}, height=video.shape[1]))
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows])


def _plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Seconds of each mode."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"note: no plot without matplotlib: {install_xdyna('eval')}")
        return

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.barh([row["mode"] for row in rows], [row["seconds"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("seconds, sampling and decoding")
    figure.savefig(path)


def published_step_bytes(*, low_memory: bool, frames: int = 16) -> int:
    """Memory of one denoising step of the published networks at 896 x 512 with guidance and both ControlNets, float16.

    Args:
        low_memory: as `low_memory` runs it, ControlNets waiting on the CPU, or as usual.
        frames: of the window.

    Returns:
        int: bytes of the networks' weights on the device and all that is alive at a time; counted on meta tensors.
    """
    with torch.device("meta"):
        unet = XDynaUNet().half()
        nets = [build_controlnet({}, channels=channels).half() for channels in (POSE_CHANNELS, FACE_CHANNELS)]
        if low_memory:
            split_feed_forward(unet, PARTS)
        images = [torch.empty(frames, c, 896, 512, dtype=torch.uint8) for c in (POSE_CHANNELS, FACE_CHANNELS)]
        tokens = _SameText(*(torch.empty(2, count, 768, dtype=torch.float16) for count in (77, 16)))
        latents, timestep = torch.empty(1, 4, frames, 112, 64, dtype=torch.float16), torch.empty((), dtype=torch.long)
        reference = latents[:, :, :1]
    conditions = [_Unscaled(net, image) for net, image in zip(nets, images, strict=True)]
    denoiser = Denoiser(unet=unet, pose_controlnet=nets[0], face_controlnet=nets[1])
    chunk, embedded = (CONTROL_CHUNK, 0) if low_memory else (None, EMBEDDED_FRAMES)
    controls = ControlResidualCache(conditions, tokens, chunk=chunk, embedded_frames=embedded)
    live = peak_bytes(
        lambda: predict_noise(
            denoiser,
            latents,
            reference,
            timestep,
            windows=[list(range(frames))],
            tokens=tokens,
            controls=controls,
            apart=low_memory,
        )
    )
    on_device = [unet] if low_memory else [unet, *nets]
    return live + sum(p.numel() * p.element_size() for net in on_device for p in net.parameters())


class _SameText(Tokens):
    """Tokens without values, whose text is the same for both branches, as it is in the published setting."""

    same_text = True  # type: ignore[assignment]


class _Unscaled(Condition):
    """A condition without values."""

    @property
    def value_range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers of no meaning."""
        return torch.zeros((), device="meta"), torch.ones((), device="meta")
