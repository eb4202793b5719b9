"""I3D: Inception inflated to video, the network behind FVD (trained on Kinetics) and DTFVD (trained on DTDB).

Names are those of A. J. Piergiovanni's port, which all weight files use (344 tensors). The two metrics feed and read it
differently, each as its published code does: DTFVD resizes with aligned corners and takes the 1024 features behind the
average pool, FVD (cd-FVD's `i3d`) resizes without and takes the 400 logits.

Source: Carreira & Zisserman, arXiv 1705.07750; DTFVD: Dorkenwald et al., arXiv 2105.04551; FVD: Unterthiner et al.,
arXiv 1812.01717, computed as by Ge et al., arXiv 2404.12391.
Shape legend: T frames, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from xdyna.evaluation.frames import FrameSequence
from xdyna.evaluation.networks.loading import CLIPS, clips_to_device, load_published, on_device

SIDE = 224  # px
DIM = 1024  # channels behind the average pool
# Of the batch norms: PyTorch's default, which DTFVD and cd-FVD use. (The first port has 1e-3, TensorFlow's.)
EPSILON = 1e-5
# Of each mixed block: (1x1, (1x1, 3x3), (1x1, 3x3), behind the pool).
MIXED = {
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}


def pad_same(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Zeros such that the output has ceil(size / stride) places, the odd one behind (TensorFlow's "SAME").

    Args:
        x: (N, C, T, H, W).
        kernel: sides.
        stride: steps.
    """
    padding: list[int] = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max(k - s, 0) if size % s == 0 else max(k - size % s, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding)


class Unit3D(nn.Module):
    """Convolution with "SAME" padding; batch norm and ReLU unless it is the last layer."""

    def __init__(self, channels: int, out: int, kernel: int, *, stride: int = 1, last: bool = False) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(channels, out, kernel, stride, bias=last)
        self.bn = None if last else nn.BatchNorm3d(out, eps=EPSILON)
        self._kernel, self._stride = (kernel,) * 3, (stride,) * 3

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, T, H, W) -> (N, out, T', H', W')."""
        x = self.conv3d(pad_same(x, self._kernel, self._stride))
        return x if self.bn is None else F.relu(self.bn(x))


def max_pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Max pool with "SAME" padding by zeros, as the port has it."""
    return F.max_pool3d(pad_same(x, kernel, stride), kernel, stride)


class Mixed(nn.Module):
    """Four branches side by side."""

    def __init__(self, channels: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.b0 = Unit3D(channels, sizes[0], 1)
        self.b1a, self.b1b = Unit3D(channels, sizes[1], 1), Unit3D(sizes[1], sizes[2], 3)
        self.b2a, self.b2b = Unit3D(channels, sizes[3], 1), Unit3D(sizes[3], sizes[4], 3)
        self.b3b = Unit3D(channels, sizes[5], 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, T, H, W) -> (N, sum of the branches, T, H, W)."""
        pooled = max_pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], dim=1)


class I3D(nn.Module):
    """The network.

    Args:
        classes: of the last layer: 18 (DTDB), 400 (Kinetics).
        pool: side in time of the last average pool: 2 for 16 frames, 4 for 32.
    """

    def __init__(self, *, classes: int, pool: int = 2) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit3D(3, 64, 7, stride=2)
        self.Conv3d_2b_1x1, self.Conv3d_2c_3x3 = Unit3D(64, 64, 1), Unit3D(64, 192, 3)
        channels = 192
        for name, sizes in MIXED.items():
            self.add_module(f"Mixed_{name}", Mixed(channels, sizes))
            channels = sizes[0] + sizes[2] + sizes[4] + sizes[5]
        self.logits = Unit3D(channels, classes, 1, last=True)
        self._pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, T, 224, 224) in [-1, 1] -> (N, 1024): average pool, then the mean over what times remain."""
        x = max_pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = max_pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name in MIXED:
            if name == "4b":
                x = max_pool(x, (3, 3, 3), (2, 2, 2))
            if name == "5b":
                x = max_pool(x, (2, 2, 2), (2, 2, 2))
            x = self.get_submodule(f"Mixed_{name}")(x)
        x = F.avg_pool3d(x, (min(self._pool, x.shape[2]), 7, 7), stride=1)
        return x.mean(dim=(2, 3, 4))

    def classify(self, x: Tensor) -> Tensor:
        """(N, 3, T, 224, 224) in [-1, 1] -> (N, classes): logits, the mean over what times remain."""
        # The last layer is linear, so that it may come behind the mean.
        return rearrange(self.logits(rearrange(self(x), "n c -> n c 1 1 1")), "n k 1 1 1 -> n k")


class I3DExtractor:
    """A clip -> 1024 features (DTFVD) or the logits of all classes (FVD).

    Args:
        state: tensors of the published file; the batch norms' counters of steps may be missing (files of old PyTorch).
        classes: of its last layer.
        frames: 16 or 32.
        what: name of the file, for messages.
        weights: its hash, for the version.
        logits: FVD: the logits, frames resized without aligned corners. Else DTFVD: the pooled features, aligned.
        device: where it runs; None: the CPU.
    """

    name = "i3d"
    batch = CLIPS

    def __init__(
        self,
        state: Mapping[str, Tensor],
        *,
        classes: int,
        frames: int,
        what: str,
        weights: str,
        logits: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        self._net = I3D(classes=classes, pool=frames // 8)
        own = self._net.state_dict()
        counters = {name: own[name] for name in own if name.endswith("num_batches_tracked")}
        old = "logits.conv3d.weight" in state and counters.keys().isdisjoint(state)
        load_published(self._net, {**counters, **state} if old else state, what=what)
        self._device = on_device(device)
        self._net.to(self._device)
        self._logits = logits
        self.dim = classes if logits else DIM
        self.version = f"p2-{frames}-{'logits' if logits else 'pool'}-{weights[:12]}"

    @torch.no_grad()
    def features(self, frames: FrameSequence | np.ndarray) -> np.ndarray:
        """uint8 (T, H, W, 3), or (N, T, H, W, 3) -> float32 (1 or N, dim).

        [-1, 1], each frame bilinear to 224 px without antialiasing.
        """
        clips = clips_to_device(frames, self._device)
        x = rearrange(clips, "n t c h w -> (n t) c h w").float() / 127.5 - 1
        x = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=not self._logits)
        x = rearrange(x, "(n t) c h w -> n c t h w", n=len(clips))
        return np.asarray((self._net.classify(x) if self._logits else self._net(x)).float().cpu().numpy())
