"""Cases of `make eval-parity` for the networks of videos and faces.

A case gives what a library computes and what this package computes of the same random weights and images. The
libraries are cd-fvd (its I3D and its VideoMAE-v2) and facenet-pytorch (MTCNN's networks). DTFVD's network is cd-fvd's
I3D, read behind the average pool; cINN's own copy differs in the pool of 32 frames alone.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from xdyna.evaluation.networks import mtcnn
from xdyna.evaluation.networks.fixture import random_images, random_weights
from xdyna.evaluation.networks.i3d import I3D, I3DExtractor
from xdyna.evaluation.networks.videomae import VideoMAE, VideoMAEExtractor

TINY_VIDEOMAE = {"width": 44, "depth": 3, "heads": 4, "hidden": 192}  # on the full grid: 16 frames, 224 px


def random_clip(frames: int, *, seed: int = 0) -> np.ndarray:
    """Two images that fade into each other, uint8 (frames, 64, 80, 3)."""
    first, last = random_images(2, seed=seed).astype(np.float64)
    part = np.linspace(0, 1, frames)[:, None, None, None] ** 2
    return (first * (1 - part) + last * part).round().astype(np.uint8)


def both_clips(frames: int, features: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Features of two clips, (2, D): a constant answer would not pass. Args: features: of a uint8 (T, H, W, 3)."""
    return np.concatenate([features(random_clip(frames, seed=seed)) for seed in (0, 1)])


def our_i3d(*, classes: int, frames: int, logits: bool) -> I3DExtractor:
    """Ours with random weights."""
    state = random_weights(I3D(classes=classes).state_dict())
    return I3DExtractor(state, classes=classes, frames=frames, what="I3D", weights="random", logits=logits)


def their_i3d(classes: int) -> torch.nn.Module:
    """cd-fvd's with the same."""
    from cdfvd.third_party.i3d.pytorch_i3d import InceptionI3d

    net = InceptionI3d(classes, in_channels=3).eval()
    net.load_state_dict(random_weights(net.state_dict()))
    return net


def i3d_kinetics() -> tuple[np.ndarray, np.ndarray]:
    """FVD: cd-fvd's preprocessing and logits."""
    from cdfvd.third_party.i3d.utils import preprocess_i3d

    net = their_i3d(400)
    with torch.no_grad():
        expected = both_clips(16, lambda clip: net(preprocess_i3d(clip[None])).numpy())
    return expected, both_clips(16, our_i3d(classes=400, frames=16, logits=True).features)


def i3d_dtdb(frames: int) -> tuple[np.ndarray, np.ndarray]:
    """DTFVD: features behind the average pool of frames resized with aligned corners."""
    net = their_i3d(18)
    net.avg_pool = torch.nn.AvgPool3d((frames // 8, 7, 7), stride=(1, 1, 1))

    def features(clip: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(clip).permute(0, 3, 1, 2).float() / 127.5 - 1
        x = F.interpolate(x, mode="bilinear", size=(224, 224), align_corners=True)
        return net.extract_features(x.permute(1, 0, 2, 3)[None]).reshape(1, -1).numpy()  # type: ignore[operator]

    with torch.no_grad():
        expected = both_clips(frames, features)
    return expected, both_clips(frames, our_i3d(classes=18, frames=frames, logits=False).features)


def our_videomae() -> VideoMAEExtractor:
    """A narrow one with random weights."""
    state = random_weights(VideoMAE(**TINY_VIDEOMAE, classes=5).state_dict())
    return VideoMAEExtractor(state, weights="random", sizes={**TINY_VIDEOMAE, "classes": 5})


def videomae() -> tuple[np.ndarray, np.ndarray]:
    """cd-FVD: its preprocessing and its network, narrow."""
    from functools import partial

    from cdfvd.third_party.VideoMAEv2.utils import preprocess_videomae
    from cdfvd.third_party.VideoMAEv2.videomaev2_finetune import VisionTransformer

    width, depth, heads, hidden = TINY_VIDEOMAE.values()
    net = VisionTransformer(
        patch_size=14, embed_dim=width, depth=depth, num_heads=heads, mlp_ratio=hidden / width, qkv_bias=True,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), img_size=224, num_classes=5, all_frames=16, tubelet_size=2,
        use_mean_pooling=True,
    ).eval()  # fmt: skip
    net.load_state_dict(random_weights(net.state_dict()))
    with torch.no_grad():
        expected = both_clips(16, lambda clip: net.forward_features(preprocess_videomae(clip[None])).numpy())
    return expected, both_clips(16, our_videomae().features)


def mtcnn_networks() -> tuple[np.ndarray, np.ndarray]:
    """facenet-pytorch's three networks, their weights mapped to ours; all answers in one row."""
    from facenet_pytorch.models import mtcnn as theirs

    expected, ours = [], []
    for k, name in enumerate(("PNet", "RNet", "ONet")):
        net = getattr(theirs, name)(pretrained=False).eval()
        state = random_weights(net.state_dict())
        net.load_state_dict(state)
        mine = getattr(mtcnn, name)().eval()
        mine.load_state_dict(mtcnn.from_facenet(state))
        x = torch.from_numpy(random_images(4, side=(40, 24, 48)[k])).permute(0, 3, 1, 2)
        x = (x[..., : (56, 24, 48)[k]].float() - 127.5) * 0.0078125
        with torch.no_grad():
            # theirs: offsets, (landmarks,) both probabilities; ours: the face's, offsets, landmarks
            parts = net(x)
            answers = [parts[-1][:, 1], parts[0], *parts[1:-1]]
            expected.append(np.concatenate([part.numpy().ravel() for part in answers]))
            ours.append(np.concatenate([part.numpy().ravel() for part in mine(x)]))
    return np.concatenate(expected), np.concatenate(ours)


VIDEO_CASES: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "i3d_kinetics": i3d_kinetics,
    "i3d_dtdb_16": lambda: i3d_dtdb(16),
    "i3d_dtdb_32": lambda: i3d_dtdb(32),
    "videomae": videomae,
    "mtcnn": mtcnn_networks,
}
"""What the library and what this package gives, as in `xdyna.evaluation.parity.CASES`."""
