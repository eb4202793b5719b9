"""Compare the networks of metrics with their libraries, in an environment that has these (`make eval-parity`).

Same random weights, same images; writes what the libraries gave to tests/golden/evaluation, where the ordinary tests
compare with it.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from xdyna.evaluation.networks.fixture import random_images, random_weights
from xdyna.evaluation.networks.inception import FIDInception, InceptionExtractor
from xdyna.evaluation.networks.lpips import LPIPS, Backbone
from xdyna.evaluation.parity_video import VIDEO_CASES

ROOT = Path(__file__).resolve().parents[2]


def inception() -> tuple[np.ndarray, np.ndarray]:
    """pytorch-fid's network and preprocessing."""
    from pytorch_fid import inception as theirs

    state = random_weights(FIDInception().state_dict())
    theirs.load_state_dict_from_url = lambda *args, **kwargs: state
    net = theirs.InceptionV3([theirs.InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).eval()
    frames = random_images(3)
    x = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        expected = net(x)[0][..., 0, 0].numpy()
    return expected, InceptionExtractor(state, weights="random").features(frames)


def lpips(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The lpips package, both on [-1, 1] and on [0, 1]."""
    import lpips as theirs

    net = theirs.LPIPS(net=kind, pretrained=False, pnet_rand=True, verbose=False).eval()
    backbone = random_weights(Backbone(kind).state_dict())
    like = {f"lin{k}.model.1.weight": net.state_dict()[f"lin{k}.model.1.weight"] for k in range(5)}
    head = {name: tensor.abs() for name, tensor in random_weights(like).items()}
    renamed = {}
    for name in net.net.state_dict():  # sliceN.INDEX.weight: the index is that in `features`
        renamed[name] = backbone["features." + name.split(".", 1)[1]]
    net.net.load_state_dict(renamed)
    net.load_state_dict({**net.state_dict(), **head})
    a, b = random_images(3, seed=1), random_images(3, seed=2)
    x, y = (torch.from_numpy(v).permute(0, 3, 1, 2).float() / 255 for v in (a, b))
    with torch.no_grad():
        pairs = [net(2 * x - 1, 2 * y - 1), net(x, y)]
    ours = LPIPS(backbone, head, kind=kind, weights="random")
    expected = np.stack([p.flatten().numpy() for p in pairs])
    return expected, np.stack([ours.distance(a, b), ours.distance(a, b, low=0.0)])


CASES: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "inception": inception,
    "lpips_vgg": lambda: lpips("vgg"),
    "lpips_alex": lambda: lpips("alex"),
}


def main(argv: Sequence[str]) -> int:
    """Run `scripts/eval.py parity`: all cases; exit code 1 when one differs by more than 1e-4 of its largest value."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    images: dict[str, np.ndarray] = {}
    videos: dict[str, np.ndarray] = {}
    differences, worst = {}, 0.0
    for name, case in {**CASES, **VIDEO_CASES}.items():
        expected, ours = case()
        (videos if name in VIDEO_CASES else images)[name] = expected.astype(np.float32)
        differences[name] = float(np.abs(expected - ours).max() / np.abs(expected).max())
        worst = max(worst, differences[name])
        print(f"{name:12} largest difference {differences[name]:.2e} of the largest value {np.abs(expected).max():.3g}")
    folder = ROOT / "tests" / "golden" / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "parity.npz", **images)
    np.savez_compressed(folder / "parity_video.npz", **videos)
    (folder / "parity.json").write_text(
        json.dumps({"relative": differences, "torch": torch.__version__}, indent=1) + "\n"
    )
    return int(worst > 1e-4)
