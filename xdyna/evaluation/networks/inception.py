"""InceptionV3 of the Frechet Inception Distance: the network of 2015 whose weights the field's FID stands on.

Differences from torchvision's: 1008 classes, average pools that leave the padding out, a max pool in the last block.

Source: Heusel et al., arXiv 1706.08500; port of the weights: M. Seitzer, pytorch-fid.
Shape legend: T frames, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from xdyna.evaluation.frames import FrameSequence
from xdyna.evaluation.networks.loading import load_published, on_device

SIDE = 299  # px
CHUNK = 16  # frames at once; constant, so that rounding does not depend on the video


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(
        self, channels: int, out: int, kernel: int | tuple[int, int], *, stride: int = 1, pad: bool = True
    ) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if pad else (0, 0)
        self.conv = nn.Conv2d(channels, out, sides, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, out, H', W')."""
        return F.relu(self.bn(self.conv(x)))


_average = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
_largest = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)


class BlockA(nn.Module):
    """35 x 35: 1x1, 5x5, two 3x3, pool."""

    def __init__(self, channels: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNorm(channels, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = ConvNorm(channels, 48, 1), ConvNorm(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = ConvNorm(channels, 64, 1), ConvNorm(64, 96, 3)
        self.branch3x3dbl_3 = ConvNorm(96, 96, 3)
        self.branch_pool = ConvNorm(channels, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, 35, 35) -> (N, 224 + pool, 35, 35)."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        five = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_average(x))], dim=1)


class BlockB(nn.Module):
    """35 x 35 to 17 x 17."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = ConvNorm(channels, 384, 3, stride=2, pad=False)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = ConvNorm(channels, 64, 1), ConvNorm(64, 96, 3)
        self.branch3x3dbl_3 = ConvNorm(96, 96, 3, stride=2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, 35, 35) -> (N, channels + 480, 17, 17)."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], dim=1)


class BlockC(nn.Module):
    """17 x 17 with 1x7 and 7x1 convolutions."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNorm(channels, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = ConvNorm(channels, width, 1), ConvNorm(width, width, (1, 7))
        self.branch7x7_3 = ConvNorm(width, 192, (7, 1))
        self.branch7x7dbl_1, self.branch7x7dbl_2 = ConvNorm(channels, width, 1), ConvNorm(width, width, (7, 1))
        self.branch7x7dbl_3, self.branch7x7dbl_4 = ConvNorm(width, width, (1, 7)), ConvNorm(width, width, (7, 1))
        self.branch7x7dbl_5 = ConvNorm(width, 192, (1, 7))
        self.branch_pool = ConvNorm(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, 17, 17) -> (N, 768, 17, 17)."""
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_average(x))], dim=1)


class BlockD(nn.Module):
    """17 x 17 to 8 x 8."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = ConvNorm(channels, 192, 1)
        self.branch3x3_2 = ConvNorm(192, 320, 3, stride=2, pad=False)
        self.branch7x7x3_1, self.branch7x7x3_2 = ConvNorm(channels, 192, 1), ConvNorm(192, 192, (1, 7))
        self.branch7x7x3_3 = ConvNorm(192, 192, (7, 1))
        self.branch7x7x3_4 = ConvNorm(192, 192, 3, stride=2, pad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, 17, 17) -> (N, channels + 512, 8, 8)."""
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, 3, stride=2)], dim=1)


class BlockE(nn.Module):
    """8 x 8 with split 1x3 and 3x1 convolutions.

    Args:
        channels: in.
        largest: pool by the maximum (last block) instead of the average.
    """

    def __init__(self, channels: int, *, largest: bool) -> None:
        super().__init__()
        self.branch1x1, self.branch3x3_1 = ConvNorm(channels, 320, 1), ConvNorm(channels, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = ConvNorm(384, 384, (1, 3)), ConvNorm(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = ConvNorm(channels, 448, 1), ConvNorm(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = ConvNorm(384, 384, (1, 3)), ConvNorm(384, 384, (3, 1))
        self.branch_pool = ConvNorm(channels, 192, 1)
        self._pool = _largest if largest else _average

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, 8, 8) -> (N, 2048, 8, 8)."""
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(self._pool(x))]
        return torch.cat(parts, dim=1)


class FIDInception(nn.Module):
    """The network; parameter names are those of `pt_inception-2015-12-05-6726825d.pth` (566 tensors)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, stride=2, pad=False)
        self.Conv2d_2a_3x3, self.Conv2d_2b_3x3 = ConvNorm(32, 32, 3, pad=False), ConvNorm(32, 64, 3)
        self.Conv2d_3b_1x1, self.Conv2d_4a_3x3 = ConvNorm(64, 80, 1), ConvNorm(80, 192, 3, pad=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a, self.Mixed_6b, self.Mixed_6c = BlockB(288), BlockC(768, 128), BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = BlockC(768, 160), BlockC(768, 192)
        self.Mixed_7a, self.Mixed_7b = BlockD(768), BlockE(1280, largest=False)
        self.Mixed_7c = BlockE(2048, largest=True)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 299, 299) in [-1, 1] -> (N, 2048), the last average pool."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean(dim=(2, 3))


class InceptionExtractor:
    """Images -> 2048 features, as pytorch-fid computes them.

    Args:
        state: tensors of `pt_inception-2015-12-05-6726825d.pth`.
        weights: their hash, for the version.
        device: where it runs; None: the CPU.
    """

    name, dim = "inception", 2048
    batch = CHUNK

    def __init__(self, state: Mapping[str, Tensor], *, weights: str, device: torch.device | str | None = None) -> None:
        self._net = FIDInception()
        load_published(self._net, state, what="pt_inception-2015-12-05-6726825d.pth")
        self._device = on_device(device)
        self._net.to(self._device)
        self.version = f"p1-{weights[:12]}"

    @torch.no_grad()
    def features(self, frames: FrameSequence) -> np.ndarray:
        """uint8 (T, H, W, 3) -> float32 (T, 2048): bilinear to 299 px without antialiasing, then 2 x - 1."""
        parts = []
        for start in range(0, len(frames), self.batch):
            x = torch.from_numpy(np.ascontiguousarray(frames[start : start + self.batch])).to(self._device)
            x = rearrange(x, "t h w c -> t c h w").float() / 255
            x = F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
            parts.append(self._net(2 * x - 1).float().cpu().numpy())
        return np.concatenate(parts)
