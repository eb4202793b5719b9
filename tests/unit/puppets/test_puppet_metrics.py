"""Metrics of the puppet world against sums by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from xdyna.evaluation.masks import Masker
from xdyna.evaluation.metric import Case, Video
from xdyna.perception.types import PoseTrack, missing_points
from xdyna.puppets.expression import ExpressionReader
from xdyna.puppets.metrics import PuppetFaceCos, PuppetFaceExp, dtfvd, given_places
from xdyna.puppets.networks import PuppetDynamics, PuppetIdentity

SIDE = 64


def video(seed: int, count: int = 16, side: int = SIDE) -> Video:
    frames = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return Video(f"v{seed}", frames, 12.0, f"digest {seed} {count} {side}")


def faces(count: int = 16) -> np.ndarray:
    points = np.ones((count, 68, 3), np.float32)
    points[:, 0, :2], points[:, 16, :2] = (20, 30), (44, 30)
    return points


class Known(PuppetIdentity):
    """Says who it is by the first pixel: an angle in degrees."""

    def embed(self, frames: np.ndarray, face: np.ndarray) -> np.ndarray:
        angle = np.radians(frames[:, 0, 0, 0].astype(float))
        found = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
        found[face[:, 0, 2] == 0] = np.nan
        return found


def test_face_cos_by_hand() -> None:
    truth, generated, places = video(0), video(1), faces()
    places[4:6, 0, 2] = 0
    metric = PuppetFaceCos(Known(channels=(2, 2, 2, 2), dim=2), lambda case: places)
    records = [metric.measure(Case(str(k), generated, truth)) for k in range(2)]
    angles = [int(truth.frames[t, 0, 0, 0]) - int(generated.frames[t, 0, 0, 0]) for t in range(16) if t not in (4, 5)]
    expected = np.mean([np.cos(np.radians(angle)) for angle in angles])
    assert metric.reduce(records)["face_cos_puppet"] == pytest.approx(expected, abs=1e-6)
    assert metric.reduce([])["face_cos_puppet"] != metric.reduce([])["face_cos_puppet"]  # NaN
    places[:, 0, 2] = 0
    with pytest.raises(ValueError, match="shows no face"):
        metric.measure(Case("x", generated, truth))


def test_equal_videos_have_equal_faces() -> None:
    torch.manual_seed(0)
    case = Case("x", video(0), video(0))
    cos = PuppetFaceCos(PuppetIdentity(channels=(4, 4, 4, 4)).eval(), lambda case: faces())
    assert cos.reduce([cos.measure(case)])["face_cos_puppet"] == pytest.approx(1, abs=1e-5)
    exp = PuppetFaceExp(ExpressionReader(channels=(4, 4, 4), hidden=4).eval(), "v", lambda case: faces())
    assert exp.reduce([exp.measure(case)])["face_exp_puppet"] == 0


def test_face_exp_by_hand() -> None:
    class Reader(ExpressionReader):
        def read(self, frames: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
            assert (landmarks[:, 0, 2] > 0).all()
            return frames[:, 0, 0].astype(float) / 255

    truth, generated, places = video(0), video(1), faces()
    places[7, 16, 2] = 0
    metric = PuppetFaceExp(Reader(), "v", lambda case: places)
    error = [
        abs(float(truth.frames[t, 0, 0, c]) - float(generated.frames[t, 0, 0, c])) / 255
        for t in range(16)
        for c in range(3)
        if t != 7
    ]
    found = metric.reduce([metric.measure(Case("x", generated, truth))])
    assert found["face_exp_puppet"] == pytest.approx(np.mean(error))


def test_places_come_from_files_and_are_scaled(tmp_path: Path) -> None:
    track = PoseTrack(
        body=missing_points(16, 18),
        hands=missing_points(16, 2, 21),
        face=faces(),
        size=(SIDE, SIDE),
        times=np.arange(16) / 12,
        frame_index=np.arange(16),
        source="test",
    )
    track.save(tmp_path / "x.npz")
    case = Case("x", video(0), video(0, side=2 * SIDE))
    np.testing.assert_allclose(given_places(tmp_path)(case)[3, 16], (88, 60, 1))
    with pytest.raises(ValueError, match=r"y: no keypoints.*y\.npz"):
        given_places(tmp_path)(replace(case, id="y"))
    with pytest.raises(ValueError, match="has 16 frames, the truth 17"):
        given_places(tmp_path)(replace(case, truth=video(0, count=17)))


def test_dtfvd_of_equal_videos_and_of_whole_masks() -> None:
    torch.manual_seed(0)
    network = PuppetDynamics(("static", "fire"), ("still", "walk"), channels=(4, 4, 4, 4), dim=3).eval()
    network.load_weights(network.state_dict())
    full, figure, background = dtfvd(network, Masker(None))
    assert [m.name for m in (full, figure, background)] == ["dtfvd_puppet", "dtfvd_puppet_fg", "dtfvd_puppet_bg"]
    assert len({m.version for m in (full, figure, background)}) == 3
    whole = np.ones((16, SIDE, SIDE), bool)
    same = [Case(str(k), video(k), video(k), masks=(whole, whole)) for k in range(6)]
    other = [Case(str(k), video(k + 20), video(k), masks=(whole, whole)) for k in range(6)]
    assert full.reduce(map(full.measure, same))["dtfvd_puppet"] == pytest.approx(0, abs=1e-8)
    different = full.reduce(map(full.measure, other))["dtfvd_puppet"]
    assert different > 1e-6
    assert figure.reduce(map(figure.measure, other))["dtfvd_puppet_fg"] == pytest.approx(different)
    # Nothing is left of the background: black on both sides.
    assert background.reduce(map(background.measure, other))["dtfvd_puppet_bg"] == pytest.approx(0, abs=1e-8)
