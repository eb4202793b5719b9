"""Command lines that need little time."""

from __future__ import annotations

from pathlib import Path

from tests.hostile.case import Place


def infer(
    place: Place,
    *more: str,
    ref: str | Path | None = None,
    drive: str | Path | None = None,
    checkpoint: str | Path | None = None,
    out: str = "out.mp4",
    points: bool = True,
    few: bool = True,
) -> list[str]:
    """Arguments of infer.py, `points` of the reference included: two frames, one step; what is not given is sound. Without `few`: all of them, as settings say."""
    words = [
        "--ref",
        place.shared / "ref.png" if ref is None else ref,
        "--drive",
        place.shared / "drive.npz" if drive is None else drive,
    ]
    words += ["--checkpoint", place.shared / "pipeline" if checkpoint is None else checkpoint, "--out", out]
    words += ["--ref-keypoints", place.shared / "ref.npz"] if points and "--ref-keypoints" not in more else []
    return [*map(str, words), *(("--steps=1", "guidance=1", "frames=2") if few else ()), *more]
