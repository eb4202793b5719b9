"""Stand-ins of detectors' models: constant outputs in the form of the real ones (of DWPose: for rtmlib to decode)."""

from pathlib import Path

import numpy as np

from xdyna.perception.dwpose_backend import DETECTOR_FILE, POSE_FILE


def write_models(folder: Path, points: np.ndarray, *, width: float = 2.0, height: float = 2.0) -> Path:
    """Write both models.

    One person: the confident cell of YOLOX at stride 8, grid (5, 5), of a 128 px input.

    Args:
        folder: where they go.
        points: (133, 2) places of the keypoints in the pose model's crop, in [0, 1].
        width: log of the box's width in strides of 8 px.
        height: the same of its height.
    """
    cells = np.zeros((1, 16 * 16 + 8 * 8 + 4 * 4, 85), np.float32)
    cells[0, 5 * 16 + 5] = [0, 0, width, height, 1, 1, *np.zeros(79)]
    save_constant(folder / DETECTOR_FILE, size=(128, 128), outputs={"out": cells})
    x, y = np.zeros((1, 133, 128), np.float32), np.zeros((1, 133, 192), np.float32)  # twice the 64 x 96 px of the crop
    rows = np.arange(133)
    x[0, rows, (points[:, 0] * 127).round().astype(int)] = 0.9
    y[0, rows, (points[:, 1] * 191).round().astype(int)] = 0.9
    save_constant(folder / POSE_FILE, size=(96, 64), outputs={"simcc_x": x, "simcc_y": y})
    return folder


def save_constant(path: Path, *, size: tuple, outputs: dict[str, np.ndarray], image: str = "input") -> None:
    """A model that ignores its image, (1, 3, *size) by the name `image`, and returns constants."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    given = helper.make_tensor_value_info(image, TensorProto.FLOAT, [1, 3, *size])
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))
        for name, value in outputs.items()
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, v.shape) for name, v in outputs.items()]
    graph = helper.make_graph(nodes, "g", [given], values)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
