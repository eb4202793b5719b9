"""Metrics of the puppet world: DTFVD, Face-Cos and Face-Exp through the small networks that are trained on it.

Detectors made for people are unreliable on puppets, so that the places of faces are given: the keypoints of the truth,
which the generated video should follow. A generated face that is elsewhere is cut out wrongly, and counts as different.

Shape legend: T frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from xdyna.config.eval import ClipProtocol
from xdyna.evaluation.masks import BACKGROUND, FIGURE, FULL, Masker
from xdyna.evaluation.metric import HIGHER, LOWER, Case, Column, Metric, Record, pooled, pooled_means
from xdyna.evaluation.metrics.distribution import FrechetMetric
from xdyna.evaluation.store import ArrayCache
from xdyna.perception.types import PoseTrack
from xdyna.puppets.expression import ExpressionReader
from xdyna.puppets.networks import CLIP_FRAMES, PuppetDynamics, PuppetIdentity, seen_faces

Places = Callable[[Case], np.ndarray]
"""Where the faces of a case's truth are: (T, 68, 3) iBUG-68, x, y in px of the truth's frames, and confidence."""

_HALVES = {FULL: ("", ""), FIGURE: ("_fg", "FG-"), BACKGROUND: ("_bg", "BG-")}


def given_places(folder: Path) -> Places:
    """Faces from files of keypoints, one `ID.npz` per case (`PoseTrack.save`).

    Args:
        folder: of the files.

    Returns:
        A function that raises a ValueError where a file is missing, or is of fewer frames than the truth.
    """

    def places(case: Case) -> np.ndarray:
        assert case.truth is not None
        path, frames = folder / f"{case.id}.npz", case.truth.frames
        if not path.is_file():
            raise ValueError(f"{case.id}: no keypoints of the truth; expected {path}, written by PoseTrack.save")
        track = PoseTrack.load(path)
        if len(track.face) < len(frames):
            raise ValueError(f"{path} has {len(track.face)} frames, the truth {len(frames)}; give one per frame")
        height, width = track.size
        scale = np.array([frames.shape[2] / width, frames.shape[1] / height, 1.0])
        return np.asarray(track.face[: len(frames)] * scale)

    return places


def dtfvd(
    network: PuppetDynamics, masker: Masker, *, protocol: ClipProtocol | None = None, cache: ArrayCache | None = None
) -> list[FrechetMetric]:
    """`dtfvd_puppet` and its halves `dtfvd_puppet_fg` and `dtfvd_puppet_bg`.

    Args:
        network: puppet-dynamics.
        masker: of figures, for the halves.
        protocol: clips of 16 frames; None: the first 16 frames of each video, at their own rate.
        cache: of features.
    """
    protocol = ClipProtocol(frames=CLIP_FRAMES) if protocol is None else protocol
    metrics = []
    for region, (suffix, label) in _HALVES.items():
        name = f"dtfvd_puppet{suffix}"
        column = Column(name, f"{label}DTFVD[puppet]", LOWER, digits=2)
        metrics.append(
            FrechetMetric(name, column, network, ddof=1, protocol=protocol, region=region, masker=masker, cache=cache)
        )
    return metrics


class PuppetFaceCos(Metric):
    """Face-Cos[puppet]: cosine of the identity vectors of generated and true head in the same frame, mean over frames
    in which the truth's face is in the image. 1 is the same person; two people are near 0.

    Args:
        network: puppet-identity.
        places: where the faces are.
    """

    name = "face_cos_puppet"
    needs = frozenset({"truth"})
    columns = (Column("face_cos_puppet", "Face-Cos[puppet]", HIGHER, digits=3),)

    def __init__(self, network: PuppetIdentity, places: Places) -> None:
        self._network, self._places = network, places
        self.version = f"1|{network.version}|given places"

    def measure(self, case: Case) -> Record:
        """See `Metric.measure`."""
        truth, generated = (frames[:] for frames in case.paired)
        faces = self._places(case)[: len(truth)]
        cosine = (self._network.embed(truth, faces) * self._network.embed(generated, faces)).sum(axis=1)
        if np.isnan(cosine).all():
            raise ValueError("the truth shows no face")
        return Record(pooled("face_cos_puppet", cosine))

    def reduce(self, records: Iterable[Record]) -> dict[str, float]:
        """See `Metric.reduce`."""
        return {"face_cos_puppet": float("nan"), **pooled_means(records)}


class PuppetFaceExp(Metric):
    """Face-Exp[puppet]: mean absolute difference between mouth and eye opening (0 shut to 1 wide open) read from the
    generated and from the true face in the same frame, over three readings and frames in which the truth's face is in
    the image.

    Args:
        reader: puppet-expression.
        version: of the reader's weights, for stored records.
        places: where the faces are.
    """

    name = "face_exp_puppet"
    needs = frozenset({"truth"})
    columns = (Column("face_exp_puppet", "Face-Exp[puppet]", LOWER, digits=3),)

    def __init__(self, reader: ExpressionReader, version: str, places: Places) -> None:
        self._reader, self._places = reader, places
        self.version = f"1|{version}|given places"

    def measure(self, case: Case) -> Record:
        """See `Metric.measure`."""
        truth, generated = (frames[:] for frames in case.paired)
        faces = self._places(case)[: len(truth)]
        seen = seen_faces(faces)
        if not seen.any():
            raise ValueError("the truth shows no face")
        read = [self._reader.read(frames[seen], faces[seen]) for frames in (truth, generated)]
        return Record(pooled("face_exp_puppet", np.abs(read[0] - read[1]).mean(axis=1)))

    def reduce(self, records: Iterable[Record]) -> dict[str, float]:
        """See `Metric.reduce`."""
        return {"face_exp_puppet": float("nan"), **pooled_means(records)}
