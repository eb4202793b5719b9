"""The rules around MediaPipe's models, with models that are told what they see: no package, no weights."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from xdyna.perception import mediapipe_backend as module
from xdyna.perception.mediapipe_backend import MediaPipeBackend
from xdyna.perception.topology import LEFT_ELBOW, LEFT_WRIST, NECK, RIGHT_ELBOW, RIGHT_WRIST

SIDE = 240


@pytest.fixture
def frame() -> np.ndarray:
    """Says of every part of it where that lies: red is x, green is y."""
    ys, xs = np.mgrid[:SIDE, :SIDE]
    return np.stack([xs, ys, 0 * xs], axis=-1).astype(np.uint8)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> MediaPipeBackend:
    """Finds nobody yet."""
    monkeypatch.setattr(module.models, "as_image", lambda image: image)
    made = object.__new__(MediaPipeBackend)
    made._quiet_calls = {"pose", "hand", "face", "faces", "masks", "selfie"}
    nobody = SimpleNamespace(pose_landmarks=[], hand_landmarks=[], handedness=[])
    vars(made).update(
        _landmarker=SimpleNamespace(detect=lambda image: nobody), _hands=SimpleNamespace(detect=lambda image: nobody),
        _faces=lambda image: np.zeros((0, 4)), _mesh=lambda image: None,
    )  # fmt: skip
    return made


def standing(*, left: float = 20, top: float = 20, height: float = 100, sure: float = 0.95) -> np.ndarray:
    """(33, 3) in px of the frame: from the nose down to the feet."""
    x = left + height * np.tile([0.1, 0.2, 0.3], 11)
    return np.column_stack([x, top + height * np.linspace(0, 1, 33), np.full(33, sure)])


def sees(poses: Callable[[np.ndarray], list[np.ndarray]]) -> Any:
    """A landmarker; `poses` is given a part of the frame and says who is found in it, in px of the frame."""

    def detect(image: np.ndarray) -> Any:
        left, top = (int(v) for v in image[0, 0, :2])
        height, width = image.shape[:2]
        found = [
            [SimpleNamespace(x=(x - left + 0.5) / width, y=(y - top + 0.5) / height, visibility=v) for x, y, v in pose]
            for pose in poses(image)
        ]
        return SimpleNamespace(pose_landmarks=found)

    return SimpleNamespace(detect=detect)


def whole(image: np.ndarray) -> bool:
    return image.shape[:2] == (SIDE, SIDE)


def test_the_body_of_a_face_is_found_where_that_is(backend, frame) -> None:
    """In a crop below it, in which somebody else stands, too."""
    own, other = standing(left=150, top=90), standing(left=110, top=110)
    nose = own[0, :2]
    size = 12 / SIDE
    vars(backend)["_faces"] = lambda image: np.array([[*(nose / SIDE - size / 2), size, size]])
    vars(backend)["_landmarker"] = sees(lambda image: [] if whole(image) else [other, own])
    [found] = backend._poses(frame)
    np.testing.assert_allclose(found, own, atol=1e-6)


def test_who_is_seen_unsurely_stays_when_a_search_adds_others(backend, frame) -> None:
    unsure, added = standing(left=20, top=130, sure=0.6), standing(left=150, top=20)
    vars(backend)["_landmarker"] = sees(lambda image: [unsure] if whole(image) else [added])
    found = backend._everybody(frame)
    assert len(found) == 2
    np.testing.assert_allclose(found[0], added, atol=1e-6)
    np.testing.assert_allclose(found[1], unsure, atol=1e-6)


def test_a_search_that_adds_nobody_changes_nothing(backend, frame) -> None:
    """It sees the same one a little otherwise, and more surely."""
    seen, again = standing(sure=0.8), standing(left=23, sure=0.95)
    vars(backend)["_landmarker"] = sees(lambda image: [seen] if whole(image) else [again])
    [found] = backend._everybody(frame)
    np.testing.assert_allclose(found, seen, atol=1e-6)


def test_squares_that_somebody_fills_are_searched_no_more(backend, frame) -> None:
    """Also where that one was found in a larger square."""
    wide = standing(left=52, top=52, height=94)
    wide[:, 0] = 52 + 88 * np.linspace(0, 1, 33)
    beside = standing(left=0, top=160, height=60)
    looked: set[tuple[int, ...]] = set()

    def poses(image: np.ndarray) -> list[np.ndarray]:
        looked.add((*(int(v) for v in image[0, 0, :2]), len(image)))
        return [beside] if whole(image) else [wide] if len(image) == 144 else []

    vars(backend)["_landmarker"] = sees(poses)
    assert len(backend._everybody(frame)) == 2
    assert (0, 156, 84) in looked
    assert (52, 52, 84) not in looked


def test_a_neck_is_as_sure_as_the_unsurer_shoulder(backend, frame) -> None:
    pose = standing()
    pose[11, 2] = 0.4
    person = backend._person(frame, pose)
    assert person.body[NECK, 2] == pytest.approx(0.4)
    np.testing.assert_allclose(person.body[NECK, :2], pose[[11, 12], :2].mean(axis=0), atol=1e-4)


def test_who_lies_in_several_squares_is_found_once(backend, frame) -> None:
    one, other = standing(left=100, top=100, height=60), standing(left=30, top=100, height=60)
    vars(backend)["_landmarker"] = sees(lambda image: [] if whole(image) else [one, other])
    assert len(backend._poses_in_tiles(frame)) == 2


def test_a_closer_look_counts_where_it_is_surer(backend, frame) -> None:
    pose = standing(sure=0.95)
    for sure in (0.92, 0.97):
        again = standing(left=22, sure=sure)
        vars(backend)["_landmarker"] = sees(lambda image, again=again: [again])
        kept = pose if sure < 0.95 else again
        np.testing.assert_allclose(backend._closer(frame, pose), kept, atol=1e-6)


@pytest.mark.parametrize("search", [False, True])
def test_strips_are_looked_at_once(backend, search) -> None:
    looked: list[tuple[int, ...]] = []
    vars(backend)["_landmarker"] = sees(lambda image: looked.append(image.shape) or [])
    strip = np.zeros((33, 600, 3), np.uint8)
    assert (backend.detect_everybody if search else backend.detect)(strip) == []
    assert looked == [(33, 600, 3)]


def test_a_body_outside_of_the_image_is_nobody(backend, frame) -> None:
    vars(backend)["_landmarker"] = sees(lambda image: [standing(left=400, top=300)])
    assert backend._person(frame, standing(left=400, top=300)) is None
    edge = standing(left=-25, top=20)  # some of its joints lie within
    assert backend._person(frame, edge) is not None


def hand(at: tuple[float, float], extent: float) -> Any:
    """What the hand model says of a crop: the wrist's place and the diagonal, in shares of the crop."""
    points = np.linspace(at, np.add(at, extent / 2**0.5), 21)
    found = [SimpleNamespace(x=x, y=y) for x, y in points]
    return SimpleNamespace(hand_landmarks=[found], handedness=[[SimpleNamespace(score=0.9)]])


@pytest.mark.parametrize(
    ("at", "extent", "found"),
    [((0.5, 0.5), 0.3, True), ((0.5, 0.72), 0.3, True), ((0.5, 0.78), 0.3, False)]
    + [((0.5, 0.5), 0.09, False), ((0.5, 0.5), 0.11, True), ((0.5, 0.5), 0.59, True), ((0.5, 0.5), 0.61, False)],
)
def test_a_hand_is_of_a_hands_size_and_at_its_wrist(backend, frame, monkeypatch, at, extent, found) -> None:
    """The first crop is two forearms large: half a forearm is a quarter of it."""
    monkeypatch.setattr(module, "_HAND_CROPS", (2.0,))
    vars(backend)["_hands"] = SimpleNamespace(detect=lambda image: hand(at, extent))
    center = np.array([120.0, 110.0])
    seen = backend._hand(frame, center, wrist=center, forearm=40.0)
    assert (seen is not None) == found
    if found:
        np.testing.assert_allclose(seen[0], [*(center + 80 * (np.array(at) - 0.5)), 0.9], atol=1e-6)


@pytest.mark.parametrize("nearer", [0, 1], ids=["left", "right"])
def test_one_hand_is_not_that_of_both_arms(backend, frame, monkeypatch, nearer) -> None:
    body = np.ones((18, 3))
    body[[LEFT_ELBOW, RIGHT_ELBOW], :2] = (120, 60), (90, 60)
    body[[LEFT_WRIST, RIGHT_WRIST], :2] = [(110, 100), (100, 100)]
    wrists = body[[LEFT_WRIST, RIGHT_WRIST], :2]
    seen = np.ones((21, 3))
    seen[:, :2] = 0.8 * wrists[nearer] + 0.2 * wrists[1 - nearer]
    monkeypatch.setattr(backend, "_hand", lambda *a, **k: seen.copy(), raising=False)
    hands = backend._both_hands(frame, body, standing())
    assert (hands[nearer, :, 2] == 1).all()
    assert (hands[1 - nearer] == 0).all()


@pytest.mark.parametrize(("off", "found"), [(0.0, True), (0.38, True), (0.45, False)])
def test_a_head_has_its_own_face(backend, frame, monkeypatch, off, found) -> None:
    """In a crowd a crop shows other faces as well: their noses are more than a head away."""
    monkeypatch.setattr(module, "_FACE_CROPS", (2.5,))
    mesh = np.full((478, 3), 0.5)
    mesh[:, 0] += off
    vars(backend)["_mesh"] = lambda crop: mesh
    seen = backend._face(frame, (np.array([120.0, 120.0]), 30.0))
    assert (seen is not None) == found


def test_everybodys_pixels_are_people(backend, frame) -> None:
    masks = np.zeros((2, SIDE, SIDE), np.float32)
    masks[0, 10, 10], masks[1, 20, 20], masks[:, 30, 30] = 0.7, 0.6, (0.2, 0.9)
    views = [SimpleNamespace(numpy_view=lambda mask=mask: mask) for mask in masks]
    vars(backend)["_mask_landmarker"] = SimpleNamespace(detect=lambda image: SimpleNamespace(segmentation_masks=views))
    seen = backend.segment(frame)
    assert [float(seen[k, k]) for k in (10, 20, 30, 40)] == pytest.approx([0.7, 0.6, 0.9, 0])
