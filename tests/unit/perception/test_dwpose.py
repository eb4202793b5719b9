"""The DWPose backend without its models: a stand-in for rtmlib, and tiny ONNX files where rtmlib is installed."""

import hashlib
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest

from tests.unit.core.file_server import serving
from tests.unit.perception.onnx_models import write_models
from xdyna.core.hub import HubFile
from xdyna.core.install import install_xdyna
from xdyna.perception import PerceptionError, PerceptionWarning, dwpose_backend, get_backend
from xdyna.perception.dwpose_backend import DETECTOR_FILE, POSE_FILE, wholebody_person
from xdyna.perception.topology import COCO_TO_BODY

pytestmark = pytest.mark.filterwarnings("ignore:.*is not the published model")
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

    devices: tuple[str, ...] = ()  # that work, beside the CPU

    def __init__(self, onnx_model: str, *, model_input_size: tuple[int, int], backend: str, device: str) -> None:
        if b"broken" in Path(onnx_model).read_bytes():
            raise RuntimeError("INVALID_PROTOBUF : Load model failed\nmore")
        print(f"load {onnx_model}")
        shape = [1, 3, 416, 640] if type(self).__name__ == "YOLOX" else [1, 3, 256, 192]
        providers = ["CUDAExecutionProvider"] if device in FakeTool.devices else ["CPUExecutionProvider"]
        self.session = types.SimpleNamespace(
            get_inputs=lambda: [types.SimpleNamespace(shape=shape)], get_providers=lambda: providers
        )
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
def rtmlib(monkeypatch, tmp_path_factory):
    """Stand-ins of both packages, and nothing in the folders of the repository."""
    monkeypatch.setitem(sys.modules, "rtmlib", types.SimpleNamespace(YOLOX=YOLOX, RTMPose=RTMPose))
    runtime = types.SimpleNamespace(
        get_available_providers=lambda: runtime.providers, providers=["CPUExecutionProvider"]
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    root = tmp_path_factory.mktemp("pretrained")
    monkeypatch.setattr(dwpose_backend, "weights_folder", lambda: root)
    monkeypatch.setattr(FakeTool, "devices", ())
    for name in ("XDYNA_DWPOSE", "XDYNA_DWPOSE_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    dwpose_backend._loaded.cache_clear()
    yield runtime
    dwpose_backend._loaded.cache_clear()


def make_models(folder: Path, content: bytes = b"model") -> Path:
    folder.mkdir(exist_ok=True)
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


def test_where_the_models_are_looked_for(rtmlib, monkeypatch, tmp_path: Path):
    """The user's folder, that of downloads, that of former versions; nothing is fetched where one has them."""
    monkeypatch.setattr(dwpose_backend, "fetch_models", lambda: pytest.fail("nothing is to be fetched"))
    root = dwpose_backend.weights_folder()
    for number, folder in enumerate((root / "dwpose", root / "DWPose", tmp_path / "mine")):
        make_models(folder, b"model %d" % number)
        if folder.parent != root:
            monkeypatch.setenv("XDYNA_DWPOSE", str(folder))
        assert get_backend("dwpose").version == get_backend("dwpose", models_dir=folder).version
    (tmp_path / "mine" / POSE_FILE).unlink()
    with pytest.raises(PerceptionError, match=r"XDYNA_DWPOSE=.*there is no dw-ll_ucoco_384.onnx in that folder"):
        get_backend("dwpose")


def test_the_folder_is_that_of_the_repository():
    assert dwpose_backend._folders()[0] == Path(__file__).resolve().parents[3] / "pretrained" / "DWPose"


def test_the_registry_has_both_with_their_hashes():
    files = dwpose_backend.registered()
    assert set(files) == {DETECTOR_FILE, POSE_FILE}
    assert all(file.size and file.sha256 for file in files.values())


@pytest.fixture
def published(rtmlib, monkeypatch):
    """Stand-ins of both files on a server on this machine, in the registry's place."""
    with serving({f"/{name}": name.encode() for name in (DETECTOR_FILE, POSE_FILE)}) as server:
        files = {
            name: HubFile(
                "here/DWPose",
                name,
                "test",
                (),
                "none",
                len(name),
                hashlib.sha256(name.encode()).hexdigest(),
                base=server.url,
            )
            for name in (DETECTOR_FILE, POSE_FILE)
        }
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(dwpose_backend, "load_registry", lambda: {file.name: file for file in files.values()})
        yield server


def test_models_are_fetched_once(published, tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", PerceptionWarning)  # these have the hashes of the registry
        first = get_backend("dwpose").version
        assert get_backend("dwpose").version == first
    assert sorted(published.requests) == [f"/{POSE_FILE}", f"/{DETECTOR_FILE}"]
    folder = dwpose_backend.weights_folder() / "DWPose"
    assert (folder / POSE_FILE).read_bytes() == POSE_FILE.encode()


def test_what_is_damaged_on_its_way_is_not_taken(published):
    published.files[f"/{POSE_FILE}"] = POSE_FILE.encode().upper()
    with pytest.raises(PerceptionError, match=r"cannot be fetched: .*other bytes than expected.*backend 'mediapipe'"):
        get_backend("dwpose")
    assert not (dwpose_backend.weights_folder() / "DWPose" / POSE_FILE).exists()
    published.files.clear()
    with pytest.raises(PerceptionError, match=rf"cannot be fetched: .*{POSE_FILE}"):
        get_backend("dwpose")


def test_another_model_is_taken_with_a_warning(rtmlib, tmp_path: Path):
    with pytest.warns(PerceptionWarning, match=r"yolox_l.onnx' is not the published model .sha256 [0-9a-f]{16}"):
        get_backend("dwpose", models_dir=make_models(tmp_path))


def test_devices(rtmlib, monkeypatch, tmp_path: Path):
    make_models(tmp_path)
    assert get_backend("dwpose", models_dir=tmp_path).device == "cpu"
    for asked in ("cuda", "cuda:1"):
        monkeypatch.setenv("XDYNA_DWPOSE_DEVICE", asked)
        with pytest.raises(PerceptionError, match=r"cannot run on cuda.*this onnxruntime has CPU; .*onnxruntime-gpu"):
            get_backend("dwpose", models_dir=tmp_path)
    monkeypatch.setenv("XDYNA_DWPOSE_DEVICE", "gpu")
    with pytest.raises(PerceptionError, match="XDYNA_DWPOSE_DEVICE=gpu: expected cpu, cuda or cuda:N"):
        get_backend("dwpose", models_dir=tmp_path)
    monkeypatch.delenv("XDYNA_DWPOSE_DEVICE")
    rtmlib.providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    with pytest.warns(PerceptionWarning, match="runs on the CPU: onnxruntime could not use the GPU"):
        assert get_backend("dwpose", models_dir=tmp_path).device == "cpu"
    dwpose_backend._loaded.cache_clear()
    monkeypatch.setattr(FakeTool, "devices", ("cuda",))
    assert get_backend("dwpose", models_dir=tmp_path).device == "cuda", "the GPU is taken where there is one"


def test_models_are_loaded_once_per_content(rtmlib, tmp_path: Path):
    make_models(tmp_path)
    first = get_backend("dwpose", models_dir=tmp_path)
    assert get_backend("dwpose", models_dir=tmp_path)._pose is first._pose
    (tmp_path / POSE_FILE).write_bytes(b"another model")
    assert get_backend("dwpose", models_dir=tmp_path)._pose is not first._pose


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
    make_models(tmp_path)
    backend = get_backend("dwpose", models_dir=tmp_path)
    monkeypatch.setattr(RTMPose, "__call__", lambda *_, **__: [][0])
    with pytest.raises(PerceptionError, match=r"dw-ll_ucoco_384.onnx' of .* does not work as that model does"):
        backend.detect(np.zeros((*SIZE, 3), np.uint8))
    for package in ("onnxruntime", "rtmlib"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(PerceptionError, match=f"needs the package '{package}'") as caught:
            get_backend("dwpose", models_dir=tmp_path)
        assert str(caught.value).endswith(f"run: {install_xdyna('dwpose')}")


def test_with_the_real_rtmlib(tmp_path: Path):
    """Tiny models with the outputs of the real ones, decoded by rtmlib: the box and every point come out where they
    were put."""
    pytest.importorskip("rtmlib")
    pytest.importorskip("onnx")
    points = np.random.default_rng(0).uniform(0.2, 0.8, (133, 2)).astype(np.float32)
    write_models(tmp_path, points)
    backend = get_backend("dwpose", models_dir=tmp_path)
    people = backend.detect(np.zeros((256, 256, 3), np.uint8))
    assert len(people) == 1
    half = np.exp(2) * 8
    np.testing.assert_allclose(people[0].box, [80 - half, 80 - half, 80 + half, 80 + half], atol=0.5)
    # rtmlib cuts 1.25 of the box, made as wide as 2/3 of its height or the other way round: here 3/2 of the width.
    across, down = 1.25 * 2 * half, 1.25 * 2 * half * 1.5
    expected = np.array([80 - across / 2, 80 - down / 2]) + points * [across, down]
    np.testing.assert_allclose(people[0].body[0, :2], expected[0], atol=1.5)
    for joint, source in COCO_TO_BODY.items():
        np.testing.assert_allclose(people[0].body[joint, :2], expected[source], atol=1.5)
    np.testing.assert_allclose(people[0].face[:, :2], expected[23:91], atol=1.5)
    assert people[0].body[0, 2] == pytest.approx(0.9)


def test_exchanged_models_are_one_sentence(tmp_path: Path):
    pytest.importorskip("rtmlib")
    pytest.importorskip("onnx")
    write_models(tmp_path, np.full((133, 2), 0.5, np.float32))
    detector, pose = (tmp_path / name for name in (DETECTOR_FILE, POSE_FILE))
    content = detector.read_bytes()
    detector.write_bytes(pose.read_bytes())
    pose.write_bytes(content)
    with pytest.raises(PerceptionError, match=r"yolox_l.onnx' of .* does not work as that model does \("):
        get_backend("dwpose", models_dir=tmp_path).detect(np.zeros((256, 256, 3), np.uint8))
    pose.write_bytes(b"no model")
    with pytest.raises(PerceptionError, match=r"dw-ll_ucoco_384.onnx' cannot be loaded \("):
        get_backend("dwpose", models_dir=tmp_path)
