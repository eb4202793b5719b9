"""The face backend on the real library with tiny ONNX files that have the models' inputs and outputs."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.unit.perception.onnx_models import save_constant
from xdyna.perception import PerceptionError, get_face_backend, insightface_backend

pytest.importorskip("insightface", reason="needs the perception extra")
pytest.importorskip("onnx")

STRIDES = (8, 16, 32)


def save(path: Path, *, size: tuple, outputs: dict[str, np.ndarray]) -> None:
    """By the name that InsightFace's models have for their image."""
    save_constant(path, size=size, outputs=outputs, image="input.1")


def save_detector(path: Path) -> None:
    """SCRFD with two anchors per cell: faces at cell (10, 20) of stride 8 and (5, 5) of stride 32."""
    outputs: dict[str, np.ndarray] = {}
    faces = {8: (10, 20, 4.0, 0.9), 32: (5, 5, 3.0, 0.8)}  # stride -> row, column, half-size in strides, score
    for kind, width in (("score", 1), ("bbox", 4), ("kps", 10)):
        for stride in STRIDES:
            side = 640 // stride
            value = np.zeros((side * side * 2, width), np.float32)
            if stride in faces:
                row, column, half, score = faces[stride]
                cell = (row * side + column) * 2
                value[cell] = {"score": score, "bbox": half, "kps": np.tile([1.0, -1.0], 5)}[kind]
            outputs[f"{kind}_{stride}"] = value
    save(path, size=("h", "w"), outputs=outputs)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    save_detector(tmp_path / "det.onnx")
    return tmp_path


def test_boxes_and_points(models: Path, capfd):
    backend = get_face_backend("insightface", models_dir=models)
    faces = backend.detect_faces(np.zeros((640, 640, 3), np.uint8))
    assert len(faces) == 2
    large, small = faces
    np.testing.assert_allclose(large.box, [160 - 96, 160 - 96, 160 + 96, 160 + 96], atol=1e-3)
    np.testing.assert_allclose(small.box, [160 - 32, 80 - 32, 160 + 32, 80 + 32], atol=1e-3)
    assert large.score == pytest.approx(0.8)
    np.testing.assert_allclose(small.kps5, np.tile([168, 72], (5, 1)), atol=1e-3)
    assert large.embedding is None
    assert capfd.readouterr().out == ""


def test_boxes_are_in_px_of_the_frame(models: Path):
    """The detector works at 640 px; a frame of half the size gives half the coordinates."""
    faces = get_face_backend("insightface", models_dir=models).detect_faces(np.zeros((320, 320, 3), np.uint8))
    np.testing.assert_allclose(faces[0].box, [32, 32, 128, 128], atol=1e-3)


def test_the_library_gets_bgr(models: Path, monkeypatch):
    backend = get_face_backend("insightface", models_dir=models)
    seen = []

    def detect(image: np.ndarray, **_):
        seen.append(image)
        return np.zeros((0, 5)), np.zeros((0, 5, 2))

    monkeypatch.setattr(backend._models["detection"], "detect", detect)
    frame = np.zeros((64, 64, 3), np.uint8)
    frame[..., 0] = 200
    assert backend.detect_faces(frame) == []
    assert (seen[0][..., 2] == 200).all()


def test_embedding(models: Path):
    assert not get_face_backend("insightface", models_dir=models).recognizes
    vector = np.zeros((1, 512), np.float32)
    vector[0, :2] = [3, 4]
    save(models / "arc.onnx", size=(112, 112), outputs={"683": vector})
    backend = get_face_backend("insightface", models_dir=models)
    assert backend.recognizes
    faces = backend.detect_faces(np.zeros((640, 640, 3), np.uint8))
    np.testing.assert_allclose(faces[0].embedding[:3], [0.6, 0.8, 0], atol=1e-6)


def test_version_follows_the_models(models: Path):
    first = get_face_backend("insightface", models_dir=models).version
    save(models / "2d106.onnx", size=(192, 192), outputs={"fc1": np.zeros((1, 212), np.float32)})
    assert get_face_backend("insightface", models_dir=models).version != first


def test_the_default_folder_is_that_of_the_repository(models, monkeypatch):
    assert Path(__file__).resolve().parents[3] / "pretrained" / "insightface" == insightface_backend.DEFAULT_DIR
    monkeypatch.setattr(insightface_backend, "DEFAULT_DIR", models)
    assert get_face_backend("insightface").version == get_face_backend("insightface", models_dir=models).version


def test_errors(tmp_path: Path, monkeypatch):
    with pytest.raises(PerceptionError, match=r"found no \.onnx file in .*buffalo_l"):
        get_face_backend("insightface", models_dir=tmp_path / "none")
    save(tmp_path / "2d106.onnx", size=(192, 192), outputs={"fc1": np.zeros((1, 212), np.float32)})
    with pytest.raises(PerceptionError, match=r"found no face detector in .*2d106\.onnx"):
        get_face_backend("insightface", models_dir=tmp_path)
    (tmp_path / "a.onnx").write_bytes(b"not a model")
    with pytest.raises(PerceptionError, match=r"a\.onnx' cannot be loaded"):
        get_face_backend("insightface", models_dir=tmp_path)
    monkeypatch.setitem(sys.modules, "insightface", None)
    with pytest.raises(PerceptionError, match="pip install"):
        get_face_backend("insightface", models_dir=tmp_path)
