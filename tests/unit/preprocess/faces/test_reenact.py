import numpy as np
import pytest

from xdyna.config.data import DataError
from xdyna.data.face_files import patch_boxes
from xdyna.perception.face_patch import face_patches
from xdyna.preprocess.faces import reenact
from xdyna.preprocess.faces.reenact import Portrait, ReenactError, check_clip, check_portrait, get_reenactor, keep_boxes
from xdyna.puppets.world import render_clip


def plain_face() -> np.ndarray:
    """(68, 3) a symmetric, calm face of simple numbers around (100, 100)."""
    points = np.ones((68, 3), np.float32)
    points[:17, 0], points[:17, 1] = np.linspace(40, 160, 17), 100 + 60 * np.sin(np.linspace(0, np.pi, 17))
    points[17:22, :2] = [[60 + 5 * k, 70] for k in range(5)]
    points[22:27, :2] = [[120 + 5 * k, 70] for k in range(5)]
    points[27:36, :2] = [[100, 80 + 3 * k] for k in range(4)] + [[90 + 5 * k, 110] for k in range(5)]
    eye = np.array([[-10, 0], [-4, -3], [4, -3], [10, 0], [4, 3], [-4, 3]])
    points[36:42, :2], points[42:48, :2] = eye + [70, 85], eye + [130, 85]
    angle = np.pi - np.linspace(0, 2 * np.pi, 12, endpoint=False)
    points[48:60, :2] = np.stack([100 + 20 * np.cos(angle), 130 - 6 * np.sin(angle)], axis=1)
    points[60:68, :2] = [[84, 130], [92, 130], [100, 130], [108, 130], [116, 130], [108, 130], [100, 130], [92, 130]]
    return points


def changed(**moves: tuple[int, float, float]) -> np.ndarray:
    """The plain face with single landmarks moved: name -> (landmark, dx, dy)."""
    points = plain_face()
    for landmark, dx, dy in moves.values():
        points[landmark, :2] += dx, dy
    return points


def test_the_calm_face_is_preferred():
    calm = plain_face()
    opened = changed(lower=(66, 0, 12))
    closed = changed(a=(37, 0, 3), b=(38, 0, 3), c=(40, 0, -3), d=(41, 0, -3))
    turned = calm.copy()
    turned[27:36, 0] += 20
    costs = reenact.portrait_penalty(np.stack([opened, calm, closed, turned, calm, calm]))
    assert costs[1] == costs[4] == costs.min() == pytest.approx(0, abs=1e-6)
    assert costs[0] == pytest.approx(12 / 40), "the gap over the mouth's width"
    assert costs[2] == pytest.approx(6 / 20, rel=1e-5), "an eye of height 6 and width 20 is shut"
    assert costs[3] == pytest.approx(2 * 20 / 120, rel=1e-5), "the nose's way over half the jaw's width"


def test_calmness_is_free_of_place_size_and_tilt():
    faces = np.stack([plain_face(), changed(lower=(66, 0, 12)), changed(nose=(30, 9, 4))])
    angle, scale = 0.5, 2.5
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    tilted = faces[..., :2] @ rotation.T + [300, -20]
    np.testing.assert_allclose(reenact.portrait_penalty(tilted), reenact.portrait_penalty(faces), atol=1e-5)


def test_a_face_without_size_is_never_chosen():
    faces = np.stack([plain_face(), np.ones((68, 3), np.float32)])
    assert reenact.portrait_penalty(faces).tolist() == [0.0, np.inf]
    assert reenact.portrait_penalty(faces[1:]).tolist() == [np.inf]


@pytest.mark.parametrize("seed", range(4))
def test_nothing_that_a_face_patch_shows_is_black(seed: int):
    """Any part of the clip, with any step: cutting to the boxes must not change its patches."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(1, 255, (9, 160, 200, 3), dtype=np.uint8)
    landmarks = np.repeat(plain_face()[None], 9, axis=0)
    landmarks[..., :2] *= rng.uniform(0.25, 0.7, (9, 1, 1))
    landmarks[..., :2] += np.cumsum(rng.uniform(-12, 12, (9, 1, 2)), axis=0)
    landmarks[rng.permutation(9)[:2]] = 0
    boxes = patch_boxes(landmarks, size=(160, 200))
    missing = ~reenact.seen(landmarks)
    assert (boxes[missing] == 0).all()
    kept = keep_boxes(frames, boxes)
    assert not kept[missing].any()
    for start in range(4):
        for step in (1, 2, 3):
            rows = np.arange(start, 9, step)[: rng.integers(2, 9)]
            if missing[rows].any():  # a gap shows its own frame in an old box; other faces are black there
                continue
            for cut, whole in zip(
                face_patches(kept[rows], landmarks[rows]), face_patches(frames[rows], landmarks[rows]), strict=True
            ):
                np.testing.assert_array_equal(cut, whole)


def test_boxes_of_rendered_faces_are_smaller_than_the_picture():
    clip = render_clip(3, 4, 5, frames=4, size=(128, 128))
    boxes = patch_boxes(clip.face, size=(128, 128))
    for face, (left, top, right, bottom) in zip(clip.face, boxes, strict=True):
        assert (face[:, :2].min(axis=0) >= [left, top]).all()
        assert (face[:, :2].max(axis=0) <= [right, bottom]).all()
    assert (np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) < 128 * 128).all()


@pytest.mark.parametrize(
    ("frames", "landmarks", "message"),
    [
        (np.zeros((0, 8, 8, 3), np.uint8), np.zeros((0, 68, 3)), "T >= 1"),
        (np.zeros((2, 8, 8, 3)), np.zeros((2, 68, 3)), "uint8"),
        (np.zeros((2, 8, 8), np.uint8), np.zeros((2, 68, 3)), "expected"),
        (np.zeros((2, 8, 8, 3), np.uint8), np.zeros((3, 68, 3)), r"\(2, 68, 3\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 5, 3)), r"\(2, 68, 3\)"),
        (np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 68, 3), np.nan), "NaN"),
    ],
)
def test_bad_clips(frames: np.ndarray, landmarks: np.ndarray, message: str):
    with pytest.raises(DataError, match=message):
        check_clip(frames, landmarks)


def test_a_portrait_without_a_face():
    with pytest.raises(ReenactError, match="aunt: there is no face") as caught:
        check_portrait(Portrait(np.zeros((8, 8, 3), np.uint8), np.zeros((68, 3), np.float32), "aunt"))
    assert caught.value.reason == "no_portrait"


def test_unknown_reenactors_are_named():
    with pytest.raises(DataError, match="did you mean 'mesh-warp'"):
        get_reenactor("mesh_warp")
    with pytest.raises(DataError, match="liveportrait"):
        get_reenactor("xyz")
