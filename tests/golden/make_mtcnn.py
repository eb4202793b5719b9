"""Makes evaluation/mtcnn.npz: what AdaFace's own detector finds, with random weights on random images.

    git clone https://github.com/mk-minchul/AdaFace && git -C AdaFace checkout 9cb981642eb7b579487bfadb0ee9ad8fc3772b74
    python tests/golden/make_mtcnn.py AdaFace

`boxes_SEED`, `points_SEED`: with P-Net's softmax over the two classes, as the original MTCNN has it;
`width_boxes_SEED`, `width_points_SEED`: the published code as it is, whose softmax runs over the width of the map.
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from xdyna.evaluation.networks.fixture import random_images, random_weights
from xdyna.evaluation.networks.mtcnn import NETWORKS, ONet, PNet, RNet

SEEDS, THRESHOLDS, SIDE = (0, 4, 7), (0.6, 0.5, 0.5), 96
SHARP = 9.0  # of P-Net's answers for the width: larger ones saturate at 1, and equal scores have no order


def weights(seed: int, *, sharp: float = 1.0) -> list[dict[str, torch.Tensor]]:
    """Random weights of P-Net, R-Net and O-Net under which boxes move little; `sharp`: factor of P-Net's logits."""
    states = [random_weights(net().state_dict(), seed=seed) for net in (PNet, RNet, ONet)]
    for state in states:
        for name in state:
            if name.startswith(("conv4_2", "conv5_2", "conv6_2")):
                state[name] *= 0.1
            if name.startswith("conv4_1"):
                state[name] *= sharp
    return states


def find(module: Any, seed: int, *, width: bool) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 5) and points (N, 5, 2) of the published code. Args: module: its `face_alignment/mtcnn.py`."""
    detector = module.MTCNN(device="cpu")
    for name, state in zip(NETWORKS, weights(seed, sharp=SHARP if width else 1.0), strict=True):
        getattr(detector, name).load_state_dict(state)
    if not width:
        pnet = detector.pnet

        def forward(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = pnet.features(x)
            return pnet.conv4_2(x), pnet.conv4_1(x).softmax(dim=1)

        pnet.forward = forward
    image = Image.fromarray(random_images(1, side=SIDE, seed=seed)[0])
    boxes, marks = detector.detect_faces(image, 20, list(THRESHOLDS), [0.7, 0.7, 0.7], 0.85)
    return np.asarray(boxes), np.stack([np.asarray(marks)[:, :5], np.asarray(marks)[:, 5:]], axis=2)


def main(adaface: Path, here: Path) -> None:
    sys.path.insert(0, str(adaface / "face_alignment"))
    import mtcnn  # type: ignore[import-not-found]

    found = {}
    for seed in SEEDS:
        for width in (False, True):
            boxes, points = find(mtcnn, seed, width=width)
            prefix = "width_" if width else ""
            found[f"{prefix}boxes_{seed}"], found[f"{prefix}points_{seed}"] = boxes, points
            print(f"seed {seed}, softmax over {'width' if width else 'classes'}: {len(boxes)} boxes")
    np.savez_compressed(here / "evaluation" / "mtcnn.npz", **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(os.path.abspath(__file__)).parent)
