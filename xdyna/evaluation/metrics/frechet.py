"""Frechet distance between Gaussians fitted to two sets of features, in constant memory.

Shape legend: N features, D channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass
class Moments:
    """Count, mean and scatter of features, fed in portions of any size; all in float64.

    Attributes:
        dim: D.
        count: features so far.
        mean: (D,).
        scatter: (D, D) sum of (x - mean)(x - mean)^T.

    Source: Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """

    dim: int
    count: int = 0

    def __post_init__(self) -> None:
        self.mean = np.zeros(self.dim)
        self.scatter = np.zeros((self.dim, self.dim))

    def add(self, features_ND: np.ndarray) -> None:
        """Take features in.

        Args:
            features_ND: (N, D), finite.

        Raises:
            ValueError: another width, or NaN or infinity in them.
        """
        x = np.asarray(features_ND, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"features have shape {x.shape}, expected (any number, {self.dim})")
        if not np.isfinite(x).all():
            raise ValueError("features hold NaN or infinity: the network's weights or its input are damaged")
        if not len(x):
            return
        other = Moments(self.dim, len(x))
        other.mean = x.mean(axis=0)
        centred = x - other.mean
        other.scatter = centred.T @ centred
        self.merge(other)

    def merge(self, other: Moments) -> None:
        """Take in what another one has seen."""
        if other.dim != self.dim:
            raise ValueError(f"moments of {other.dim} channels cannot be merged with those of {self.dim}")
        if not other.count:
            return
        total = self.count + other.count
        delta = other.mean - self.mean
        self.scatter += other.scatter + np.outer(delta, delta) * (self.count * other.count / total)
        self.mean = self.mean + delta * (other.count / total)
        self.count = total

    def covariance(self, ddof: int) -> np.ndarray:
        """scatter / (N - ddof), (D, D).

        Args:
            ddof: 1 for the sample covariance (FID, DTFVD), 0 for the population's (cd-FVD).

        Raises:
            ValueError: not more than `ddof` features.
        """
        if self.count <= ddof:
            raise ValueError(
                f"a covariance was asked for after {self.count} features, expected at least {ddof + 1}; give more "
                "videos"
            )
        return self.scatter / (self.count - ddof)


def frechet_distance(a: Moments, b: Moments, *, ddof: int) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    The trace of the root is the sum of the roots of the eigenvalues of S1^(1/2) S2 S1^(1/2): both decompositions are
    of symmetric matrices, so that nothing complex can come out where features are fewer than channels.

    Args:
        a: of one set.
        b: of the other.
        ddof: see `Moments.covariance`.

    Returns:
        float: at least 0.

    Source: Dowson & Landau, 1982; Heusel et al., arXiv 1706.08500, eq. 6.
    """
    first, second = a.covariance(ddof), b.covariance(ddof)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    product = root @ second @ root
    cross = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    distance = float(((a.mean - b.mean) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * cross)
    return max(distance, 0.0) if not math.isnan(distance) else distance
