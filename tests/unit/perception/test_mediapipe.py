"""The default backend on a real image, scikit-image's astronaut (public domain), and on dancers in the slow tests."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from xdyna.media import read_frames
from xdyna.perception import PerceptionError, get_backend, mediapipe_models
from xdyna.perception.base import CrowdBackend
from xdyna.perception.crowd import tiles
from xdyna.perception.mediapipe_backend import square_crop
from xdyna.perception.topology import MEDIAPIPE_TO_IBUG68

pytestmark = pytest.mark.usefixtures("detector")

pytest.importorskip("mediapipe", reason="needs the perception extra")

MIRROR = [
    *range(16, -1, -1), *range(26, 16, -1), 27, 28, 29, 30, 35, 34, 33, 32, 31,
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
    54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55, 64, 63, 62, 61, 60, 67, 66, 65,
]  # fmt: skip
"""iBUG-68 landmark -> the landmark it becomes in a mirrored image."""
BODY_MIRROR = [0, 1, 5, 6, 7, 2, 3, 4, 11, 12, 13, 8, 9, 10, 15, 14, 17, 16]


@pytest.fixture(scope="module")
def backend():
    return get_backend("mediapipe")


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    return pytest.importorskip("skimage.data").astronaut()


@pytest.fixture(scope="module")
def person(backend, astronaut):
    return backend.detect(astronaut)[0]


def test_body_of_a_real_person(person):
    """Places read off the image by eye, px."""
    seen = {0: (223, 126), 14: (204, 101), 15: (247, 103)}
    for joint, place in seen.items():
        assert np.linalg.norm(person.body[joint, :2] - place) < 15, joint
    right, left = person.body[2], person.body[5]
    assert right[0] < 150 < 300 < left[0], "her right shoulder is at the left of the picture"
    np.testing.assert_allclose(person.body[1, :2], (right[:2] + left[:2]) / 2, atol=1e-3)
    assert person.body[1, 2] == min(right[2], left[2])
    assert (person.body[[9, 10, 12, 13]] == 0).all(), "knees and ankles are outside the picture"
    assert person.body.dtype == person.hands.dtype == person.face.dtype == person.box.dtype == np.float32
    assert 0 <= person.body[:, 2].min() <= person.body[:, 2].max() <= 1


def test_face_of_a_real_person(person):
    """Pupils and the middle of the lips read off the image by eye, px."""
    face = person.face[:, :2]
    right_eye, left_eye, mouth, jaw = face[36:42].mean(0), face[42:48].mean(0), face[48:68].mean(0), face[:17]
    assert np.linalg.norm(right_eye - (204, 101)) < 4
    assert np.linalg.norm(left_eye - (247, 103)) < 4
    assert np.linalg.norm(mouth - (223, 147)) < 4
    assert np.abs(face[8] - jaw[jaw[:, 1].argmax()]).max() < 6, "landmark 8 is the chin"
    assert face[19, 1] < face[37, 1] < face[33, 1] < face[57, 1] < face[8, 1], "brow, eye, nose, lip, chin"
    assert (person.face[:, 2] == 1).all()


def test_mirrored_picture_gives_mirrored_points(backend, astronaut, person):
    """Independent of any table: left and right are not mixed up in body or face."""
    mirrored = backend.detect(np.ascontiguousarray(astronaut[:, ::-1]))[0]
    for points, again, order, tolerance in (
        (person.face, mirrored.face, MIRROR, 3.0),
        (person.body, mirrored.body, BODY_MIRROR, 12.0),
    ):
        both = (points[order, 2] > 0.5) & (again[:, 2] > 0.5)
        flipped = points[order] * [-1, 1, 1] + [511, 0, 0]
        distance = np.linalg.norm(again[both, :2] - flipped[both, :2], axis=1)
        assert both.sum() >= 8
        assert np.median(distance) < tolerance, np.median(distance)


def test_face_table_is_a_choice_of_vertices():
    assert MEDIAPIPE_TO_IBUG68.shape == (68,)
    assert len(set(MEDIAPIPE_TO_IBUG68.tolist())) == 68
    assert MEDIAPIPE_TO_IBUG68.max() < 468


def test_frames_do_not_depend_on_each_other(backend, astronaut, person):
    """The rule the cache relies on."""
    backend.detect(np.roll(astronaut, 90, axis=1))
    backend.detect(np.zeros((300, 200, 3), np.uint8))
    again = backend.detect(astronaut)[0]
    for name in ("body", "hands", "face", "box"):
        np.testing.assert_array_equal(getattr(again, name), getattr(person, name))


def test_coordinates_follow_the_picture(backend, astronaut, person):
    """A border moves all points by its width; half the size halves them."""
    padded = cv2.copyMakeBorder(astronaut, 60, 0, 40, 0, cv2.BORDER_REPLICATE)
    moved = backend.detect(padded)[0]
    assert np.median(np.abs(moved.face[:, :2] - person.face[:, :2] - [40, 60])) < 2
    assert np.abs(moved.body[0, :2] - person.body[0, :2] - [40, 60]).max() < 8
    small = backend.detect(cv2.resize(astronaut, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))[0]
    assert np.median(np.abs(small.face[:, :2] * 2 - person.face[:, :2])) < 3


def test_several_people_largest_first(backend, astronaut):
    second = cv2.resize(astronaut, (300, 300), interpolation=cv2.INTER_AREA)
    canvas = np.full((512, 900, 3), 200, np.uint8)
    canvas[212:, 600:] = second
    canvas[:, :512] = astronaut
    people = backend.detect(canvas)
    assert len(people) == 2
    assert people[0].area > people[1].area
    assert people[0].body[0, 0] < 300 < 600 < people[1].body[0, 0]
    assert people[1].face[0, 2] == 1


def equal(people: list, others: list) -> bool:
    names = ("body", "hands", "face", "box")
    pairs = zip(people, others, strict=True)
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for a, b in pairs for name in names)


def test_a_search_for_one_person_gives_the_same_numbers(backend, astronaut):
    assert isinstance(backend, CrowdBackend)
    assert equal(backend.detect_everybody(astronaut), backend.detect(astronaut))
    assert backend.detect_everybody(np.zeros((240, 320, 3), np.uint8)) == []


def test_a_search_of_dancers_gives_the_same_numbers(backend, shared_dir):
    for name in ("dance_1", "dance_2"):
        for frame in read_frames(shared_dir / f"data/{name}.mp4", [0, 60]):
            assert equal(backend.detect_everybody(frame), backend.detect(frame)), name


def test_everybody_of_a_crowd_is_found_once(backend, shared_dir):
    """Eight dancers beside each other, as in docs/perception.md."""
    from tests.crowds import crowd, matched

    frames = list(read_frames(shared_dir / "data/dance_1.mp4", range(0, 48, 6)))
    scene, corners = crowd(frames, 8, 270)
    expected = [backend.detect(frame)[0].body.copy() for frame in frames]
    for body, corner in zip(expected, corners, strict=True):
        body[:, :2] = body[:, :2] * 270 / 896 + corner
    assert matched(backend.detect(scene), expected, 270)[0] < 4
    people = backend.detect_everybody(scene)
    assert matched(people, expected, 270) == (8, 0)
    assert [one.area for one in people] == sorted((one.area for one in people), reverse=True)


def test_squares_are_searched_down_to_the_size_of_small_people(backend, monkeypatch: pytest.MonkeyPatch):
    """Beside somebody tall nobody small is looked for, and nothing within a square that they fill."""
    looked: list[tuple[int, int, int]] = []
    pose = np.column_stack([np.linspace(300, 420, 33), np.linspace(0, 1, 33), np.full(33, 0.95)])

    def searched(top: float, bottom: float) -> set[int]:
        looked.clear()
        tall = pose * [1, bottom - top, 1] + [0, top, 0]
        monkeypatch.setattr(type(backend), "_poses", lambda self, frame: [tall])
        monkeypatch.setattr(
            type(backend), "_poses_in", lambda self, part, *, left, top: (looked.append((left, top, len(part))), [])[1]
        )
        assert len(backend.detect_everybody(np.zeros((720, 1280, 3), np.uint8))) == 1
        return {side for _, _, side in looked}

    monkeypatch.setattr(type(backend), "_both_hands", lambda self, frame, body, pose: np.zeros((2, 21, 3)))
    monkeypatch.setattr(type(backend), "_face", lambda self, frame, head: None)
    assert searched(100, 690) == {720}
    assert searched(300, 690) == {720, 432}
    assert searched(500, 690) == {720, 432, 252}
    assert (0, 0, 252) in looked
    pose[:, 0] = np.linspace(200, 700, 33)
    searched(300, 480)
    assert not [at for at in looked if at[2] == 252 and 200 <= at[0] <= 448 and at[1] == 312], "filled by the person"


@pytest.mark.parametrize("size", [(720, 1280), (896, 512), (300, 310), (33, 500)])
def test_tiles_cover_the_frame(size):
    """Every square of a fifth of the shorter side lies wholly in a tile, and every tile in the frame."""
    squares = tiles(size, side=0.6, step=0.4)
    small = min(size) // 5 - 1
    assert all(left >= 0 <= top and left + side <= size[1] and top + side <= size[0] for left, top, side in squares)
    for y, x in np.random.default_rng(0).integers(0, np.array(size) - small, (200, 2)):
        assert any(a <= x and b <= y and x + small <= a + side and y + small <= b + side for a, b, side in squares)
    assert tiles((64, 64), side=1.0, step=0.5) == []


@pytest.mark.parametrize(("share", "across"), [(0.46, 0.5), (0.35, 0.9), (0.25, 0.5), (0.18, 0.1), (0.16, 0.9)])
def test_people_small_in_the_picture_are_found(backend, shared_dir, share, across):
    """A dancer far away: the joints are where those of the large picture are, within 5 % of the height."""
    dancer = next(read_frames(shared_dir / "data/dance_1.mp4"))
    whole = backend.detect(dancer)[0]
    height = int(720 * share)
    width = int(height * 512 / 896)
    left, top = int(across * (1280 - width)), 700 - height
    scene = np.full((720, 1280, 3), (110, 120, 100), np.uint8)
    scene[top:700, left : left + width] = cv2.resize(dancer, (width, height), interpolation=cv2.INTER_AREA)
    seen = whole.body[:14, 2] > 0.8
    expected = whole.body[:14, :2] * height / 896 + (left, top)
    found = backend.detect(scene)[0].body[:14, :2]
    assert np.linalg.norm(found - expected, axis=1)[seen].max() < 0.05 * height


def test_a_person_at_the_edge_of_a_photo(backend, shared_dir):
    photo = shared_dir / "cases/person_at_the_edge.jpg"
    if not photo.is_file():
        pytest.skip(f"{photo} is missing")
    [person] = backend.detect(cv2.cvtColor(cv2.imread(str(photo)), cv2.COLOR_BGR2RGB))
    assert 1550 < person.box[0] < person.box[2] < 1750


def test_nobody(backend):
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    for frame in (np.zeros((240, 320, 3), np.uint8), noise, np.zeros((33, 500, 3), np.uint8)):
        assert backend.detect(frame) == []


def test_face_without_a_body(backend, astronaut):
    """A tight portrait: the face is there even if no body is found."""
    people = backend.detect(np.ascontiguousarray(astronaut[60:200, 160:290]))
    assert people
    assert people[0].face[0, 2] == 1
    assert people[0].body[0, 2] > 0


def test_segment(backend, astronaut):
    mask = backend.segment(astronaut)
    assert mask.shape == (512, 512)
    assert mask.dtype == np.float32
    assert 0 <= mask.min() <= mask.max() <= 1
    assert mask[130, 225] > 0.9, "face"
    assert mask[400, 230] > 0.9, "suit"
    assert mask[60, 470] < 0.1, "shuttle"
    assert backend.segment(np.zeros((120, 90, 3), np.uint8)).shape == (120, 90)


def test_quiet(astronaut, capfd, monkeypatch):
    """MediaPipe's own log lines do not reach the user, and standard error works again afterwards."""
    import os

    monkeypatch.setattr(mediapipe_models, "_kept", {})  # detectors are made here
    fresh = get_backend("mediapipe")
    fresh.detect(astronaut)
    fresh.segment(astronaut)
    os.write(2, b"still here\n")
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "still here\n"


def test_quiet_between_making_a_detector_and_its_first_result(astronaut, capfd, monkeypatch):
    """Its threads log when they come to it, which on a busy machine is after it was made."""
    import os
    from types import SimpleNamespace

    mask = SimpleNamespace(numpy_view=lambda: np.zeros(astronaut.shape[:2], np.float32))

    class Late:
        @property
        def detect(self):
            os.write(2, b"W0000 late\n")
            return lambda image: SimpleNamespace(segmentation_masks=[mask])

    monkeypatch.setattr(mediapipe_models, "pose_landmarker", lambda **_: Late())
    fresh = get_backend("mediapipe")
    fresh.segment(astronaut)
    assert capfd.readouterr().err == ""
    fresh.segment(astronaut)
    assert capfd.readouterr().err == "W0000 late\n", "later calls hide nothing"


def test_backends_that_are_gone_leave_nothing(astronaut):
    """Whoever animates again and again, as the page does, has each detector once."""
    process = psutil.Process()

    def used() -> tuple[int, int]:
        fresh = get_backend("mediapipe")
        fresh.detect(astronaut)
        fresh.segment(astronaut)
        return process.num_threads(), process.memory_info().rss

    used()
    threads, memory = used()
    for _ in range(3):
        after = used()
    assert after[0] == threads
    assert after[1] - memory < 100 * 2**20  # one backend's detectors took 70 MiB each time


def test_threads_at_once_find_what_one_finds(astronaut):
    views = [astronaut, astronaut[:, ::-1], astronaut[40:, 60:], astronaut[::2]]
    alone = [get_backend("mediapipe").detect(view) for view in views]
    with ThreadPoolExecutor(len(views)) as pool:
        together = list(pool.map(lambda view: [get_backend("mediapipe").detect(view) for _ in range(3)], views))
    for expected, several in zip(alone, together, strict=True):
        assert expected
        assert all(equal(found, expected) for found in several)


def test_models_folder_is_refused(tmp_path: Path):
    with pytest.raises(PerceptionError, match="takes no models folder"):
        get_backend("mediapipe", models_dir=tmp_path)


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("side", [20.0, 77.5, 300.0])
def test_square_crop_geometry(side: float, size: int):
    """A smooth image: every pixel of the crop shows the place it should."""
    ys, xs = np.mgrid[:200, :220].astype(np.float32)
    picture = np.stack([xs, ys, 0 * xs], axis=-1).astype(np.uint8)
    center = np.array([103.3, 95.7])
    crop = square_crop(picture, center=center, side=side, size=size).astype(np.float32)
    places = center[0] - side / 2 + (np.arange(size) + 0.5) / size * side
    inside = (places > 2) & (places < 197)
    np.testing.assert_allclose(crop[size // 2, inside, 0], places[inside], atol=2.0)
    places += center[1] - center[0]
    inside = (places > 2) & (places < 197)
    np.testing.assert_allclose(crop[inside, size // 2, 1], places[inside], atol=2.0)


def test_square_crop_outside():
    picture = np.zeros((50, 50, 3), np.uint8)
    assert square_crop(picture, center=np.array([-100.0, 10]), side=40) is None
    assert square_crop(picture, center=np.array([10, np.nan]), side=40) is None
    assert square_crop(picture, center=np.array([10.0, 10]), side=2) is None
    assert square_crop(picture, center=np.array([0.0, 0]), side=40).shape == (256, 256, 3)


@pytest.mark.slow
def test_hands_and_faces_of_a_dancer(backend, shared_dir: Path):
    """How often hands and face are found on a small, moving figure; the holistic solution finds 44 % of these hands."""
    rows = np.linspace(0, 560, 30).astype(int)
    people = [backend.detect(frame)[0] for frame in read_frames(shared_dir / "data" / "dance_1.mp4", rows)]
    hands = np.mean([person.hands[:, 0, 2] > 0 for person in people])
    faces = np.mean([person.face[0, 2] > 0 for person in people])
    print(f"\nhands found {hands:.2f}, faces found {faces:.2f}")
    assert hands > 0.65
    assert faces > 0.9


@pytest.mark.parametrize("shape", [(33, 2400), (2400, 33)])
def test_strips_are_not_searched_tile_by_tile(backend, shape, monkeypatch: pytest.MonkeyPatch) -> None:
    """A strip of 33 x 8192 px took minutes: hundreds of squares as high as itself."""
    looked: list[tuple[int, ...]] = []
    plain = type(backend)._poses_in
    monkeypatch.setattr(
        type(backend), "_poses_in", lambda self, frame, **at: (looked.append(frame.shape), plain(self, frame, **at))[1]
    )
    assert backend.detect(np.zeros((*shape, 3), np.uint8)) == []
    assert looked == [(*shape, 3)]
