"""The two networks of the puppet world: preprocessing, cutting, strict loading."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xdyna.puppets.networks import (
    CLIP_FRAMES,
    FACE_SIDE,
    PuppetDynamics,
    PuppetIdentity,
    cut_head,
    seen_faces,
    small_clip,
)

KINDS = {"scenes": ("static", "fire"), "motions": ("still", "walk")}


@pytest.fixture
def dynamics() -> PuppetDynamics:
    torch.manual_seed(0)
    return PuppetDynamics(**KINDS, channels=(8, 8, 8, 8), dim=6).eval()


@pytest.fixture
def identity() -> PuppetIdentity:
    torch.manual_seed(0)
    return PuppetIdentity(channels=(4, 4, 4, 4), dim=5).eval()


def frames(count: int, side: int = 96) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def face_at(left: tuple[float, float], right: tuple[float, float], count: int = 1) -> np.ndarray:
    """Landmarks of which only the ends of the jaw line matter: the person's right end is `left` in the image."""
    points = np.zeros((count, 68, 3), np.float32)
    points[:, 0], points[:, 16] = (*left, 1), (*right, 1)
    return points


@pytest.mark.parametrize("side", [48, 64, 128, 150])
def test_clips_are_scaled_as_pillow_does(side: int) -> None:
    given = frames(2, side)
    expected = [np.asarray(Image.fromarray(f).resize((64, 64), Image.Resampling.BILINEAR)) for f in given]
    np.testing.assert_allclose(255 * small_clip(given).numpy(), np.stack(expected), atol=1.01)


def test_features_of_a_clip(dynamics: PuppetDynamics) -> None:
    clip = frames(CLIP_FRAMES)
    features = dynamics.features(clip)
    assert features.shape == (1, 6)
    assert features.dtype == np.float32
    assert np.abs(features - dynamics.features(clip[::-1].copy())).max() > 1e-4  # time has a direction
    with pytest.raises(ValueError, match=r"\(12, 96, 96, 3\).*expected uint8 \(16, H, W, 3\)"):
        dynamics.features(clip[:12])
    with pytest.raises(ValueError, match="float32"):
        dynamics.features(clip.astype(np.float32))


def test_differences_are_seen(dynamics: PuppetDynamics) -> None:
    """The first convolution gets the frames and their enlarged differences; those of the first frame are 0."""
    seen = []
    dynamics.body[0].register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    clip = small_clip(frames(CLIP_FRAMES, 64)).numpy()
    dynamics(torch.from_numpy(clip).permute(3, 0, 1, 2)[None])
    expected = np.zeros((CLIP_FRAMES, 64, 64, 6), np.float32)
    expected[..., :3] = 2 * clip - 1
    for t in range(1, CLIP_FRAMES):
        expected[t, ..., 3:] = 8 * (clip[t] - clip[t - 1])
    np.testing.assert_allclose(seen[0][0].permute(1, 2, 3, 0).numpy(), expected, atol=1e-5)


def test_heads_are_cut_in_place() -> None:
    """On an image of its own coordinates, the middle of the cut is 0.12 face widths above the ears' middle."""
    y, x = np.mgrid[:128, :128].astype(np.float32)
    image = np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8)
    head = cut_head(image, face_at((50, 60), (74, 60))[0]).astype(float)  # 24 px wide: 1 px of the cut is 1 px
    assert head.shape == (FACE_SIDE, FACE_SIDE, 3)
    middle = head[23:25, 23:25].mean(axis=(0, 1))
    np.testing.assert_allclose(middle[:2], (62, 60 - 0.12 * 24), atol=0.75)
    np.testing.assert_allclose(head[10, 30] - head[10, 20], (10, 0, 0), atol=1)
    turned = cut_head(image, face_at((62, 48), (62, 72))[0]).astype(float)  # a head that lies on its side
    np.testing.assert_allclose(turned[10, 30] - turned[10, 20], (0, 10, 0), atol=1)


def test_embeddings_are_unit_vectors_where_a_face_is_seen(identity: PuppetIdentity) -> None:
    given, face = frames(70), face_at((40, 48), (60, 48), 70)
    face[3, 0, 2] = 0  # out of the image
    face[5, 16, :2] = face[5, 0, :2] + 1  # no width
    found = identity.embed(given, face)
    unseen = np.isnan(found).all(axis=1)
    assert np.nonzero(unseen)[0].tolist() == [3, 5]
    assert np.array_equal(~unseen, seen_faces(face))
    np.testing.assert_allclose(np.linalg.norm(found[~unseen], axis=1), 1, atol=1e-5)
    for k in (0, 64, 69):
        np.testing.assert_allclose(identity.embed(given[k : k + 1], face[k : k + 1])[0], found[k], atol=1e-5)


def test_saved_networks_are_read_again(dynamics: PuppetDynamics, identity: PuppetIdentity, tmp_path: Path) -> None:
    for network in (dynamics, identity):
        network.save(tmp_path / network.kind, facts={"note": 1})
        again = type(network).load(tmp_path / network.kind)
        assert again.sizes == network.sizes
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(again.state_dict()[name], tensor, rtol=1e-3, atol=1e-6)  # float16
        assert type(network).load(tmp_path / network.kind).version == again.version
    with pytest.raises(ValueError, match=r"no usable puppet-identity.*it is a puppet-dynamics"):
        PuppetIdentity.load(tmp_path / "puppet-dynamics")
    (tmp_path / "puppet-identity" / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"no usable puppet-identity.*scripts/puppets.py train-extractors"):
        PuppetIdentity.load(tmp_path / "puppet-identity")
    with pytest.raises(ValueError, match="no usable puppet-dynamics"):
        PuppetDynamics.load(tmp_path / "nowhere")


def test_weights_are_loaded_strictly(identity: PuppetIdentity) -> None:
    state = {name: tensor.clone() for name, tensor in identity.state_dict().items()}
    version = identity.load_weights(state).version
    changed = {**state, "head.bias": state["head.bias"] + 1}
    assert identity.load_weights(changed).version != version
    assert identity.load_weights(state).version == version
    for wrong in (
        {name: tensor for name, tensor in state.items() if name != "head.bias"},
        {**state, "more": torch.zeros(1)},
        {**state, "head.bias": torch.zeros(4)},
    ):
        with pytest.raises(ValueError, match="do not fit puppet-identity"):
            identity.load_weights(wrong)
    with pytest.raises(ValueError, match="not all finite"):
        identity.load_weights({**state, "head.bias": torch.full((5,), torch.nan)})
