"""A distilled model beside the one it was made from, at the same numbers of steps, on the held-out clips
(`scripts/puppets.py few-steps`): a table, a sheet with a row for each, the measured part of the distilled model's card.

Clips of `scripts/puppets.py report` in the same folder are taken over; what is made here is kept, too, clip by clip.
"""

import argparse
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from xdyna import __version__
from xdyna.config.infer import InferConfig
from xdyna.core.atomic import atomic_output, output_path
from xdyna.core.errors import UsageError
from xdyna.core.files import file_sha256
from xdyna.core.quiet import quiet_libraries
from xdyna.evaluation import engine
from xdyna.evaluation.inputs import Entry
from xdyna.evaluation.store import Store
from xdyna.media.sheet import contact_sheet
from xdyna.pipelines.folder import TINY
from xdyna.pipelines.model import Model, load
from xdyna.puppets.card import check_card, fill_card
from xdyna.puppets.expression import ExpressionReader
from xdyna.puppets.heldout import HELD_OUT, HeldOut, Task, load_held_out
from xdyna.puppets.report import FRAMES, OUT
from xdyna.puppets.rows import chosen_metrics, write_clip_frames
from xdyna.puppets.sheets import write_sheet
from xdyna.puppets.summary import Numbers, average, gain, measure
from xdyna.puppets.train_reader import FOLDER as READER
from xdyna.puppets.variants import Bench, Settings

DISTANCE, LIVELINESS = "dtfvd_puppet", "temporal_ratio"
SHOWN = (0, 9, 18, 27)
"""Clips of the sheet, where so many were measured."""
TIMES = 5

NOTES = """\
Means over N clips. Figure: PSNR over the figure's pixels of all frames of a clip. ± is the standard error of the
paired difference from {first}. Energy: mean of |log(generated / true temporal energy)| of whole frames, clip by
clip (`temporal_ratio` of `scripts/eval.py`); 0 is as lively as the truth. Compare DTFVD[puppet] with that of the same
N clips only."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        label: for people.
        steps: denoising steps.
        distilled: with the LoRA and its scheduler, without guidance; else the checkpoint's own.
    """

    label: str
    steps: int
    distilled: bool

    @property
    def key(self) -> str:
        """Name of its folder."""
        return f"{'distilled' if self.distilled else 'own'}_{self.steps}"


def rows(steps: Sequence[int], own: int) -> list[Row]:
    """The checkpoint at its usual number of steps, then both at each of `steps`."""
    both = [
        Row(f"{'distilled' if distilled else 'undistilled'}, {count} steps", count, distilled)
        for count in steps
        for distilled in (True, False)
    ]
    return [Row(f"undistilled, {own} steps", own, distilled=False), *both]


def main(argv: Sequence[str]) -> int:
    """Run `scripts/puppets.py few-steps`. Args: argv: without the program's name. Returns: exit code."""
    args = _parser().parse_args(argv)
    quiet_libraries()
    held_out = load_held_out()
    if not 2 <= args.clips <= len(held_out):
        raise UsageError(f"--clips {args.clips}: expected 2 to {len(held_out)}, the clips of {HELD_OUT}")
    if args.card is not None:
        check_card(args.card)
    # Wrong files and names are said before anything is made.
    options: dict[str, Any] = {"device": args.device, "dtype": args.dtype}
    own = load(args.checkpoint, InferConfig(**options))
    few = {"lora": [args.lora], "scheduler": args.scheduler, "token_downsampling": args.token_downsampling}
    distilled = load(args.checkpoint, InferConfig(guidance=1.0, **few, **options))
    start, reader = time.perf_counter(), ExpressionReader.load(READER)
    table = rows(args.each_steps, args.own_steps)
    benches = {row.key: _bench(distilled if row.distilled else own, row, args) for row in table}
    clips, blocks = _made(table, benches, held_out[: args.clips], reader, args.out)
    distances, ratios = {}, {}
    for row in table:
        distances[row.key], ratios[row.key] = _motion(row, args.clips, args.out)
    summary = summarise(table, clips, distances, ratios)
    facts = _facts(args, distilled, argv, seconds=time.perf_counter() - start)
    content = f"{facts['made']}\n\n{tables(table, summary)}\n\n{NOTES.format(first=table[0].label)}"
    folder = args.out / "few_steps"
    with atomic_output(folder / "report.json", overwrite=True) as path:
        path.write_text(json.dumps({**facts, "rows": summary, "clips": clips}, indent=1) + "\n", encoding="utf-8")
    with atomic_output(folder / "report.md", overwrite=True) as path:
        path.write_text(f"# Few steps\n\n{content}\n", encoding="utf-8")
    write_sheet(folder / "few_steps.png", blocks)
    if args.card is not None:
        fill_card(args.card, content)
    print(f"{tables(table, summary)}\n\nwritten to {folder}: report.md, report.json, few_steps.png")
    return 0


def summarise(
    table: Sequence[Row],
    clips: Mapping[str, Mapping[int, Numbers]],
    distances: Mapping[str, float],
    ratios: Mapping[str, Sequence[float]],
) -> dict[str, dict[str, float]]:
    """Numbers of each row.

    Args:
        table: the rows; the first is what the others are compared with.
        clips: `measure`'s numbers by row and clip.
        distances: DTFVD by row.
        ratios: temporal energy over the truth's, clip by clip, by row.

    Returns:
        By row: "clips", "psnr_figure", its "difference" from the first row with the "standard_error", "energy" (mean
        |log ratio|), "distance".
    """
    summary = {}
    for row in table:
        mine = list(clips[row.key].values())
        difference, error, _ = gain(clips, row.key, table[0].key)
        summary[row.key] = {
            "clips": len(mine),
            "psnr_figure": average(mine, "psnr_figure"),
            "difference": difference,
            "standard_error": error,
            "energy": float(np.mean([abs(math.log(ratio)) for ratio in ratios[row.key]])),
            "distance": distances[row.key],
        }
    return summary


def tables(table: Sequence[Row], summary: Mapping[str, Mapping[str, float]]) -> str:
    """The summary as Markdown."""
    lines = ["| | N | PSNR figure | from the first row | energy | DTFVD[puppet] |", "| --- |" + " ---: |" * 5]
    for number, row in enumerate(table):
        s = summary[row.key]
        difference = "-" if number == 0 else f"{s['difference']:+.2f} ± {s['standard_error']:.2f}"
        numbers = f"{s['clips']:.0f} | {s['psnr_figure']:.2f} | {difference} | {s['energy']:.3f} | {s['distance']:.2f}"
        lines.append(f"| {row.label} | {numbers} |")
    return "\n".join(lines)


def _bench(model: Model, row: Row, args: argparse.Namespace) -> Bench:
    pipeline, checkpoint = model.pipeline, model.checkpoint
    pipeline.set_progress_bar_config(disable=True)
    settings = Settings(
        steps=row.steps,
        guidance=1.0 if row.distilled else checkpoint.contract.guidance,
        seed=args.seed,
        frames=FRAMES,
        size=checkpoint.size,
        weights=hashlib.sha256(json.dumps(checkpoint.hashes(), sort_keys=True).encode()).hexdigest(),
        dtype=str(model.dtype).removeprefix("torch."),
    )
    if not row.distilled:
        folder = args.out / ("clips" if row.steps == args.own_steps else f"few_steps/{row.key}")
        return Bench(pipeline, settings, folder, style=checkpoint.contract.pose)
    ((path, scale),) = model.lora
    lora = file_sha256(path) + (f":{scale:g}" if scale != 1 else "")
    settings = replace(settings, scheduler=args.scheduler, lora=lora, token_downsampling=args.token_downsampling)
    return Bench(pipeline, settings, args.out / "few_steps" / row.key, style=checkpoint.contract.pose)


def _made(
    table: Sequence[Row], benches: Mapping[str, Bench], held_out: Sequence[HeldOut], reader: ExpressionReader, out: Path
) -> tuple[dict[str, dict[int, Numbers]], list[np.ndarray]]:
    """Make what is not kept, clip by clip, and write all frames for the distance.

    Returns:
        Numbers by row and clip; blocks of the sheet.
    """
    clips: dict[str, dict[int, Numbers]] = {row.key: {} for row in table}
    blocks = []
    tasks: dict[Any, Task] = {}  # a clip is rendered once for all rows
    with tqdm(total=len(table) * len(held_out), desc="sampling", unit="clip", smoothing=0) as bar:
        for number, entry in enumerate(held_out):
            images = {}
            for row in table:
                bench = replace(benches[row.key], _tasks=tasks)
                frames, task = bench.kept(number, "full", entry), bench.task(entry, "self")
                frames = bench.make(number, "full", entry) if frames is None else frames
                clips[row.key][number] = measure(task, frames, reader)
                write_clip_frames(_frames(out, row, number), frames)
                images[row.label] = list(frames)
                bar.update()
            write_clip_frames(out / "truth" / f"{number:02d}", task.truth.frames)
            if number in SHOWN:
                shown = {"truth": list(task.truth.frames), **images}
                blocks.append(contact_sheet(shown, columns=TIMES, cell_height=96, title=f"clip {number}"))
    return clips, blocks


def _frames(out: Path, row: Row, number: int) -> Path:
    return out / "few_steps" / row.key / "frames" / f"{number:02d}"


def _motion(row: Row, clips: int, out: Path) -> tuple[float, list[float]]:
    """DTFVD[puppet] of a row and its ratios of temporal energy, through the engine of `scripts/eval.py`."""
    truths = [out / "truth" / f"{number:02d}" for number in range(clips)]
    entries = [Entry(truth.name, _frames(out, row, number), truth) for number, truth in enumerate(truths)]
    store = Store(out / "records")
    metrics = chosen_metrics([DISTANCE, LIVELINESS], out / "points", store)
    distance, ratio = engine.reduce(metrics, engine.measure(entries, metrics, store), store)
    ratios = [float(video[LIVELINESS]) for video in ratio.per_video.values()]
    return distance.values[DISTANCE], ratios


def _facts(args: argparse.Namespace, model: Model, argv: Sequence[str], *, seconds: float) -> dict[str, Any]:
    command = " ".join(["scripts/puppets.py", "few-steps", *argv])
    dtype = str(model.dtype).removeprefix("torch.")
    height, width = model.checkpoint.size
    ((path, scale),) = model.lora
    made = (
        f"{args.clips} held-out puppet clips (`configs/puppets/heldout.yaml`), {FRAMES} frames of {height} x {width} "
        f"px, seed {args.seed}, {dtype}, {model.device.type}; distilled rows by {args.scheduler} without guidance, "
        f"token_downsampling={args.token_downsampling}, LoRA times {scale:g}, the others by the checkpoint's own "
        f"scheduler and guidance. Made by `{command}` on "
        f"{time.strftime('%Y-%m-%d', time.gmtime())} (xdyna {__version__}, torch {torch.__version__})."
    )
    return {
        "made": made,
        "command": command,
        "checkpoint": model.checkpoint.folder.name,
        "weights": model.checkpoint.hashes(),
        "lora": {path.name: file_sha256(path), "scale": scale},
        "seconds": round(seconds, 1),
    }


def _steps(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() and int(word) > 0 for word in words) or len(set(words)) < len(words):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected different numbers of steps, for example 4,2")
    return [int(word) for word in words]


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="puppets.py few-steps",
        description="Measure a distilled model (a LoRA) beside the undistilled one, at the same numbers of steps.",
    )
    p.add_argument("checkpoint", nargs="?", type=Path, default=TINY, help="pipeline folder (%(default)s)")
    p.add_argument("--lora", required=True, metavar="FILE[:SCALE]", help="LoRA of stage `distill`, or its name")
    p.add_argument("--scheduler", default="lcm", metavar="NAME", help="of the distilled rows (%(default)s)")
    p.add_argument(
        "--token-downsampling",
        type=int,
        choices=range(1, 9),
        default=1,
        metavar="N",
        help="of the distilled rows (%(default)s: exact)",
    )
    p.add_argument("--each-steps", type=_steps, default=[4, 2], metavar="N,N", help="numbers of steps (4,2)")
    p.add_argument("--own-steps", type=int, default=10, metavar="N", help="the first row's, undistilled (%(default)s)")
    p.add_argument("--clips", type=int, default=64, metavar="N", help="the first so many of the list (%(default)s)")
    p.add_argument("--seed", type=int, default=42, metavar="N", help="of the noise (%(default)s)")
    p.add_argument("--out", type=output_path, default=OUT, metavar="FOLDER", help="where to write (%(default)s)")
    p.add_argument("--card", type=output_path, metavar="FILE", help="model card whose tables are replaced")
    p.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, mps or auto")
    p.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p
