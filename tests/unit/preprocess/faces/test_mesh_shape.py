"""Head pose and expression on the meshes of two people, against transformations that are known."""

import numpy as np
import pytest

from tests.unit.preprocess.faces.real_faces import BOXES, picture, rough
from xdyna.perception.face_mesh import INNER_LIPS, LEFT_EYE, LOWER_LIP, RIGHT_EYE, RIGID, UPPER_LIP, FaceMesher
from xdyna.preprocess.faces.mesh_shape import ExpressionTransfer, HeadPose, align, closed_mouth, frontal, neutral_shape

pytestmark = pytest.mark.usefixtures("detector")

pytest.importorskip("mediapipe", reason="needs the perception extra")

UPPER, LOWER = list(UPPER_LIP[0]), list(LOWER_LIP[0])


@pytest.fixture(scope="module")
def meshes() -> dict[str, np.ndarray]:
    mesher = FaceMesher()
    found = {name: mesher.detect(picture(name), rough(box)) for name, box in BOXES.items()}
    return {name: mesh for name, mesh in found.items() if mesh is not None}


@pytest.fixture(scope="module")
def shapes(meshes: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Astronaut, admiral."""
    return frontal(meshes["astronaut"])[0], frontal(meshes["admiral"])[0]


def rotation(seed: int) -> np.ndarray:
    """A random rotation up to half a radian about each axis."""
    x, y, z = np.random.default_rng(seed).uniform(-0.5, 0.5, 3)
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def mouth_gap(shape: np.ndarray) -> float:
    return float((shape[LOWER, 1] - shape[UPPER, 1]).mean())


@pytest.mark.parametrize("seed", range(3))
def test_shape_and_pose_of_one_mesh(shapes: tuple[np.ndarray, np.ndarray], seed: int):
    """What was rotated, scaled and moved comes back, whatever the pose."""
    true = HeadPose(37.0, rotation(seed), np.array([120.0, -40.0, 9.0]))
    shape, pose = frontal(true.place(shapes[0]))
    np.testing.assert_allclose(shape, shapes[0], atol=1e-9)
    np.testing.assert_allclose(pose.rotation, true.rotation, atol=1e-9)
    assert pose.scale == pytest.approx(true.scale)


def test_axes_of_a_face(meshes: dict[str, np.ndarray]):
    """x to the left ear, y to the chin, z into the head; the eyes one unit apart."""
    for mesh in meshes.values():
        shape, pose = frontal(mesh)
        assert np.linalg.det(pose.rotation) == pytest.approx(1)
        assert shape[356, 0] > 1 > -1 > shape[127, 0]
        assert shape[152, 1] > 1 > -0.5 > shape[10, 1]
        assert shape[4, 2] < shape[127, 2]
        eyes = [(shape[eye[0]] + shape[eye[8]]) / 2 for eye in (RIGHT_EYE, LEFT_EYE)]
        assert np.linalg.norm(eyes[1] - eyes[0]) == pytest.approx(1)
        assert pose.turn < 0.5


@pytest.mark.parametrize("seed", range(3))
def test_expressions_do_not_change_the_pose(shapes: tuple[np.ndarray, np.ndarray], seed: int):
    """Umeyama's alignment sees only the rigid vertices; mouth and lids may do what they like."""
    neutral, rng = shapes[0], np.random.default_rng(seed)
    lively = neutral.copy()
    free = np.setdiff1d(np.arange(478), RIGID)
    lively[free] += rng.normal(0, 0.1, (len(free), 3))
    true = HeadPose(80.0, rotation(seed + 10), np.array([5.0, 6.0, 7.0]))
    shape, pose = align(true.place(lively), neutral)
    np.testing.assert_allclose(shape, lively, atol=1e-9)
    np.testing.assert_allclose(pose.rotation, true.rotation, atol=1e-9)
    np.testing.assert_allclose(pose.shift, true.shift, atol=1e-7)


def test_alignment_never_mirrors(shapes: tuple[np.ndarray, np.ndarray]):
    _, pose = align(shapes[0] * [-1, 1, 1] * 50, shapes[0])
    assert np.linalg.det(pose.rotation) == pytest.approx(1)


def test_upright_keeps_the_tilt_alone():
    angle = 0.3
    tilt = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    pose = HeadPose(2.0, tilt, np.zeros(3))
    np.testing.assert_allclose(pose.upright().rotation, tilt, atol=1e-12)
    turned = HeadPose(2.0, tilt @ np.array([[0.8, 0, 0.6], [0, 1, 0], [-0.6, 0, 0.8]]), np.zeros(3))
    np.testing.assert_allclose(turned.upright().rotation, tilt, atol=1e-12)
    assert turned.turn == pytest.approx(np.arccos(0.8))


def test_the_neutral_shape_leaves_lively_frames_out(shapes: tuple[np.ndarray, np.ndarray]):
    neutral, meshes = shapes[0], []
    for seed in range(12):
        shape = neutral.copy()
        if seed >= 6:
            shape[[list(row) for row in LOWER_LIP], 1] += 0.3
        meshes.append(HeadPose(60.0, rotation(seed) if seed >= 6 else np.eye(3), np.zeros(3)).place(shape))
    found = neutral_shape(meshes)
    assert np.abs(found - neutral).max() < 1e-6


def test_the_same_person_keeps_every_shape(shapes: tuple[np.ndarray, np.ndarray]):
    """Between equal faces nothing is scaled: the result is the driving shape itself."""
    neutral = shapes[0]
    transfer = ExpressionTransfer(neutral, neutral)
    lively = neutral + np.random.default_rng(0).normal(0, 0.02, neutral.shape)
    lively[[list(row) for row in LOWER_LIP], 1] += 0.3
    lively[468:] = neutral[468:] + [0.03, -0.02, 0]
    np.testing.assert_allclose(transfer(lively), lively, atol=1e-9)


def test_no_expression_gives_the_other_face(shapes: tuple[np.ndarray, np.ndarray]):
    driver, other = shapes
    np.testing.assert_allclose(ExpressionTransfer(driver, other)(closed_mouth(driver)), closed_mouth(other), atol=1e-9)
    assert mouth_gap(closed_mouth(other)) == pytest.approx(0, abs=1e-12)


def test_closed_eyes_close_the_other_eyes(shapes: tuple[np.ndarray, np.ndarray]):
    driver, other = shapes
    shut = driver.copy()
    for eye in (RIGHT_EYE, LEFT_EYE):
        upper, lower = list(eye[1:8]), list(eye[15:8:-1])
        shut[upper] = shut[lower] = (driver[upper] + driver[lower]) / 2
    result = ExpressionTransfer(driver, other)(shut)
    for eye in (RIGHT_EYE, LEFT_EYE):
        middle, across = (eye[4], eye[12]), np.linalg.norm(other[eye[0]] - other[eye[8]])
        before = np.linalg.norm(other[middle[0]] - other[middle[1]])
        assert before > 0.2 * across
        assert np.linalg.norm(result[middle[0]] - result[middle[1]]) < 0.25 * before


def test_mouths_open_by_their_width(shapes: tuple[np.ndarray, np.ndarray]):
    """A face like the driver's with a mouth 1.3 times as large opens it 1.3 times as far."""
    driver = closed_mouth(shapes[0])
    mouth = sorted({*INNER_LIPS, *(v for lip in (*UPPER_LIP, *LOWER_LIP) for v in lip), 61, 291})
    center = (driver[INNER_LIPS[0]] + driver[INNER_LIPS[10]]) / 2
    other = driver.copy()
    other[mouth] = center + 1.3 * (driver[mouth] - center)
    opened = driver.copy()
    opened[LOWER, 1] += 0.2
    result = ExpressionTransfer(driver, other)(opened)
    np.testing.assert_allclose(result[LOWER, 1] - result[UPPER, 1], 1.3 * 0.2, rtol=1e-6)


def test_lips_never_cross(shapes: tuple[np.ndarray, np.ndarray]):
    driver, other = shapes
    pressed = driver.copy()
    pressed[LOWER, 1] -= 0.2
    result = ExpressionTransfer(driver, other)(pressed)
    assert (result[LOWER, 1] - result[UPPER, 1] >= -1e-12).all()
