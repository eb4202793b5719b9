"""Which attention kernel computes which layers of a run: asked for by name, or the fastest exact one.

`attention=auto` times the exact kernels that this device has, at the run's own shapes and in its dtype, and remembers
what came of it for the device; PyTorch's own choice stays unless another one is clearly faster. Layers of one kind
(self-attention with the adapter, cross-attention to tokens, attention over time), number of heads and head width share
a kernel; the ControlNets' layers are among them.

Shape legend: B branches of guidance, F frames (frame 0 = reference), T = F - 1, L places of a frame, S tokens.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from xdyna.core.device import chip_name
from xdyna.core.errors import UsageError
from xdyna.core.remembered import recall, remember, today
from xdyna.core.resources import cache_folder
from xdyna.models.attention import AttentionBase, DynamicsAdapterAttention, TextImageCrossAttention, attend
from xdyna.models.controls import share_work
from xdyna.models.kernels import KERNELS, obstacle, require_kernel
from xdyna.models.motion import TemporalSelfAttention

SAME_ON_CPU = "native_flash"  # what PyTorch's own choice is on a CPU: nothing to compare
FASTER = 0.9  # of the time of PyTorch's own choice, which stays otherwise: the same run is the same on every day
REPEATS = 3
HOPELESS = 2.0  # times the time of PyTorch's own choice: not timed again
WORK = {"cuda": 4e11, "cpu": 3e8}  # operations of a timed call; larger ones are timed on a part of their rows
IMAGE_TOKENS = 16
NATIVE = "native"


@dataclass(frozen=True)
class Call:
    """One call of a kernel.

    Attributes:
        batch: rows.
        queries: tokens that attend.
        keys: tokens that are attended to.
    """

    batch: int
    queries: int
    keys: int

    def part(self, work: float, channels: int) -> "Call":
        """The call on so many of its rows, or of their queries, that it takes at most `work` operations."""
        row = 4.0 * self.queries * self.keys * channels
        if row <= work:
            return Call(max(1, min(self.batch, int(work / row))), self.queries, self.keys)
        return Call(1, max(1, int(self.queries * work / row)), self.keys)


@dataclass(frozen=True)
class Run:
    """What decides the shapes of a run.

    Attributes:
        size: (H, W) in px.
        frames: T of a window.
        branches: B of a step with guidance.
        text_rows: rows of text tokens that differ: 1 where both prompts are the same.
        text_tokens: S, of CLIP.
    """

    size: tuple[int, int]
    frames: int
    branches: int
    text_rows: int = 1
    text_tokens: int = 77


@dataclass(frozen=True)
class Layers:
    """Layers that share a kernel.

    Attributes:
        heads: their number.
        width: of a head.
        modules: the layers.
        calls: what those at the finest grid ask for.
    """

    heads: int
    width: int
    modules: tuple[nn.Module, ...]
    calls: tuple[Call, ...]


def settle(
    pipeline: Any,
    name: str,
    run: Run,
    *,
    kept: dict[str, str] | None = None,
    path: Path | None = None,
    clock: Callable[[], float] | None = None,
) -> dict[str, str]:
    """Choose the kernels of a run, and let the pipeline's UNet and ControlNets use them.

    Args:
        pipeline: an `XDynaPipeline` or anything with its networks, on its device.
        name: of a kernel, or "auto".
        run: the shapes.
        kept: with "auto": what an interrupted run has used; taken as it is where all of it can run here.
        path: file of what is remembered; None for the default one.
        clock: seconds; None for the device's.

    Returns:
        dict: name of the kernel, by kind, heads and head width ("self 8x40").

    Raises:
        UsageError: a kernel that was asked for by name cannot run, or runs none of the layers.
    """
    groups = layer_groups(pipeline, run)
    device, dtype = pipeline._execution_device, pipeline.unet.dtype
    if name != "auto":
        require_kernel(name, device, dtype)
        reasons = {key: _runs(name, group, device, dtype) for key, group in groups.items()}
        if all(reasons.values()):
            raise UsageError(
                f"attention={name} was asked for, but it runs none of this model's layers on {device} "
                f"({next(iter(reasons.values()), 'there are none')}); use attention=auto"
            )
        chosen = {key: NATIVE if reason else name for key, reason in reasons.items()}
    elif kept is not None and kept.keys() == groups.keys() and not any(
        obstacle(entry, device, dtype) or _runs(entry, groups[key], device, dtype) for key, entry in kept.items()
    ):  # fmt: skip
        chosen = dict(kept)
    else:
        chosen = _fastest(groups, device, dtype, path or measurements(), clock or _clock(device))
    for key, group in groups.items():
        for module in group.modules:
            module.processor._attention_backend = KERNELS[chosen[key]].backend  # type: ignore[union-attr, assignment]
    return chosen


def in_use(pipeline: Any) -> dict[str, str]:
    """The kernels that a pipeline has been given, by kind, heads and head width; "unset" for the one in force."""
    names = {kernel.backend: name for name, kernel in KERNELS.items()}
    found = {}
    for key, module, _ in _layers(pipeline):
        backend: Any = module.processor._attention_backend  # type: ignore[union-attr]
        found[key] = "unset" if backend is None else names.get(backend, str(backend.value))
    return found


def measurements() -> Path:
    """The file of all measured kernels, in xdyna's cache folder."""
    return cache_folder() / "attention.json"


def layer_groups(pipeline: Any, run: Run) -> dict[str, Layers]:
    """The layers of UNet and ControlNets by what they have in common, with the calls of a step.

    Args:
        pipeline: see `settle`; its ControlNets' processors are those of `share_work` from now on.
        run: the shapes.

    Returns:
        dict: `Layers` by kind, heads and head width.
    """
    grid = tuple(side // pipeline.vae_scale_factor for side in run.size)
    found: dict[str, list[tuple[nn.Module, int, tuple[Call, ...]]]] = {}
    for key, module, level in _layers(pipeline):
        places = 1
        for side in grid:
            places *= -(-side // 2**level)
        found.setdefault(key, []).append((module, places, _calls(module, key, places, run)))
    groups = {}
    for key, entries in found.items():
        heads, width = (int(number) for number in key.split()[1].split("x"))
        finest = max(places for _, places, _ in entries)
        calls = dict.fromkeys(call for _, places, own in entries if places == finest for call in own)
        groups[key] = Layers(heads, width, tuple(module for module, *_ in entries), tuple(calls))
    return groups


def _layers(pipeline: Any) -> Iterator[tuple[str, nn.Module, int]]:
    """Every attention layer: the name of its group, itself, and its level (0 is the finest grid)."""
    for net in (pipeline.unet, pipeline.pose_controlnet, pipeline.face_controlnet):
        if net is None:
            continue
        if net is not pipeline.unet:
            share_work(net)
        last = len(net.config.block_out_channels) - 1
        for name, module in net.named_modules():
            if isinstance(module, AttentionBase | Attention) and hasattr(module.processor, "_attention_backend"):
                part, _, rest = name.partition(".")
                number = int(rest.split(".")[0]) if part != "mid_block" else last
                kind = "time" if isinstance(module, TemporalSelfAttention) else "self"
                if isinstance(module, TextImageCrossAttention) or name.endswith("attn2"):
                    kind = "tokens"
                inner = module.to_q.weight.shape[0] // module.heads  # type: ignore[union-attr, operator]
                yield f"{kind} {module.heads}x{inner}", module, last - number if part == "up_blocks" else number


def _calls(module: nn.Module, key: str, places: int, run: Run) -> tuple[Call, ...]:
    frames, branches = run.frames + 1, run.branches
    if isinstance(module, Attention):  # of a ControlNet, which sees generated frames alone
        if key.startswith("self"):
            return (Call(run.frames, places, places),)
        return (Call(1, run.frames * places, run.text_tokens),)
    if isinstance(module, TemporalSelfAttention):
        return (Call(branches * places, run.frames, run.frames),)
    if isinstance(module, TextImageCrossAttention):
        rows = min(run.text_rows, branches)
        text = Call(rows, branches // rows * frames * places, run.text_tokens)
        return (text, Call(branches, frames * places, IMAGE_TOKENS)) if module.image_tokens else (text,)
    own = Call(branches * frames, places, places)
    adapter = isinstance(module, DynamicsAdapterAttention) and module.adapter
    return (own, Call(branches, frames * places, places)) if adapter else (own,)


def _runs(name: str, group: Layers, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a kernel cannot compute the layers of a group, as it says itself; None where it can."""
    call = Call(2, 8, 8)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # PyTorch says at length why a kernel is none
            _attend(name, group, _inputs(call, group, device, dtype))
    except (RuntimeError, ValueError, ImportError, TypeError) as error:
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return None


def kernels_that_work(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Names of the kernels that compute a small layer here, and right up to the rounding of the dtype.

    Args:
        device: where.
        dtype: of queries, keys and values.
    """
    call = Call(2, 16, 16)
    group = Layers(heads=2, width=40, modules=(), calls=(call,))
    inputs = _inputs(call, group, device, dtype)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        expected = _attend("native_math", group, inputs)
        return [
            name
            for name, kernel in KERNELS.items()
            if obstacle(name, device, dtype) is None
            and _runs(name, group, device, dtype) is None
            and (not kernel.exact or _agrees(_attend(name, group, inputs), expected))
        ]


def _fastest(
    groups: dict[str, Layers], device: torch.device, dtype: torch.dtype, path: Path, clock: Callable[[], float]
) -> dict[str, str]:
    """By group: remembered, or measured and remembered."""
    names = [name for name, kernel in KERNELS.items() if kernel.candidate and obstacle(name, device, dtype) is None]
    if device.type == "cpu":
        names.remove(SAME_ON_CPU)
    facts = [device, chip_name(device), f"{torch.get_num_threads()} threads", dtype, torch.__version__]
    facts += [diffusers.__version__, *names]
    known, new, chosen = recall(path), {}, {}
    for key, group in groups.items():
        calls = " ".join(f"{call.batch}x{call.queries}x{call.keys}" for call in group.calls)
        place = ", ".join([*map(str, facts), key, calls])
        entry = known.get(place)
        if not isinstance(entry, dict) or entry.get("kernel") not in names:
            seconds = _measure(group, names, device, dtype, clock)
            best = min(seconds, key=seconds.__getitem__)
            kernel = best if seconds[best] <= FASTER * seconds[NATIVE] else NATIVE
            entry = {"kernel": kernel, "ms": {name: round(1000 * s, 4) for name, s in seconds.items()}, "day": today()}
            new[place] = entry
        chosen[key] = entry["kernel"]
    if new:
        remember(path, new)
    return chosen


def _measure(
    group: Layers, names: list[str], device: torch.device, dtype: torch.dtype, clock: Callable[[], float]
) -> dict[str, float]:
    """Seconds of all calls of a group, by kernel; those that cannot compute them, or not exactly, are left out."""
    channels, work = group.heads * group.width, WORK["cuda" if device.type == "cuda" else "cpu"]
    total = dict.fromkeys((name for name in names if _runs(name, group, device, dtype) is None), 0.0)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for call in group.calls:
            part = call.part(work, channels)
            inputs = _inputs(part, group, device, dtype)
            outs = {name: _attend(name, group, inputs) for name in total}  # the warm-up, too
            total = {name: spent for name, spent in total.items() if _agrees(outs[name], outs[NATIVE])}
            seconds: dict[str, list[float]] = {name: [] for name in total}
            for _ in range(REPEATS):  # in turn: what disturbs one disturbs all
                for name, taken in seconds.items():
                    if taken and min(taken) > HOPELESS * min(seconds[NATIVE]):
                        continue
                    start = clock()
                    _attend(name, group, inputs)
                    taken.append(clock() - start)
            whole = call.batch * call.queries / (part.batch * part.queries)
            total = {name: spent + whole * min(seconds[name]) for name, spent in total.items()}
    return total


def _agrees(out: Tensor, expected: Tensor) -> bool:
    """Equal but for the rounding of the dtype."""
    error = (out.float() - expected.float()).abs().max()
    return bool(error <= max(16 * torch.finfo(out.dtype).eps, 1e-5) * expected.float().abs().max())


def _inputs(call: Call, group: Layers, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    channels = group.heads * group.width
    sides = ((call.batch, n, channels) for n in (call.queries, call.keys, call.keys))
    q, k, v = (torch.randn(side, generator=generator).to(device, dtype) for side in sides)
    return q, k, v


def _attend(name: str, group: Layers, inputs: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return attend(*inputs, heads=group.heads, backend=KERNELS[name].backend)


def _clock(device: torch.device) -> Callable[[], float]:
    if device.type == "cpu":
        return time.process_time  # which other programs disturb least

    def after_all() -> float:
        getattr(torch, device.type).synchronize()
        return time.perf_counter()

    return after_all
