"""Evaluates xdyna-tiny on the held-out puppet clips and writes docs/eval_tiny.md (`scripts/eval_tiny.py`).

Videos go through the engine of `scripts/eval.py`; generated clips are those of `scripts/tiny_report.py`, made where
they are not there yet. An interrupted run goes on.
"""

import argparse
import functools
import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from xdyna import __version__
from xdyna.config.loader import compose
from xdyna.core.atomic import atomic_output
from xdyna.core.errors import ConfigError, UsageError
from xdyna.core.manifest import versions
from xdyna.core.quiet import quiet_libraries
from xdyna.core.resources import resource
from xdyna.evaluation import engine
from xdyna.evaluation.inputs import Entry, counted
from xdyna.evaluation.masks import Masker
from xdyna.evaluation.metric import HIGHER, LOWER, Metric
from xdyna.evaluation.report import Report, shown_value, write_report
from xdyna.evaluation.store import Store
from xdyna.media.image import write_png
from xdyna.pipelines.folder import (
    TINY,
    UNTRAINED_MARK,
    Checkpoint,
    find_checkpoint,
    load_pipeline,
    pick_device,
    pick_dtype,
)
from xdyna.pipelines.untrained import build_untrained
from xdyna.puppets.evaluate import PuppetNets, puppet_metrics
from xdyna.puppets.heldout import HELD_OUT, HeldOut, load_held_out
from xdyna.puppets.metrics import given_places
from xdyna.puppets.report import FRAMES
from xdyna.puppets.report import OUT as TINY_REPORT
from xdyna.puppets.variants import VARIANTS, Bench, Settings

ROOT_CONFIG = "puppets"
OUT, DOC = Path("outputs") / "eval_tiny", Path("docs") / "eval_tiny.md"
ROWS = {
    "full": "xdyna-tiny",
    "copy": "reference copied",
    "late": "truth, one frame late",
    "vae": "truth through the VAE",
}
"""Variants (see `xdyna.puppets.variants`; "late": the truth itself) and how they are shown."""
ARROW = {LOWER: "↓", HIGHER: "↑"}


@dataclass
class TinyEvalConfig:
    """`configs/puppets.yaml`.

    Attributes:
        clips: the first so many held-out clips.
        steps: denoising steps.
        guidance: classifier-free guidance scale.
        seed: of the noise.
        metrics: names, of `puppet_metrics`.
    """

    clips: int = 64
    steps: int = 10
    guidance: float = 1.0
    seed: int = 42
    metrics: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.clips < 2 or self.steps < 1:
            raise ConfigError(f"clips {self.clips}, steps {self.steps}: expected 2 clips and 1 step, or more")


def main(argv: Sequence[str]) -> int:
    """Run `scripts/eval_tiny.py`. Args: argv: without the program's name. Returns: exit code."""
    args = _parser().parse_args(argv)
    start = time.perf_counter()
    quiet_libraries()
    config, held_out = compose(TinyEvalConfig, ROOT_CONFIG, args.set).config, load_held_out()
    if config.clips > len(held_out):
        raise UsageError(f"{config.clips} clips were asked for; {HELD_OUT} lists {len(held_out)}")
    checkpoint = _trained(args.checkpoint, allow_untrained=args.allow_untrained)
    store = Store(args.out / "records")
    metrics = _chosen(config.metrics, args.out / "points", store)
    bench = _bench(checkpoint, config, args)
    entries = write_inputs(args.out, bench, held_out[: config.clips])
    reports = {}
    for name, rows in entries.items():
        with tqdm(total=len(rows), desc=f"measuring {ROWS[name]}", unit="video") as bar:
            outcomes = engine.measure(rows, metrics, store, advance=functools.partial(_advance, bar))
        reports[name] = Report(
            engine.reduce(metrics, outcomes, store),
            [],
            len(outcomes),
            counted(outcome.policies for outcome in outcomes.values()),
            protocol=vars(config) | {"row": ROWS[name], "frames": FRAMES, "size": list(checkpoint.size)},
            weights=PuppetNets.load(resource("pretrained")).hashes | checkpoint.hashes(),
            environment={"versions": versions(), "command": ["eval_tiny.py", *argv]},
        )
        write_report(reports[name], args.out / "reports" / name)
    text = document(reports, config, checkpoint, seconds=time.perf_counter() - start)
    with atomic_output(args.doc, overwrite=True) as path:
        path.write_text(text, encoding="utf-8")
    print(f"{text}\nwritten: {args.doc}; JSON, CSV and charts in {args.out / 'reports'}")
    return 0


def _advance(bar: tqdm, name: str) -> None:  # type: ignore[type-arg]
    bar.update()


def _trained(folder: Path, *, allow_untrained: bool) -> Checkpoint:
    """The checkpoint, which must be trained unless that is allowed."""
    hint = "`make tiny` trains it, `make eval-tiny` measures it then; --allow-untrained measures it as it is"
    if folder == TINY and not (TINY / "model_index.json").is_file() and not allow_untrained:
        raise ValueError(f"xdyna-tiny is not trained yet: {TINY} does not exist. {hint}")
    checkpoint = find_checkpoint(folder, build_untrained)
    if checkpoint.untrained and not allow_untrained:
        raise ValueError(f"{folder} is not final: {_mark(checkpoint)} {hint}")
    return checkpoint


def _mark(checkpoint: Checkpoint) -> str:
    """What the checkpoint says about its unfinished weights."""
    return (checkpoint.folder / UNTRAINED_MARK).read_text(encoding="utf-8").strip()


def _chosen(names: Sequence[str], points: Path, store: Store) -> list[Metric]:
    every = {
        m.name: m
        for m in puppet_metrics(PuppetNets.load(resource("pretrained")), given_places(points), Masker(None), store)
    }
    unknown = [name for name in names if name not in every]
    if unknown or not names:
        raise ConfigError(f"metrics: got {unknown or 'none'}, expected some of {', '.join(every)}")
    return [every[name] for name in names]


def _bench(checkpoint: Checkpoint, config: TinyEvalConfig, args: argparse.Namespace) -> Bench:
    """What generates clips: the same settings and files as those of `scripts/tiny_report.py`."""
    device = pick_device(args.device)
    dtype = pick_dtype("auto", device)
    pipeline = load_pipeline(checkpoint, device=device, dtype=dtype, face=checkpoint.has_face)
    pipeline.set_progress_bar_config(disable=True)
    settings = Settings(
        steps=config.steps,
        guidance=config.guidance,
        seed=config.seed,
        frames=FRAMES,
        size=checkpoint.size,
        weights=hashlib.sha256(json.dumps(checkpoint.hashes(), sort_keys=True).encode()).hexdigest(),
        dtype=str(dtype).removeprefix("torch."),
    )
    return Bench(pipeline, settings, args.clips)


def write_inputs(folder: Path, bench: Bench, held_out: Sequence[HeldOut]) -> dict[str, list[Entry]]:
    """Write every video as a folder of PNG pictures, with true masks and key points.

    Args:
        folder: gets ROW/NN, truth/NN, masks/NN and points/NN.npz.
        bench: generates what is not kept.
        held_out: the clips.

    Returns:
        For each of `ROWS` its entries.
    """
    entries: dict[str, list[Entry]] = {name: [] for name in ROWS}
    for number, entry in enumerate(tqdm(held_out, desc="generating", unit="clip", smoothing=0)):
        truth, name = bench.task(entry, "self").truth, f"{number:02d}"
        _write_frames(folder / "truth" / name, truth.frames)
        _write_frames(folder / "masks" / name, np.repeat(truth.mask[..., None].astype(np.uint8) * 255, 3, axis=-1))
        (folder / "points").mkdir(exist_ok=True)
        truth.track().save(folder / "points" / f"{name}.npz", overwrite=True)
        mask = folder / "masks" / name
        for row in ROWS:
            if row in VARIANTS:
                frames = bench.kept(number, row, entry)
                frames = bench.make(number, row, entry) if frames is None else frames
            else:
                late = replace(entry, start=entry.start + 1)
                frames = late.clip(frames=bench.settings.frames, size=bench.settings.size).frames
            _write_frames(folder / row / name, frames)
            entries[row].append(Entry(name, folder / row / name, folder / "truth" / name, None, mask, mask))
    return entries


def _write_frames(folder: Path, frames: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stale in sorted(folder.glob("*.png"))[len(frames) :]:
        stale.unlink()
    for k, frame in enumerate(frames):
        write_png(folder / f"{k:03d}.png", frame, overwrite=True)


def document(reports: Mapping[str, Report], config: TinyEvalConfig, checkpoint: Checkpoint, *, seconds: float) -> str:
    """docs/eval_tiny.md.

    Args:
        reports: by row.
        config: of the run.
        checkpoint: what was measured.
        seconds: that it took.
    """
    first = next(iter(reports.values()))
    lines = ["# xdyna-tiny, evaluated", ""]
    if checkpoint.untrained:
        lines += [f"**Not final: {_mark(checkpoint)}**", ""]
    lines += [
        f"{first.videos} held-out puppet clips (`configs/puppets/heldout.yaml`: unseen identities, motions and "
        f"scenes), self-driven; {FRAMES} frames of {checkpoint.size[0]} x {checkpoint.size[1]} px, {config.steps} "
        f"steps, guidance {config.guidance:g}, seed {config.seed}. Made by `make eval-tiny` (xdyna {__version__}, "
        f"torch {torch.__version__}, {seconds / 60:.1f} min in this run) through the engine of `scripts/eval.py`.",
        "",
        "| | " + " | ".join(ROWS[name] for name in reports) + " |",
        "| --- |" + " ---: |" * len(reports),
    ]
    for column in (column for result in first.results for column in result.metric.columns):
        shown = (shown_value(report.value(column.name), column) for report in reports.values())
        lines.append(f"| {column.label} {ARROW.get(column.better, '→ 1')} | {' | '.join(shown)} |")
    lines += ["", "How to read it:", "", *_notes(first)]
    missing = [
        f"- {ROWS[name]}: `{result.metric.name}` on {result.measured} of {report.videos} clips"
        + (f" ({next(iter(result.reasons.values()))})" if result.reasons else "")
        for name, report in reports.items()
        for result in report.results
        if result.measured < report.videos
    ]
    lines += ["", "Measured on fewer clips:", "", *missing] if missing else []
    weights = "\n".join(f"- `{name}` {digest}" for name, digest in sorted(first.weights.items()))
    lines += ["", f"<details><summary>SHA-256 of the weights</summary>\n\n{weights}\n\n</details>"]
    return "\n".join(lines) + "\n"


def _notes(report: Report) -> list[str]:
    notes = [
        "- *reference copied* is what a model does that ignores motion; *truth, one frame late* is nearly right in "
        "every respect but the time, a floor for distances; *truth through the VAE* is the best that sampling in its "
        "latents can reach.",
        "- Figure and background halves use the puppet's true masks, in generated videos too; heads are looked for "
        "where the truth has them.",
        "- [puppet] metrics go through `pretrained/puppet-*`, which know puppets only; they do not compare with the "
        "published metrics of the same names. [sensitivity.md](metrics/sensitivity.md) shows what each reacts to.",
        "- Temporal energy ratio: 1 is as lively as the truth, 0 is a still picture. Warping error and flicker are low "
        "for still pictures, too.",
    ]
    few = []
    for result in report.results:
        name = result.metric.name
        channels, count = (result.notes.get(f"{name}.{key}", math.nan) for key in ("channels", "features_generated"))
        if count <= channels:
            few.append(f"`{name}` ({count:.0f} clips, {channels:.0f} channels)")
    if few:
        notes.append(
            f"- No more clips than channels: {', '.join(few)}. Such values are biased upwards; compare with the same "
            "number of clips only."
        )
    return notes


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="eval_tiny.py", description="Evaluate xdyna-tiny on held-out puppet clips.")
    p.add_argument("checkpoint", nargs="?", type=Path, default=TINY, help="pipeline folder (%(default)s)")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting: clips=16")
    p.add_argument("--out", type=Path, default=OUT, metavar="FOLDER", help="videos and reports (%(default)s)")
    p.add_argument("--doc", type=Path, default=DOC, metavar="FILE", help="the table (%(default)s)")
    p.add_argument(
        "--clips", type=Path, default=TINY_REPORT / "clips", metavar="FOLDER", help="generated clips (%(default)s)"
    )
    p.add_argument("--allow-untrained", action="store_true", help="measure untrained weights, too")
    p.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, mps or auto")
    p.add_argument("--debug", action="store_true", help="show tracebacks")
    return p
