"""I3D and VideoMAE against cd-fvd's, through golden numbers that `make eval-parity` writes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.tiers import long
from xdyna.evaluation.networks import i3d
from xdyna.evaluation.networks.fixture import random_weights
from xdyna.evaluation.networks.i3d import I3D, I3DExtractor
from xdyna.evaluation.parity_video import both_clips, our_i3d, our_videomae

GOLDEN = Path(__file__).parents[3] / "golden" / "evaluation" / "parity_video.npz"


def golden(name: str) -> np.ndarray:
    with np.load(GOLDEN) as stored:
        return stored[name]


def same(ours: np.ndarray, expected: np.ndarray) -> bool:
    assert ours.shape == expected.shape
    assert np.abs(expected[0] - expected[1]).max() > 0.1 * np.abs(expected).max()  # the two clips are told apart
    return bool(np.abs(ours - expected).max() < 1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "classes", "frames", "logits"),
    [("i3d_dtdb_16", 18, 16, False), *long(("i3d_kinetics", 400, 16, True), ("i3d_dtdb_32", 18, 32, False))],
)
def test_i3d_is_cd_fvds(name: str, classes: int, frames: int, logits: bool) -> None:
    net = our_i3d(classes=classes, frames=frames, logits=logits)
    features = both_clips(frames, net.features)
    assert features.shape[1] == net.dim == (400 if logits else 1024)
    assert same(features, golden(name))


@pytest.mark.long
def test_the_comparison_sees_a_changed_epsilon_and_a_changed_resize(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first port's 1e-3 in the batch norms, and the other metric's corners, are other numbers."""
    other = our_i3d(classes=18, frames=16, logits=False)
    other._logits, other._net.classify = True, other._net.forward  # type: ignore[method-assign]
    assert not same(both_clips(16, other.features), golden("i3d_dtdb_16"))
    monkeypatch.setattr(i3d, "EPSILON", 1e-3)
    assert not same(both_clips(16, our_i3d(classes=18, frames=16, logits=False).features), golden("i3d_dtdb_16"))


def test_videomae_is_cd_fvds() -> None:
    net = our_videomae()
    assert net.dim == 44
    assert same(both_clips(16, net.features), golden("videomae"))


def test_files_of_old_pytorch_have_no_counters() -> None:
    state = random_weights(I3D(classes=18).state_dict())
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert (len(state), len(old)) == (344, 287)
    options = {"classes": 18, "frames": 16, "what": "I3D_16.pth.tar", "weights": "x"}
    I3DExtractor(old, **options)
    with pytest.raises(ValueError, match=r"not those of I3D_16.pth.tar \(344 tensors\): 1 missing"):
        I3DExtractor({name: tensor for name, tensor in old.items() if name != "logits.conv3d.bias"}, **options)
    one = "Mixed_3b.b0.bn.num_batches_tracked"
    with pytest.raises(ValueError, match="56 missing"):  # some counters: a damaged file
        I3DExtractor({**old, one: state[one]}, **options)


def test_kinetics_weights_are_not_taken_for_dtdbs() -> None:
    state = {name: torch.zeros(tensor.shape) for name, tensor in I3D(classes=400).state_dict().items()}
    with pytest.raises(ValueError, match="2 of another shape"):
        I3DExtractor(state, classes=18, frames=16, what="I3D_16.pth.tar", weights="x")
