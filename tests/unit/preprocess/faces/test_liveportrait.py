"""The adapter of LivePortrait, with a stand-in for the network: its wrapper's interface, simple numbers behind it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.unit.preprocess.faces.real_faces import moved, portrait
from xdyna.config.data import DataError
from xdyna.data.face_files import patch_boxes
from xdyna.perception.face_mesh import FaceMesher
from xdyna.preprocess.faces.liveportrait import _crop
from xdyna.preprocess.faces.reenact import FaceReenactor, Portrait, ReenactError, get_reenactor, keep_boxes

pytestmark = pytest.mark.usefixtures("detector")

pytest.importorskip("mediapipe", reason="needs the perception extra")

WRAPPER = '''
import torch

class LivePortraitWrapper:
    """Motion is read from the picture's corner pixel; the drawn picture is the portrait itself, twice as large."""

    def __init__(self, inference_cfg):
        self.inference_cfg, self.asked = inference_cfg, []

    def prepare_source(self, img):
        assert img.shape == (256, 256, 3)
        return torch.from_numpy(img.copy()).permute(2, 0, 1)[None].float() / 255

    def get_kp_info(self, x):
        value = x.mean().reshape(1, 1)
        kp = torch.linspace(-1, 1, 63).reshape(1, 21, 3)
        return {"pitch": 0 * value, "yaw": 0 * value, "roll": 0 * value, "t": value * torch.tensor([[1.0, 2.0, 3.0]]),
                "exp": value[..., None] * torch.ones(1, 21, 3), "scale": 1 + value, "kp": kp}

    def extract_feature_3d(self, x):
        return x

    def transform_keypoint(self, info):
        return info["kp"] + 100

    def warp_decode(self, feature, kp_source, kp_driving):
        self.asked.append((kp_source, kp_driving))
        return {"out": torch.nn.functional.interpolate(feature, scale_factor=2, mode="bilinear")}

    def parse_output(self, out):
        return (out.permute(0, 2, 3, 1).numpy() * 255).round().astype("uint8")
'''
CONFIG = """
from dataclasses import dataclass

@dataclass
class InferenceConfig:
    flag_force_cpu: bool = False
    flag_use_half_precision: bool = True
"""
CAMERA = """
import torch

def get_rotation_matrix(pitch, yaw, roll):
    return torch.eye(3)[None]
"""


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A folder that looks like LivePortrait with weights."""
    files = {
        "src/__init__.py": "",
        "src/live_portrait_wrapper.py": WRAPPER,
        "src/config/__init__.py": "",
        "src/config/inference_config.py": CONFIG,
        "src/utils/__init__.py": "",
        "src/utils/camera.py": CAMERA,
        "pretrained_weights/liveportrait/base_models/motion_extractor.pth": "",
    }
    for name, text in files.items():
        path = tmp_path / "LivePortrait" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    before = list(sys.path)
    yield tmp_path / "LivePortrait"
    for name in [name for name in sys.modules if name == "src" or name.startswith("src.")]:
        del sys.modules[name]
    assert sys.path == before, "its folder must not stay importable"


@pytest.fixture(scope="module")
def people() -> tuple[Portrait, Portrait]:
    mesher = FaceMesher()
    return portrait("astronaut", mesher), portrait("admiral", mesher)


def test_the_portrait_is_shown_where_the_driving_face_is(home: Path, people: tuple[Portrait, Portrait]):
    driver, other = people
    reenactor = get_reenactor("liveportrait", models_dir=home)
    assert isinstance(reenactor, FaceReenactor)
    shifted = moved(driver.image, np.array([[1.0, 0, 60], [0, 1, 35]]), driver.landmarks)
    frames = np.stack([driver.image, driver.image, shifted[0]])
    points = np.stack([driver.landmarks, np.zeros((68, 3), np.float32), shifted[1]])
    faces = reenactor.reenact(frames, points, other)
    assert not faces.frames[1].any()
    assert not faces.landmarks[1].any()
    np.testing.assert_array_equal(keep_boxes(faces.frames, patch_boxes(faces.landmarks, size=(512, 512))), faces.frames)
    extent = np.ptp(driver.landmarks[:, :2], axis=0).max()
    for row in (0, 2):
        error = faces.landmarks[row, :, :2].mean(axis=0) - points[row, :, :2].mean(axis=0)
        assert np.linalg.norm(error) < 0.2 * extent
    np.testing.assert_allclose(
        faces.landmarks[2, :, :2] - faces.landmarks[0, :, :2], np.tile([60, 35], (68, 1)), atol=2
    )
    # The pixels are the portrait's: bring both faces to the same place and compare.
    matrix, _ = cv2.estimateAffinePartial2D(other.landmarks[:, :2].copy(), faces.landmarks[0, :, :2].copy())
    expected = cv2.warpAffine(cv2.GaussianBlur(other.image, (0, 0), 1.2), matrix, (512, 512))
    x, y = faces.landmarks[0, 27:36, :2].mean(axis=0).astype(int)
    patch = np.s_[y - 15 : y + 15, x - 15 : x + 15]
    assert np.abs(faces.frames[0][patch].astype(int) - expected[patch].astype(int)).mean() < 12


def test_keypoints_follow_the_paper(home: Path, people: tuple[Portrait, Portrait]):
    """x = s (x_c R + delta) + t, with delta = portrait + driving - calm; pose of the driving face."""
    driver, other = people
    reenactor = get_reenactor("liveportrait", models_dir=home)
    wrapper = reenactor._wrapper  # type: ignore[attr-defined]
    dark = (driver.image // 2).astype(np.uint8)
    reenactor.reenact(dark[None], driver.landmarks[None], other, own=driver)
    (start, end), *_ = wrapper.asked

    shown = ((other.image, other.landmarks), (dark, driver.landmarks), (driver.image, driver.landmarks))
    means = [float(_crop(image, points)[0].mean()) / 255 for image, points in shown]
    kp = torch.linspace(-1, 1, 63).reshape(1, 21, 3)
    delta = means[0] + means[1] - means[2]
    expected = (1 + means[1]) * (kp + delta) + torch.tensor([means[1], 2 * means[1], 0])
    torch.testing.assert_close(end, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(start, kp + 100)


def test_no_faces(home: Path, people: tuple[Portrait, Portrait]):
    driver, other = people
    reenactor = get_reenactor("liveportrait", models_dir=home)
    with pytest.raises(ReenactError, match="no face in any of 1 frames"):
        reenactor.reenact(driver.image[None], np.zeros((1, 68, 3), np.float32), other)
    wall = Portrait(np.full((256, 256, 3), 90, np.uint8), other.landmarks, "wall")
    with pytest.raises(ReenactError, match="shows no face") as caught:
        reenactor.reenact(driver.image[None], driver.landmarks[None], wall)
    assert caught.value.reason == "no_portrait"


def test_it_says_how_to_install_it(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XDYNA_LIVEPORTRAIT", raising=False)
    with pytest.raises(DataError, match=r"is not installed: clone https://github\.com/KwaiVGI/LivePortrait"):
        get_reenactor("liveportrait")
    with pytest.raises(DataError, match="is no LivePortrait"):
        get_reenactor("liveportrait", models_dir=tmp_path)
    monkeypatch.setenv("XDYNA_LIVEPORTRAIT", str(home))
    assert get_reenactor("liveportrait").name == "liveportrait"
    for weights in home.rglob("*.pth"):
        weights.unlink()
    with pytest.raises(DataError, match="has no weights"):
        get_reenactor("liveportrait")


def test_a_broken_installation(home: Path):
    (home / "src" / "utils" / "camera.py").write_text("import no_such_package_of_anyone")
    with pytest.raises(DataError, match=r"cannot be loaded \(ModuleNotFoundError"):
        get_reenactor("liveportrait", models_dir=home)
