"""Two real people in the public domain, whose images come with other packages: nothing is kept in this project."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from xdyna.perception.face_mesh import FaceMesher, ibug68
from xdyna.preprocess.faces.reenact import Portrait

BOXES = {"astronaut": (174, 68, 278, 172), "admiral": (166, 128, 366, 329)}


def rough(box: tuple[float, float, float, float]) -> np.ndarray:
    """(68, 3) landmarks that tell no more than where a face is."""
    left, top, right, bottom = box
    x, y = np.meshgrid(np.linspace(left, right, 17), np.linspace(top, bottom, 4))
    return np.stack([x.ravel(), y.ravel(), np.ones(68)], axis=1).astype(np.float32)


def picture(name: str) -> np.ndarray:
    """A photograph, uint8 (H, W, 3) RGB; skips where its package is missing."""
    if name == "astronaut":
        return np.asarray(pytest.importorskip("skimage.data").astronaut())
    path = pytest.importorskip("matplotlib.cbook").get_sample_data("grace_hopper.jpg", asfileobj=False)
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def portrait(name: str, mesher: FaceMesher) -> Portrait:
    """A photograph and its landmarks."""
    image = picture(name)
    mesh = mesher.detect(image, rough(BOXES[name]))
    assert mesh is not None
    return Portrait(image, np.column_stack([ibug68(mesh), np.ones(68)]).astype(np.float32), name)


def moved(image: np.ndarray, matrix: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An image and landmarks (68, 3) after an affine map (2, 3)."""
    size = image.shape[1], image.shape[0]
    shown = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return shown, np.column_stack([points[:, :2] @ matrix[:, :2].T + matrix[:, 2], points[:, 2]]).astype(np.float32)
