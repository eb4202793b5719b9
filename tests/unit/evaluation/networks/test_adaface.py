"""AdaFace's backbone against its definition, written a second time without modules."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.tiers import long
from xdyna.evaluation.networks.adaface import UNITS, AdaFace, IRBackbone, backbone_tensors
from xdyna.evaluation.networks.fixture import random_images, random_weights
from xdyna.evaluation.networks.mtcnn import NOBODY, Faces


def plain(state: dict[str, Tensor], x: Tensor, units: tuple[int, ...]) -> Tensor:
    """AdaFace's net.py, layer by layer on the published names."""

    def norm(x: Tensor, name: str, *, affine: bool = True) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        shape = (1, -1, 1, 1)[: x.ndim]
        x = (x - mean.reshape(shape)) / (var.reshape(shape) + 1e-5).sqrt()
        return x * state[f"{name}.weight"].reshape(shape) + state[f"{name}.bias"].reshape(shape) if affine else x

    def prelu(x: Tensor, name: str) -> Tensor:
        return torch.where(x > 0, x, x * state[f"{name}.weight"].reshape(1, -1, 1, 1))

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = prelu(norm(conv(x, "input_layer.0"), "input_layer.1"), "input_layer.2")
    number = 0
    for count in units:
        for k in range(count):
            stride, at = 2 if k == 0 else 1, f"body.{number}"
            short = x[:, :, ::stride, ::stride]
            if f"{at}.shortcut_layer.0.weight" in state:
                short = norm(conv(x, f"{at}.shortcut_layer.0", stride), f"{at}.shortcut_layer.1")
            y = prelu(
                norm(conv(norm(x, f"{at}.res_layer.0"), f"{at}.res_layer.1"), f"{at}.res_layer.2"), f"{at}.res_layer.3"
            )
            x = norm(conv(y, f"{at}.res_layer.4", stride), f"{at}.res_layer.5") + short
            number += 1
    flat = norm(x, "output_layer.0").reshape(len(x), -1)
    flat = flat @ state["output_layer.3.weight"].T + state["output_layer.3.bias"]
    flat = norm(flat, "output_layer.4", affine=False)
    return flat / flat.norm(dim=1, keepdim=True)


def random_state(kind: str) -> dict[str, Tensor]:
    """Random weights under which the residual sums stay finite."""
    state = random_weights(IRBackbone(UNITS[kind]).state_dict())
    return {name: 0.3 * tensor if name.endswith("res_layer.4.weight") else tensor for name, tensor in state.items()}


def counted(units: tuple[int, ...]) -> int:
    """Parameters by hand: convolutions, two numbers per channel and norm, one per channel and PReLU."""
    total, channels = 3 * 64 * 9 + 3 * 64, 64
    for count, width in zip(units, (64, 128, 256, 512), strict=True):
        for _ in range(count):
            total += 2 * channels + channels * width * 9 + 3 * width + width * width * 9 + 2 * width
            total += channels * width + 2 * width if channels != width else 0
            channels = width
    return total + 2 * 512 + 512 * 49 * 512 + 512


class Scripted:
    """A detector that finds a face where the first pixel says so, turned and scaled."""

    version = "scripted"

    def detect(self, image: np.ndarray) -> Faces:
        if image[0, 0, 0] == 0:
            return NOBODY
        points = np.array([[20, 20], [40, 22], [30, 32], [20, 40], [38, 42]], np.float32)
        return Faces(np.array([[10, 10, 50, 50, 0.99]]), points[None])


@pytest.mark.parametrize("kind", ["ir50", *long("ir101")])
def test_backbone_is_its_definition(kind: str) -> None:
    net = IRBackbone(UNITS[kind]).eval()
    state = random_state(kind)
    net.load_state_dict(state)
    x = torch.from_numpy(random_images(2, side=112)[:, :, :112]).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        ours, expected = net(x), plain(state, x, UNITS[kind])
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-6)
    assert float((ours[0] * ours[1]).sum()) < 0.999  # images are told apart
    torch.testing.assert_close(ours.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize(("kind", "tensors", "million"), [("ir50", 467, 43.59), ("ir101", 917, 65.15)])
def test_published_names_and_shapes(kind: str, tensors: int, million: float) -> None:
    with torch.device("meta"):
        net = IRBackbone(UNITS[kind])
    state = net.state_dict()
    blocks = sum(UNITS[kind])
    assert len(state) == tensors == 7 + 18 * blocks + 3 * 6 + 10
    assert sum(p.numel() for p in net.parameters()) == counted(UNITS[kind])
    assert round(counted(UNITS[kind]) / 1e6, 2) == million
    assert {int(name.split(".")[1]) for name in state if name.startswith("body.")} == set(range(blocks))
    projected = sorted({int(name.split(".")[1]) for name in state if ".shortcut_layer." in name})
    assert projected == [sum(UNITS[kind][:k]) for k in (1, 2, 3)]
    for name, shape in {
        "input_layer.2.weight": (64,),
        f"body.{blocks - 1}.res_layer.4.weight": (512, 512, 3, 3),
        f"body.{projected[2]}.shortcut_layer.0.weight": (512, 256, 1, 1),
        "output_layer.3.weight": (512, 25088),
        "output_layer.4.running_var": (512,),
    }.items():
        assert state[name].shape == shape
    assert "output_layer.4.weight" not in state


def test_a_training_checkpoint_is_the_backbone_and_its_head() -> None:
    state = {"a.weight": torch.zeros(1), "b.bias": torch.ones(1)}
    wrapped = {f"model.{name}": tensor for name, tensor in state.items()}
    assert backbone_tensors({**wrapped, "head.kernel": torch.zeros(3), "head.t": torch.zeros(1)}) == state
    assert backbone_tensors(state) == state


@pytest.mark.long
def test_frames_to_embeddings() -> None:
    """Channels are BGR in [-1, 1], faces come aligned, and frames without one are NaN."""
    state = random_state("ir50")
    checkpoint = {**{f"model.{name}": tensor for name, tensor in state.items()}, "head.kernel": torch.zeros(512, 7)}
    net = AdaFace(checkpoint, Scripted(), kind="ir50", what="x", weights="w")  # type: ignore[arg-type]
    frames = random_images(3, side=64, seed=3)
    frames[:, 0, 0, 0] = [1, 0, 1]
    embeddings = net.embed(frames)
    assert embeddings.shape == (3, 512)
    assert np.isnan(embeddings).all(axis=1).tolist() == [False, True, False]
    face = random_images(1, side=112, seed=4)[:, :, :112]
    x = torch.from_numpy(face.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    np.testing.assert_allclose(net.embed_aligned(face), plain(state, x.flip(1), UNITS["ir50"]).numpy(), atol=2e-6)
    assert np.abs(net.embed_aligned(face) - plain(state, x, UNITS["ir50"]).numpy()).max() > 1e-3
    with pytest.raises(ValueError, match=r"expected uint8 \(N, 112, 112, 3\)"):
        net.embed_aligned(frames)


def test_other_weights_are_refused() -> None:
    state = random_state("ir50")
    with pytest.raises(ValueError, match=r"not those of x.ckpt \(917 tensors\): 462 missing .* 12 unexpected"):
        AdaFace(state, Scripted(), kind="ir101", what="x.ckpt", weights="w")  # type: ignore[arg-type]
