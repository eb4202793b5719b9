"""What people look at: `report.html` (what was kept, what was skipped and why, with images) and the card `README.md`.

Both follow from the data set alone: no dates, no names of machines.
"""

from __future__ import annotations

import base64
import html
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xdyna.config.data import KINDS, SPLITS
from xdyna.data.records import REASONS, ClipRecord, Skip
from xdyna.data.store import write_if_changed

REPORT, CARD = "report.html", "README.md"
_IMAGES_KEPT, _IMAGES_PER_REASON, _ROWS = 60, 12, 2000
_FPS_EDGES = (12, 20, 24.5, 27, 31, 61)
_SIDE_EDGES = (256, 480, 720, 1080, 2160)


@dataclass(frozen=True)
class Summary:
    """Everything the reports tell.

    Attributes:
        videos: number of videos.
        seconds: duration of all videos, s.
        records: clips that were kept.
        skips: what was not.
        thumbnails: path of the image of a clip below the folder, by clip id.
        options: settings, by section.
        versions: of packages.
    """

    videos: int
    seconds: float
    records: Sequence[ClipRecord]
    skips: Sequence[Skip]
    thumbnails: dict[str, str]
    options: dict[str, dict[str, Any]]
    versions: dict[str, str]

    @property
    def kept_seconds(self) -> float:
        """Duration of all clips, s."""
        return math.fsum(record.frames / record.fps for record in self.records)


def duration(seconds: float) -> str:
    """A duration for people: "3.2 s", "4.1 min", "12.0 h"."""
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"


def histogram(values: Sequence[float], edges: Sequence[float]) -> list[tuple[str, int]]:
    """How many values lie below the first edge, between two, and from the last one on; empty ends are left out.

    Args:
        values: any numbers.
        edges: ascending.

    Returns:
        Label and number of each bin.
    """
    labels = [f"below {edges[0]:g}", *(f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges))]
    labels.append(f"{edges[-1]:g} and more")
    counts = Counter(sum(value >= edge for edge in edges) for value in values)
    bins = [(label, counts[k]) for k, label in enumerate(labels)]
    while bins and not bins[-1][1]:
        bins.pop()
    while bins and not bins[0][1]:
        bins.pop(0)
    return bins


# The card


def write_card(folder: Path, summary: Summary) -> None:
    """Write `README.md`. Raises: MediaError: it cannot be written."""
    records = summary.records
    lines = [
        f"# Data set of {len(records)} clips",
        "",
        f"{duration(summary.kept_seconds)} in clips, of {summary.videos} videos ({duration(summary.seconds)}). Made by "
        f"`scripts/preprocess.py` of xdyna. The videos themselves stay where they were; this folder holds what was "
        f"measured on them. [report.html](report.html) shows what was kept and what was not.",
        "",
        *_table(("split", *KINDS, "clips", "groups", "duration"), [_split_row(records, split) for split in SPLITS]),
    ]
    if summary.skips:
        counts = Counter(skip.reason for skip in summary.skips)
        rows = [(reason, REASONS[reason], str(number)) for reason, number in counts.most_common()]
        lines += ["## Not kept", "", *_table(("reason", "meaning", "number"), rows)]
    licenses = Counter(record.license or "not given" for record in records)
    lines += ["## Licenses", "", *_table(("license", "clips"), [(k, str(v)) for k, v in sorted(licenses.items())])]
    lines += ["## Clips", ""]
    fps = histogram([record.fps for record in records], _FPS_EDGES)
    side = histogram([min(record.width, record.height) for record in records], _SIDE_EDGES)
    lines += _table(("frames per second", "clips"), [(label, str(count)) for label, count in fps])
    lines += _table(("shorter side, px", "clips"), [(label, str(count)) for label, count in side])
    frames = sorted(record.frames for record in records)
    lines += [f"Frames of a clip: {frames[0]} to {frames[-1]}, median {frames[len(frames) // 2]}.", ""]
    lines += _table(("measured", "lowest", "median", "highest"), _measured(records))
    lines += ["## Settings", ""]
    settings = [(f"{part}.{k}", f"`{v}`") for part, values in summary.options.items() for k, v in values.items()]
    lines += _table(("setting", "value"), settings)
    lines += ["## Versions", "", *_table(("package", "version"), sorted(summary.versions.items()))]
    write_if_changed(folder / CARD, ("\n".join(lines).rstrip() + "\n").encode())


def _split_row(records: Sequence[ClipRecord], split: str) -> tuple[str, ...]:
    mine = [record for record in records if record.split == split]
    kinds = [str(sum(record.kind == kind for record in mine)) for kind in KINDS]
    seconds = math.fsum(record.frames / record.fps for record in mine)
    return (split, *kinds, str(len(mine)), str(len({record.group for record in mine})), duration(seconds))


def _measured(records: Sequence[ClipRecord]) -> list[tuple[str, ...]]:
    """What was measured of the clips: where thresholds would cut."""
    humans = [record for record in records if record.kind == "human"]
    columns = [
        ("person, share of the image's height", [record.person_height for record in humans]),
        ("confidence of the person's joints", [record.confidence for record in humans]),
        ("motion, image heights per second", [record.motion for record in records]),
        ("camera, image heights per second", [record.camera for record in records]),
    ]
    return [
        (name, f"{min(values):.3g}", f"{statistics.median(values):.3g}", f"{max(values):.3g}")
        for name, values in columns
        if values
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return [f"| {' | '.join(head)} |", "|" + " --- |" * len(head), *(f"| {' | '.join(row)} |" for row in cells), ""]


# The report

_STYLE = """
:root { --ink: #1f2328; --soft: #656d76; --line: #d8dee4; --paper: #fff; --wash: #f6f8fa; --good: #2da44e;
  --bad: #cf6a3a }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9198a1; --line: #30363d; --paper: #0d1117;
  --wash: #161b22; --good: #3fb950; --bad: #d98a5f } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1080px; padding: 32px 24px 64px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
h1 { font-size: 26px; margin: 0 0 4px } h2 { font-size: 19px; margin: 40px 0 12px } p { margin: 0; color: var(--soft) }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 24px 0 0 }
.number { background: var(--wash); border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px }
.number b { display: block; font-size: 24px; line-height: 1.25; font-variant-numeric: tabular-nums }
.number span { color: var(--soft); font-size: 13px }
.bars { display: grid; grid-template-columns: minmax(160px, max-content) 1fr 64px; gap: 6px 14px; align-items: center }
.bars i { display: block; height: 14px; border-radius: 3px; background: var(--bad); min-width: 2px }
.bars i.good { background: var(--good) }
.bars em { font-style: normal; text-align: right; font-variant-numeric: tabular-nums }
.images { display: flex; flex-wrap: wrap; gap: 10px }
figure { margin: 0; width: 160px } figure img { display: block; width: 160px; height: 120px; object-fit: contain;
  background: var(--wash); border: 1px solid var(--line); border-radius: 6px }
figcaption { font-size: 12px; color: var(--soft); line-height: 1.35; overflow-wrap: anywhere; padding-top: 3px }
details { border: 1px solid var(--line); border-radius: 8px; margin: 10px 0; padding: 10px 16px }
summary { cursor: pointer } summary b { margin-right: 8px } details .images { padding: 12px 0 4px }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: 13px }
th, td { text-align: left; vertical-align: top; padding: 6px 10px; border-bottom: 1px solid var(--line) }
th { background: var(--wash); font-weight: 600 } td.n { text-align: right; font-variant-numeric: tabular-nums }
td { overflow-wrap: anywhere }
"""


def write_report(folder: Path, summary: Summary) -> None:
    """Write `report.html`: one file with its images inside. Raises: MediaError: it cannot be written."""
    clips, skips = len(summary.records), len(summary.skips)
    numbers = [
        (str(summary.videos), "videos"),
        (duration(summary.seconds), "of footage"),
        (str(clips), "clips kept"),
        (duration(summary.kept_seconds), "in clips"),
        (str(skips), "skipped"),
    ]
    kinds = Counter(f"{record.kind}, {record.split}" for record in summary.records)
    reasons = Counter(skip.reason for skip in summary.skips)
    body = [
        "<h1>Preprocessing report</h1>",
        "<p>What became of each video: clips that were kept, and what was left out and why.</p>",
        '<div class="numbers">',
        *(f'<div class="number"><b>{_text(value)}</b><span>{name}</span></div>' for value, name in numbers),
        "</div>",
        "<h2>Kept</h2>",
        _bars([(name, kinds[name]) for name in sorted(kinds)], good=True) if kinds else "<p>Nothing.</p>",
        _images(folder, [(summary.thumbnails.get(r.clip_id, ""), _told(r)) for r in _spread(summary.records)]),
        "<h2>Skipped</h2>",
        _bars([(REASONS[name], count) for name, count in reasons.most_common()]) if skips else "<p>Nothing.</p>",
        *(_reason(folder, name, [s for s in summary.skips if s.reason == name]) for name, _ in reasons.most_common()),
        _skip_table(summary.skips) if skips else "",
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Preprocessing report</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(part for part in body if part) + "\n</body></html>\n"
    )
    write_if_changed(folder / REPORT, page.encode())


def _text(value: object) -> str:
    return html.escape(str(value))


def _spread(records: Sequence[ClipRecord]) -> list[ClipRecord]:
    """Some clips from everywhere in the list."""
    step = max(1, math.ceil(len(records) / _IMAGES_KEPT))
    return list(records[::step])


def _told(record: ClipRecord) -> str:
    seconds = record.frames / record.fps
    return f"{record.clip_id}: {record.kind}, {record.frames} frames, {seconds:.1f} s, {record.width} x {record.height}"


def _bars(rows: Sequence[tuple[str, int]], *, good: bool = False) -> str:
    longest = max(count for _, count in rows)
    kind = ' class="good"' if good else ""
    cells = [
        f'<span>{_text(name)}</span><i{kind} style="width:{100 * count / longest:.1f}%"></i><em>{count}</em>'
        for name, count in rows
    ]
    return f'<div class="bars">{"".join(cells)}</div>'


def _images(folder: Path, images: Sequence[tuple[str, str]]) -> str:
    figures = []
    for name, caption in images:
        if name and (folder / name).is_file():
            data = base64.b64encode((folder / name).read_bytes()).decode()
            source = f"data:image/{'png' if name.endswith('.png') else 'jpeg'};base64,{data}"
            figures.append(f'<figure><img alt="" src="{source}"><figcaption>{_text(caption)}</figcaption></figure>')
    return f'<div class="images" style="margin-top:16px">{"".join(figures)}</div>' if figures else ""


def _reason(folder: Path, reason: str, skips: Sequence[Skip]) -> str:
    shown = [skip for skip in skips if skip.thumbnail][:_IMAGES_PER_REASON]
    images = _images(folder, [(skip.thumbnail, f"{_where(skip)}: {skip.detail}") for skip in shown])
    if not images:
        return ""
    head = f"<summary><b>{_text(REASONS[reason])}</b>{len(skips)} &times; <code>{reason}</code></summary>"
    return f"<details open>{head}{images}</details>"


def _frames(skip: Skip) -> str:
    return "all" if skip.start < 0 else f"{skip.start} to {skip.start + skip.frames - 1}"


def _where(skip: Skip) -> str:
    return skip.source_id if skip.start < 0 else f"{skip.source_id}, frames {_frames(skip)}"


def _skip_table(skips: Sequence[Skip]) -> str:
    rows = [
        f"<tr><td>{_text(skip.source_id)}</td><td>{_frames(skip)}</td>"
        f"<td><code>{_text(skip.reason)}</code></td><td>{_text(skip.detail)}</td></tr>"
        for skip in skips[:_ROWS]
    ]
    rest = len(skips) - len(rows)
    more = f"<p>{rest} more are in skipped.parquet.</p>" if rest > 0 else ""
    head = "<tr><th>video</th><th>frames</th><th>reason</th><th>what was found</th></tr>"
    return f'<h2>All skips</h2><div class="scroll"><table>{head}{"".join(rows)}</table></div>{more}'
