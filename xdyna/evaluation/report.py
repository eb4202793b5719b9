"""The report of an evaluation: JSON with everything, CSV per video, Markdown for people, a chart."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xdyna.evaluation.engine import Result
from xdyna.evaluation.metric import HIGHER, LOWER, Column
from xdyna.evaluation.paper import OURS, TABLES, PaperTable, not_comparable

ARROWS = {LOWER: "lower is better", HIGHER: "higher is better"}


@dataclass(frozen=True)
class Skipped:
    """A metric that was asked for and could not be computed.

    Attributes:
        name: of the metric.
        reason: which file is missing and where to get it.
    """

    name: str
    reason: str


@dataclass
class Report:
    """Everything that an evaluation found.

    Attributes:
        results: per metric.
        skipped: metrics that were not computed.
        videos: number of cases.
        policies: how often lengths, sizes or rates were brought together.
        unpaired: videos without a partner, by folder.
        protocol: settings as plain values.
        weights: sha256 of the weight files in use, by name.
        environment: versions, git revision, command.
        table: "table1" ... to show the paper's rows, or None.
        failures: why a case could not be read, by its id; it counts in no metric.
    """

    results: Sequence[Result]
    skipped: Sequence[Skipped]
    videos: int
    policies: dict[str, int] = field(default_factory=dict)
    unpaired: dict[str, list[str]] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    table: str | None = None
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Every video was read and every metric was computed, each on at least one video."""
        values = [value for result in self.results for value in result.values.values()]
        return (
            not self.skipped and not self.failures and bool(values) and not any(math.isnan(value) for value in values)
        )

    def value(self, column: str) -> float:
        """A reported number; NaN where there is none."""
        return next((r.values[column] for r in self.results if column in r.values), math.nan)


def as_json(report: Report) -> str:
    """The report as JSON; NaN becomes null."""
    metrics = {
        result.metric.name: {
            "values": _finite(result.values),
            "notes": _finite(result.notes),
            "videos": result.measured,
            "not_measured": result.reasons,
            "version": result.metric.version,
        }
        for result in report.results
    }
    tree = {
        "videos": report.videos,
        "failed_videos": report.failures,
        "metrics": metrics,
        "skipped": {entry.name: entry.reason for entry in report.skipped},
        "policies": report.policies,
        "unpaired": report.unpaired,
        "protocol": report.protocol,
        "weights_sha256": report.weights,
        "environment": report.environment,
    }
    return json.dumps(tree, indent=1, default=str, allow_nan=False) + "\n"


def as_csv(report: Report) -> str:
    """One row per video, one column per number."""
    names = sorted({name for result in report.results for values in result.per_video.values() for name in values})
    videos = {video for result in report.results for video in (*result.per_video, *result.reasons)}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["video", *names])
    for video in sorted(videos | set(report.failures)):
        row: dict[str, float] = {}
        for result in report.results:
            row.update(result.per_video.get(video, {}))
        writer.writerow(
            [video, *(repr(row[name]) if name in row and math.isfinite(row[name]) else "" for name in names)]
        )
    return text.getvalue()


def as_markdown(report: Report) -> str:
    """The report for people."""
    lines = [f"# Evaluation of {report.videos} video{'s' if report.videos != 1 else ''}", ""]
    lines += ["| metric | value | | videos |", "| ------ | ----: | --- | -----: |"]
    for result in report.results:
        for column in result.metric.columns:
            better = ARROWS.get(column.better, "1 is best")
            shown = shown_value(result.values[column.name], column)
            lines.append(f"| {column.label} | {shown} | {better} | {result.measured} of {report.videos} |")
    lines += [f"| {entry.name} | skipped: weights | | |" for entry in report.skipped]
    lines.append("")
    lines += _section("Videos that could not be read", [f"- {name}: {why}" for name, why in report.failures.items()])
    if report.table is not None:
        lines += _beside_the_paper(report, TABLES[report.table])
    lines += _section("Skipped", [f"- `{entry.name}`: {entry.reason}" for entry in report.skipped])
    lines += _section("Policies", _policy_lines(report))
    reasons = [
        f"- `{result.metric.name}`: {len(result.reasons)} videos not measured, for example {video}: {reason}"
        for result in report.results
        for video, reason in list(result.reasons.items())[:1]
    ]
    lines += _section("Not measured", reasons)
    notes = [
        f"- {name}: {value:.6g}"
        for result in report.results
        for name, value in result.notes.items()
        if math.isfinite(value)
    ]
    lines += _section("Notes", [*notes, *_too_few(report)])
    protocol = [f"- {name}: {value}" for name, value in report.protocol.items()]
    lines += _section("Protocol", protocol)
    lines += _section("Weights", [f"- {name}: sha256 {digest}" for name, digest in report.weights.items()])
    versions = [f"- {result.metric.name}: {result.metric.version}" for result in report.results]
    lines += _section("Versions of the metrics", versions)
    return "\n".join(lines).rstrip() + "\n"


def shown_value(value: float, column: Column) -> str:
    """A number as tables show it: "-" for NaN, 1.23e-05 where its digits would be zeros."""
    if math.isnan(value):
        return "-"
    return f"{value:.2e}" if value and abs(value) < 10**-3 else f"{value:.{column.digits}f}"


def _beside_the_paper(report: Report, table: PaperTable) -> list[str]:
    columns = {c.name: c for result in report.results for c in result.metric.columns}
    shown = [(k, columns[name]) for k, name in enumerate(table.columns) if name is not None and name in columns]
    if not shown:
        return []
    lines = [f"## {table.title}", "", "Rows of methods are the paper's, on its own test videos.", ""]
    lines += ["| | " + " | ".join(c.label for _, c in shown) + " |", "| --- |" + " ---: |" * len(shown)]
    for method, numbers in table.rows.items():
        lines.append(f"| {method} | " + " | ".join(shown_value(numbers[k], c) for k, c in shown) + " |")
    ours = {c.name: report.value(c.name) for _, c in shown}
    lines.append("| **measured here** | " + " | ".join(shown_value(ours[c.name], c) for _, c in shown) + " |")
    why = {c.name: not_comparable(c.name, report.protocol) for _, c in shown}
    bare = {name for name, value in ours.items() if math.isnan(value) or why[name] is not None}
    deltas = ["-" if c.name in bare else f"{ours[c.name] - table.rows[OURS][k]:+.3g}" for k, c in shown]
    lines += [f"| measured - {OURS} | " + " | ".join(deltas) + " |", ""]
    reasons = [f"- no difference for {c.label}: {why[c.name]}" for _, c in shown if why[c.name] is not None]
    return [*lines, *reasons, ""] if reasons else lines


def _policy_lines(report: Report) -> list[str]:
    meaning = {
        "length": "compared over the shorter video",
        "size": "generated frames resized to the truth (metrics that compare frames)",
        "fps": "rates differ; frames are compared by their number",
        "companions": "side-by-side videos and contact sheets of scripts/infer.py, left out",
    }
    lines = [
        f"- {count} {'files' if name == 'companions' else 'videos'}: {meaning.get(name, name)}"
        for name, count in report.policies.items()
    ]
    for kind, names in report.unpaired.items():
        lines.append(f"- {len(names)} {kind} videos without a partner, left out: {', '.join(names[:10])}")
    return lines


def _too_few(report: Report) -> list[str]:
    lines = []
    for result in report.results:
        name = result.metric.name
        channels = result.notes.get(f"{name}.channels", 0)
        features = min(result.notes.get(f"{name}.features_{kind}", math.inf) for kind in ("truth", "generated"))
        if features <= channels:
            lines.append(
                f"- **{name}: {features:.0f} features for {channels:.0f} channels: the covariance is not of full rank "
                "and the value biased upwards; compare only with the same number of videos**"
            )
    return lines


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *lines, ""] if lines else []


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write report.json, report.csv, report.md and, for a table of the paper, its chart.

    Args:
        report: the report.
        folder: made when it does not exist.

    Returns:
        The files.
    """
    from xdyna.evaluation.chart import draw_table

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, text in (("json", as_json(report)), ("csv", as_csv(report)), ("md", as_markdown(report))):
        files.append(folder / f"report.{name}")
        files[-1].write_text(text, encoding="utf-8")
    chart = draw_table(report, folder / "report.png")
    return [*files, chart] if chart is not None else files
