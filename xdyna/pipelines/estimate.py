"""What a run will cost, before it is run: what `--dry-run` prints.

Operations are counted on the meta device. Seconds and bytes are those of a short run on this device with the same
networks and sizes (`calibrate`), which is remembered; where there was none they are a rule of thumb, and that is said.
"""

import hashlib
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel

from xdyna.core.device import chip_name
from xdyna.core.manifest import peak_memory
from xdyna.core.remembered import recall, remember, today
from xdyna.core.resources import cache_folder
from xdyna.pipelines import crop as crops
from xdyna.pipelines.controls import IN_MEMORY_BYTES
from xdyna.pipelines.folder import Checkpoint
from xdyna.pipelines.model import scheduler_class
from xdyna.pipelines.operations import Operations, Workload, count_operations
from xdyna.pipelines.options import Reuse
from xdyna.pipelines.plan import Plan
from xdyna.pipelines.residuals import EMBEDDED_FRAMES
from xdyna.pipelines.xdyna import XDynaPipeline

# Peak of live features during a UNet pass, in units of one full-resolution feature map of all frames (measured: 5.5 GB
# for two branches of 17 frames of 320 channels at 112 x 64 in half precision).
LIVE_FEATURE_MAPS = 35
# The networks reach about this part of the speed of a plain matrix product.
MATMUL_EFFICIENCY = 0.4
# Python with its libraries and the pose detector (measured: 0.8 GiB with xdyna-tiny).
BASE_BYTES = 0.8 * 2**30


@dataclass(frozen=True)
class Estimate:
    """Cost of a run.

    Attributes:
        flops: floating-point operations of all sampling steps and the decoding, all layers in every step.
        seconds: expected duration of sampling and decoding on this machine.
        memory: expected peak in bytes: of the GPU where one is used, else of the process.
        measured: day of the calibration; "" where there was none.
    """

    flops: float
    seconds: float
    memory: float
    measured: str = ""


@dataclass(frozen=True)
class Calibration:
    """What a short run took.

    Attributes:
        day: when, ISO.
        full: seconds of a window in a step in which all layers run, by branches of guidance: {"1": s, "2": s}.
        shallow: the same in steps that take deep features from an earlier one.
        start: seconds before the first step: encoders, control images.
        decode: seconds per decoded frame.
        memory: peak in bytes.
    """

    day: str
    full: dict[str, float]
    shallow: dict[str, float]
    start: float
    decode: float
    memory: int

    def seconds(self, steps: Sequence[tuple[int, bool]], *, windows: float, frames: int) -> float:
        """Of a whole run.

        Args:
            steps: of each step: branches of guidance, and whether all layers run.
            windows: of a step, in units of those that were timed.
            frames: of the video.
        """
        taken = sum((self.full if whole else self.shallow)[str(branches)] for branches, whole in steps)
        return self.start + taken * windows + self.decode * frames


def step_kinds(plan: Plan, timesteps: Sequence[float], train_timesteps: int) -> list[tuple[int, bool]]:
    """Of each step: branches of guidance, and whether all layers run."""
    settings = plan.settings
    assert settings.guidance is not None
    low, high = settings.guidance_interval
    kinds: list[tuple[int, bool]] = []
    for step, timestep in enumerate(timesteps):
        branches = 2 if settings.guidance > 1 and low <= timestep / train_timesteps <= high else 1
        changed = bool(kinds) and kinds[-1][0] != branches
        kinds.append((branches, changed or step % settings.reuse_interval == 0))
    return kinds


def calibrate(
    pipeline: XDynaPipeline, plan: Plan, *, path: Path | None = None, clock: Callable[[], float] = time.perf_counter
) -> Calibration:
    """Run a few steps of one window at the sizes of an animation, decode it, and remember what that took.

    Args:
        pipeline: the networks, where they will run.
        plan: the animation.
        path: file of all calibrations; None for the default one.
        clock: seconds.

    Returns:
        Calibration: also written into the file.
    """
    settings, device, dtype = plan.settings, pipeline._execution_device, pipeline.unet.dtype
    frames, (height, width) = min(len(plan.driving.rows), settings.context_frames), plan.size
    pose = torch.zeros(1, frames, 3, height, width, dtype=torch.uint8)
    face = torch.zeros(1, frames, 6, height, width, dtype=torch.uint8) if plan.face else None
    full, shallow, starts = {}, {}, []
    assert settings.guidance is not None
    narrow = list(settings.guidance_interval) != [0, 1]
    for branches in sorted({1 if settings.guidance <= 1 or narrow else 2, 2 if settings.guidance > 1 else 1}):
        marks: list[float] = []

        def mark(_: Any, step: int, __: Any, ___: Any, marks: list[float] = marks) -> dict[str, Any]:
            _wait(device)
            marks.append(clock())
            if step == 2 * settings.reuse_interval:
                pipeline._interrupt = True
            return {}

        begin = clock()
        latents = pipeline(
            plan.fitted(),
            pose,
            face,
            num_inference_steps=2 * settings.reuse_interval + 1,
            guidance_scale=settings.guidance if branches == 2 else 1.0,
            reuse=Reuse(settings.reuse_interval, settings.reuse_depth),
            token_downsampling=settings.token_downsampling,
            context_frames=frames,
            context_overlap=0,
            generator=torch.Generator().manual_seed(0),
            callback_on_step_end=mark,
            output_type="latent",
        ).frames
        steps = [b - a for a, b in itertools.pairwise(marks)]  # without the first, which warms up
        full[str(branches)] = statistics.median(steps[settings.reuse_interval - 1 :: settings.reuse_interval])
        less = [seconds for number, seconds in enumerate(steps, 1) if number % settings.reuse_interval]
        shallow[str(branches)] = statistics.median(less) if less else full[str(branches)]
        starts.append(max(0.0, marks[0] - begin - full[str(branches)]))
    assert isinstance(latents, torch.Tensor)
    begin = clock()
    for _ in pipeline.decode_frames(latents, chunk=settings.vae_chunk, decoder=settings.decoder):
        pass
    decode = (clock() - begin) / frames
    peaks = peak_memory(device)
    found = Calibration(today(), full, shallow, min(starts), decode, peaks.get("gpu", peaks.get("process", 0)))
    remember(path or calibrations(), {key(plan, device, dtype): asdict(found)})
    return found


def remembered(plan: Plan, device: torch.device, dtype: torch.dtype, *, path: Path | None = None) -> Calibration | None:
    """What a calibration of the same networks and sizes on this device found; None where there was none."""
    entry = recall(path or calibrations()).get(key(plan, device, dtype))
    try:
        return Calibration(**entry) if isinstance(entry, dict) else None
    except TypeError:
        return None  # of another release: as if there were none


def calibrations() -> Path:
    """The file of all calibrations, in xdyna's cache folder."""
    return cache_folder() / "calibrations.json"


def key(plan: Plan, device: torch.device, dtype: torch.dtype) -> str:
    """Device, networks and sizes that a calibration holds for, as a hash."""
    settings = plan.settings
    facts = [
        [str(device), chip_name(device), torch.get_num_threads(), str(dtype), torch.__version__],
        [[path.name, path.stat().st_size] for path in plan.checkpoint.weight_files()],
        [plan.size, plan.face, min(len(plan.driving.rows), settings.context_frames), settings.vae_chunk],
        [settings.reuse_interval, settings.reuse_depth, settings.decoder, settings.low_memory, settings.attention],
        [settings.compile, settings.token_downsampling],
        [settings.guidance, settings.guidance_interval, settings.lora],
    ]
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:16]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def expected(plan: Plan, *, device: torch.device, dtype: torch.dtype) -> Estimate:
    """The cost of an animation: as measured where a calibration is remembered, else by rule of thumb.

    Args:
        plan: the animation.
        device: where the networks run.
        dtype: of the networks.
    """
    work = Workload.of(plan)
    operations = count_operations(plan.checkpoint, work)
    rough = _guess(plan.checkpoint, work, operations, device=device, dtype=dtype)
    if (found := remembered(plan, device, dtype)) is None:
        return rough
    seconds = found.seconds(
        step_kinds(plan, *_timesteps(plan)),
        # Those of a video share frames, and the first step embeds control images: neither is so in a calibration.
        windows=work.windows * operations.of_calibrated(work, embedded=not plan.settings.low_memory),
        frames=work.frames,
    )
    window = replace(work, frames=work.context)
    kept = [
        _clip_bytes(plan.checkpoint, of, device, dtype, embedded=not plan.settings.low_memory) for of in (work, window)
    ]
    return Estimate(rough.flops, seconds, found.memory + kept[0] - kept[1], found.day)


def estimate(checkpoint: Checkpoint, work: Workload, *, device: torch.device, dtype: torch.dtype) -> Estimate:
    """Count operations and guess time and memory.

    Args:
        checkpoint: the weights; only their configs and file sizes are read.
        work: what is to be computed.
        device: where; a short matrix product is timed on it.
        dtype: of the networks.

    Returns:
        Estimate: rough; time and memory are within a factor of about two.
    """
    return _guess(checkpoint, work, count_operations(checkpoint, work), device=device, dtype=dtype)


def _guess(
    checkpoint: Checkpoint, work: Workload, operations: Operations, *, device: torch.device, dtype: torch.dtype
) -> Estimate:
    flops = operations.sampling(work) + work.frames * operations.decode
    h, w = (side // checkpoint.vae_scale for side in work.size)
    itemsize = torch.empty((), dtype=dtype).element_size()
    weights = sum(path.stat().st_size for path in checkpoint.weight_files()) * itemsize / 2  # stored as float16
    features = LIVE_FEATURE_MAPS * work.branches * (work.context + 1) * operations.channels * h * w * itemsize
    memory = BASE_BYTES + weights + features + _clip_bytes(checkpoint, work, device, dtype)
    return Estimate(flops, flops / (_matmul_speed(device, dtype) * MATMUL_EFFICIENCY), memory)


def _clip_bytes(
    checkpoint: Checkpoint, work: Workload, device: torch.device, dtype: torch.dtype, *, embedded: bool = True
) -> int:
    """What is kept of a whole clip in the memory that is counted: control images, where they are small, and what
    ControlNets make of them for the first frames. All else stands in files.
    """
    height, width = work.size
    images = [work.frames * height * width * channels for channels in ((3, 6) if work.face else (3,))]
    held = sum(size for size in images if size <= IN_MEMORY_BYTES) if device.type == "cpu" else 0
    if not embedded:
        return held
    config = ControlNetModel.load_config(checkpoint.folder / "pose_controlnet")
    latents = (height // checkpoint.vae_scale) * (width // checkpoint.vae_scale)
    numbers = min(work.frames, EMBEDDED_FRAMES) * config["block_out_channels"][0] * latents * len(images)
    return held + numbers * torch.empty((), dtype=dtype).element_size()


def _timesteps(plan: Plan) -> tuple[list[float], int]:
    """Timesteps of the scheduler that will take the steps, and those of training."""
    folder = plan.checkpoint.folder / "scheduler"
    config = json.loads((folder / "scheduler_config.json").read_text())
    scheduler = scheduler_class(plan.settings.scheduler or config["_class_name"]).from_config(config)
    scheduler.set_timesteps(plan.settings.steps)
    return scheduler.timesteps.tolist(), scheduler.config.num_train_timesteps


def _matmul_speed(device: torch.device, dtype: torch.dtype, side: int = 1024) -> float:
    """Operations per second of a square matrix product: the best of a few."""
    a = torch.randn(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        (a @ a).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def describe_plan(plan: Plan, *, device: torch.device, dtype: torch.dtype) -> Iterator[str]:
    """Lines that tell frames, windows, sizes, crop, weights with their hashes, and the expected cost.

    Args:
        plan: the animation.
        device: where the networks run.
        dtype: of the networks.
    """
    settings, driving, checkpoint = plan.settings, plan.driving, plan.checkpoint
    assert settings.guidance is not None, "the checkpoint's own was put in"
    assert settings.steps is not None, "the checkpoint's own were put in"
    frames, windows = len(driving.rows), plan.windows()
    cost = expected(plan, device=device, dtype=dtype)
    height, width = plan.reference.shape[:2]
    left, top, across, down = plan.crop.box
    kept = "all of it" if crops.is_whole(plan.crop, plan.reference.shape) else (
        f"{down}x{across} (HxW) from x = {left}, y = {top}"
    )  # fmt: skip
    yield f"reference  {height}x{width} (HxW), kept {kept} (crop={settings.crop})"
    for note in plan.notes:
        yield f"  {note}"
    source = plan.request.addresses.get("driving", driving.path)
    yield (
        f"driving    {source} ({driving.kind}), {driving.size[0]}x{driving.size[1]} (HxW), "
        f"{driving.source_fps:.4g} fps, {driving.duration:.2f} s, {'with sound' if driving.audio else 'no sound'}"
    )
    yield (
        f"video      {frames} frames of {plan.size[0]}x{plan.size[1]} (HxW) at {float(driving.fps):.4g} fps = "
        f"{frames / float(driving.fps):.2f} s, face control {'on' if plan.face else 'off'}"
    )
    yield (
        f"sampling   {settings.steps} steps x {len(windows)} windows of {min(frames, settings.context_frames)} frames "
        f"(overlap {settings.context_overlap}, {settings.context_schedule}), guidance {settings.guidance:g}, seed "
        f"{settings.seed}, scheduler {settings.scheduler or 'of the checkpoint'}"
    )
    for entry in settings.lora:
        yield f"lora       {entry}"
    yield f"device     {device}, {str(dtype).removeprefix('torch.')}, attention {settings.attention}"
    yield f"checkpoint {checkpoint.folder}{' (untrained)' if checkpoint.untrained else ''}"
    for name, digest in checkpoint.hashes().items():
        yield f"  {digest}  {name}"
    told = (
        f"sampling and decoding as measured here on {cost.measured}"
        if cost.measured
        else "rough, not measured on this device: --calibrate runs a few steps and remembers them"
    )
    about = f"{_duration(cost.seconds)} and {cost.memory / 2**30:.1f} GiB"
    yield f"estimate   {cost.flops / 1e12:.4g} TFLOP, about {about} ({told})"
    yield "would write:"
    for path in plan.files.all(keypoints=driving.kind == "video"):
        yield f"  {path}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
