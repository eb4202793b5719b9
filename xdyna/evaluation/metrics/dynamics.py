"""Is the scene alive, and is it steady: temporal energy, warping error, flicker, drift of the looks.

Shape legend: T frames, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import cv2
import numpy as np

from xdyna.evaluation.masks import BACKGROUND, FIGURE, FULL, Masker
from xdyna.evaluation.metric import LOWER, ONE, Case, Column, Metric, Record, pooled, pooled_means
from xdyna.evaluation.metrics.regions import temporal_energy

SUFFIX = {FULL: "", FIGURE: "_fg", BACKGROUND: "_bg"}
LABEL = {FULL: "", FIGURE: "FG-", BACKGROUND: "BG-"}
STILL = 2  # grey levels that a static pixel may change by
DRIFT_STEP = 16  # frames


class TemporalRatio(Metric):
    """Temporal energy of the generated video / of the truth: 1 is as lively as the truth, 0 a still image.

    Temporal energy is the mean squared difference of neighbouring frames, over the pixels that belong to the region in
    both (`xdyna.evaluation.metrics.regions.TemporalEnergy`). Reported is the median over videos; noted the share of
    videos within 0.5 to 2.

    Args:
        region: "full", "figure" or "background".
        masker: for the last two.
    """

    def __init__(self, region: str = FULL, masker: Masker | None = None) -> None:
        self._region, self._masker = region, masker
        self.name = f"temporal_ratio{SUFFIX[region]}"
        self.version = f"1|{region}|{masker.version if masker is not None and region != FULL else ''}"
        self.needs = frozenset({"truth"})
        self.columns = (Column(self.name, f"{LABEL[region]}Temporal energy ratio", ONE, digits=3),)

    def measure(self, case: Case) -> Record:
        """See `Metric.measure`."""
        assert case.truth is not None
        values = {}
        for which, video in (("truth", case.truth), ("generated", case.generated)):
            if len(video.frames) < 2:
                raise ValueError(f"the {which} video has one frame; temporal energy needs two")
            masks = None
            if self._region != FULL:
                assert self._masker is not None
                masks = self._masker.masks(case, which)
                masks = masks if self._region == FIGURE else ~masks
            values[which] = temporal_energy(video.frames, masks)
        if any(math.isnan(value) for value in values.values()):
            raise ValueError(f"the {self._region} is empty in all pairs of frames")
        if values["truth"] == 0:
            raise ValueError("the truth does not move: there is nothing to compare with")
        return Record(values)

    def per_video(self, record: Record) -> dict[str, float]:
        """The ratio of one video."""
        return {self.name: record.values["generated"] / record.values["truth"]}

    def reduce(self, records: Iterable[Record]) -> dict[str, float]:
        """See `Metric.reduce`."""
        ratios = [self.per_video(record)[self.name] for record in records]
        if not ratios:
            return {self.name: math.nan}
        within = float(np.mean([0.5 <= ratio <= 2 for ratio in ratios]))
        return {self.name: float(np.median(ratios)), f"{self.name}.within_half_and_double": within}


def optical_flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Where the pixels of the first frame are in the second (DIS, medium preset).

    Args:
        first: uint8 (H, W, 3).
        second: uint8 (H, W, 3).

    Returns:
        float32 (H, W, 2), x and y in px.

    Source: Kroeger et al., arXiv 1603.03590, as OpenCV has it.
    """
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (first, second)]
    engine = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return np.asarray(engine.calc(grey[0], grey[1], None), dtype=np.float32)


def warp(frame: np.ndarray, flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fetch each pixel from where the flow says it is.

    Args:
        frame: (H, W, C), uint8 or float32.
        flow: float32 (H, W, 2).

    Returns:
        The frame in the first frame's place, float32 (H, W, C), and which pixels came from inside, bool (H, W).
    """
    height, width = flow.shape[:2]
    x = np.arange(width, dtype=np.float32)[None] + flow[..., 0]
    y = np.arange(height, dtype=np.float32)[:, None] + flow[..., 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    moved = cv2.remap(frame.astype(np.float32), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return moved, inside


def visible(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """Pixels that are seen in both frames: going there and back ends where it began.

    |f + b'|^2 < 0.01 (|f|^2 + |b'|^2) + 0.5 with b' the backward flow at the place that f leads to.

    Args:
        forward: float32 (H, W, 2), px.
        backward: float32 (H, W, 2), px.

    Returns:
        bool (H, W).

    Source: Sundaram et al., ECCV 2010, eq. 5; as in Lai et al., arXiv 1808.00449, section 4.
    """
    back, inside = warp(backward, forward)
    error = ((forward + back) ** 2).sum(axis=2)
    return inside & (error < 0.01 * ((forward**2).sum(axis=2) + (back**2).sum(axis=2)) + 0.5)


class WarpingError(Metric):
    """How much of the generated video's change is not motion.

    The optical flow of the truth brings frame t + 1 of the generated video back onto frame t; the mean squared
    difference in [0, 1]^2 over pixels that the truth shows in both frames (Lai et al., arXiv 1808.00449, eq. 8), times
    1000. The motion is the truth's: a still video is moved, too, and scores badly where the truth moves; a blurred one
    scores better. Noted: the truth's own error, the floor that the flow's mistakes set.
    """

    name, version = "warping_error", "1"
    needs = frozenset({"truth"})
    columns = (Column("warping_error", "Warping error x 1000", LOWER, digits=3),)

    def measure(self, case: Case) -> Record:
        """See `Metric.measure`."""
        truth, generated = case.paired
        if len(truth) < 2:
            raise ValueError("a video has one frame; the warping error needs two")
        errors: dict[str, list[float]] = {"warping_error": [], "floor": []}
        for t in range(len(truth) - 1):
            forward, backward = optical_flow(truth[t], truth[t + 1]), optical_flow(truth[t + 1], truth[t])
            seen = visible(forward, backward)
            for name, frames in (("warping_error", generated), ("floor", truth)):
                moved, _ = warp(frames[t + 1], forward)
                squared = ((frames[t] - moved) / 255) ** 2
                errors[name].append(1000 * float(squared[seen].mean()) if seen.any() else math.nan)
        return Record({**pooled("warping_error", errors["warping_error"]), **pooled("floor", errors["floor"])})

    def reduce(self, records: Iterable[Record]) -> dict[str, float]:
        """See `Metric.reduce`."""
        means = {"warping_error": math.nan, "floor": math.nan, **pooled_means(records)}
        return {"warping_error": means["warping_error"], "warping_error.of_the_truth": means["floor"]}


class Flicker(Metric):
    """Trembling where the truth stands still: root mean square of x(t-1) - 2 x(t) + x(t+1), in grey levels, over pixels
    that change by at most 2 levels in three neighbouring frames of the truth.
    """

    name, version = "flicker", "1"
    needs = frozenset({"truth"})
    columns = (Column("flicker", "Flicker", LOWER, digits=3),)

    def measure(self, case: Case) -> Record:
        """See `Metric.measure`."""
        truth, generated = case.paired
        if len(truth) < 3:
            raise ValueError("flicker needs three frames")
        values = []
        for t in range(1, len(truth) - 1):
            three = truth[t - 1 : t + 2].astype(np.int16)
            still = (np.abs(np.diff(three, axis=0)) <= STILL).all(axis=(0, 3))
            before, now, after = generated[t - 1 : t + 2].astype(np.float64)
            curvature = ((before - 2 * now + after) ** 2).mean(axis=2)
            values.append(float(curvature[still].mean()) if still.any() else math.nan)
        record = Record(pooled("flicker", values))
        if not record.values["flicker.count"]:
            raise ValueError("nothing stands still in the truth")
        return record

    def per_video(self, record: Record) -> dict[str, float]:
        """The root mean square of one video."""
        return {"flicker": math.sqrt(pooled_means([record])["flicker"])}

    def reduce(self, records: Iterable[Record]) -> dict[str, float]:
        """See `Metric.reduce`."""
        return {"flicker": math.sqrt(pooled_means(records).get("flicker", math.nan))}


class AppearanceDrift(Metric):
    """Do the figure's looks change with time.

    The slope, per 16 frames, of the distance between the colours of the figure in frame t and in the first frame:
    Bhattacharyya distance in [0, 1] of Lab histograms of 8 x 8 x 8 cells, least squares through the origin.

    Args:
        masker: where the figure is.
    """

    name = "appearance_drift"
    needs = frozenset[str]()
    columns = (Column("appearance_drift", "Appearance drift / 16 frames", LOWER, digits=4),)

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self.version = f"2|{masker.version}"

    def measure(self, case: Case) -> Record:
        """See `Metric.measure`."""
        frames, masks = case.generated.frames, self._masker.masks(case, "generated")
        histograms = [_colours(frame, mask) for frame, mask in zip(frames, masks, strict=True)]
        if histograms[0] is None:
            raise ValueError("no figure in the first frame")
        times, distances = [], []
        for t, histogram in enumerate(histograms[1:], start=1):
            if histogram is not None:
                times.append(t / DRIFT_STEP)
                same = np.array_equal(histograms[0], histogram)  # rounding must not make a still video drift
                distances.append(0.0 if same else cv2.compareHist(histograms[0], histogram, cv2.HISTCMP_BHATTACHARYYA))
        if not times:
            raise ValueError("the figure is seen in the first frame alone")
        slope = float(np.dot(times, distances) / np.dot(times, times))
        return Record({"appearance_drift.sum": slope, "appearance_drift.count": 1.0})

    def reduce(self, records: Iterable[Record]) -> dict[str, float]:
        """See `Metric.reduce`."""
        return {"appearance_drift": math.nan, **pooled_means(records)}


def _colours(frame: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
    if not mask.any():
        return None
    lab = cv2.cvtColor(frame, cv2.COLOR_RGB2LAB)
    histogram = cv2.calcHist([lab], [0, 1, 2], mask.astype(np.uint8), [8, 8, 8], [0, 256] * 3)
    return np.asarray(histogram / histogram.sum(), dtype=np.float32)
