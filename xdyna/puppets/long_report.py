"""The table and the plot of `xdyna.puppets.long`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from xdyna.puppets.long import OverTime

COLOURS = ("#c44e2f", "#2f6f9f")
LABELS = {"uniform": "uniform (closed)", "uniform_open": "uniform_open"}


def table(rows: Mapping[str, Mapping[str, float]], edge: int) -> str:
    """Markdown, a row for each schedule.

    Args:
        rows: summaries by schedule, see `OverTime.summary`.
        edge: frames that count as first and as last.
    """
    lines = [
        f"| schedule | PSNR | first {edge} frames | between | last {edge} | drift, dB in 100 frames | "
        "change at borders / inside | flicker (truth) | last to first frame (truth) |",
        "| --- |" + " ---: |" * 8,
    ]
    for name, row in rows.items():
        cells = [
            *(f"{row[key]:.2f}" for key in ("psnr", "first", "middle", "last")),
            f"{row['drift']:+.2f} ± {row['drift_error']:.2f}",
            "-" if math.isnan(row["seam"]) else f"{row['seam']:.3f} ± {row['seam_error']:.3f}",
            f"{row['flicker']:.2f} ({row['flicker_truth']:.2f})",
            f"{row['ends']:.1f} ({row['ends_truth']:.1f})",
        ]
        lines.append(f"| {LABELS.get(name, name)} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(found: Mapping[str, OverTime], path: Path, *, fps: float) -> None:
    """PSNR, change of the error and flicker against time, a line for each schedule.

    Args:
        found: by schedule.
        path: PNG file, replaced.
        fps: frames per second.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(3, 1, sharex=True)
    for number, ((name, values), colour) in enumerate(zip(found.items(), COLOURS, strict=False)):
        # The first line is broad and pale: one that lies upon it leaves it to be seen.
        breadth = {"linewidth": 3.5, "alpha": 0.45} if number == 0 else {"linewidth": 1.0}
        style = {"color": colour, "label": LABELS.get(name, name), **breadth}
        panels[0].plot(np.arange(len(values.psnr)) / fps, values.psnr, **style)
        between = (np.arange(len(values.change)) + 0.5) / fps
        panels[1].plot(between, values.change, **style)
        panels[1].plot(
            between[values.borders], np.full(values.borders.sum(), -0.02 * number), "|", color=colour, markersize=6,
            transform=panels[1].get_xaxis_transform(), clip_on=False,
        )  # fmt: skip
        panels[2].plot(between, values.flicker, **style)
        if number == 0:
            panels[2].plot(between, values.flicker_truth, color="0.5", linewidth=1, linestyle=":", label="truth")
    titles = (
        "PSNR to the truth, dB",
        "change of the error from frame to frame, levels (ticks: borders of the last step's windows)",
        "change of the still background, levels",
    )
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
    lines, labels = panels[2].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper right", ncols=len(labels), fontsize=8)
    panels[2].set_xlabel("s", fontsize=8)
    figure.savefig(path, dpi=90, format="png")
