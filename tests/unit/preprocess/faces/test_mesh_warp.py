"""The mesh warp on two public-domain photographs; drawing against the image itself and its known transformations."""

import cv2
import numpy as np
import pytest

from tests.unit.preprocess.faces.real_faces import moved, picture, portrait
from xdyna.config.data import DataError
from xdyna.data.face_files import patch_boxes
from xdyna.data.sources import Faces
from xdyna.perception.face_mesh import INNER_LIPS, LEFT_EYE, LOWER_LIP, RIGHT_EYE, SKIN, UPPER_LIP, FaceMesher, ibug68
from xdyna.preprocess.faces.mesh_draw import PortraitWarp, _map
from xdyna.preprocess.faces.mesh_shape import HeadPose, align, closed_mouth, frontal, neutral_shape
from xdyna.preprocess.faces.mesh_warp import MeshWarp
from xdyna.preprocess.faces.reenact import FaceReenactor, Portrait, ReenactError, get_reenactor, keep_boxes

pytestmark = pytest.mark.usefixtures("detector")

pytest.importorskip("mediapipe", reason="needs the perception extra")

HALF = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25]])  # of pixel centres


@pytest.fixture(scope="module")
def mesher() -> FaceMesher:
    return FaceMesher()


@pytest.fixture(scope="module")
def warp() -> MeshWarp:
    made = get_reenactor("mesh-warp")
    assert isinstance(made, MeshWarp)
    assert isinstance(made, FaceReenactor)
    return made


@pytest.fixture(scope="module")
def astronaut(mesher: FaceMesher) -> Portrait:
    return portrait("astronaut", mesher)


@pytest.fixture(scope="module")
def admiral(mesher: FaceMesher) -> Portrait:
    return portrait("admiral", mesher)


def clip_of(person: Portrait) -> tuple[np.ndarray, np.ndarray]:
    """Four frames: as it is; tilted and shifted; without a face; smaller."""
    center = person.landmarks[:, :2].mean(axis=0).tolist()
    tilted = cv2.getRotationMatrix2D(center, 15, 1.0) + [[0, 0, 24], [0, 0, 10]]
    frames, points = zip(
        (person.image, person.landmarks),
        moved(person.image, tilted, person.landmarks),
        (person.image, np.zeros((68, 3), np.float32)),
        moved(person.image, cv2.getRotationMatrix2D(center, 0, 0.8), person.landmarks),
        strict=True,
    )
    return np.stack(frames), np.stack(points)


@pytest.fixture(scope="module")
def faces(warp: MeshWarp, astronaut: Portrait, admiral: Portrait) -> Faces:
    return warp.reenact(*clip_of(astronaut), admiral)


# Drawing


def test_triangles_map_affinely_and_later_ones_cover_earlier_ones():
    target = np.array([[0, 0], [40, 0], [0, 40], [10, 10], [10, 20], [20, 10]], dtype=float)
    source = target * [2, 3] + [100, 7]
    source[3:] = [[500, 500], [500, 520], [520, 500]]
    found = _map(target, source, np.array([[0, 1, 2], [3, 4, 5]]), (48, 48))
    assert found.shape == (48, 48, 2)
    np.testing.assert_allclose(found[5, 25], [150, 22], atol=1e-3)
    np.testing.assert_allclose(found[12, 13], [500 + 2 * 3, 500 + 2 * 2], atol=1e-3)
    covered = _map(target, source, np.array([[3, 4, 5], [0, 1, 2]]), (48, 48))
    np.testing.assert_allclose(covered[12, 13], [126, 43], atol=1e-3)


def test_triangles_without_area_are_not_drawn():
    target = np.array([[0, 0], [40, 0], [0, 40], [5, 5], [15, 15], [25, 25]], dtype=float)
    found = _map(target, target, np.array([[0, 1, 2], [3, 4, 5]]), (30, 30))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[10, 10], [10, 10], atol=1e-3)


@pytest.fixture(scope="module")
def drawn(admiral: Portrait, mesher: FaceMesher) -> tuple[np.ndarray, HeadPose, np.ndarray]:
    mesh = mesher.detect(admiral.image, admiral.landmarks)
    assert mesh is not None
    return (*frontal(mesh), mesh)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, (0, 0)), (1.0, (11, -6)), (0.5, (0, 0))])
def test_a_face_without_change_is_the_photograph(
    admiral: Portrait, drawn: tuple[np.ndarray, HeadPose, np.ndarray], scale: float, shift: tuple[int, int]
):
    """The same shape in the same pose, moved and reduced, against OpenCV's own moving and reducing."""
    shape, pose, mesh = drawn
    offset = np.array([*shift, 0.0]) if scale == 1 else np.array([-0.25, -0.25, 0])
    placed = HeadPose(pose.scale * scale, pose.rotation, pose.shift * scale + offset)
    warp = PortraitWarp(admiral.image, mesh, shape, pose, scale=placed.scale)
    box = np.array([150, 140, 380, 400]) if scale == 1 else np.array([75, 70, 190, 200])
    result = warp.draw(shape, placed, box).astype(float)
    matrix = np.array([[1.0, 0, shift[0]], [0, 1, shift[1]]]) if scale == 1 else HALF
    flags = cv2.INTER_LINEAR
    image = admiral.image if scale == 1 else cv2.GaussianBlur(admiral.image, (0, 0), 0.7)
    expected = cv2.warpAffine(image, matrix, (512, 600), flags=flags)[box[1] : box[3], box[0] : box[2]]
    error = np.abs(result - expected.astype(float)).mean(axis=2)
    assert np.median(error) < 4
    assert error.mean() < 6


def test_an_open_mouth_shows_teeth_and_darkness(admiral: Portrait, drawn: tuple[np.ndarray, HeadPose, np.ndarray]):
    """The photograph has neither: below the upper lip it gets light, further down dark."""
    shape, pose, mesh = drawn
    warp = PortraitWarp(admiral.image, mesh, closed_mouth(shape), pose, scale=pose.scale)
    opened = closed_mouth(shape)
    width = np.linalg.norm(opened[INNER_LIPS[0]] - opened[INNER_LIPS[10]])
    jaw = opened[:, 1] > opened[14, 1]
    jaw[[v for row in LOWER_LIP for v in row]] = True
    jaw[[v for row in UPPER_LIP for v in row] + [INNER_LIPS[0], INNER_LIPS[10]]] = False
    opened[jaw, 1] += 0.5 * width
    box = np.array([150, 140, 380, 400])
    lips = pose.place(opened)[[13, 14], :2] - box[:2]
    picture = warp.draw(opened, pose, box)

    def brightness(depth: float) -> float:
        x, y = (lips[0] + depth / 0.5 * (lips[1] - lips[0])).round().astype(int)
        return float(picture[y - 1 : y + 2, x - 3 : x + 4].max(axis=2).mean())

    assert brightness(0.09) > 140
    assert brightness(0.3) < 60


def test_closed_lids_hide_the_eye(admiral: Portrait, drawn: tuple[np.ndarray, HeadPose, np.ndarray]):
    """Dark irises are seen in the photograph; over closed eyes there is skin."""
    shape, pose, mesh = drawn
    warp = PortraitWarp(admiral.image, mesh, shape, pose, scale=pose.scale)
    shut = shape.copy()
    for eye in (RIGHT_EYE, LEFT_EYE):
        upper, lower = list(eye[1:8]), list(eye[15:8:-1])
        shut[upper] = shut[lower]
    box = np.array([150, 140, 380, 400])
    for iris in (468, 473):
        x, y = (pose.place(shape)[iris, :2] - box[:2]).round().astype(int)
        before, after = (warp.draw(s, pose, box)[y - 2 : y + 3, x - 2 : x + 3].mean() for s in (shape, shut))
        assert before < 100
        assert after > before + 40


# Whole clips


def test_shapes_and_missing_faces(faces: Faces, astronaut: Portrait):
    frames, _ = clip_of(astronaut)
    assert faces.frames.shape == frames.shape
    assert faces.frames.dtype == np.uint8
    assert faces.landmarks.shape == (4, 68, 3)
    assert faces.landmarks.dtype == np.float32
    assert not faces.frames[2].any()
    assert not faces.landmarks[2].any()
    assert (faces.landmarks[[0, 1, 3], :, 2] == 1).all()
    boxes = patch_boxes(faces.landmarks, size=(512, 512))
    np.testing.assert_array_equal(keep_boxes(faces.frames, boxes), faces.frames)
    for row in (0, 1, 3):
        left, top, right, bottom = boxes[row]
        assert (faces.frames[row, top:bottom, left:right].max(axis=2) > 0).mean() > 0.98, "the patch is filled"


def test_the_face_follows_the_driving_head(faces: Faces, astronaut: Portrait):
    """Tilt, place and size are those of the driving frames, which are known transformations of the first."""
    _, driving = clip_of(astronaut)
    for row in (1, 3):
        for before, after in ((driving[0], driving[row]), (faces.landmarks[0], faces.landmarks[row])):
            matrix, _ = cv2.estimateAffinePartial2D(before[:, :2].copy(), after[:, :2].copy())
            angle = np.degrees(np.arctan2(-matrix[1, 0], matrix[0, 0]))
            assert angle == pytest.approx({1: 15, 3: 0}[row], abs=2.5)
            assert np.hypot(matrix[0, 0], matrix[1, 0]) == pytest.approx({1: 1, 3: 0.8}[row], abs=0.04)
    middle = [points[:, :2].mean(axis=0) for points in (driving[0], faces.landmarks[0])]
    assert np.linalg.norm(middle[0] - middle[1]) < 0.2 * np.ptp(driving[0][:, 0])


def test_the_landmarks_are_where_the_face_is(faces: Faces, mesher: FaceMesher):
    for row in (0, 1, 3):
        mesh = mesher.detect(faces.frames[row], faces.landmarks[row])
        assert mesh is not None, "the result is a face"
        eyes = np.linalg.norm(faces.landmarks[row, 36, :2] - faces.landmarks[row, 45, :2])
        error = np.linalg.norm(ibug68(mesh) - faces.landmarks[row, :, :2], axis=1)
        assert error.mean() < 0.06 * eyes


def test_the_result_is_the_other_person(faces: Faces, astronaut: Portrait, admiral: Portrait, mesher: FaceMesher):
    """Face shape, read back from the pixels, and skin colour."""
    meshes = [mesher.detect(faces.frames[row], faces.landmarks[row]) for row in (0, 1, 3)]
    result = neutral_shape([mesh for mesh in meshes if mesh is not None])

    def distance(person: Portrait) -> float:
        mesh = mesher.detect(person.image, person.landmarks)
        assert mesh is not None
        shape = neutral_shape([mesh])
        closed = closed_mouth(align(result, shape)[0]) - closed_mouth(shape)
        return float(np.sqrt((closed[:SKIN, :2] ** 2).sum(axis=1).mean()))

    assert distance(admiral) < distance(astronaut)

    def nose(image: np.ndarray, points: np.ndarray) -> np.ndarray:
        x, y = points[29, :2].round().astype(int)
        return image[y - 4 : y + 5, x - 4 : x + 5].reshape(-1, 3).mean(axis=0)

    color = nose(faces.frames[0], faces.landmarks[0])
    near, far = (np.abs(color - nose(p.image, p.landmarks)).mean() for p in (admiral, astronaut))
    assert near < 8
    assert near < far


def test_the_same_pictures_every_time(warp: MeshWarp, faces: Faces, astronaut: Portrait, admiral: Portrait):
    again = warp.reenact(*clip_of(astronaut), admiral)
    np.testing.assert_array_equal(again.frames, faces.frames)
    np.testing.assert_array_equal(again.landmarks, faces.landmarks)


def test_expressions_are_measured_from_the_own_portrait(warp: MeshWarp, astronaut: Portrait, admiral: Portrait):
    """A single frame has no expression of its own; against a calm image it has: the astronaut smiles."""
    frames, points = astronaut.image[None], astronaut.landmarks[None]
    alone = warp.reenact(frames, points, admiral)
    same = warp.reenact(frames, points, admiral, own=astronaut)
    np.testing.assert_allclose(same.landmarks, alone.landmarks, atol=0.2)
    blind = Portrait(np.full((64, 64, 3), 127, np.uint8), astronaut.landmarks, "nobody")
    np.testing.assert_array_equal(warp.reenact(frames, points, admiral, own=blind).frames, alone.frames)


def test_pictures_without_a_face(warp: MeshWarp, astronaut: Portrait, admiral: Portrait):
    frames, points = clip_of(astronaut)
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    with pytest.raises(ReenactError, match="wall: no face is found") as caught:
        warp.reenact(frames, points, Portrait(noise, admiral.landmarks, "wall"))
    assert caught.value.reason == "no_portrait"
    with pytest.raises(ReenactError, match="no face in any of 4 frames") as caught:
        warp.reenact(frames, np.zeros_like(points), admiral)
    assert caught.value.reason == "no_face"
    with pytest.raises(ReenactError, match="no face in any of 1 frames"):
        warp.reenact(noise[None], admiral.landmarks[None], admiral)


def test_bad_input(warp: MeshWarp, astronaut: Portrait, admiral: Portrait):
    frames, points = clip_of(astronaut)
    with pytest.raises(DataError, match="NaN"):
        warp.reenact(frames, np.where(points > 200, np.nan, points), admiral)
    with pytest.raises(DataError, match="T >= 1"):
        warp.reenact(frames[:0], points[:0], admiral)
    with pytest.raises(DataError, match="takes no models folder"):
        get_reenactor("mesh-warp", models_dir="/tmp")


def test_faces_beyond_the_edge(warp: MeshWarp, astronaut: Portrait, admiral: Portrait):
    """Half of the face has left the image: what remains is drawn."""
    cut = astronaut.image[:, 226:]
    points = astronaut.landmarks - np.array([226, 0, 0], np.float32)
    result = warp.reenact(np.ascontiguousarray(cut)[None], points[None], admiral)
    assert result.frames.shape == (1, *cut.shape)
    assert result.frames.any()
    assert np.isfinite(result.landmarks).all()


def test_photographs_are_what_they_are_taken_for():
    assert picture("astronaut").shape == (512, 512, 3)
    assert picture("admiral").shape == (600, 512, 3)
