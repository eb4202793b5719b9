"""A chart of a report: one panel per number, the paper's methods beside what was measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from xdyna.evaluation.metric import HIGHER, LOWER
from xdyna.evaluation.paper import TABLES

if TYPE_CHECKING:
    from xdyna.evaluation.report import Report

HERE, PAPER = "#c44e2f", "#9aa7b1"
PER_ROW = 4


def draw_table(report: Report, path: Path) -> Path | None:
    """Draw a report.

    Args:
        report: measured numbers; those of its table are drawn beside the paper's.
        path: PNG file, replaced if it exists.

    Returns:
        The file, or None where no number was measured.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = [c for r in report.results for c in r.metric.columns if not math.isnan(r.values[c.name])]
    if not columns:
        return None
    table = None if report.table is None else TABLES[report.table]
    rows = math.ceil(len(columns) / PER_ROW)
    figure = Figure(figsize=(3.2 * min(PER_ROW, len(columns)), 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for k, column in enumerate(columns):
        axes = figure.add_subplot(rows, min(PER_ROW, len(columns)), k + 1)
        bars = {"here": report.value(column.name)}
        if table is not None and column.name in table.columns:
            place = table.columns.index(column.name)
            bars = {**{method: numbers[place] for method, numbers in table.rows.items()}, **bars}
        axes.barh(list(bars), list(bars.values()), color=[HERE if name == "here" else PAPER for name in bars])
        arrow = {LOWER: " ↓", HIGHER: " ↑"}.get(column.better, " → 1")
        axes.set_title(column.label + arrow, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.invert_yaxis()
        axes.margins(x=0.1)
    figure.savefig(path, dpi=110)
    return path
