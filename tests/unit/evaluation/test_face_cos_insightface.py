"""Face-Cos by insightface's library, with stand-ins for its models."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("insightface", reason="needs the perception extra")
pytest.importorskip("onnx")

from tests.unit.perception.test_insightface import save, save_detector
from xdyna.config.eval import ClipProtocol
from xdyna.core.errors import WeightsError
from xdyna.evaluation.catalogue import METRICS, Shared
from xdyna.evaluation.metric import Case, Video
from xdyna.evaluation.store import Store
from xdyna.evaluation.weights import MissingWeights, WeightsFolder


def shared(folder: Path) -> Shared:
    weights = WeightsFolder(folder)
    return Shared(Store(folder / "store"), weights, clip=ClipProtocol(), masks="given", pose_backend="mediapipe")


def video(name: str) -> Video:
    return Video(name, np.zeros((2, 640, 640, 3), np.uint8), 8.0, name)


def test_the_metric_is_made_from_a_folder_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / "insightface"
    models.mkdir()
    save_detector(models / "det.onnx")
    vector = np.zeros((1, 512), np.float32)
    vector[0, :2] = [3, 4]
    save(models / "arc.onnx", size=(112, 112), outputs={"683": vector})
    folder = shared(tmp_path)
    metric = METRICS["face_cos_insightface"](folder)
    assert set(folder.weights.used) == {"insightface/arc.onnx", "insightface/det.onnx"}  # type: ignore[attr-defined]
    embedder = folder.weights.extractor("insightface")
    assert embedder is folder.weights.extractor("insightface")
    np.testing.assert_allclose(embedder.embed(video("a").frames)[:, :2], [[0.6, 0.8]] * 2, atol=1e-6)

    generated, truth = video("generated"), video("truth")
    detect = embedder._backend.detect_faces
    monkeypatch.setattr(embedder._backend, "detect_faces", lambda frame: [] if frame[0, 0, 0] == 1 else detect(frame))
    generated.frames[1, 0, 0, 0] = 1  # nobody there
    values = metric.reduce([metric.measure(Case("case", generated=generated, truth=truth))])
    assert values["face_cos_insightface"] == pytest.approx(1, abs=1e-6)
    assert values["face_cos_insightface_zero"] == pytest.approx(0.5, abs=1e-6)
    assert "insightface" in metric.version


def test_without_models_it_says_which(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match=r"w600k_r50.onnx.*a folder 'insightface' below --weights-dir"):
        METRICS["face_cos_insightface"](shared(tmp_path))
    (tmp_path / "insightface").mkdir()
    save_detector(tmp_path / "insightface" / "det.onnx")
    with pytest.raises(WeightsError, match="holds no recognition model"):
        METRICS["face_cos_insightface"](shared(tmp_path))
