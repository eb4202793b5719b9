"""Face-Cos from embeddings that are known."""

import math

import numpy as np
import pytest

from xdyna.evaluation.metric import Case, Video
from xdyna.evaluation.metrics.face_cos import FaceCos
from xdyna.evaluation.store import MemoryCache


class Scripted:
    """An embedding in the plane at the angle (degrees) that the first pixel says; 255: no face."""

    name, version, dim = "scripted", "1", 2

    def __init__(self) -> None:
        self.calls = 0

    def embed(self, frames: np.ndarray) -> np.ndarray:
        self.calls += 1
        angle = np.radians(frames[:, 0, 0, 0].astype(float))
        vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
        vectors[frames[:, 0, 0, 0] == 255] = np.nan
        return vectors


def video(angles: list[int]) -> Video:
    frames = np.zeros((len(angles), 4, 4, 3), np.uint8)
    frames[:, 0, 0, 0] = angles
    return Video("v", frames, 8.0, str(angles))


def test_both_columns_by_hand() -> None:
    """Frames: equal; 60 degrees apart; generated face lost; true face missing; (a fifth generated frame, unpaired)."""
    metric = FaceCos(Scripted())
    case = Case("a", generated=video([10, 60, 255, 20, 0]), truth=video([10, 0, 0, 255]))
    values = metric.reduce([metric.measure(case)])
    assert values["face_cos"] == pytest.approx((1 + 0.5) / 2, abs=1e-6)
    assert values["face_cos_zero"] == pytest.approx((1 + 0.5 + 0) / 3, abs=1e-6)
    assert values["face_cos.found_share"] == pytest.approx(2 / 3)
    other = Case("b", generated=video([90, 90]), truth=video([0, 0]))
    both = metric.reduce([metric.measure(case), metric.measure(other)])
    assert both["face_cos"] == pytest.approx(1.5 / 4, abs=1e-6)  # over frames, not over videos
    assert {column.name for column in metric.columns} <= set(both)


def test_identical_videos_give_one_and_embeddings_are_kept() -> None:
    embedder, cache = Scripted(), MemoryCache()
    same = Case("a", generated=video([5, 90, 45]), truth=video([5, 90, 45]))
    metric = FaceCos(embedder, cache=cache)
    assert metric.reduce([metric.measure(same)])["face_cos"] == pytest.approx(1, abs=1e-6)
    FaceCos(embedder, cache=cache).measure(same)
    assert embedder.calls == 1
    assert "scripted" in metric.version


def test_nobody() -> None:
    metric = FaceCos(Scripted())
    with pytest.raises(ValueError, match="the truth shows no face"):
        metric.measure(Case("a", generated=video([1]), truth=video([255])))
    with pytest.raises(ValueError, match="no ground truth"):
        metric.measure(Case("a", generated=video([1])))
    lost = metric.reduce([metric.measure(Case("a", generated=video([255]), truth=video([1])))])
    assert math.isnan(lost["face_cos"])
    assert lost["face_cos_zero"] == lost["face_cos.found_share"] == 0
    assert math.isnan(metric.reduce([])["face_cos"])


def test_two_networks_are_two_metrics() -> None:
    other = FaceCos(Scripted(), name="face_cos_ir101", label="Face-Cos (IR-101)")
    case = Case("a", generated=video([60]), truth=video([0]))
    assert other.reduce([other.measure(case)])["face_cos_ir101"] == pytest.approx(0.5, abs=1e-6)
    assert not {column.name for column in other.columns} & {column.name for column in FaceCos(Scripted()).columns}
