"""AdaFace: a face recognition network whose embeddings' cosine says how alike two faces are.

The backbone is IR-50 or IR-101 (a residual network with pre-activation batch norm, as in ArcFace); tensor names are
those of the published checkpoints (467 and 917 tensors, counters of batch norms included).

Source: Kim et al., "AdaFace: Quality Adaptive Margin for Face Recognition", CVPR 2022, arXiv 2204.00964.
Shape legend: N faces, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from xdyna.evaluation.frames import FrameSequence
from xdyna.evaluation.networks.loading import load_published, on_device
from xdyna.evaluation.networks.mtcnn import MTCNN, SIDE, align

DIM = 512
CHUNK = 16  # faces at once; constant, so that rounding does not depend on the video
UNITS = {"ir50": (3, 4, 14, 3), "ir101": (3, 13, 30, 3)}  # residual blocks of each stage
WIDTHS = (64, 128, 256, 512)
PREFIX = "model."  # before the backbone's names in training checkpoints, beside the head's


class Residual(nn.Module):
    """Batch norm, 3x3, batch norm, PReLU, 3x3 (which may step), batch norm; beside it the input.

    Args:
        channels: in.
        out: channels out; the shortcut is projected where they differ.
        stride: of the second convolution.
    """

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)  # picks every second pixel where it steps
        if channels != out:
            self.shortcut_layer = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.PReLU(out),
            nn.Conv2d(out, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, out, ceil(H / stride), ceil(W / stride))."""
        return self.res_layer(x) + self.shortcut_layer(x)


class IRBackbone(nn.Module):
    """The network.

    Args:
        units: residual blocks of each of the four stages; the first of each steps.
    """

    def __init__(self, units: tuple[int, ...]) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
        blocks, channels = [], 64
        for count, width in zip(units, WIDTHS, strict=True):
            for k in range(count):
                blocks.append(Residual(channels, width, 2 if k == 0 else 1))
                channels = width
        self.body = nn.Sequential(*blocks)
        grid = SIDE // 2 ** len(units)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(channels * grid**2, DIM),
            nn.BatchNorm1d(DIM, affine=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 112, 112), BGR in [-1, 1] -> (N, 512) of length 1."""
        return F.normalize(self.output_layer(self.body(self.input_layer(x))), dim=1)


def backbone_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's tensors out of a training checkpoint (names behind "model.", without the head's); others as they
    are."""
    if any(name.startswith(PREFIX) for name in state):
        return {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
    return {name: tensor for name, tensor in state.items() if not name.startswith("head.")}


class AdaFace:
    """Frames -> embeddings of their most certain faces. MTCNN finds and aligns them, as AdaFace's own programs do.

    Args:
        state: tensors of a published checkpoint (with or without the head).
        detector: finds faces.
        kind: "ir50" or "ir101".
        what: name of the file, for messages.
        weights: hash of all files, for the version.
        device: where the backbone runs; None: the CPU.
    """

    dim, batch = DIM, CHUNK

    def __init__(
        self,
        state: Mapping[str, Tensor],
        detector: MTCNN,
        *,
        kind: str,
        what: str,
        weights: str,
        device: torch.device | str | None = None,
    ) -> None:
        self._net = IRBackbone(UNITS[kind])
        load_published(self._net, backbone_tensors(state), what=what)
        self._device = on_device(device)
        self._net.to(self._device)
        self._detector = detector
        self.name = f"adaface-{kind}"
        self.version = f"p1-{weights[:24]}-{detector.version}"

    def embed(self, frames: FrameSequence) -> np.ndarray:
        """uint8 (T, H, W, 3) RGB -> float32 (T, 512) of length 1; NaN where no face is found."""
        out = np.full((len(frames), DIM), np.nan, np.float32)
        found: list[int] = []
        faces: list[np.ndarray] = []
        for k, frame in enumerate(frames):
            points = self._detector.detect(frame).points
            if len(points):
                found.append(k)
                faces.append(align(frame, points[0]))
        if found:
            out[found] = self.embed_aligned(np.stack(faces))
        return out

    @torch.no_grad()
    def embed_aligned(self, faces: np.ndarray) -> np.ndarray:
        """uint8 (N, 112, 112, 3) RGB, aligned -> float32 (N, 512) of length 1.

        Raises:
            ValueError: another shape or type.
        """
        if faces.dtype != np.uint8 or faces.shape[1:] != (SIDE, SIDE, 3):
            raise ValueError(f"aligned faces are {faces.dtype} {faces.shape}, expected uint8 (N, {SIDE}, {SIDE}, 3)")
        parts = []
        for start in range(0, len(faces), self.batch):
            bgr = np.ascontiguousarray(faces[start : start + self.batch, :, :, ::-1])
            x = rearrange(torch.from_numpy(bgr).to(self._device), "n h w c -> n c h w").float()
            parts.append(self._net((x / 255 - 0.5) / 0.5).float().cpu().numpy())
        return np.concatenate(parts)
