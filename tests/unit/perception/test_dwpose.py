"""The DWPose backend without its models: a stand-in for rtmlib, and tiny ONNX files where rtmlib is installed."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest

from xdyna.perception import PerceptionError, dwpose_backend, get_backend
from xdyna.perception.dwpose_backend import DETECTOR_FILE, POSE_FILE, wholebody_person

COCO = [
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
]
OPENPOSE = [
    "nose",
    "neck",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "right_hip",
    "right_knee",
    "right_ankle",
    "left_hip",
    "left_knee",
    "left_ankle",
    "right_eye",
    "left_eye",
    "right_ear",
    "left_ear",
]
SIZE = (400, 300)


def make_points() -> np.ndarray:
    points = np.zeros((133, 3))
    points[:, 0], points[:, 1] = np.arange(133) + 10, 2 * np.arange(133) + 20
    points[:, 2] = np.linspace(0.3, 1.1, 133)  # SimCC scores can exceed 1
    return points


def test_mapping_by_name():
    points = make_points()
    person = wholebody_person(points, box=np.array([0, 0, 50, 60]), size=SIZE)
    for joint, name in enumerate(OPENPOSE):
        if name != "neck":
            np.testing.assert_allclose(person.body[joint], points[COCO.index(name)], rtol=1e-6)
    left, right = points[COCO.index("left_shoulder")], points[COCO.index("right_shoulder")]
    np.testing.assert_allclose(person.body[1], [*(left[:2] + right[:2]) / 2, min(left[2], right[2])], rtol=1e-6)
    np.testing.assert_allclose(person.face[:, :2], points[23:91, :2])
    np.testing.assert_allclose(person.hands[0, :, :2], points[91:112, :2])
    np.testing.assert_allclose(person.hands[1, :, :2], points[112:133, :2])
    assert person.hands[1, -1, 2] == 1, "scores are cut to 1"
    assert person.area == 3000


def test_points_outside_are_missing():
    points = make_points()
    points[9, :2] = [-5, 10]  # left wrist
    person = wholebody_person(points, box=np.zeros(4), size=SIZE)
    np.testing.assert_array_equal(person.body[7], 0)
    with pytest.raises(PerceptionError, match=r"expected \(133, 3\)"):
        wholebody_person(points[:17], box=np.zeros(4), size=SIZE)


class FakeTool:
    """As rtmlib's tools: prints when it loads, has a session, takes BGR."""

    def __init__(self, onnx_model: str, *, model_input_size: tuple[int, int], backend: str, device: str) -> None:
        if b"broken" in Path(onnx_model).read_bytes():
            raise RuntimeError("INVALID_PROTOBUF : Load model failed\nmore")
        print(f"load {onnx_model}")
        shape = [1, 3, 416, 640] if type(self).__name__ == "YOLOX" else [1, 3, 256, 192]
        self.session = types.SimpleNamespace(get_inputs=lambda: [types.SimpleNamespace(shape=shape)])
        self.model_input_size = model_input_size
        self.seen: list[np.ndarray] = []


class YOLOX(FakeTool):
    boxes = np.array([[10.0, 10, 60, 110], [100, 20, 280, 380]])

    def __call__(self, image: np.ndarray) -> np.ndarray:
        self.seen.append(image)
        return self.boxes


class RTMPose(FakeTool):
    def __call__(self, image: np.ndarray, bboxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert len(bboxes), "without boxes rtmlib takes the whole picture"
        points = np.stack([make_points() + [*box[:2], 0] for box in bboxes])
        return points[..., :2], points[..., 2]


@pytest.fixture
def rtmlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "rtmlib", types.SimpleNamespace(YOLOX=YOLOX, RTMPose=RTMPose))


def make_models(folder: Path, content: bytes = b"model") -> Path:
    (folder / DETECTOR_FILE).write_bytes(content)
    (folder / POSE_FILE).write_bytes(content)
    return folder


def test_detect(rtmlib, tmp_path: Path, capsys):
    backend = get_backend("dwpose", models_dir=make_models(tmp_path))
    frame = np.zeros((*SIZE, 3), np.uint8)
    frame[..., 0] = 200
    people = backend.detect(frame)
    assert [person.box.tolist() for person in people] == [[100, 20, 280, 380], [10, 10, 60, 110]], "largest first"
    np.testing.assert_allclose(people[0].body[0, :2], [110, 40])
    assert (backend._detector.seen[0][..., 2] == 200).all(), "rtmlib takes BGR"
    assert backend._detector.model_input_size == (416, 640), "(height, width)"
    assert backend._pose.model_input_size == (192, 256), "(width, height)"
    assert capsys.readouterr().out == ""
    backend._detector.boxes = np.array([])
    assert backend.detect(frame) == []


def test_version_follows_the_models(rtmlib, tmp_path: Path):
    first = get_backend("dwpose", models_dir=make_models(tmp_path)).version
    assert get_backend("dwpose", models_dir=tmp_path).version == first
    (tmp_path / POSE_FILE).write_bytes(b"another model")
    assert get_backend("dwpose", models_dir=tmp_path).version != first


def test_the_default_folder_is_that_of_the_repository(rtmlib, monkeypatch, tmp_path: Path):
    assert Path(__file__).resolve().parents[3] / "pretrained" / "dwpose" == dwpose_backend.DEFAULT_DIR
    monkeypatch.setattr(dwpose_backend, "DEFAULT_DIR", make_models(tmp_path))
    assert get_backend("dwpose").version == get_backend("dwpose", models_dir=tmp_path).version


def test_errors(rtmlib, monkeypatch, tmp_path: Path):
    with pytest.raises(PerceptionError, match=r"lacks \['yolox_l.onnx', 'dw-ll_ucoco_384.onnx'\] in .*put the files"):
        get_backend("dwpose", models_dir=tmp_path)
    make_models(tmp_path)
    (tmp_path / POSE_FILE).unlink()
    with pytest.raises(PerceptionError, match=r"lacks \['dw-ll_ucoco_384.onnx'\]"):
        get_backend("dwpose", models_dir=tmp_path)
    make_models(tmp_path, b"broken")
    with pytest.raises(
        PerceptionError, match=r"yolox_l\.onnx' cannot be loaded \(INVALID_PROTOBUF : Load model failed\)"
    ):
        get_backend("dwpose", models_dir=tmp_path)
    monkeypatch.setitem(sys.modules, "rtmlib", None)
    with pytest.raises(PerceptionError, match="pip install rtmlib onnxruntime"):
        get_backend("dwpose", models_dir=tmp_path)


def test_with_the_real_rtmlib(tmp_path: Path):
    """Tiny models with the outputs of the real ones: a person's box, and one keypoint position for all 133 points."""
    pytest.importorskip("rtmlib")
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    def save(path: Path, *, size: tuple[int, int], outputs: dict[str, np.ndarray]) -> None:
        picture = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, *size])
        constants = {name: numpy_helper.from_array(value) for name, value in outputs.items()}
        nodes = [helper.make_node("Constant", [], [name], value=value) for name, value in constants.items()]
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, v.shape) for name, v in outputs.items()]
        graph = helper.make_graph(nodes, "g", [picture], values)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)

    # One confident cell of YOLOX at stride 8, grid (5, 5): centre (40, 40) in a 128 px input, size e^2 * 8.
    cells = np.zeros((1, 16 * 16 + 8 * 8 + 4 * 4, 85), np.float32)
    cells[0, 5 * 16 + 5] = [0, 0, 2, 2, 1, 1, *np.zeros(79)]
    save(tmp_path / DETECTOR_FILE, size=(128, 128), outputs={"out": cells})
    # The pose model finds everything in the middle of its 64 x 96 px crop.
    x, y = np.zeros((1, 133, 128), np.float32), np.zeros((1, 133, 192), np.float32)
    x[..., 64] = y[..., 96] = 0.9
    save(tmp_path / POSE_FILE, size=(96, 64), outputs={"simcc_x": x, "simcc_y": y})

    people = get_backend("dwpose", models_dir=tmp_path).detect(np.zeros((256, 256, 3), np.uint8))
    assert len(people) == 1
    half = np.exp(2) * 8
    np.testing.assert_allclose(people[0].box, [80 - half, 80 - half, 80 + half, 80 + half], atol=0.5)
    np.testing.assert_allclose(people[0].body, np.tile([80, 80, 0.9], (18, 1)), atol=0.6)
