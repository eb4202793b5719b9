"""Metrics by name, with the networks, detectors and masks that they share."""

import difflib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol

from xdyna.config.eval import ClipProtocol
from xdyna.core.errors import UsageError
from xdyna.evaluation.masks import BACKGROUND, FIGURE, FULL, Masker
from xdyna.evaluation.metric import LOWER, Column, Metric
from xdyna.evaluation.metrics.distribution import FrechetMetric
from xdyna.evaluation.metrics.dynamics import AppearanceDrift, Flicker, TemporalRatio, WarpingError
from xdyna.evaluation.metrics.face_cos import FaceCos
from xdyna.evaluation.metrics.images import DEFINITIONS, FrameMetric
from xdyna.evaluation.metrics.people import FaceDetection, FaceExpression, PeopleReader, PoseAccuracy
from xdyna.evaluation.networks.lpips import LpipsMetric
from xdyna.evaluation.networks.registry import EXTRACTORS
from xdyna.evaluation.report import Skipped
from xdyna.evaluation.store import Store
from xdyna.evaluation.weights import MissingWeights
from xdyna.perception.base import get_backend


class Networks(Protocol):
    """Where networks come from, e.g. a `WeightsFolder`."""

    def extractor(self, name: str) -> Any:
        """The network of a name in `EXTRACTORS`, or of "insightface"; raises `MissingWeights`."""


class Shared:
    """What metrics share; each is made when the first metric asks for it.

    Args:
        store: keeps features and detections.
        weights: networks.
        clip: frames that networks of clips see.
        masks: "mediapipe" or "given".
        pose_backend: finds people.
        mtcnn_softmax: of AdaFace's detector, see `EvalConfig`.
    """

    def __init__(
        self,
        store: Store,
        weights: Networks,
        *,
        clip: ClipProtocol,
        masks: str,
        pose_backend: str,
        mtcnn_softmax: str = "classes",
    ) -> None:
        self.store, self.weights, self.clip, self.mtcnn_softmax = store, weights, clip, mtcnn_softmax
        self._masks, self._pose_backend = masks, pose_backend

    @cached_property
    def masker(self) -> Masker:
        """Figure masks."""
        return Masker(None if self._masks == "given" else self.backend)

    @cached_property
    def backend(self) -> Any:
        """Finds people, and segments them."""
        return get_backend(self._pose_backend if self._masks != "mediapipe" else "mediapipe")

    @cached_property
    def people(self) -> PeopleReader:
        """Largest person of every frame."""
        return PeopleReader(get_backend(self._pose_backend), cache=self.store)


def _frechet(name: str, label: str, extractor: str, region: str = FULL) -> Callable[[Shared], Metric]:
    def make(shared: Shared) -> Metric:
        spec = EXTRACTORS[extractor]
        return FrechetMetric(
            name,
            Column(name, label, LOWER, digits=3),
            shared.weights.extractor(extractor),
            ddof=spec.ddof,
            protocol=shared.clip if spec.kind == "clip" else None,
            region=region,
            masker=shared.masker if region != FULL else None,
            cache=shared.store,
        )

    return make


def _dtfvd(name: str, label: str, region: str) -> Callable[[Shared], Metric]:
    """16 frames have a network of their own; longer clips take that of 32."""

    def make(shared: Shared) -> Metric:
        frames = 16 if shared.clip.frames <= 16 else 32
        return _frechet(name, f"{label} (I3D-DTDB, {frames} frames)", f"i3d_dtdb_{frames}", region)(shared)

    return make


def _face_cos(name: str, kind: str) -> Callable[[Shared], Metric]:
    """AdaFace behind its MTCNN."""

    def make(shared: Shared) -> Metric:
        softmax = shared.mtcnn_softmax
        label = f"Face-Cos (AdaFace {kind.upper().replace('IR', 'IR-')}, MTCNN over {softmax})"
        return FaceCos(
            shared.weights.extractor(f"adaface_{kind}_{softmax}"), name=name, label=label, cache=shared.store
        )

    return make


METRICS: dict[str, Callable[[Shared], Metric]] = {
    **{name: (lambda shared, name=name: FrameMetric(name)) for name in DEFINITIONS},  # type: ignore[misc]
    "lpips": lambda shared: LpipsMetric(shared.weights.extractor("lpips_vgg")),
    "lpips_disco": lambda shared: LpipsMetric(shared.weights.extractor("lpips_vgg"), disco=True),
    "fid": _frechet("fid", "FID (pytorch-fid)", "inception"),
    "dtfvd": _dtfvd("dtfvd", "DTFVD", FULL),
    "dtfvd_fg": _dtfvd("dtfvd_fg", "FG-DTFVD", FIGURE),
    "dtfvd_bg": _dtfvd("dtfvd_bg", "BG-DTFVD", BACKGROUND),
    "fvd": _frechet("fvd", "FVD (cd-fvd's i3d: 400 logits)", "i3d_kinetics"),
    "cd_fvd": _frechet("cd_fvd", "cd-FVD (VideoMAE-v2)", "videomae_ssv2"),
    "face_cos": _face_cos("face_cos", "ir101"),
    "face_cos_ir50": _face_cos("face_cos_ir50", "ir50"),
    "face_cos_insightface": lambda shared: FaceCos(
        shared.weights.extractor("insightface"),
        name="face_cos_insightface",
        label="Face-Cos (insightface)",
        cache=shared.store,
    ),
    "face_det": lambda shared: FaceDetection(shared.people),
    "face_exp": lambda shared: FaceExpression(shared.people),
    "pck": lambda shared: PoseAccuracy(shared.people),
    "temporal_ratio": lambda shared: TemporalRatio(),
    "temporal_ratio_fg": lambda shared: TemporalRatio(FIGURE, shared.masker),
    "temporal_ratio_bg": lambda shared: TemporalRatio(BACKGROUND, shared.masker),
    "warping_error": lambda shared: WarpingError(),
    "flicker": lambda shared: Flicker(),
    "appearance_drift": lambda shared: AppearanceDrift(shared.masker),
}


def check_names(names: Sequence[str]) -> list[str]:
    """Metric names, each once.

    Raises:
        UsageError: an unknown name; the nearest is named.
    """
    if not names:
        raise UsageError("no metric was asked for; give --metrics offline, table1, table2, table4, table5 or names")
    for name in names:
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UsageError(f"metric {name!r} is unknown; {hint}known are {', '.join(METRICS)}")
    return list(dict.fromkeys(names))


def make_metrics(names: Sequence[str], shared: Shared) -> tuple[list[Metric], list[Skipped]]:
    """Metrics, and those whose weights are not there.

    Args:
        names: as `check_names` gives them.
        shared: what they share.
    """
    metrics, skipped = [], []
    for name in names:
        try:
            metrics.append(METRICS[name](shared))
        except MissingWeights as missing:
            skipped.append(Skipped(name, str(missing)))
    return metrics, skipped
