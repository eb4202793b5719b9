import subprocess
import sys

import numpy as np
import pytest

from xdyna.core.install import install_xdyna
from xdyna.perception import PerceptionError, get_backend, get_face_backend
from xdyna.perception.base import check_frame, require


def test_unknown_names_get_the_nearest():
    with pytest.raises(PerceptionError, match=r"'mediapip' is unknown.*did you mean 'mediapipe'"):
        get_backend("mediapip")
    with pytest.raises(PerceptionError, match="did you mean 'dwpose'"):
        get_backend("DWpose")
    with pytest.raises(PerceptionError, match="choose one of them"):
        get_backend("zzz")
    with pytest.raises(PerceptionError, match="did you mean 'insightface'"):
        get_face_backend("insight")


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mediapipe", None)  # as if it were not installed
    with pytest.raises(PerceptionError, match="needs the package 'mediapipe'") as caught:
        get_backend("mediapipe")
    assert str(caught.value).endswith(f"run: {install_xdyna('perception')}")
    with pytest.raises(PerceptionError, match="perception backend 'x' needs the package 'no_such_package_at_all'"):
        require("no_such_package_at_all", extra="dwpose", backend="x")


def test_heavy_libraries_are_imported_late():
    code = (
        "import sys, xdyna.perception; "
        "heavy = {'mediapipe', 'insightface', 'rtmlib', 'onnxruntime', 'torch'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    "frame",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_frames_are_checked(frame: np.ndarray):
    with pytest.raises(PerceptionError, match=r"expected \(H, W, 3\) uint8 RGB"):
        check_frame(frame)
