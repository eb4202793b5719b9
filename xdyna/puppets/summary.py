"""Numbers of one generated clip, and the tables of many."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xdyna.evaluation.metrics.images import psnr_float, ssim_grey
from xdyna.evaluation.metrics.regions import RegionQuality, temporal_energy
from xdyna.puppets.expression import READINGS, ExpressionReader
from xdyna.puppets.heldout import Task, true_readings
from xdyna.puppets.variants import VARIANTS

Numbers = dict[str, float]
Clips = Mapping[str, Mapping[int, Numbers]]
"""Numbers by variant and by clip."""

ENERGY_RANGE = (0.5, 2.0)  # generated / truth that counts as alive
SELF = ("full", "copy", "no_pose", "no_adapter", "no_face", "vae")
EXPRESSION = ("full", "no_face", "copy", "vae", "truth")
CROSS = ("cross_exact", "cross_aligned", "cross_copy", "cross_vae")


def measure(task: Task, frames: np.ndarray, reader: ExpressionReader) -> Numbers:
    """Compare a generated clip with the truth.

    Args:
        task: with the truth.
        frames: uint8 (T, H, W, 3).
        reader: of expressions.

    Returns:
        PSNR in dB and SSIM in the figure's region (over its pixels of all frames) and of whole frames (mean over
        frames, by the functions of `scripts/eval.py`: the numbers of docs/eval_tiny.md); temporal energy of the dynamic
        region, its truth, and their ratio (NaN for static scenes); mean absolute errors of mouth and eye opening; mean
        distance of the driving joints from the truth's in px.
    """
    truth = task.truth
    figure = RegionQuality.of(truth.frames, frames, truth.mask)
    pairs = list(zip(truth.frames, frames, strict=True))
    energy, true_energy = temporal_energy(frames, truth.dynamic), temporal_energy(truth.frames, truth.dynamic)
    error = np.abs(reader.read(frames, truth.face) - true_readings(truth)).mean(axis=0)
    by_name = dict(zip(READINGS, error.tolist(), strict=True))
    return {
        "psnr_figure": figure.psnr,
        "ssim_figure": figure.ssim,
        "psnr_frame": float(np.mean([psnr_float(*pair) for pair in pairs])),
        "ssim_frame": float(np.mean([ssim_grey(*pair) for pair in pairs])),
        "energy": energy,
        "energy_truth": true_energy,
        "energy_ratio": energy / true_energy if true_energy > 0 else math.nan,
        "mouth_error": by_name["mouth_open"],
        "eye_error": (by_name["eye_open_left"] + by_name["eye_open_right"]) / 2,
        "joint_distance": task.distance,
    }


def average(rows: Sequence[Numbers], name: str) -> float:
    """Mean over clips of a number, without NaN; NaN where nothing is left."""
    values = [row[name] for row in rows if not math.isnan(row[name])]
    return float(np.mean(values)) if values else math.nan


def gain(clips: Clips, better: str, worse: str, name: str = "psnr_figure") -> tuple[float, float, int]:
    """How much one variant is above another, on the clips that both have.

    Returns:
        Mean difference, its standard error (NaN for one clip), and the number of clips.
    """
    both = sorted(clips.get(better, {}).keys() & clips.get(worse, {}).keys())
    differences = [clips[better][k][name] - clips[worse][k][name] for k in both]
    differences = [value for value in differences if not math.isnan(value)]
    if not differences:
        return math.nan, math.nan, 0
    error = float(np.std(differences, ddof=1) / math.sqrt(len(differences))) if len(differences) > 1 else math.nan
    return float(np.mean(differences)), error, len(differences)


def energies(rows: Sequence[Numbers]) -> dict[str, Any]:
    """Temporal energy of dynamic scenes: ratio of the summed energies, median of the ratios, share within the range."""
    rows = [row for row in rows if not math.isnan(row["energy_ratio"])]
    if not rows:
        return {"clips": 0, "pooled": math.nan, "median": math.nan, "within": math.nan}
    ratios = np.array([row["energy_ratio"] for row in rows])
    pooled = sum(row["energy"] for row in rows) / sum(row["energy_truth"] for row in rows)
    within = float(np.mean((ratios >= ENERGY_RANGE[0]) & (ratios <= ENERGY_RANGE[1])))
    return {"clips": len(rows), "pooled": pooled, "median": float(np.median(ratios)), "within": within}


def summarise(clips: Clips, scenes: Mapping[int, str]) -> dict[str, Any]:
    """Everything the tables say.

    Args:
        clips: numbers by variant and clip.
        scenes: kind of scene by clip.

    Returns:
        "quality", "gains", "energy", "energy_by_scene", "expression": nested mappings of numbers.
    """
    quality = {}
    for name, rows in clips.items():
        numbers = ("psnr_figure", "ssim_figure", "psnr_frame", "ssim_frame", "joint_distance")
        quality[name] = {"clips": len(rows), **{n: average(list(rows.values()), n) for n in numbers}}
    pairs = [("full", other) for other in SELF[1:]]
    pairs += [(f"cross_{kind}", "cross_copy") for kind in ("exact", "aligned")]
    gains = {}
    for better, worse in pairs:
        value, error, count = gain(clips, better, worse)
        if count:
            gains[f"{better} - {worse}"] = {"clips": count, "psnr_figure": value, "standard_error": error}
    energy = {name: energies(list(clips[name].values())) for name in ("full", "copy", "vae") if name in clips}
    kinds = sorted({scenes[k] for k, row in clips.get("full", {}).items() if not math.isnan(row["energy_ratio"])})
    by_scene = {kind: energies([row for k, row in clips["full"].items() if scenes[k] == kind]) for kind in kinds}
    expression, compared = {}, [name for name in EXPRESSION if clips.get(name)]
    common = set.intersection(*(set(clips[name]) for name in compared)) if compared else set()
    for name in compared:  # on the clips that all of them have
        rows = {k: clips[name][k] for k in sorted(common)}
        if rows:
            errors = {n: average(list(rows.values()), n) for n in ("mouth_error", "eye_error")}
            expression[name] = {"clips": len(rows), **errors}
    return {
        "quality": {name: row for name, row in quality.items() if name in VARIANTS},
        "gains": gains,
        "energy": energy,
        "energy_by_scene": by_scene,
        "expression": expression,
    }


def tables(summary: Mapping[str, Any]) -> str:
    """The summary as Markdown."""
    parts = []
    for title, names in (("Self-driven", SELF), ("Cross-driven", CROSS)):
        rows = [
            [VARIANTS[name].label, row["clips"], *_f(row, "psnr_figure", 2), *_f(row, "ssim_figure", 3)]
            + [*_f(row, "psnr_frame", 2), *_f(row, "ssim_frame", 3), _gain(summary["gains"], name)]
            for name, row in summary["quality"].items()
            if name in names
        ]
        rows.sort(key=lambda row: row[0])
        head = ["", "N", "PSNR figure", "SSIM figure", "PSNR frame", "SSIM frame"]
        head.append("(a) above it, dB in the figure" if title == "Self-driven" else "above (b), dB in the figure")
        if rows:
            parts.append(f"### {title}\n\n{_table(head, rows)}")
    if "cross_aligned" in summary["quality"]:
        distance = summary["quality"]["cross_aligned"]["joint_distance"]
        parts.append(
            f"The aligned joints are {distance:.1f} px from the truth's on average: where in the image the other "
            "person would move is not known from its reference, which counts as an error here."
        )
    for title, key in (("Temporal energy", "energy"), ("Temporal energy of (a) by scene", "energy_by_scene")):
        rows = [
            [VARIANTS[name].label if name in VARIANTS else name, row["clips"], *_f(row, "pooled", 2)]
            + [*_f(row, "median", 2), f"{row['within']:.0%}" if row["clips"] else "-"]
            for name, row in summary[key].items()
        ]
        head = ["", "N", "generated / truth, pooled", "median", f"clips within {ENERGY_RANGE[0]} - {ENERGY_RANGE[1]}"]
        if rows:
            parts.append(f"### {title}\n\n{_table(head, rows)}")
    labels = {"full": "(a) full, with C_F", "truth": "the truth itself (error of the reader)"}
    rows = [
        [labels.get(name) or VARIANTS[name].label, row["clips"], *_f(row, "mouth_error", 3), *_f(row, "eye_error", 3)]
        for name, row in summary["expression"].items()
    ]
    if rows:
        parts.append(
            f"### Expression: mean absolute error\n\n{_table(['', 'N', 'mouth opening', 'eye opening'], rows)}"
        )
    return "\n\n".join(parts)


def _gain(gains: Mapping[str, Mapping[str, float]], name: str) -> str:
    row = gains.get(f"full - {name}") or gains.get(f"{name} - cross_copy")
    if row is None:
        return "-"
    error = "" if math.isnan(row["standard_error"]) else f" ± {row['standard_error']:.2f}"
    return f"{row['psnr_figure']:+.2f}{error} ({row['clips']})"


def _f(row: Mapping[str, float], name: str, digits: int) -> list[str]:
    return ["-" if math.isnan(row[name]) else f"{row[name]:.{digits}f}"]


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [list(head), ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def without_nan(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, dict):
        return {str(key): without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
