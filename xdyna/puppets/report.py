"""The report of xdyna-tiny on the held-out puppet clips (`scripts/puppets.py report`): one command makes the tables of
its model card and docs/eval_tiny.md, from the same clips, and contact sheets.

Interrupted runs go on where they were: every generated clip is a file of its own, and so is every measurement.
"""

import argparse
import hashlib
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from xdyna import __version__
from xdyna.config.loader import compose
from xdyna.core.atomic import atomic_output, output_path
from xdyna.core.device import pick_device, pick_dtype
from xdyna.core.errors import UsageError
from xdyna.core.quiet import quiet_libraries
from xdyna.evaluation.report import Report
from xdyna.evaluation.store import Store
from xdyna.pipelines.folder import TINY, UNTRAINED_MARK, Checkpoint, find_checkpoint, load_pipeline
from xdyna.pipelines.untrained import build_untrained
from xdyna.puppets.card import check_card, fill_card
from xdyna.puppets.expression import ExpressionReader
from xdyna.puppets.heldout import HELD_OUT, HeldOut, load_held_out
from xdyna.puppets.rows import TinyReportConfig, chosen_metrics, document, measure_rows
from xdyna.puppets.sheets import clip_block, write_sheet
from xdyna.puppets.summary import Numbers, measure, summarise, tables, without_nan
from xdyna.puppets.train_reader import FOLDER as READER
from xdyna.puppets.variants import VARIANTS, Bench, Settings

ROOT_CONFIG = "puppets"
OUT = Path("outputs") / "tiny_report"
FRAMES = 16
SHORT = {"cross_aligned": 16} | dict.fromkeys(
    ("no_face", "no_pose", "no_adapter", "cross_exact", "cross_copy", "cross_vae"), 32
)
"""Clips of the lesser comparisons without --full."""
DOC_VARIANTS = ("full", "copy", "vae")
"""Without these there is no docs/eval_tiny.md."""
SHEET_CLIPS, PER_SHEET, CROSS_CLIPS = 12, 4, 4

NOTES = """\
PSNR (dB) and SSIM are means over N clips. Frame: of whole frames, computed frame by frame, SSIM of the grey
images (7 x 7 px), as `scripts/eval.py` and docs/eval_tiny.md have them. Figure: over the figure's pixels of all
frames of a clip together, SSIM in colour (Gaussian, 11 x 11 px). ± is the standard error of the paired
difference, in brackets its N. Temporal energy: mean squared difference of neighbouring frames where the scene
moves by itself, dynamic scenes only. Expression: read from the face's pixels (`pretrained/puppet-expression`),
against what was rendered, on the clips that all rows have."""

Job = tuple[int, str]
"""Number of a clip and name of a variant."""


def main(argv: Sequence[str]) -> int:
    """Run `scripts/puppets.py report`. Args: argv: without the program's name. Returns: exit code."""
    args = _parser().parse_args(argv)
    quiet_libraries()
    config, held_out = _config(args), load_held_out()
    if config.clips > len(held_out):
        raise UsageError(f"{config.clips} clips were asked for; {HELD_OUT} lists {len(held_out)}; ask for fewer")
    if args.card is not None:
        check_card(args.card)
    chosen_metrics(config.metrics, args.out / "points", Store(args.out / "records"))
    checkpoint = _trained(args.checkpoint, allow_untrained=args.allow_untrained)
    bench = _bench(checkpoint, config, args)
    reader = ExpressionReader.load(READER)
    jobs = plan(config.clips, full=args.full, face=checkpoint.has_face, variants=args.variants)
    if args.part is not None:
        number, parts = args.part
        print(f"part {number} of {parts}: results for {bench.folder}, no report")
        sampled = [job for job in jobs if VARIANTS[job[1]].way == "sample"]  # what takes the time
        run(bench, held_out, sampled[number - 1 :: parts], reader)
        return 0
    mark = _mark(checkpoint) if checkpoint.untrained else ""
    print(f"{checkpoint.folder}{' (untrained)' if mark else ''} on {bench.pipeline.device}, {len(jobs)} results")
    start = time.perf_counter()
    clips, scenes = run(bench, held_out, jobs, reader)
    summary = summarise(clips, scenes)
    reports, command = {}, ["scripts/puppets.py", "report", *argv]
    if set(DOC_VARIANTS) <= clips.keys():
        reports = measure_rows(
            args.out, bench, held_out[: config.clips], config, weights=checkpoint.hashes(), command=command
        )
    facts = _facts(checkpoint, bench, config.clips, command, seconds=time.perf_counter() - start) | {"mark": mark}
    write_report(args.out, facts, summary, clips, held_out, scenes)
    write_sheets(args.out, bench, held_out, jobs, scenes)
    publish(args, facts, summary, reports)
    print(f"{tables(summary)}\n\nwritten to {args.out}: report.md, report.json, contact sheets, reports of all rows")
    return 0


def publish(
    args: argparse.Namespace, facts: dict[str, Any], summary: dict[str, Any], reports: dict[str, Report]
) -> None:
    """Write docs/eval_tiny.md and the tables of the model card, where they were asked for (`--doc`, `--card`)."""
    if reports:
        doc = args.doc if args.doc is not None else args.out / "eval_tiny.md"
        with atomic_output(doc, overwrite=True) as path:
            path.write_text(document(reports, made=_made(facts), mark=facts["mark"]), encoding="utf-8")
        print(f"written: {doc}")
    if args.card is not None:
        fill_card(args.card, card(facts, summary))
        print(f"written: {args.card}")


def card(facts: dict[str, Any], summary: dict[str, Any]) -> str:
    """The measured part of the model card, Markdown below a heading of the second level."""
    mark = [f"**Not final: {facts['mark']}**"] if facts["mark"] else []
    weights = "\n".join(f"- `{name}` {value}" for name, value in facts["weights"].items())
    hashes = f"<details><summary>SHA-256 of the weights</summary>\n\n{weights}\n\n</details>"
    return "\n\n".join([*mark, _made(facts), tables(summary), NOTES, hashes])


def plan(clips: int, *, full: bool, face: bool, variants: Sequence[str] = tuple(VARIANTS)) -> list[Job]:
    """What is generated, clip by clip.

    Args:
        clips: the first so many of the list.
        full: every variant for all of them; else the slower comparisons for the first few (see `SHORT`).
        face: whether there is a face ControlNet that can be left out.
        variants: only these.

    Returns:
        The jobs.
    """
    names = [name for name, variant in VARIANTS.items() if name in variants and (face or variant.face)]
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
        content = without_nan({**facts, **summary, "clips": rows})
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    title = f"# Report on held-out puppet clips: `{facts['checkpoint']}`"
    lines = [title + (" (**untrained**)" if facts["untrained"] else ""), card(facts, summary)]
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


def _config(args: argparse.Namespace) -> TinyReportConfig:
    """configs/puppets.yaml with what the arguments change."""
    flags = {name: getattr(args, name) for name in ("clips", "steps", "guidance", "seed")}
    given = [f"{name}={value}" for name, value in flags.items() if value is not None]
    return compose(TinyReportConfig, ROOT_CONFIG, [*given, *args.set]).config


def _trained(folder: Path, *, allow_untrained: bool) -> Checkpoint:
    """The pipeline folder, whose weights must be trained unless that is allowed."""
    hint = "`make tiny` trains it, `make tiny-report` measures it then; --allow-untrained measures it as it is"
    if folder == TINY and not (TINY / "model_index.json").is_file() and not allow_untrained:
        raise ValueError(f"xdyna-tiny is not trained yet: {TINY} does not exist. {hint}")
    checkpoint = find_checkpoint(folder, build_untrained)
    if checkpoint.untrained and not allow_untrained:
        raise ValueError(f"{folder} is not final: {_mark(checkpoint)} {hint}")
    return checkpoint


def _mark(checkpoint: Checkpoint) -> str:
    """What the folder says about its unfinished weights."""
    return (checkpoint.folder / UNTRAINED_MARK).read_text(encoding="utf-8").strip()


def _bench(checkpoint: Checkpoint, config: TinyReportConfig, args: argparse.Namespace) -> Bench:
    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device)
    pipeline = load_pipeline(checkpoint, device=device, dtype=dtype, face=checkpoint.has_face)
    pipeline.set_progress_bar_config(disable=True)
    settings = Settings(
        steps=config.steps,
        guidance=checkpoint.contract.guidance if config.guidance is None else config.guidance,
        seed=config.seed,
        frames=FRAMES,
        size=checkpoint.size,
        weights=hashlib.sha256(json.dumps(checkpoint.hashes(), sort_keys=True).encode()).hexdigest(),
        dtype=str(dtype).removeprefix("torch."),
    )
    return Bench(pipeline, settings, args.out / "clips", style=checkpoint.contract.pose)


def _facts(
    checkpoint: Checkpoint, bench: Bench, clips: int, command: Sequence[str], *, seconds: float
) -> dict[str, Any]:
    device = bench.pipeline.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} ({platform.machine()})"
    return {
        "checkpoint": checkpoint.folder.name,
        "untrained": checkpoint.untrained,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "settings": vars(bench.settings),
        "held_out": clips,
        "command": " ".join(command),
        "weights": checkpoint.hashes(),
        "version": __version__,
        "torch": torch.__version__,
        "device": f"{name}, {torch.get_num_threads()} threads" if device.type == "cpu" else name,
        "seconds": round(seconds, 1),
    }


def _made(facts: dict[str, Any]) -> str:
    """How the numbers came about: the same sentence in the card and in docs/eval_tiny.md."""
    settings = facts["settings"]
    height, width = settings["size"]
    return (
        f"{facts['held_out']} held-out puppet clips (`configs/puppets/heldout.yaml`: unseen identities, motions and "
        f"scenes), {settings['frames']} frames of {height} x {width} px; {settings['steps']} steps, guidance "
        f"{settings['guidance']:g}, seed {settings['seed']}, {settings['dtype']}. Made by `{facts['command']}` "
        f"on {facts['date']} (xdyna {facts['version']}, torch {facts['torch']}, {facts['device']})."
    )


def _part(text: str) -> tuple[int, int]:
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected K/N with K from 1 to N, for example 2/4")
    return int(number), int(parts)


def _variants(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"got {unknown[0]!r}, expected some of {','.join(VARIANTS)}")
    return names


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="puppets.py report", description="Measure a small model on puppet clips that it was not trained on."
    )
    p.add_argument("checkpoint", nargs="?", type=Path, default=TINY, help="pipeline folder (%(default)s)")
    p.add_argument("--clips", type=int, metavar="N", help="the first so many of the list (64)")
    p.add_argument("--full", action="store_true", help="every comparison on all clips (default: some on 16 or 32)")
    p.add_argument(
        "--variants", type=_variants, default=list(VARIANTS), metavar="NAME,NAME", help="only these comparisons"
    )
    p.add_argument("--steps", type=int, metavar="N", help="denoising steps (10)")
    p.add_argument("--guidance", type=float, metavar="X", help="guidance scale (the model's own)")
    p.add_argument("--seed", type=int, metavar="N", help="of the noise (42)")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting of puppets.yaml")
    p.add_argument(
        "--part",
        type=_part,
        metavar="K/N",
        help="make only the K-th of N parts of the results and no report; the next run without it takes them over",
    )
    p.add_argument("--out", type=output_path, default=OUT, metavar="FOLDER", help="where to write (%(default)s)")
    p.add_argument("--doc", type=output_path, metavar="FILE", help="the table of all metrics (OUT/eval_tiny.md)")
    p.add_argument("--card", type=output_path, metavar="FILE", help="model card whose tables are replaced")
    p.add_argument("--allow-untrained", action="store_true", help="measure untrained weights, too")
    p.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, mps or auto")
    p.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p
