"""LPIPS 0.1: distance of two images in the features of VGG16 or AlexNet, with learned weights per channel.

Source: Zhang et al., arXiv 1801.03924, eq. 1.
Shape legend: T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from xdyna.evaluation.frames import FrameSequence
from xdyna.evaluation.metric import LOWER, Case, Column, Metric, Record, pooled, pooled_means
from xdyna.evaluation.networks.loading import load_published, on_device

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of inputs in [-1, 1]
EPSILON = 1e-10
CHUNK = 8  # frames at once
# Layers of torchvision's `features`: (out, kernel, stride, padding) of convolutions, or the stride of a max pool.
LAYERS: dict[str, list[tuple[int, int, int, int] | int]] = {
    "vgg": [
        *[(64, 3, 1, 1)] * 2, 2, *[(128, 3, 1, 1)] * 2, 2, *[(256, 3, 1, 1)] * 3, 2, *[(512, 3, 1, 1)] * 3, 2,
        *[(512, 3, 1, 1)] * 3, 2,
    ],
    "alex": [(64, 11, 4, 2), 2, (192, 5, 1, 2), 2, (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1), 2],
}  # fmt: skip
POOL = {"vgg": 2, "alex": 3}  # side of the max pools, px
READ_AFTER = {"vgg": (3, 8, 15, 22, 29), "alex": (1, 4, 7, 9, 11)}  # the ReLUs that are compared
FILES = {
    "vgg": ("vgg16-397923af.pth", "vgg.pth"),
    "alex": ("alexnet-owt-7be5be79.pth", "alex.pth"),
}


class Backbone(nn.Module):
    """torchvision's VGG16 or AlexNet, with the names of its published weights; the classifier is not run.

    Args:
        kind: "vgg" or "alex".
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for layer in LAYERS[kind]:
            if isinstance(layer, int):
                layers.append(nn.MaxPool2d(POOL[kind], layer))
            else:
                out, kernel, stride, padding = layer
                layers += [nn.Conv2d(channels, out, kernel, stride, padding), nn.ReLU()]
                channels = out
        self.features = nn.Sequential(*layers)
        self._read = READ_AFTER[kind]

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> five feature maps."""
        maps = []
        for k, layer in enumerate(list(self.features)[: self._read[-1] + 1]):
            x = layer(x)
            if k in self._read:
                maps.append(x)
        return maps


class LPIPS:
    """The distance.

    Args:
        backbone: torchvision's state dict; its classifier is accepted and left out.
        head: the linear weights (`lin0.model.1.weight` ... `lin4`), one per channel.
        kind: "vgg" or "alex".
        weights: hash of both files, for the version.
        device: where it runs; None: the CPU.
    """

    batch = CHUNK

    def __init__(
        self,
        backbone: Mapping[str, Tensor],
        head: Mapping[str, Tensor],
        *,
        kind: str = "vgg",
        weights: str,
        device: torch.device | str | None = None,
    ) -> None:
        self._device = on_device(device)
        self._net = Backbone(kind)
        features = {name: tensor for name, tensor in backbone.items() if not name.startswith("classifier.")}
        load_published(self._net, features, what=FILES[kind][0])
        widths = [out[0] for out in LAYERS[kind] if not isinstance(out, int)]
        read = [_convolution(kind, k) for k in READ_AFTER[kind]]
        self._lin = nn.ModuleDict(
            {f"lin{k}": nn.ModuleDict({"model": nn.Sequential(nn.Dropout(), nn.Conv2d(widths[i], 1, 1, bias=False))})
             for k, i in enumerate(read)}
        )  # fmt: skip
        load_published(self._lin, head, what=FILES[kind][1])
        self._net.to(self._device)
        self._lin.to(self._device)
        self.version = f"{kind}-p1-{weights[:12]}"

    @torch.no_grad()
    def distance(self, truth: FrameSequence, generated: FrameSequence, *, low: float = -1.0) -> np.ndarray:
        """Distances of frames.

        Args:
            truth: uint8 (T, H, W, 3).
            generated: uint8 (T, H, W, 3).
            low: images are scaled to [low, 1]: -1 as LPIPS defines it, 0 as DisCo's evaluation calls it.

        Returns:
            float64 (T,), at least 0.
        """
        parts = []
        for start in range(0, len(truth), self.batch):
            pair = [self._maps(frames[start : start + self.batch], low) for frames in (truth, generated)]
            total = torch.zeros(len(pair[0][0]), dtype=torch.float64, device=self._device)
            for k, (a, b) in enumerate(zip(*pair, strict=True)):
                weight = self._lin[f"lin{k}"]["model"][1].weight  # type: ignore[index]
                total += F.conv2d((_unit(a) - _unit(b)) ** 2, weight).mean(dim=(1, 2, 3))
            parts.append(total.cpu().numpy())
        return np.concatenate(parts)

    def _maps(self, frames: np.ndarray, low: float) -> list[Tensor]:
        x = torch.from_numpy(np.ascontiguousarray(frames)).to(self._device)
        x = rearrange(x, "t h w c -> t c h w").float() / 255 * (1 - low) + low
        shift, scale = (torch.tensor(v, device=self._device).reshape(1, 3, 1, 1) for v in (SHIFT, SCALE))
        return list(self._net((x - shift) / scale))


def _convolution(kind: str, relu: int) -> int:
    """Which convolution (from 0) a ReLU of `features` follows."""
    return sum(isinstance(layer, nn.Conv2d) for layer in list(Backbone(kind).features)[: relu + 1]) - 1


def _unit(x: Tensor) -> Tensor:
    return x / (x.pow(2).sum(dim=1, keepdim=True).sqrt() + EPSILON)


class LpipsMetric(Metric):
    """LPIPS of each frame with the truth's, mean over all frames.

    Args:
        net: the distance.
        disco: the published protocol of DisCo, which hands images in [0, 1] to a network that expects [-1, 1].
    """

    needs = frozenset({"truth"})

    def __init__(self, net: LPIPS, *, disco: bool = False) -> None:
        self.name = "lpips_disco" if disco else "lpips"
        self.columns = (
            Column(self.name, "LPIPS (DisCo: VGG on [0, 1])" if disco else "LPIPS (VGG on [-1, 1])", LOWER, digits=4),
        )
        self._net, self._low = net, 0.0 if disco else -1.0
        self.version = f"1|{net.version}"

    def measure(self, case: Case) -> Record:
        """See `Metric.measure`."""
        truth, generated = case.paired
        return Record(pooled(self.name, self._net.distance(truth, generated, low=self._low)))

    def reduce(self, records: Iterable[Record]) -> dict[str, float]:
        """See `Metric.reduce`."""
        return {self.name: float("nan"), **pooled_means(records)}
