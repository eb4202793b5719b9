"""Measures a small model on the held-out puppet clips and writes tables and contact sheets (`scripts/tiny_report.py`).

Interrupted runs go on where they were: every generated clip is a file of its own.
"""

import argparse
import hashlib
import json
import math
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from xdyna import __version__
from xdyna.core.atomic import atomic_output
from xdyna.core.device import pick_device, pick_dtype
from xdyna.core.errors import UsageError
from xdyna.core.quiet import quiet_libraries
from xdyna.pipelines.folder import TINY, Checkpoint, find_checkpoint, load_pipeline
from xdyna.pipelines.untrained import build_untrained
from xdyna.puppets.expression import ExpressionReader
from xdyna.puppets.heldout import HeldOut, load_held_out
from xdyna.puppets.sheets import clip_block, write_sheet
from xdyna.puppets.summary import Numbers, measure, summarise, tables
from xdyna.puppets.train_reader import FOLDER as READER
from xdyna.puppets.variants import VARIANTS, Bench, Settings

OUT = Path("outputs") / "tiny_report"
FRAMES = 16
SHORT = {"cross_aligned": 16, "no_face": 32}
"""Clips of the lesser comparisons without --full."""
EXPRESSION_CLIPS = 32
SHEET_CLIPS, PER_SHEET, CROSS_CLIPS = 12, 4, 4

Job = tuple[int, str]
"""Number of a clip and name of a variant."""


def main(argv: Sequence[str]) -> int:
    """Run `scripts/tiny_report.py`. Args: argv: without the program's name. Returns: exit code."""
    args = _parser().parse_args(argv)
    quiet_libraries()
    held_out = load_held_out()
    if not 1 <= args.clips <= len(held_out) or args.steps < 1:
        raise UsageError(
            f"--clips {args.clips} --steps {args.steps}: expected 1 to {len(held_out)} clips and 1 step up"
        )
    device = pick_device(args.device)
    checkpoint = find_checkpoint(args.checkpoint, build_untrained)
    dtype = pick_dtype(args.dtype, device)
    pipeline = load_pipeline(checkpoint, device=device, dtype=dtype, face=checkpoint.has_face)
    pipeline.set_progress_bar_config(disable=True)
    reader = ExpressionReader.load(READER)
    hashes = checkpoint.hashes()
    settings = Settings(
        steps=args.steps,
        guidance=args.guidance,
        seed=args.seed,
        frames=FRAMES,
        size=checkpoint.size,
        weights=hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest(),
        dtype=str(dtype).removeprefix("torch."),
    )
    bench = Bench(pipeline, settings, args.out / "clips")
    jobs = plan(args.clips, full=args.full, face=checkpoint.has_face)
    if args.part is not None:
        number, parts = args.part
        print(f"part {number} of {parts}: results for {args.out / 'clips'}, no report")
        sampled = [job for job in jobs if VARIANTS[job[1]].way == "sample"]  # what takes the time
        run(bench, held_out, sampled[number - 1 :: parts], reader)
        return 0
    print(f"{checkpoint.folder}{' (untrained)' if checkpoint.untrained else ''} on {device}, {len(jobs)} results")
    start = time.perf_counter()
    clips, scenes = run(bench, held_out, jobs, reader)
    summary = summarise(clips, scenes, expression_clips=EXPRESSION_CLIPS)
    facts = _facts(args, checkpoint, settings, hashes, seconds=time.perf_counter() - start)
    write_report(args.out, facts, summary, clips, held_out, scenes)
    write_sheets(args.out, bench, held_out, jobs, scenes)
    print(f"{tables(summary)}\n\nwritten to {args.out}: report.md, report.json and contact sheets")
    return 0


def plan(clips: int, *, full: bool, face: bool) -> list[Job]:
    """What is generated, clip by clip.

    Args:
        clips: the first so many of the list.
        full: every variant for all of them; else the slower comparisons for the first few (see `SHORT`).
        face: whether there is a face ControlNet that can be left out.

    Returns:
        The jobs.
    """
    names = [name for name, variant in VARIANTS.items() if face or variant.face]
    return [(k, name) for k in range(clips) for name in names if full or k < SHORT.get(name, clips)]


def run(
    bench: Bench, held_out: Sequence[HeldOut], jobs: Sequence[Job], reader: ExpressionReader
) -> tuple[dict[str, dict[int, Numbers]], dict[int, str]]:
    """Generate and measure.

    Returns:
        Numbers by variant and clip ("truth": of the truth itself), and kinds of scenes by clip.
    """
    clips: dict[str, dict[int, Numbers]] = {}
    scenes: dict[int, str] = {}
    sampled = sum(VARIANTS[name].way == "sample" for _, name in jobs)
    with tqdm(total=sampled, desc="sampling", unit="clip", smoothing=0) as bar:
        for number, name in jobs:
            variant, entry = VARIANTS[name], held_out[number]
            task, frames = bench.task(entry, variant.driving), bench.kept(number, name, entry)
            if variant.way == "sample":
                if frames is None:
                    frames = bench.make(number, name, entry)
                    bar.update()
                else:  # the remaining time is that of what is left to do
                    bar.total -= 1
                    bar.refresh()
            elif frames is None:
                frames = bench.make(number, name, entry)
            scenes[number] = task.truth.scene_kind
            clips.setdefault(name, {})[number] = measure(task, frames, reader)
            if name == "full":
                clips.setdefault("truth", {})[number] = measure(task, task.truth.frames, reader)
    return clips, scenes


def write_report(
    folder: Path,
    facts: dict[str, Any],
    summary: dict[str, Any],
    clips: dict[str, dict[int, Numbers]],
    held_out: Sequence[HeldOut],
    scenes: dict[int, str],
) -> None:
    """Write report.json and report.md, replacing those of an earlier run."""
    rows = {
        number: {**vars(held_out[number]), "scene_kind": scenes[number]}
        | {name: values[number] for name, values in clips.items() if number in values}
        for number in sorted(scenes)
    }
    with atomic_output(folder / "report.json", overwrite=True) as path:
        content = _without_nan({**facts, **summary, "clips": rows})
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    settings = ", ".join(f"{name} {value}" for name, value in facts["settings"].items() if name != "weights")
    lines = [
        "# Report on held-out puppet clips",
        f"`{facts['checkpoint']}`{' (**untrained**)' if facts['untrained'] else ''}: {settings}. Weights "
        f"`{facts['settings']['weights'][:16]}`, xdyna {facts['version']}, torch {facts['torch']}, {facts['device']}; "
        f"{facts['seconds'] / 60:.1f} min in this run.",
        "PSNR (dB) and SSIM over 16 frames, averaged over N clips of unseen identities, motions and scenes; figure: "
        "the figure's pixels in the truth. ± is the standard error of the paired difference, in brackets its N.",
        tables(summary),
        "Temporal energy: mean squared difference of neighbouring frames where the scene moves by itself, dynamic "
        "scenes only. Expression: read from the face's pixels (`pretrained/puppet-expression`), against the truth.",
        "<details><summary>SHA-256 of the weights</summary>\n\n"
        + "\n".join(f"- `{name}` {value}" for name, value in facts["weights"].items())
        + "\n\n</details>",
    ]
    with atomic_output(folder / "report.md", overwrite=True) as path:
        path.write_text("\n\n".join(lines) + "\n")


def write_sheets(
    folder: Path, bench: Bench, held_out: Sequence[HeldOut], jobs: Sequence[Job], scenes: dict[int, str]
) -> None:
    """Write the contact sheets: the first clips of the list, self-driven, then a few cross-driven ones."""
    for name, count, stem in (("full", SHEET_CLIPS, "self"), ("cross_aligned", CROSS_CLIPS, "cross")):
        numbers = [number for number, variant in jobs if variant == name][:count]
        blocks = []
        for number in numbers:
            task = bench.task(held_out[number], VARIANTS[name].driving)
            title = f"{number}: {task.truth.motion_kind}, {scenes[number]}"
            frames = bench.kept(number, name, held_out[number])
            assert frames is not None, "all jobs were done"
            blocks.append(clip_block(task, frames, title=title))
        for page, first in enumerate(range(0, len(blocks), PER_SHEET), start=1):
            write_sheet(folder / f"{stem}_{page}.png", blocks[first : first + PER_SHEET])


def _facts(
    args: argparse.Namespace, checkpoint: Checkpoint, settings: Settings, hashes: dict[str, str], *, seconds: float
) -> dict[str, Any]:
    device = pick_device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} ({platform.machine()})"
    return {
        "checkpoint": checkpoint.folder.name,
        "untrained": checkpoint.untrained,
        "settings": vars(settings),
        "full": args.full,
        "weights": hashes,
        "version": __version__,
        "torch": torch.__version__,
        "device": f"{name}, {torch.get_num_threads()} threads" if device.type == "cpu" else name,
        "seconds": round(seconds, 1),
    }


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, dict):
        return {str(key): _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _part(text: str) -> tuple[int, int]:
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected K/N with K from 1 to N, for example 2/4")
    return int(number), int(parts)


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="tiny_report.py", description="Measure a small model on puppet clips that it was not trained on."
    )
    p.add_argument("checkpoint", nargs="?", type=Path, default=TINY, help="pipeline folder (%(default)s)")
    p.add_argument("--clips", type=int, default=64, help="the first so many of the list (%(default)s)")
    p.add_argument("--full", action="store_true", help="every comparison on all clips (default: some on 16 or 32)")
    p.add_argument("--steps", type=int, default=10, help="denoising steps (%(default)s)")
    p.add_argument("--guidance", type=float, default=1.0, help="guidance scale; 1: one half of the work (%(default)s)")
    p.add_argument("--seed", type=int, default=42, help="of the noise (%(default)s)")
    p.add_argument(
        "--part",
        type=_part,
        metavar="K/N",
        help="make only the K-th of N parts of the results and no report; the next run without it takes them over",
    )
    p.add_argument("--out", type=Path, default=OUT, metavar="FOLDER", help="where to write (%(default)s)")
    p.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, mps or auto")
    p.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p
