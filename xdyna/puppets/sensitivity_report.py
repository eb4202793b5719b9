"""The table and the plot of `xdyna.puppets.sensitivity`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from xdyna.evaluation.metric import HIGHER, LOWER, Column
from xdyna.puppets.damage import DAMAGES, FRAMES, LEVELS, SIZE

Values = dict[str, dict[str, list[float]]]
"""Column -> damage -> values at levels 0 (no damage) to 4."""

SMALL_CHANGE = 0.02  # of a column's largest change by any damage: below it counts as no reaction
SIGN = {"yes": "**yes**", "partly": "partly", "no": "·", "wrong": "mixed", "-": "-"}
ARROW = {LOWER: "↓", HIGHER: "↑"}
COLOURS = ("#c44e2f", "#2f6f9f", "#4f8f4f", "#8a5fa8", "#b08a2e", "#555f66")
PER_ROW = 5


def markdown(
    values: Values, columns: Sequence[Column], table: Mapping[str, Mapping[str, str]], counts: Mapping[str, int]
) -> str:
    """The study as Markdown.

    Args:
        values: of `study`.
        columns: of all metrics.
        table: of `verdicts`.
        counts: clips that each column was measured on.
    """
    clips = max(counts.values())
    few = sorted(set(counts.values()) - {clips})
    lines = [
        "# How metrics react to known damage",
        "",
        f"{clips} held-out puppet clips (`configs/puppets/heldout.yaml`; {FRAMES} frames, {SIZE[0]} x {SIZE[1]} px), "
        f"each compared with a damaged copy of itself, at {LEVELS} levels. Made by `make sensitivity`.",
        "",
        "- **yes**: worse at every level than at the one before;",
        "- partly: worse in the end, but not at every level;",
        f"- · : no reaction (below {SMALL_CHANGE:.0%} of the largest change by any damage);",
        "- mixed: a change, but not for the worse in the end; - : could not be measured.",
        "",
        "| metric | " + " | ".join(damage.label for damage in DAMAGES.values()) + " |",
        "| --- |" + " :---: |" * len(DAMAGES),
    ]
    for column in columns:
        signs = [SIGN[table[column.name][name]] for name in DAMAGES]
        lines.append(f"| {_label(column)} | " + " | ".join(signs) + " |")
    lines += [
        "",
        "![plot](sensitivity.png)",
        "",
        "Dotted: not worse at every level.",
        "",
        "## What to know",
        "",
        *_notes(few),
    ]
    for name, damage in DAMAGES.items():
        head = ["none", *(f"{level:g}" for level in damage.levels)]
        lines += ["", f"## {damage.label[0].upper()}{damage.label[1:]} ({damage.unit})", ""]
        lines += ["| metric | " + " | ".join(head) + " | |", "| --- |" + " ---: |" * len(head) + " :---: |"]
        for column in columns:
            numbers = [_number(value) for value in values[column.name][name]]
            lines.append(f"| {_label(column)} | " + " | ".join(numbers) + f" | {SIGN[table[column.name][name]]} |")
    return "\n".join(lines) + "\n"


def _notes(few: Sequence[int]) -> list[str]:
    notes = [
        "- `puppet-dynamics` was trained to tell frozen and shuffled clips: that DTFVD[puppet] sees them is by "
        "construction. It was not trained on blur, noise, other identities or offsets.",
        "- FG and BG halves use the puppet's true masks, moved and shuffled with the figure.",
        "- Faces are looked for where the truth has them: Face-Cos and Face-Exp cannot tell a moved face from another "
        "one.",
        "- DTFVD[puppet] has fewer clips than channels here; its values compare with each other, not with other "
        "numbers of clips.",
        "- Temporal energy, warping error and flicker are read together: blur lowers warping error, a frozen scene "
        "flicker.",
        "- Temporal energy ratios are medians over clips, and half of the scenes are static: the whole frame's hardly "
        "sees a frozen background, the background's does.",
        "- The soft outline of a figure lies half outside its mask and moves with it. Pose offset shows the clean "
        "scene there, which alone takes the background's temporal energy ratio to 0.31 (measured with an offset of 0).",
        "- An identity that changes within a clip is a jump in time, which DTFVD[puppet], temporal energy, flicker and "
        "drift see; another identity in the whole clip is none (level 4). Only Face-Cos is about who it is.",
        "- Without damage a clip is compared with itself: its PSNR is 100 dB by definition, and so is that of frames "
        "which a damage leaves alone.",
    ]
    if few:
        notes.append(
            f"- Face-Det, Face-Exp and PCK go through a detector made for people, on the first {few[0]} clips only. On "
            "puppets it finds some faces and joints, not all: look at their values without damage first."
        )
    return notes


def draw(values: Values, columns: Sequence[Column], table: Mapping[str, Mapping[str, str]], path: Path) -> None:
    """One panel per metric, one line per kind of damage, against the level. Args: path: PNG file, replaced."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = math.ceil(len(columns) / PER_ROW)
    figure = Figure(figsize=(3.0 * PER_ROW, 2.3 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    lines = []
    for k, column in enumerate(columns):
        axes = figure.add_subplot(rows, PER_ROW, k + 1)
        lines = [
            axes.plot(
                range(LEVELS + 1),
                values[column.name][name],
                color=colour,
                marker="o",
                markersize=3,
                linewidth=1.2,
                linestyle="-" if table[column.name][name] == "yes" else ":",
            )[0]
            for (name, _), colour in zip(DAMAGES.items(), COLOURS, strict=True)
        ]
        axes.set_title(_label(column), fontsize=9)
        axes.tick_params(labelsize=7)
        axes.set_xticks(range(LEVELS + 1), ["none", *map(str, range(1, LEVELS + 1))])
    for line in lines:
        line.set_linestyle("-")
    labels = [damage.label for damage in DAMAGES.values()]
    figure.legend(lines, labels, loc="outside lower center", ncols=len(labels), fontsize=9)
    figure.savefig(path, dpi=100, format="png")


def _label(column: Column) -> str:
    return f"{column.label} {ARROW.get(column.better, '→ 1')}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2e}" if value and abs(value) < 1e-3 else f"{value:.4g}"
