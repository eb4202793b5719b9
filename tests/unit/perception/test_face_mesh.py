"""Dense meshes on two public-domain photographs, and the topology against what it must fulfil."""

import itertools
from collections import Counter

import cv2
import numpy as np
import pytest

from tests.unit.preprocess.faces.real_faces import BOXES, picture, rough
from xdyna.perception import PerceptionError, face_mesh
from xdyna.perception.face_mesh import FaceMesher, ibug68, oval, skin_triangles

pytestmark = pytest.mark.usefixtures("detector")

pytest.importorskip("mediapipe", reason="needs the perception extra")


@pytest.fixture(scope="module")
def mesher() -> FaceMesher:
    return FaceMesher()


@pytest.fixture(scope="module")
def mesh(mesher: FaceMesher) -> np.ndarray:
    found = mesher.detect(picture("admiral"), rough(BOXES["admiral"]))
    assert found is not None
    return found


def test_the_skin_is_a_disc_with_three_holes():
    """Euler: V - E + F = 2 - (holes + the outside)."""
    triangles = skin_triangles()
    edges = Counter(frozenset(e) for t in triangles.tolist() for e in itertools.combinations(t, 2))
    assert set(edges.values()) == {1, 2}, "every edge is inside or on a border"
    assert len(np.unique(triangles)) - len(edges) + len(triangles) == 2 - 4
    border = {v for edge, uses in edges.items() if uses == 1 for v in edge}
    rims = (oval(), face_mesh.RIGHT_EYE, face_mesh.LEFT_EYE, face_mesh.INNER_LIPS)
    assert border == set(itertools.chain(*rims))
    for rim in rims:  # each rim is a closed walk along edges
        assert all(edges[frozenset((rim[k - 1], rim[k]))] == 1 for k in range(len(rim)))


def test_lip_columns_lie_above_each_other(mesh: np.ndarray):
    for lip in (face_mesh.UPPER_LIP, face_mesh.LOWER_LIP):
        rows = mesh[np.array(lip), :2]
        width = np.ptp(mesh[list(face_mesh.INNER_LIPS), 0])
        assert (np.abs(rows[1:-1, :, 0] - rows[0, :, 0]) < 0.1 * width).all()
        assert (np.diff(rows[0, :, 0]) > 0).all(), "right to left of the person, so left to right in the picture"
    assert (mesh[list(face_mesh.UPPER_LIP[3]), 1] < mesh[list(face_mesh.LOWER_LIP[3]), 1]).all()


def test_meshes_follow_the_picture(mesher: FaceMesher, mesh: np.ndarray):
    """A face half as large, elsewhere, in another image."""
    small = cv2.resize(picture("admiral"), None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    canvas = np.full((500, 600, 3), 90, np.uint8)
    canvas[80 : 80 + small.shape[0], 200 : 200 + small.shape[1]] = small
    box = np.array(BOXES["admiral"]) / 2 + [200, 80, 200, 80]
    found = mesher.detect(canvas, rough(tuple(box)))
    assert found is not None
    expected = (mesh[:, :2] + 0.5) / 2 - 0.5 + [200, 80]
    eyes = np.linalg.norm(expected[33] - expected[263])
    assert np.abs(found[:, :2] - expected).mean() < 0.03 * eyes


def test_no_face(mesher: FaceMesher):
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    assert mesher.detect(noise, rough((50, 50, 150, 150))) is None
    image = picture("admiral")
    assert mesher.detect(image, rough((-900, -900, -800, -800))) is None, "landmarks outside the picture"
    assert mesher.detect(image, rough((20, 480, 120, 580))) is None, "landmarks where no face is"


def test_bad_input(mesher: FaceMesher):
    points = rough((50, 50, 150, 150))
    with pytest.raises(PerceptionError, match="expected finite"):
        mesher.detect(picture("admiral"), np.where(points > 100, np.nan, points))
    with pytest.raises(PerceptionError, match="expected finite"):
        mesher.detect(picture("admiral"), points[:5])
    with pytest.raises(PerceptionError, match="uint8"):
        mesher.detect(np.zeros((8, 8, 3)), points)


def test_landmarks_are_those_of_the_backend(mesh: np.ndarray):
    points = ibug68(mesh)
    assert points.shape == (68, 2)
    assert (points[36] == mesh[33, :2]).all()
    assert (points[62] == mesh[13, :2]).all()
    assert ibug68(np.stack([mesh, mesh])).shape == (2, 68, 2)
