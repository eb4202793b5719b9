"""The log of a run: `metrics.csv` and sample images always, and a tracker by choice.

`metrics.csv` has one row per number (step, name, value). On resuming, rows after the checkpoint are dropped, so that
the curve of a run that was interrupted equals that of one that was not.
"""

import csv
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from xdyna.core.atomic import write_file
from xdyna.training.curves import draw_curves
from xdyna.training.errors import TrainingError
from xdyna.training.trackers import open_tracker

METRICS, SAMPLES = "metrics.csv", "samples"
HEADER = ("step", "name", "value")
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)*")


class RunLog:
    """Writes what a run measures. One per run: in the main process.

    Args:
        run_dir: folder of the run.
        tracker: "none", "wandb" (offline unless WANDB_MODE is set) or "tensorboard".
        name: of the run, as trackers show it.
        config: plain nested dict, as trackers show it.
        resume_step: step of the checkpoint that the run goes on from; 0 for a new run.

    Raises:
        TrainingError: an unknown tracker, its package is missing, a metrics.csv that this program did not write, or the
            folder cannot be written to.
    """

    def __init__(self, run_dir: Path, tracker: str, *, name: str, config: dict[str, Any], resume_step: int) -> None:
        self.run_dir, self.path = run_dir, run_dir / METRICS
        self._tracker = open_tracker(tracker, run_dir, name=name, config=config, resume_step=resume_step)
        try:
            write_file(self.path, _kept_rows(self.path, resume_step).encode())
            self._file = self.path.open("a", newline="", encoding="utf-8")
        except OSError as error:
            raise _writing_error(self.path, error) from error

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log numbers of a step; they are on file when this returns, in full precision.

        Log the numbers of a step before its checkpoint is saved: they are kept when the run resumes there.

        Raises:
            TrainingError: the file cannot be written.
        """
        rows = io.StringIO()
        csv.writer(rows, lineterminator="\n").writerows(
            (step, name, repr(float(value))) for name, value in values.items()
        )
        try:
            self._file.write(rows.getvalue())
            self._file.flush()
        except OSError as error:
            raise _writing_error(self.path, error) from error
        if self._tracker is not None:
            self._tracker.scalars(step, values)

    def images(self, step: int, name: str, image: np.ndarray) -> Path:
        """Log an image; it is also written as a PNG.

        Args:
            step: of the run.
            name: letters, digits, "_", "-", "." and "/", such as "val/clip-3".
            image: uint8 (H, W, 3), RGB; several images as one sheet.

        Returns:
            Path: RUN/samples/step-00001000/<name>.png

        Raises:
            TrainingError: another shape or type, an unusable name, or the file cannot be written.
        """
        _check(image, name, axes=3)
        path = _write_png(self.run_dir / SAMPLES / f"step-{step:08d}" / f"{name}.png", image)
        if self._tracker is not None:
            self._tracker.image(step, name, image)
        return path

    def video(self, step: int, name: str, frames: np.ndarray, fps: float) -> None:
        """Hand a clip to the tracker; files of clips are the caller's.

        Args:
            step: of the run.
            name: as for `images`.
            frames: uint8 (T, H, W, 3), RGB.
            fps: frames per second, > 0.

        Raises:
            TrainingError: another shape or type, or an unusable name.
        """
        _check(frames, name, axes=4)
        if self._tracker is not None:
            self._tracker.video(step, name, frames, fps)

    def close(self) -> None:
        """Finish the tracker and the file."""
        self._file.close()
        if self._tracker is not None:
            self._tracker.close()


def read_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves in a metrics.csv, in the order of their first rows; a last row that was cut off is left out.

    Returns:
        dict[str, list[tuple[int, float]]]: step and value by name.

    Raises:
        TrainingError: missing, or not such a file.
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    for step, name, value in _rows(path):
        curves.setdefault(name, []).append((step, float(value)))
    return curves


def plot_curves(metrics: Path, png: Path, *, names: Sequence[str] | None = None) -> Path:
    """Draw curves of a metrics.csv as small charts; values that are not finite are left out.

    Args:
        metrics: the file that `RunLog` writes.
        png: the image to write; an existing one is replaced.
        names: what to draw, in this order; None for all whose name has "loss" in it.

    Returns:
        Path: `png`.

    Raises:
        TrainingError: no such file, no such names, no values, or the image cannot be written.
    """
    curves = read_metrics(metrics)
    chosen = [name for name in curves if "loss" in name] if names is None else list(names)
    there = f"it has {', '.join(curves) or 'no numbers'}"
    if absent := [name for name in chosen if name not in curves]:
        raise TrainingError(f"{metrics} has no {', '.join(absent)}; {there}")
    finite = {name: [(step, value) for step, value in curves[name] if math.isfinite(value)] for name in chosen}
    drawn = {name: points for name, points in finite.items() if points}
    if not drawn:
        raise TrainingError(f"{metrics} has no finite values of what is to be drawn; {there}")
    return _write_png(png, draw_curves(drawn))


def _write_png(path: Path, image: np.ndarray) -> Path:
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done, "PNG takes every uint8 (H, W, 3)"
    try:
        write_file(path, data.tobytes())
    except OSError as error:
        raise _writing_error(path, error) from error
    return path


def _rows(path: Path) -> list[tuple[int, str, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path} cannot be read ({error}); expected a metrics.csv of a run") from error
    whole = text[: text.rfind("\n") + 1]
    lines = list(csv.reader(io.StringIO(whole)))
    if not lines or tuple(lines[0]) != HEADER:
        raise TrainingError(f"{path} does not begin with {','.join(HEADER)}; expected a metrics.csv of a run")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            step, name, value = line
            float(value)
            rows.append((int(step), name, value))
        except ValueError as error:
            raise TrainingError(f"{path}, line {number}: expected step,name,value, got {','.join(line)!r}") from error
    return rows


def _kept_rows(path: Path, resume_step: int) -> str:
    rows = _rows(path) if path.exists() else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(row for row in rows if row[0] <= resume_step)
    return text.getvalue()


def _check(array: np.ndarray, name: str, *, axes: int) -> None:
    expected = "(H, W, 3)" if axes == 3 else "(T, H, W, 3)"
    if array.dtype != np.uint8 or array.ndim != axes or array.shape[-1] != 3 or 0 in array.shape:
        raise TrainingError(f"{name}: got {array.dtype} {array.shape}, expected uint8 {expected}")
    if not _NAME.fullmatch(name) or any(part.strip(".") == "" for part in name.split("/")):
        raise TrainingError(f"{name!r} cannot name a sample; use letters, digits, _ - . and /, such as val/clip-3")


def _writing_error(path: Path, error: OSError) -> TrainingError:
    return TrainingError(f"{path} cannot be written ({error}); make room on the disk or choose another folder")
