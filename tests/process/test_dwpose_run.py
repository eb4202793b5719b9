"""The pose backend dwpose in the program, with stand-in models decoded by rtmlib."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from tests.process.small import standing_figure
from tests.unit.perception.onnx_models import write_models
from xdyna.perception.dwpose_backend import DETECTOR_FILE, POSE_FILE
from xdyna.perception.topology import COCO_TO_BODY
from xdyna.perception.types import PoseTrack
from xdyna.pipelines import doctor

needed = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("rtmlib", "onnx", "onnxruntime")),
    reason="needs the dwpose extra, and onnx to write stand-in models",
)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Models that find the standing figure, whatever they see: where it stands in its own height, (18, 2)."""
    body = standing_figure(frames=1).body[0, :, :2]
    place = 0.15 + 0.7 * (body - body.min(axis=0)) / np.ptp(body[:14], axis=0).max()
    points = np.full((133, 2), 0.5, np.float32)
    for joint, source in COCO_TO_BODY.items():
        points[source] = place[joint]
    folder = tmp_path / "models"
    folder.mkdir()
    write_models(folder, points, width=1.5, height=2.2)
    monkeypatch.setenv("XDYNA_DWPOSE", str(folder))
    return place


@needed
def test_it_drives(infer, media, models, tmp_path, capsys):
    command = ("--drive", media / "poses.mp4", "--pose-backend", "dwpose", "--no-face", "--force")
    assert infer(*command, "--out", "a.mp4") == 0
    said = capsys.readouterr()
    assert f"{DETECTOR_FILE}' is not the published model" in said.err
    assert f"{POSE_FILE}' is not the published model" in said.err
    track = PoseTrack.load(tmp_path / "a.keypoints.npz")
    seen = track.body[0, [0, 4, 7, 10, 13], :2]
    put = models[[0, 4, 7, 10, 13]]
    assert track.found.all()
    # One scale and one place for all joints: what was put into the models is what drives.
    scale = np.ptp(seen[:, 1]) / np.ptp(put[:, 1])
    aspect = np.ptp(seen[:, 0]) / np.ptp(put[:, 0]) / scale
    assert scale > 20
    np.testing.assert_allclose(seen - seen[0], (put - put[0]) * [aspect * scale, scale], atol=1.0)
    assert json.loads((tmp_path / "a.run.json").read_text())["config"]["pose_backend"] == "dwpose"
    # Cached by what the models are: looked up with the same, detected again with others.
    assert infer(*command, "--out", "b.mp4") == 0
    assert "finding the person" not in capsys.readouterr().err
    write_models(tmp_path / "models", np.full((133, 2), 0.4, np.float32), width=1.5, height=2.2)
    assert infer(*command, "--out", "c.mp4") == 0
    assert "finding the person" in capsys.readouterr().err


@needed
def test_doctor_knows_it(models, tmp_path, monkeypatch):
    pytest.importorskip("mediapipe")
    line = doctor._run("detectors", doctor.check_detectors)
    assert line.level == "pass"
    assert f"dwpose with its models in {tmp_path / 'models'} on cpu" in line.text
    assert "is not the published model" in line.text
    (tmp_path / "models" / DETECTOR_FILE).write_bytes(b"damaged")
    line = doctor._run("detectors", doctor.check_detectors)
    assert (line.level, "cannot be loaded" in line.text) == ("warn", True), line
    (tmp_path / "models" / DETECTOR_FILE).unlink()
    line = doctor._run("detectors", doctor.check_detectors)
    assert (line.level, "there is no yolox_l.onnx in that folder" in line.text) == ("warn", True), line


def test_doctor_without_it(monkeypatch):
    pytest.importorskip("mediapipe")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rtmlib" else find(name))
    line = doctor._run("detectors", doctor.check_detectors)
    assert line.level == "pass"
    assert line.text.endswith("dwpose is not installed (optional: the extra dwpose)")
