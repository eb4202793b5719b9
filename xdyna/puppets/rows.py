"""The rows of docs/eval_tiny.md: xdyna-tiny, and what it is compared with, through the engine of `scripts/eval.py`.

The clips are those of the model card (`xdyna.puppets.report` makes both), and so are PSNR and SSIM of whole frames.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from xdyna.core.errors import ConfigError
from xdyna.core.manifest import versions
from xdyna.core.resources import resource
from xdyna.evaluation import engine
from xdyna.evaluation.inputs import Entry, counted
from xdyna.evaluation.masks import Masker
from xdyna.evaluation.metric import HIGHER, LOWER, Metric
from xdyna.evaluation.report import Report, shown_value, write_report
from xdyna.evaluation.store import Store
from xdyna.media.image import write_png
from xdyna.puppets.evaluate import PuppetNets, puppet_metrics
from xdyna.puppets.heldout import HeldOut
from xdyna.puppets.metrics import given_places
from xdyna.puppets.variants import VARIANTS, Bench

ROWS = {
    "full": "xdyna-tiny",
    "copy": "reference copied",
    "late": "truth, one frame late",
    "vae": "truth through the VAE",
}
"""Variants (see `xdyna.puppets.variants`; "late": the truth itself) and how they are shown."""
ARROW = {LOWER: "↓", HIGHER: "↑"}


@dataclass
class TinyReportConfig:
    """`configs/puppets.yaml`.

    Attributes:
        clips: the first so many held-out clips.
        steps: denoising steps.
        guidance: classifier-free guidance scale; None takes the model's own.
        seed: of the noise.
        metrics: names, of `puppet_metrics`.
    """

    clips: int = 64
    steps: int = 10
    guidance: float | None = None
    seed: int = 42
    metrics: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.clips < 2 or self.steps < 1:
            raise ConfigError(f"clips {self.clips}, steps {self.steps}: expected 2 clips and 1 step, or more")


def chosen_metrics(names: Sequence[str], points: Path, store: Store) -> list[Metric]:
    """Metrics of `puppet_metrics` by name.

    Args:
        names: as `TinyReportConfig.metrics` has them.
        points: folder of the keypoints of the truth.
        store: keeps features.

    Raises:
        ConfigError: an unknown name, or none.
    """
    nets = PuppetNets.load(resource("pretrained"))
    every = {m.name: m for m in puppet_metrics(nets, given_places(points), Masker(nets.segmenter), store)}
    unknown = [name for name in names if name not in every]
    if unknown or not names:
        raise ConfigError(f"metrics: got {unknown or 'none'}, expected some of {', '.join(every)}")
    return [every[name] for name in names]


def measure_rows(
    folder: Path,
    bench: Bench,
    held_out: Sequence[HeldOut],
    config: TinyReportConfig,
    *,
    weights: Mapping[str, str],
    command: Sequence[str],
) -> dict[str, Report]:
    """Measure every row and write its report; what was measured before is not measured again.

    Args:
        folder: gets videos, records and reports/ROW.
        bench: generates what is not kept.
        held_out: the clips.
        config: names the metrics.
        weights: sha256 of the model's weight files, by name.
        command: words of the program.

    Returns:
        Reports by row, in the order of `ROWS`.
    """
    store = Store(folder / "records")
    metrics = chosen_metrics(config.metrics, folder / "points", store)
    settings = bench.settings
    reports = {}
    for name, entries in write_inputs(folder, bench, held_out).items():
        with tqdm(total=len(entries), desc=f"measuring {ROWS[name]}", unit="video") as bar:
            outcomes = engine.measure(entries, metrics, store, advance=lambda _, bar=bar: bar.update() and None)  # type: ignore[misc]
        reports[name] = Report(
            engine.reduce(metrics, outcomes, store),
            [],
            len(outcomes),
            counted(outcome.policies for outcome in outcomes.values()),
            protocol=vars(config) | {"row": ROWS[name], "frames": settings.frames, "size": list(settings.size)},
            weights=PuppetNets.load(resource("pretrained")).hashes | dict(weights),
            environment={"versions": versions(), "command": list(command)},
        )
        write_report(reports[name], folder / "reports" / name)
    return reports


def write_inputs(folder: Path, bench: Bench, held_out: Sequence[HeldOut]) -> dict[str, list[Entry]]:
    """Write every video as a folder of PNG images, with the truth's keypoints.

    Args:
        folder: gets ROW/NN, truth/NN and points/NN.npz.
        bench: generates what is not kept.
        held_out: the clips.

    Returns:
        For each of `ROWS` its entries.
    """
    entries: dict[str, list[Entry]] = {name: [] for name in ROWS}
    for number, entry in enumerate(tqdm(held_out, desc="generating", unit="clip", smoothing=0)):
        truth, name = bench.task(entry, "self").truth, f"{number:02d}"
        write_clip_frames(folder / "truth" / name, truth.frames)
        (folder / "points").mkdir(exist_ok=True)
        truth.track().save(folder / "points" / f"{name}.npz", overwrite=True)
        for row in ROWS:
            if row in VARIANTS:
                frames = bench.kept(number, row, entry)
                frames = bench.make(number, row, entry) if frames is None else frames
            else:
                late = replace(entry, start=entry.start + 1)
                frames = late.clip(frames=bench.settings.frames, size=bench.settings.size).frames
            write_clip_frames(folder / row / name, frames)
            entries[row].append(Entry(name, folder / row / name, folder / "truth" / name))
    return entries


def write_clip_frames(folder: Path, frames: np.ndarray) -> None:
    """Write a clip as PNG images, uint8 (T, H, W, 3); images of a longer one that was there are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in sorted(folder.glob("*.png"))[len(frames) :]:
        stale.unlink()
    for k, frame in enumerate(frames):
        write_png(folder / f"{k:03d}.png", frame, overwrite=True)


def document(reports: Mapping[str, Report], *, made: str, mark: str = "") -> str:
    """docs/eval_tiny.md.

    Args:
        reports: by row.
        made: how, when and from what clips: a sentence or two.
        mark: why the weights are not final; "" for trained ones.
    """
    first = next(iter(reports.values()))
    lines = ["# xdyna-tiny, evaluated", ""]
    if mark:
        lines += [f"**Not final: {mark}**", ""]
    lines += [
        f"{made} Measured through the engine of `scripts/eval.py`.",
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
        "- PSNR and SSIM of whole frames are those of the model card: computed frame by frame, mean over all frames. "
        "What else the card says is something else: PSNR and SSIM inside the figure, energy inside the region that "
        "moves by itself, and expressions against those that were rendered. Face-Exp[puppet] compares with the truth's "
        "reading.",
        "- *reference copied* is what a model does that ignores motion; *truth, one frame late* is nearly right in "
        "every respect but the time, a floor for distances; *truth through the VAE* is the best that sampling in its "
        "latents can reach.",
        "- Figure and background halves, and the drift, use each video's own figure masks, found by "
        "`pretrained/puppet-segmenter` in generated and true videos alike; heads are looked for where the truth has "
        "them.",
        "- [puppet] metrics go through `pretrained/puppet-*`, which know puppets only; they do not compare with the "
        "published metrics of the same names. [sensitivity.md](metrics/sensitivity.md) shows what each reacts to.",
        "- Temporal energy ratio: 1 is as lively as the truth, 0 is a still image. Flicker is low for still "
        "images, too. The warping error moves images by the truth's motion: it does not reward stillness, and a "
        "blurred video improves it.",
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
