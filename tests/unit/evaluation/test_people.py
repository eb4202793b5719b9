"""Faces, expressions and poses from points that are known, through a backend that reads them off the frames."""

import numpy as np
import pytest

from xdyna.evaluation.metric import Case, Metric, Record, Video
from xdyna.evaluation.metrics.people import (
    EXPRESSIONS,
    FaceDetection,
    FaceExpression,
    PeopleReader,
    PoseAccuracy,
    expression_coefficients,
)
from xdyna.evaluation.store import MemoryCache
from xdyna.perception.types import Person


def face(**moves: float) -> np.ndarray:
    """A face of 68 points, eyes 60 px apart at (70, 100) and (130, 100), with some points moved."""
    p = np.zeros((68, 3))
    p[:, 2] = 1
    for first, x in ((36, 70), (42, 130)):
        for k, (dx, dy) in enumerate([(-12, 0), (-5, -4), (5, -4), (12, 0), (5, 4), (-5, 4)]):
            p[first + k, :2] = x + dx, 100 + dy
    p[17:22, 0], p[17:22, 1] = np.linspace(55, 85, 5), 82
    p[22:27, 0], p[22:27, 1] = np.linspace(115, 145, 5), 82
    p[33, :2], p[8, :2] = (100, 130), (100, 190)
    p[48, :2], p[54, :2], p[51, :2], p[57, :2] = (80, 160), (120, 160), (100, 154), (100, 166)
    p[62, :2], p[66, :2] = (100, 158), (100, 162)
    p[66, 1] += moves.get("open", 0)
    p[[48, 54], 1] -= moves.get("corners", 0)
    p[17:22, 1] -= moves.get("right_brow", 0)
    return p.astype(np.float32)


def body(shift: float = 0.0) -> np.ndarray:
    p = np.zeros((18, 3), np.float32)
    p[:, 0] = 50 + 10 * np.arange(18) % 70 + shift
    p[:, 1] = 20 + 10 * np.arange(18)  # from 20 to 190: the longer side is 170
    p[:, 2] = 1
    return p


class Scripted:
    """A backend that finds what stands in a table, under the frame's first pixel."""

    name, version = "scripted", "1"

    def __init__(self, table: dict[int, Person]) -> None:
        self.table, self.calls = table, 0

    def detect(self, frame: np.ndarray) -> list[Person]:
        self.calls += 1
        person = self.table.get(int(frame[0, 0, 0]))
        return [] if person is None else [person]


def person(points: np.ndarray | None = None, joints: np.ndarray | None = None) -> Person:
    empty = np.zeros((68, 3), np.float32)
    return Person(
        body() if joints is None else joints,
        np.zeros((2, 21, 3), np.float32),
        empty if points is None else points,
        np.array([0, 0, 200, 200], np.float32),
        1.0,
    )


def video(name: str, numbers: list[int], size: tuple[int, int] = (200, 200)) -> Video:
    frames = np.zeros((len(numbers), *size, 3), np.uint8)
    frames[:, 0, 0, 0] = numbers
    return Video(name, frames, 8.0, name)


def measured(metric: Metric, *cases: Case) -> dict[str, float]:
    return metric.reduce([metric.measure(c) for c in cases])


def test_coefficients_by_hand() -> None:
    values = dict(zip(EXPRESSIONS, expression_coefficients(face()[None])[0], strict=True))
    assert values == pytest.approx(
        {
            "mouth_open": 4 / 60,
            "mouth_width": 40 / 60,
            "smile": 0,
            "eye_right": 8 / 24,
            "eye_left": 8 / 24,
            "brow_right": 18 / 60,
            "brow_left": 18 / 60,
            "jaw": 1,
        }
    )


@pytest.mark.parametrize(
    ("move", "changed", "by"),
    [("open", "mouth_open", 0.2), ("corners", "smile", 0.2), ("right_brow", "brow_right", 0.2)],
)
def test_each_coefficient_is_its_own(move: str, changed: str, by: float) -> None:
    difference = expression_coefficients(face(**{move: 12})[None]) - expression_coefficients(face()[None])
    named = dict(zip(EXPRESSIONS, difference[0], strict=True))
    assert named.pop(changed) == pytest.approx(by)
    if changed == "smile":
        named.pop("mouth_width")
    assert named == pytest.approx(dict.fromkeys(named, 0), abs=1e-6)


def test_size_place_and_roll_do_not_matter() -> None:
    points = face(open=9, corners=4).astype(np.float64)
    angle = 0.4
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = points.copy()
    moved[:, :2] = 2.5 * points[:, :2] @ turn.T + [30, -80]
    np.testing.assert_allclose(expression_coefficients(moved[None]), expression_coefficients(points[None]), rtol=1e-9)
    assert np.isnan(expression_coefficients(np.zeros((1, 68, 3)))).all()


def test_faces_found() -> None:
    reader = PeopleReader(Scripted({1: person(face()), 2: person()}))
    assert measured(FaceDetection(reader), Case("a", video("v", [1, 1, 2, 0])))["face_det"] == 50


def test_expression_error_counts_frames_with_both_faces() -> None:
    reader = PeopleReader(Scripted({1: person(face()), 2: person(face(open=12)), 3: person(face(right_brow=24))}))
    driving = video("d", [1, 1, 1, 0])
    result = measured(FaceExpression(reader), Case("a", video("g", [1, 2, 0, 2]), driving=driving))
    assert result["face_exp"] == pytest.approx((0 + 0.2 / 8) / 2)
    assert result["face_exp.valid_share"] == pytest.approx(2 / 3)
    worse = measured(FaceExpression(reader), Case("b", video("h", [3, 3, 3, 3]), driving=driving))
    assert worse["face_exp"] == pytest.approx(0.4 / 8)
    truth_drives = measured(FaceExpression(reader), Case("a", video("g2", [2]), truth=video("t", [1])))
    assert truth_drives["face_exp"] == pytest.approx(0.2 / 8)


def test_pck_by_hand() -> None:
    some = body()
    some[:9, 1] += 40  # 40 px: more than 0.2 * 170 = 34
    some[9:12, 1] += 20  # more than 17
    unseen = body()
    unseen[:3] = 0
    table = {1: person(joints=body()), 2: person(joints=body(10.0)), 3: person(joints=some), 4: person(joints=unseen)}
    reader = PeopleReader(Scripted(table))

    def of(*numbers: int) -> Record:
        return PoseAccuracy(reader).measure(Case("a", video(str(numbers), list(numbers)), driving=video("d", [1])))

    results = {k: PoseAccuracy(reader).reduce([of(k)]) for k in (1, 2, 3, 4)}
    assert results[1] == {"pck_0.1": 100, "pck_0.2": 100}
    assert results[2] == {"pck_0.1": 100, "pck_0.2": 100}  # 10 px of 170
    assert results[3] == {"pck_0.1": pytest.approx(100 * 6 / 18), "pck_0.2": pytest.approx(50)}
    assert results[4]["pck_0.1"] == pytest.approx(100 * 15 / 18)


def test_sizes_of_the_two_videos_may_differ() -> None:
    half = body()
    half[:, :2] /= 2
    reader = PeopleReader(Scripted({1: person(joints=body()), 2: person(joints=half)}))
    case = Case("a", video("g", [2], (100, 100)), driving=video("d", [1]))
    assert measured(PoseAccuracy(reader), case)["pck_0.1"] == 100


def test_one_detection_serves_all_metrics_and_later_runs() -> None:
    backend, cache = Scripted({1: person(face())}), MemoryCache()
    reader = PeopleReader(backend, cache=cache)
    case = Case("a", video("g", [1, 1]), driving=video("d", [1, 1]))
    for metric in (FaceDetection(reader), FaceExpression(reader), PoseAccuracy(reader)):
        metric.measure(case)
    assert backend.calls == 4
    again = PeopleReader(backend, cache=cache)
    assert FaceDetection(again).measure(case) == FaceDetection(reader).measure(case)
    assert backend.calls == 4


def test_nobody_is_said() -> None:
    reader = PeopleReader(Scripted({}))
    with pytest.raises(ValueError, match="nobody is found in the driving video"):
        PoseAccuracy(reader).measure(Case("a", video("g", [1]), driving=video("d", [1])))
    with pytest.raises(ValueError, match="neither driving"):
        FaceExpression(reader).measure(Case("a", video("g", [1])))
