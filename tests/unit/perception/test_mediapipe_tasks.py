"""MediaPipe above 0.10.21: models from a wheel, everything by tasks; compared with 0.10.21's own numbers."""

import dataclasses
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

mediapipe = pytest.importorskip("mediapipe", reason="needs the perception extra")

from xdyna.core.hub import DownloadError, load_registry  # noqa: E402
from xdyna.perception import PerceptionError, get_backend, mediapipe_files, mediapipe_models  # noqa: E402
from xdyna.perception.face_mesh import FaceMesher  # noqa: E402
from xdyna.perception.mediapipe_tflite import with_refined_points  # noqa: E402

FACE_BOX = (slice(20, 230), slice(120, 330))


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    return pytest.importorskip("skimage.data").astronaut()


@pytest.fixture
def as_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectors as later releases make them: 0.10.21's models are offered as a wheel and its solutions hidden."""
    if mediapipe_files.has_solutions():
        wheel, folder = tmp_path / "models.whl", Path(mediapipe.__file__).parent
        with zipfile.ZipFile(wheel, "w") as archive:
            for path in (folder / "modules").rglob("*.tflite"):
                archive.write(path, f"mediapipe/{path.relative_to(folder).as_posix()}")
        monkeypatch.setattr(mediapipe_files, "_wheel", lambda: wheel)
        monkeypatch.setattr(mediapipe_models, "_kept", {})
        for module in (mediapipe_files, mediapipe_models):
            monkeypatch.setattr(module, "has_solutions", lambda: False)


@pytest.mark.usefixtures("detector")
def test_numbers_are_those_of_release_0_10_21(astronaut: np.ndarray) -> None:
    """Read off 0.10.21 (px); later releases differ by 0.1 px."""
    backend = get_backend("mediapipe")
    person = backend.detect(astronaut)[0]
    body = {0: (218.85, 129.17), 2: (109.02, 238.57), 5: (304.32, 256.65), 14: (201.86, 104.01)}
    face = {8: (221.83, 177.15), 30: (222.77, 125.83), 36: (194.63, 100.49), 45: (255.54, 103.64), 62: (222.96, 142.96)}
    mesh = {1: (222.79, 130.15, -22.71), 33: (194.83, 100.25, 4.42), 61: (202.03, 138.99, 8.08)}
    irises = {468: (203.19, 100.75, 0.72), 473: (246.21, 103.05, -0.16)}
    found = FaceMesher().detect(astronaut, person.face[:, :2])
    assert found is not None
    for points, places in ((person.body, body), (person.face, face), (found, {**mesh, **irises})):
        for row, place in places.items():
            np.testing.assert_allclose(
                points[row, : len(place)] if points is found else points[row, :2], place, atol=0.2
            )
    mask = backend.segment(astronaut)
    np.testing.assert_allclose([mask.mean(), (mask > 0.5).mean()], [0.4415, 0.4377], atol=2e-4)


@pytest.mark.skipif(not mediapipe_files.has_solutions(), reason="this release has no solutions to compare with")
def test_tasks_give_the_numbers_of_the_solutions(astronaut: np.ndarray, request: pytest.FixtureRequest) -> None:
    """All 478 points of the face model that operations were appended to, and the mask, on several views."""
    crop = np.ascontiguousarray(astronaut[FACE_BOX])
    views = [crop, np.ascontiguousarray(crop[:, ::-1]), np.roll(crop, 12, axis=0)]
    with mediapipe_models.quiet_stderr():
        mesh, selfie = mediapipe_models.face_mesh(), mediapipe_models.selfie_segmenter()
        expected = [(mesh(view), selfie(view)) for view in views]
        request.getfixturevalue("as_tasks")
        mesh, selfie = mediapipe_models.face_mesh(), mediapipe_models.selfie_segmenter()
        found = [(mesh(view), selfie(view)) for view in views]
    for (points, mask), (expected_points, expected_mask) in zip(found, expected, strict=True):
        assert points is not None
        assert expected_points is not None
        assert points.shape == (478, 3)
        np.testing.assert_allclose(points * len(crop), expected_points * len(crop), atol=0.05)
        assert np.abs(mask - expected_mask).mean() < 0.01
        assert ((mask > 0.5) == (expected_mask > 0.5)).mean() > 0.99


@pytest.mark.usefixtures("detector")
def test_no_face(as_tasks: None) -> None:
    with mediapipe_models.quiet_stderr():
        assert mediapipe_models.face_mesh()(np.zeros((256, 256, 3), np.uint8)) is None


def test_a_solution_serves_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A solution writes its result to itself before it is taken away."""
    monkeypatch.setattr(mediapipe_models, "_kept", {})
    made, inside, most = [], [], []

    class Slow:
        def __init__(self) -> None:
            made.append(self)

        def process(self, frame: np.ndarray) -> np.ndarray:
            inside.append(frame)
            most.append(len(inside))
            time.sleep(0.01)
            inside.remove(frame)
            return frame

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: mediapipe_models._solution("slow", Slow)(number), range(20)))
    assert found == list(range(20))
    assert (len(made), max(most)) == (1, 1)


def test_points_are_a_choice_of_the_models_values(as_tasks: None) -> None:
    """Of each refined vertex x and y come from the refined tensors, z from the mesh; no value is used twice."""
    from xdyna.perception import mediapipe_tflite

    sources = np.array(mediapipe_tflite._sources()).reshape(478, 3)
    assert len(np.unique(sources[:, :2])) == 478 * 2
    np.testing.assert_array_equal(sources[:468, 2], 3 * np.arange(468) + 2)
    assert sorted(sources[468:].ravel().tolist()) == sorted([*range(1848, 1868), *[1868] * 5, *[1869] * 5])
    edited = with_refined_points(mediapipe_files.model("face_landmark/face_landmark_with_attention.tflite"))
    assert edited[4:8] == b"TFL3"


def test_models_are_a_registered_file_of_known_hash() -> None:
    file = load_registry()[mediapipe_files.WHEEL]
    assert file.base is not None
    assert file.size == 35627340
    assert file.sha256 == "956eb1ebc275c629e61b085b2cab89c3a5b9e93bad1bb107348d98dafb5a4bb5"


def test_models_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence, with the address and the place for a download by hand."""
    monkeypatch.setattr(mediapipe_models, "_check_system", lambda: None)
    monkeypatch.setattr(mediapipe_files, "has_solutions", lambda: False)
    monkeypatch.setattr(mediapipe_files, "weights_folder", lambda: tmp_path)
    file = load_registry()[mediapipe_files.WHEEL]
    closed = dataclasses.replace(file, base="http://127.0.0.1:9")
    monkeypatch.setattr(mediapipe_files, "load_registry", lambda: {mediapipe_files.WHEEL: closed})
    mediapipe_files._wheel.cache_clear()
    with pytest.raises(PerceptionError, match="brings no models and they cannot be fetched") as caught:
        mediapipe_models.load_mediapipe()
    assert closed.url() in str(caught.value)
    assert str(closed.target(tmp_path)) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux' /sys")
def test_a_system_without_sys_is_refused_before_mediapipe_ends_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Releases above 1.0 abort while they are loaded ("CHECK in NumCPUs"), as in a chroot where /sys is not mounted."""
    monkeypatch.setattr(mediapipe_models, "import_mediapipe", SimpleNamespace)
    monkeypatch.setattr(mediapipe_models, "_PROCESSORS", tmp_path / "possible")
    for content in (None, "\n"):
        if content is not None:
            (tmp_path / "possible").write_text(content)
        with pytest.raises(PerceptionError, match="possible, which cannot be read here; mount /sys"):
            mediapipe_models.load_mediapipe()


def test_damaged_models_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mediapipe_files, "has_solutions", lambda: False)
    monkeypatch.setattr(mediapipe_files, "weights_folder", lambda: tmp_path)
    file = load_registry()[mediapipe_files.WHEEL]
    file.target(tmp_path).parent.mkdir(parents=True)
    file.target(tmp_path).write_bytes(bytes(file.size or 0))
    mediapipe_files._wheel.cache_clear()
    with pytest.raises(PerceptionError, match="other bytes than expected") as caught:
        mediapipe_files.find_models()
    assert isinstance(caught.value.__cause__, DownloadError)


@pytest.mark.parametrize(("version", "ok"), [("1.0.3", False), ("0.10.30", False), ("1.2.0", True), ("2.0", True)])
def test_releases(version: str, ok: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mediapipe_models, "require", lambda *_, **__: SimpleNamespace(__version__=version))
    if ok:
        mediapipe_models.import_mediapipe()
    else:
        with pytest.raises(PerceptionError, match=rf"{version} contains no models; expected 0.10.21, or 1.2 and above"):
            mediapipe_models.import_mediapipe()
