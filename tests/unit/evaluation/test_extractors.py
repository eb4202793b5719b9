"""Networks of metrics against their libraries: transformers here; pytorch-fid and lpips through golden numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from xdyna.evaluation.networks.fixture import random_images, random_weights
from xdyna.evaluation.networks.i3d import I3D, I3DExtractor, pad_same
from xdyna.evaluation.networks.inception import FIDInception, InceptionExtractor
from xdyna.evaluation.networks.loading import load_published
from xdyna.evaluation.networks.lpips import LPIPS, Backbone
from xdyna.evaluation.networks.registry import EXTRACTORS, how_to_get
from xdyna.evaluation.networks.videomae import VideoMAE, sinusoid_positions
from xdyna.evaluation.parity_video import our_videomae

GOLDEN = Path(__file__).parents[2] / "golden" / "evaluation" / "parity.npz"


def golden(name: str) -> np.ndarray:
    with np.load(GOLDEN) as stored:
        return stored[name]


def test_inception_is_pytorch_fids() -> None:
    expected = golden("inception")
    state = random_weights(FIDInception().state_dict())
    ours = InceptionExtractor(state, weights="random").features(random_images(3))
    assert np.abs(expected[0] - expected[1]).max() > 0.01 * np.abs(expected).max()  # images are told apart
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["vgg", "alex"])
def test_lpips_is_the_packages(kind: str) -> None:
    backbone = random_weights(Backbone(kind).state_dict())
    widths = {"vgg": (64, 128, 256, 512, 512), "alex": (64, 192, 384, 256, 256)}[kind]
    like = {f"lin{k}.model.1.weight": torch.zeros(1, width, 1, 1) for k, width in enumerate(widths)}
    head = {name: tensor.abs() for name, tensor in random_weights(like).items()}
    net = LPIPS(backbone, head, kind=kind, weights="random")
    a, b = random_images(3, seed=1), random_images(3, seed=2)
    np.testing.assert_allclose(net.distance(a, b), golden(f"lpips_{kind}")[0], rtol=1e-4)
    np.testing.assert_allclose(net.distance(a, b, low=0.0), golden(f"lpips_{kind}")[1], rtol=1e-4)
    assert net.distance(a, a).max() == 0


def test_videomae_is_transformers() -> None:
    """Tiny, under a map of names."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40}
    config = VideoMAEConfig(
        image_size=28, patch_size=14, num_frames=4, tubelet_size=2, use_mean_pooling=True, qkv_bias=True,
        layer_norm_eps=1e-6, num_labels=5, **sizes,
    )  # fmt: skip
    theirs = VideoMAEForVideoClassification(config).eval()
    ours = VideoMAE(width=24, depth=3, heads=4, hidden=40, frames=4, side=28, classes=5).eval()
    state = random_weights(ours.state_dict())
    ours.load_state_dict(state)
    mapped = {}
    for name in theirs.state_dict():
        key = name.removeprefix("videomae.").replace("embeddings.patch_embeddings.projection", "patch_embed.proj")
        key = key.replace("encoder.layer.", "blocks.").replace("classifier.", "head.")
        for old, new in (
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("attention.output.dense", "attn.proj"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
            ("attention.attention.q_bias", "attn.q_bias"),
            ("attention.attention.v_bias", "attn.v_bias"),
        ):
            key = key.replace(old, new)
        block, _, part = key.partition("attention.attention.")
        if part in ("query.weight", "key.weight", "value.weight"):
            third = ("query.weight", "key.weight", "value.weight").index(part)
            mapped[name] = state[f"{block}attn.qkv.weight"].chunk(3)[third]
        elif part in ("query.bias", "value.bias"):
            mapped[name] = state[f"{block}attn.{part[0]}_bias"]
        elif part == "key.bias":
            mapped[name] = torch.zeros(24)
        else:
            mapped[name] = state[key]
    theirs.load_state_dict(mapped)
    x = torch.randn(2, 3, 4, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(x.transpose(1, 2)).logits
        features = ours(x)
        got = ours.head(features)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)
    assert features.std() > 0.1


def test_positions_by_a_loop() -> None:
    table = sinusoid_positions(5, 6)
    for p in range(5):
        for c in range(6):
            angle = p / 10000 ** (2 * (c // 2) / 6)
            assert float(table[p, c]) == pytest.approx(np.sin(angle) if c % 2 == 0 else np.cos(angle), abs=1e-6)


def test_published_names_and_shapes() -> None:
    """Counts of tensors and parameters as published."""
    with torch.device("meta"):
        nets = {
            "inception": (
                FIDInception(),
                566,
                23_850_960,
            ),  # torchvision's 27,161,264 less its second head, 1008 classes
            "i3d_dtdb": (I3D(classes=18), 344, 12_305_714),
            "i3d_kinetics": (I3D(classes=400), 344, 12_697_264),
            "videomae": (VideoMAE(), 526, None),
        }
        vgg = Backbone("vgg").state_dict()
    for net, tensors, parameters in nets.values():
        assert len(net.state_dict()) == tensors
        if parameters is not None:
            assert sum(p.numel() for p in net.parameters()) == parameters
    assert len(vgg) == 26
    assert sum(t.numel() for t in vgg.values()) == 14_714_688  # VGG16 without its classifier
    g = nets["videomae"][0].state_dict()
    assert g["blocks.39.mlp.fc1.weight"].shape == (6144, 1408)
    assert g["patch_embed.proj.weight"].shape == (1408, 3, 2, 14, 14)
    i = nets["i3d_dtdb"][0].state_dict()
    assert i["Conv3d_1a_7x7.conv3d.weight"].shape == (64, 3, 7, 7, 7)
    assert i["Mixed_5c.b1b.bn.running_mean"].shape == (384,)
    assert i["logits.conv3d.bias"].shape == (18,)


def test_other_weights_are_refused() -> None:
    net = Backbone("alex")
    state = random_weights(net.state_dict())
    for change, message in (
        (lambda s: s.pop("features.0.weight"), "1 missing"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 unexpected"),
        (lambda s: s.update({"features.0.bias": torch.zeros(3)}), "1 of another shape"),
        (lambda s: s.update({"features.0.bias": torch.full((64,), torch.nan)}), "NaN"),
    ):
        changed = dict(state)
        change(changed)
        with pytest.raises(ValueError, match=message):
            load_published(net, changed, what="alexnet")


@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, 7, 2), (9, 7, 2), (16, 3, 2), (5, 2, 2), (7, 3, 1)])
def test_same_padding_is_tensorflows(size: int, kernel: int, stride: int) -> None:
    """ceil(size / stride) places, and with all ones the odd zero lies behind."""
    x = torch.ones(1, 1, size, 1, 1)
    padded = pad_same(x, (kernel, 1, 1), (stride, 1, 1)).flatten()
    assert (len(padded) - kernel) // stride + 1 == -(-size // stride)
    before, after = int(padded.argmax()), int(padded.flip(0).argmax())
    assert after - before in (0, 1)


@pytest.mark.long
def test_i3d_features_of_short_and_long_clips() -> None:
    state = random_weights(I3D(classes=18).state_dict())
    frames = random_images(16)
    net = I3DExtractor(state, classes=18, frames=16, what="x", weights="random")
    features = net.features(frames)
    assert features.shape == (1, 1024)
    assert features.std() > 0
    assert np.abs(net.features(frames[::-1]) - features).max() > 1e-3 * np.abs(features).max()  # time matters
    both = net.features(np.stack([frames, frames[::-1]]))
    np.testing.assert_allclose(both[:1], features, rtol=1e-5, atol=1e-6)


def test_a_clip_among_others_has_the_features_it_has_alone() -> None:
    net = our_videomae()
    clips = np.stack([random_images(16, seed=seed) for seed in range(3)])
    alone = np.concatenate([net.features(clip) for clip in clips])
    assert np.abs(alone[0] - alone[1]).max() > 1e-4
    np.testing.assert_allclose(net.features(clips), alone, rtol=1e-5, atol=1e-6)


def test_what_is_missing_is_said_with_its_source() -> None:
    for spec in EXTRACTORS.values():
        text = how_to_get(spec, spec.files)
        assert all(file.name in text and file.source in text for file in spec.files)
        assert "--weights-dir" in text
