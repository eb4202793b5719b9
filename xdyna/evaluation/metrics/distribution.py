"""Metrics that compare distributions of features: FID, DTFVD with its figure and background halves, cd-FVD, FVD.

Shape legend: T frames, N features, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from xdyna.config.eval import ClipProtocol
from xdyna.evaluation.clips import clip_indices, is_short
from xdyna.evaluation.masks import FULL, Masker, cut
from xdyna.evaluation.metric import Case, Column, Extractor, Metric, Record, Video
from xdyna.evaluation.metrics.frechet import Moments, frechet_distance
from xdyna.evaluation.store import ArrayCache


class FrechetMetric(Metric):
    """Frechet distance between the features of all true and of all generated videos.

    Args:
        name: as it is asked for, also the column's name.
        column: how it is shown.
        extractor: the network.
        ddof: of the covariance, 1 or 0; part of each metric's definition.
        protocol: clips that a network of clips sees; None: every frame is an image of its own (FID).
        region: "full", "figure" or "background"; the last two are cut out of truth and generated video separately.
        masker: where masks come from; needed for regions.
        cache: keeps the features of single videos, so that the truth is embedded once for many methods.
    """

    def __init__(
        self,
        name: str,
        column: Column,
        extractor: Extractor,
        *,
        ddof: int,
        protocol: ClipProtocol | None = None,
        region: str = FULL,
        masker: Masker | None = None,
        cache: ArrayCache | None = None,
    ) -> None:
        if region != FULL and masker is None:
            raise ValueError(f"{name} looks at the {region}: it needs a masker")
        self.name, self.columns = name, (column,)
        self.needs = frozenset({"truth"})
        self._extractor, self._ddof, self._protocol = extractor, ddof, protocol
        self._region, self._masker, self._cache = region, masker, cache
        parts = ["1", extractor.name, extractor.version, str(protocol), region]
        self.version = "|".join([*parts, masker.version if region != FULL and masker is not None else ""])

    def measure(self, case: Case) -> Record:
        """See `Metric.measure`."""
        assert case.truth is not None
        truth, generated = (
            self._features(case, video, which)
            for video, which in ((case.truth, "truth"), (case.generated, "generated"))
        )
        short = 0.0
        if self._protocol is not None:
            short = float(sum(is_short(self._protocol, len(v.frames)) for v in (case.truth, case.generated)))
        return Record({"short": short}, {"truth": truth, "generated": generated})

    def reduce(self, records: Iterable[Record]) -> dict[str, float]:
        """See `Metric.reduce`. Notes: numbers of features, short videos, and whether they are too few to trust."""
        truth, generated, short = Moments(self._extractor.dim), Moments(self._extractor.dim), 0.0
        for record in records:
            truth.add(record.arrays["truth"])
            generated.add(record.arrays["generated"])
            short += record.values["short"]
        fewest = min(truth.count, generated.count)
        value = math.nan if fewest <= self._ddof else frechet_distance(truth, generated, ddof=self._ddof)
        return {
            self.name: value,
            f"{self.name}.features_truth": float(truth.count),
            f"{self.name}.features_generated": float(generated.count),
            f"{self.name}.channels": float(self._extractor.dim),
            f"{self.name}.short_videos": short,
        }

    def per_video(self, record: Record) -> dict[str, float]:
        """Distributions have no value per video."""
        return {}

    def _features(self, case: Case, video: Video, which: str) -> np.ndarray:
        masks = None
        key = f"{self.version}|{video.digest}"
        if self._region != FULL:
            assert self._masker is not None
            masks = self._masker.masks(case, which)
            if case.masks is not None:
                key += f"|{case.digest}|{which}"
        if self._cache is not None and (known := self._cache.get(key)) is not None:
            return known
        frames = video.frames
        if self._protocol is None:
            features = self._extractor.features(frames if masks is None else cut(frames[:], masks, self._region))
        else:
            parts, clips, batch = [], clip_indices(self._protocol, len(frames)), self._extractor.batch
            for start in range(0, len(clips), batch):
                pixels = [
                    frames[clip] if masks is None else cut(frames[clip], masks[clip], self._region)
                    for clip in clips[start : start + batch]
                ]
                parts.append(self._extractor.features(pixels[0] if len(pixels) == 1 else np.stack(pixels)))
            features = np.concatenate(parts)
        features = np.asarray(features, dtype=np.float32)
        if self._cache is not None:
            self._cache.put(key, features)
        return features
