"""Face-Cos: whether the generated face is the same person's, by a face recognition network.

Shape legend: T frames, D channels of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from xdyna.evaluation.frames import FrameSequence
from xdyna.evaluation.metric import HIGHER, Case, Column, Metric, Record, Video, pooled, pooled_means
from xdyna.evaluation.store import ArrayCache

KEPT_VIDEOS = 6


class FaceEmbedder(Protocol):
    """Finds a face in a frame and describes whose it is.

    Attributes:
        name: of the network, e.g. "adaface-ir101".
        version: preprocessing and hash of the weights.
        dim: D.
    """

    name: str
    version: str
    dim: int

    def embed(self, frames: FrameSequence) -> np.ndarray:
        """uint8 (T, H, W, 3) RGB -> float32 (T, D) of length 1; NaN where no face is found."""
        ...


class FaceCos(Metric):
    """Face-Cos: cosine of the embeddings of the generated and the true face in the same frame, mean over all frames in
    which both faces are found. `_zero`: the same over all frames in which the true face is found, 0 where the
    generated one is not, so that an unrecognisable face costs something. Noted: the share of such frames.

    Each video is read at its own size, as the published programs read image files.

    Args:
        embedder: finds and describes faces.
        name: of the metric and its columns (NAME, NAME_zero).
        label: for tables.
        cache: keeps the embeddings; None: memory alone.
    """

    needs = frozenset({"truth"})

    def __init__(
        self,
        embedder: FaceEmbedder,
        *,
        name: str = "face_cos",
        label: str = "Face-Cos",
        cache: ArrayCache | None = None,
    ) -> None:
        self.name = name
        self.columns = (
            Column(name, label, HIGHER, digits=4),
            Column(f"{name}_zero", f"{label} (0 if lost)", HIGHER, digits=4),
        )
        self.version = f"1|{embedder.name}|{embedder.version}"
        self._embedder, self._cache = embedder, cache
        self._recent: dict[str, np.ndarray] = {}

    def measure(self, case: Case) -> Record:
        """See `Metric.measure`."""
        if case.truth is None:
            raise ValueError(f"{case.id} has no ground truth, which {self.name} compares with")
        truth, generated = self._embedded(case.truth), self._embedded(case.generated)
        length = min(len(truth), len(generated))
        cosine = (truth[:length].astype(np.float64) * generated[:length]).sum(axis=1)
        asked = ~np.isnan(truth[:length, 0])
        if not asked.any():
            raise ValueError("the truth shows no face that can be aligned")
        kept = cosine[asked]
        return Record(
            {
                **pooled(self.name, kept),
                **pooled(f"{self.name}_zero", np.nan_to_num(kept, nan=0.0)),
                **pooled("found", (~np.isnan(kept)).astype(float)),
            }
        )

    def reduce(self, records: Iterable[Record]) -> dict[str, float]:
        """See `Metric.reduce`."""
        means = {self.name: math.nan, f"{self.name}_zero": math.nan, "found": math.nan, **pooled_means(records)}
        means[f"{self.name}.found_share"] = means.pop("found")
        return means

    def _embedded(self, video: Video) -> np.ndarray:
        vectors = self._recent.get(video.digest)
        if vectors is None:
            key = f"face|{self.version}|{video.digest}"
            vectors = self._cache.get(key) if self._cache is not None else None
            if vectors is None:
                vectors = self._embedder.embed(video.frames)
                if self._cache is not None:
                    self._cache.put(key, vectors)
            if len(self._recent) >= KEPT_VIDEOS:
                self._recent.pop(next(iter(self._recent)))
            self._recent[video.digest] = vectors
        return vectors
