"""Programs that used MediaPipe end silently."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.usefixtures("detector")

pytest.importorskip("mediapipe", reason="needs the perception extra")

_PROGRAM = """
import numpy as np
from xdyna.perception import get_backend
backend = get_backend("mediapipe")
frame = np.zeros((96, 64, 3), np.uint8)
print(backend.detect(frame), backend.segment(frame).shape)
"""


def test_nothing_on_standard_error_at_the_end() -> None:
    """Detectors that are alive when Python ends; those of 1.x complain then if they are deleted."""
    get = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert (get.returncode, get.stdout, get.stderr) == (0, "[] (96, 64)\n", "")


_CYCLES = """
import gc
import numpy as np
from xdyna.perception import get_backend
frame = np.zeros((96, 64, 3), np.uint8)
for _ in range(3):
    backend = get_backend("mediapipe")
    backend.detect(frame)
    backend.itself = backend
    del backend
    gc.collect()
from xdyna.perception import mediapipe_models as models
print(models.has_solutions() or models.pose_landmarker() is models.pose_landmarker())
"""


@pytest.mark.long
def test_detectors_are_never_left_to_the_garbage_collector() -> None:
    """Those of 1.x wait for a thread when they are deleted, wherever the collector happens to run: so they stay."""
    done = subprocess.run([sys.executable, "-c", _CYCLES], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
