"""Benchmark of training: time and memory of a step with each checkpointing policy (`scripts/bench.py train`).

The networks have the sizes of the configuration, published ones included, and random weights: no files are needed. A
step is one of the training loop (encoders, forward and backward pass, clipping, optimizer, average), on the same batch.
"""

import contextlib
import dataclasses
import gc
import itertools
import re
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import set_seed

from xdyna.config.train import ReplayConfig, TrainConfig
from xdyna.data.loader import build_loader
from xdyna.data.samples import Batch
from xdyna.models.layers import use_channels_last
from xdyna.training.checkpointing import set_checkpointing
from xdyna.training.groups import select_trainable
from xdyna.training.plan import Plan, make_plan, sized_components
from xdyna.training.processes import make_accelerator
from xdyna.training.stages import STAGES
from xdyna.training.trainer import Trainer

WARM_UP = 2  # steps that are not timed: the optimizer's state is made, and kernels are chosen


@dataclass(frozen=True)
class Measured:
    """Steps with one policy.

    Attributes:
        seconds: of each timed step; empty where the memory was full.
        peak: bytes, of the GPU, or of the whole process on a CPU; None where the system does not tell.
    """

    seconds: tuple[float, ...]
    peak: int | None


def bench_training(config: TrainConfig, *, policies: Sequence[str], steps: int, device: torch.device) -> bool:
    """Time training steps at the sizes of a configuration and with random weights, and print times and memory.

    Args:
        config: of the run; without CUDA graphs, replay and time limit.
        policies: checkpointing policies, in this order.
        steps: timed steps of each, at least 1.
        device: where the networks run.

    Returns:
        bool: whether any policy fits into the memory.
    """
    config = dataclasses.replace(config, cuda_graph=False, replay=ReplayConfig(), minutes=None)
    set_seed(config.seed)
    plan = make_plan(config)
    with tempfile.TemporaryDirectory(prefix="xdyna-bench-") as folder:
        trainer = _trainer(config, device, Path(folder))
        data = dataclasses.replace(config.data, workers=0)
        batch = next(iter(build_loader(data, seed=config.seed, batch_size=trainer.share.micro_batch)))
        print(_head(config, plan, device, steps=steps))
        measured, parts = {}, trainer.objective.components
        for policy in policies:
            set_checkpointing(parts.unet, parts.beside_unet(), policy)
            measured[policy] = measure(trainer, itertools.repeat(batch), steps=steps)
            print(_line(policy, measured[policy], plan), flush=True)
    done = {policy: m for policy, m in measured.items() if m.seconds}
    print("\n" + _ratios(done))
    return bool(done)


def measure(trainer: Trainer, batches: Iterator[Batch], *, steps: int) -> Measured:
    """Time training steps.

    Args:
        trainer: its optimizer steps.
        batches: the same batch again and again.
        steps: how many are timed.

    Returns:
        Measured: without times where the GPU's memory did not do.
    """
    device = trainer.accelerator.device
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    _reset_peak(device)
    seconds: list[float] = []
    full = False
    try:
        for number in range(WARM_UP + steps):
            start = time.perf_counter()
            trainer.step(batches)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if number >= WARM_UP:
                seconds.append(time.perf_counter() - start)
    except torch.OutOfMemoryError:
        full = True  # what the traceback holds must go before the memory is free again
    peak = _peak(device)
    if full:
        trainer.optimizer.zero_grad()
        return Measured((), peak)
    return Measured(tuple(seconds), peak)


def _trainer(config: TrainConfig, device: torch.device, folder: Path) -> Trainer:
    components = sized_components(config, device=device)
    if config.channels_last:
        use_channels_last(*components.modules().values())
    stage = STAGES[config.stage]
    stage.add_what_trains(components, config)
    groups = select_trainable(components, stage.chosen_groups(config.appearance, config.train))
    accelerator = make_accelerator(config, cpu=device.type == "cpu")
    objective = stage.objective(components, config.loss, seed=config.seed)
    return Trainer(config, objective, groups, accelerator=accelerator, run_dir=folder)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: sets VmHWM to what is in use, see proc(5)


def _peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None


def _head(config: TrainConfig, plan: Plan, device: torch.device, *, steps: int) -> str:
    name = f"{device}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    data, share = config.data, config.share(1)
    return (
        f"stage {config.stage}, {share.micro_batch} x {share.accumulation} clips of 1 + {data.frames} frames, "
        f"{data.height} x {data.width} px, {config.precision}, {config.optim.name}, on {name}\n"
        f"random weights, {sum(plan.trainable.values()) / 1e6:.2f} M of them trained; {steps} steps after {WARM_UP}\n\n"
        f"{'policy':<10} {'s/step: median':>14} {'least':>8} {'most':>8} {'steps/s':>8} {'peak':>10} {'estimated':>10}"
    )


def _line(policy: str, measured: Measured, plan: Plan) -> str:
    peak = f"{measured.peak / 1e9:.2f} GB" if measured.peak is not None else "unknown"
    estimate = f"{plan.peak(policy) / 1e9:.2f} GB"
    if not measured.seconds:
        return f"{policy:<10} {'the memory of the GPU is full':>41} {peak:>10} {estimate:>10}"
    median = statistics.median(measured.seconds)
    return (
        f"{policy:<10} {median:>14.3f} {min(measured.seconds):>8.3f} {max(measured.seconds):>8.3f} {1 / median:>8.3f} "
        f"{peak:>10} {estimate:>10}"
    )


def _ratios(done: dict[str, Measured]) -> str:
    """Times as multiples of the fastest."""
    if not done:
        return "no policy fits: use a smaller data.height, data.width or data.frames, or a larger GPU"
    medians = {policy: statistics.median(measured.seconds) for policy, measured in done.items()}
    fastest = min(medians.values())
    return "time of a step: " + ", ".join(f"{policy} {value / fastest:.2f}x" for policy, value in medians.items())
