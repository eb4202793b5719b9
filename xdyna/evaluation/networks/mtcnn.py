"""MTCNN: faces and five landmarks by three small networks on an image pyramid, and alignment by the landmarks.

As AdaFace's programs run it: thresholds 0.6, 0.7, 0.9, faces of 20 px or more, pyramid factor 0.85, the most certain
face first. One choice is left: P-Net's softmax runs over the two "classes", as in the original MTCNN, or, as the
published PyTorch code has it by mistake, over the "width" of the map (landmarks differ by up to 1.1 px). Boxes are (x1,
y1, x2, y2) in px, both corners inside, so that a side is x2 - x1 + 1.

Source: Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks", 2016, arXiv
1604.02878; details after the PyTorch ports by D. Antoshchenko and TreB1eN, whose tensor names these are.
Shape legend: N boxes, C channels, H W pixels.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from xdyna.evaluation.networks.loading import load_published, on_device

SIDE = 112  # px of an aligned face
THRESHOLDS = (0.6, 0.7, 0.9)  # of P-Net, R-Net, O-Net: lowest probability of a face
OVERLAPS = (0.7, 0.7, 0.7)  # largest overlap that non-maximum suppression leaves, after each network
OVERLAP_IN_LEVEL = 0.5  # the same, within one level of the pyramid
SMALLEST, FACTOR = 20, 0.85  # smallest face, px; ratio of neighbouring levels
CELL, STRIDE = 12, 2  # window of P-Net and its step, px
R_SIDE, O_SIDE = 24, 48  # inputs of R-Net and O-Net, px
CHUNK = 256  # boxes at once
# Where AdaFace wants the eyes, the nose and the mouth's corners (left in the image first), x, y in px of 112 x 112.
TEMPLATE = np.array(
    [
        [38.29459953, 51.69630051],
        [73.53179932, 51.50139999],
        [56.02519989, 71.73660278],
        [41.54930115, 92.3655014],
        [70.72990036, 92.20410156],
    ],
    np.float32,
)
NETWORKS = ("pnet", "rnet", "onet")
SOFTMAX = ("classes", "width")
# facenet-pytorch's names of the layers that it calls otherwise.
_FACENET = {"dense4": "conv4", "dense5_": "conv5_", "dense5": "conv5", "dense6_": "conv6_"}


def _layers(*layers: tuple[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def _pool(side: int) -> nn.Module:
    return nn.MaxPool2d(side, 2, ceil_mode=True)


class _Flat(nn.Module):
    """Columns first, as the networks were trained on transposed images."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C * W * H)."""
        return rearrange(x, "n c h w -> n (c w h)")


class PNet(nn.Module):
    """Proposes windows: runs over a whole image, one answer per 12 x 12 window at steps of 2 px.

    Args:
        softmax: one of `SOFTMAX`.
    """

    def __init__(self, softmax: str = "classes") -> None:
        super().__init__()
        self._axis = {"classes": 1, "width": 3}[softmax]
        self.features = _layers(
            ("conv1", nn.Conv2d(3, 10, 3)), ("prelu1", nn.PReLU(10)), ("pool1", _pool(2)),
            ("conv2", nn.Conv2d(10, 16, 3)), ("prelu2", nn.PReLU(16)),
            ("conv3", nn.Conv2d(16, 32, 3)), ("prelu3", nn.PReLU(32)),
        )  # fmt: skip
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) -> probability of a face (N, H', W'), offsets of the box (N, 4, H', W')."""
        x = self.features(x)
        return self.conv4_1(x).softmax(dim=self._axis)[:, 1], self.conv4_2(x)


class RNet(nn.Module):
    """Refines: rejects windows and moves their boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.features = _layers(
            ("conv1", nn.Conv2d(3, 28, 3)), ("prelu1", nn.PReLU(28)), ("pool1", _pool(3)),
            ("conv2", nn.Conv2d(28, 48, 3)), ("prelu2", nn.PReLU(48)), ("pool2", _pool(3)),
            ("conv3", nn.Conv2d(48, 64, 2)), ("prelu3", nn.PReLU(64)), ("flatten", _Flat()),
            ("conv4", nn.Linear(576, 128)), ("prelu4", nn.PReLU(128)),
        )  # fmt: skip
        self.conv5_1, self.conv5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, 24, 24) -> probability of a face (N,), offsets of the box (N, 4)."""
        x = self.features(x)
        return self.conv5_1(x).softmax(dim=1)[:, 1], self.conv5_2(x)


class ONet(nn.Module):
    """Decides, and places the landmarks."""

    def __init__(self) -> None:
        super().__init__()
        self.features = _layers(
            ("conv1", nn.Conv2d(3, 32, 3)), ("prelu1", nn.PReLU(32)), ("pool1", _pool(3)),
            ("conv2", nn.Conv2d(32, 64, 3)), ("prelu2", nn.PReLU(64)), ("pool2", _pool(3)),
            ("conv3", nn.Conv2d(64, 64, 3)), ("prelu3", nn.PReLU(64)), ("pool3", _pool(2)),
            ("conv4", nn.Conv2d(64, 128, 2)), ("prelu4", nn.PReLU(128)), ("flatten", _Flat()),
            ("conv5", nn.Linear(1152, 256)), ("drop5", nn.Dropout(0.25)), ("prelu5", nn.PReLU(256)),
        )  # fmt: skip
        self.conv6_1, self.conv6_2, self.conv6_3 = nn.Linear(256, 2), nn.Linear(256, 4), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 3, 48, 48) -> probability of a face (N,), offsets (N, 4), landmarks (N, 10): five x, five y in boxes."""
        x = self.features(x)
        return self.conv6_1(x).softmax(dim=1)[:, 1], self.conv6_2(x), self.conv6_3(x)


def from_facenet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of facenet-pytorch's pnet.pt, rnet.pt or onet.pt under the names of this file; others as they are.

    The first linear layer there reads (W, H, C), here (C, W, H).
    """
    if "conv1.weight" not in state:
        return dict(state)
    renamed = {}
    for name, tensor in state.items():
        for theirs, ours in _FACENET.items():
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
                break
        layer, _, kind = name.partition(".")
        for flat, channels in (("conv4", 64), ("conv5", 128)):
            if layer == flat and kind == "weight" and tensor.ndim == 2:
                side = math.isqrt(tensor.shape[1] // channels)
                tensor = rearrange(tensor, "o (w h c) -> o (c w h)", w=side, h=side)
        renamed[name if "_" in layer else f"features.{name}"] = tensor
    return renamed


def suppress(boxes: np.ndarray, limit: float, *, by_smaller: bool = False) -> np.ndarray:
    """Non-maximum suppression.

    Args:
        boxes: (N, >= 5): x1, y1, x2, y2, score.
        limit: largest overlap with a better box that is kept.
        by_smaller: overlap is of the smaller of both areas, instead of their union.

    Returns:
        Indices of the kept boxes, the best first.
    """
    x1, y1, x2, y2, score = boxes[:, :5].T
    area = (x2 - x1 + 1) * (y2 - y1 + 1)
    order = np.argsort(-score, kind="stable")
    kept: list[int] = []
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        wide = np.maximum(0, np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest]) + 1)
        high = np.maximum(0, np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest]) + 1)
        both = wide * high
        whole = np.minimum(area[best], area[rest]) if by_smaller else area[best] + area[rest] - both
        order = rest[both / whole <= limit]
    return np.array(kept, np.int64)


def move(boxes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Boxes whose corners are moved by offsets in parts of their sides. Args: boxes: (N, 5). offsets: (N, 4)."""
    sides = boxes[:, 2:4] - boxes[:, :2] + 1
    return np.column_stack([boxes[:, :4] + np.tile(sides, 2) * offsets, boxes[:, 4:5]])


def squared(boxes: np.ndarray) -> np.ndarray:
    """The smallest squares around the same centres, in whole px. Args: boxes: (N, 5). Returns: (N, 5)."""
    sides = boxes[:, 2:4] - boxes[:, :2] + 1
    side = sides.max(axis=1, keepdims=True)
    low = boxes[:, :2] + sides * 0.5 - side * 0.5
    return np.column_stack([np.round(low), np.round(low + side - 1), boxes[:, 4:5]])


def cut(image: np.ndarray, boxes: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut out boxes; what lies outside the image is black.

    Args:
        image: uint8 (H, W, 3).
        boxes: (N, 5) in whole px.
        side: of the cuts, px.

    Returns:
        uint8 (M, side, side, 3); the boxes clipped to the image (M, 5), which the ports go on with; and which of the
        N these are: boxes that share no pixel with the image are left out.
    """
    height, width = image.shape[:2]
    edges = np.array([width, height, width, height]) - 1.0
    clipped = np.column_stack([np.clip(boxes[:, :4], 0, edges), boxes[:, 4:5]])
    inside = (boxes[:, 2:4] >= 0).all(axis=1) & (boxes[:, :2] <= edges[:2]).all(axis=1)
    inside &= (boxes[:, 2:4] >= boxes[:, :2]).all(axis=1)
    cuts = np.zeros((int(inside.sum()), side, side, 3), np.uint8)
    for k, index in enumerate(np.flatnonzero(inside)):
        x1, y1, x2, y2 = boxes[index, :4].astype(np.int64)
        cx1, cy1, cx2, cy2 = clipped[index, :4].astype(np.int64)
        patch = np.zeros((y2 - y1 + 1, x2 - x1 + 1, 3), np.uint8)
        patch[cy1 - y1 : cy2 - y1 + 1, cx1 - x1 : cx2 - x1 + 1] = image[cy1 : cy2 + 1, cx1 : cx2 + 1]
        cuts[k] = shrunk(patch, (side, side))
    return cuts, clipped[inside], np.flatnonzero(inside)


def shrunk(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (H, W, 3) in another size (height, width): Pillow's bilinear filter, which averages when it shrinks."""
    return np.array(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def levels(height: int, width: int, *, smallest: float = SMALLEST, factor: float = FACTOR) -> list[float]:
    """Scales of the pyramid, from the one at which the smallest face fills P-Net's window."""
    scales: list[float] = []
    scale = CELL / smallest
    side = min(height, width) * scale
    while side > CELL:
        scales.append(scale * factor ** len(scales))
        side *= factor
    return scales


@dataclass(frozen=True)
class Faces:
    """Faces of an image, the most certain first.

    Attributes:
        boxes: float64 (N, 5): x1, y1, x2, y2 in px, probability.
        points: float32 (N, 5, 2): eyes, nose, corners of the mouth (left in the image first), x, y in px.
    """

    boxes: np.ndarray
    points: np.ndarray


NOBODY = Faces(np.zeros((0, 5)), np.zeros((0, 5, 2), np.float32))


class MTCNN:
    """The detector.

    Args:
        pnet: published tensors, of TreB1eN's or facenet-pytorch's files.
        rnet: the same.
        onet: the same.
        thresholds: of the three networks.
        softmax: what P-Net's runs over, "classes" or "width".
        device: where they run; None: the CPU.
    """

    def __init__(
        self,
        pnet: Mapping[str, Tensor],
        rnet: Mapping[str, Tensor],
        onet: Mapping[str, Tensor],
        *,
        thresholds: tuple[float, float, float] = THRESHOLDS,
        softmax: str = "classes",
        device: torch.device | str | None = None,
    ) -> None:
        self._device = on_device(device)
        self.version = f"mtcnn-{softmax}-{'-'.join(map(str, thresholds))}"
        self._nets: list[nn.Module] = [PNet(softmax), RNet(), ONet()]
        for name, net, state in zip(NETWORKS, self._nets, (pnet, rnet, onet), strict=True):
            load_published(net, from_facenet(state), what=f"MTCNN's {name}")
            net.to(self._device)
        self._thresholds = thresholds

    @torch.no_grad()
    def detect(self, image: np.ndarray) -> Faces:
        """Find faces.

        Args:
            image: uint8 (H, W, 3) RGB.

        Raises:
            ValueError: another shape or type.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an image is {image.dtype} {image.shape}, expected uint8 (H, W, 3)")
        boxes = self._proposals(image)
        cuts, boxes, _ = cut(image, boxes, R_SIDE)
        if not len(boxes):
            return NOBODY
        score, offsets = self._run(1, cuts)
        sure = score > self._thresholds[1]
        boxes, offsets = np.column_stack([boxes[sure, :4], score[sure]]), offsets[sure]
        kept = suppress(boxes, OVERLAPS[1])
        cuts, boxes, _ = cut(image, squared(move(boxes[kept], offsets[kept])), O_SIDE)
        if not len(boxes):
            return NOBODY
        score, offsets, marks = self._run(2, cuts)
        sure = score > self._thresholds[2]
        boxes, offsets, marks = np.column_stack([boxes[sure, :4], score[sure]]), offsets[sure], marks[sure]
        sides, corner = boxes[:, 2:4] - boxes[:, :2] + 1, boxes[:, :2]
        points = rearrange(corner, "n d -> n 1 d") + rearrange(sides, "n d -> n 1 d") * rearrange(
            marks, "n (d p) -> n p d", d=2
        )
        boxes = move(boxes, offsets)
        kept = suppress(boxes, OVERLAPS[2], by_smaller=True)
        return Faces(boxes[kept], points[kept].astype(np.float32))

    def _proposals(self, image: np.ndarray) -> np.ndarray:
        """Squares that P-Net takes for faces, (N, 5)."""
        found = []
        for scale in levels(*image.shape[:2]):
            size = (math.ceil(image.shape[0] * scale), math.ceil(image.shape[1] * scale))
            score, offsets = (part[0] for part in self._run(0, shrunk(image, size)[None]))
            rows, columns = np.nonzero(score > self._thresholds[0])
            low = STRIDE * np.stack([columns, rows], axis=1) + 1.0
            corners = [np.round(low / scale), np.round((low + CELL) / scale)]
            boxes = np.column_stack([*corners, score[rows, columns], offsets[:, rows, columns].T])
            found.append(boxes[suppress(boxes, OVERLAP_IN_LEVEL)])
        boxes = np.concatenate(found) if found else np.zeros((0, 9))
        boxes = boxes[suppress(boxes, OVERLAPS[0])]
        return squared(move(boxes[:, :5], boxes[:, 5:]))

    def _run(self, stage: int, images: np.ndarray) -> list[np.ndarray]:
        """A network on uint8 (N, H, W, 3); float32 results."""
        parts = []
        for start in range(0, len(images), CHUNK):
            x = torch.from_numpy(images[start : start + CHUNK]).to(self._device)
            x = (rearrange(x, "n h w c -> n c h w").float() - 127.5) * 0.0078125
            with torch.autocast(self._device.type, enabled=False):  # thresholds want exact numbers
                parts.append([part.cpu().numpy() for part in self._nets[stage](x)])
        return [np.concatenate(column) for column in zip(*parts, strict=True)]


def similarity(points: np.ndarray, template: np.ndarray = TEMPLATE) -> np.ndarray:
    """Scale, rotation and shift from points to a template, float64 (2, 3).

    Least squares of the inverse map: residuals are measured in the image, as MATLAB's cp2tform does, which the
    published alignments follow.

    Args:
        points: (P, 2) x, y in px of the image.
        template: (P, 2) where they belong.

    Raises:
        ValueError: all points in one place.
    """
    x, y = template.astype(np.float64).T
    one, zero = np.ones_like(x), np.zeros_like(x)
    system = np.concatenate([np.stack([x, y, one, zero], axis=1), np.stack([y, -x, zero, one], axis=1)])
    a, b, u, v = np.linalg.lstsq(system, points.astype(np.float64).T.reshape(-1), rcond=None)[0]
    if math.hypot(a, b) < 1e-9:
        raise ValueError("the landmarks of a face lie in one place; expected five different points")
    back = np.array([[a, b, u], [-b, a, v], [0, 0, 1]])
    return np.linalg.inv(back)[:2]


def align(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """A face turned upright and scaled to 112 x 112 px.

    Args:
        image: uint8 (H, W, 3).
        points: (5, 2) x, y in px, in the order of `TEMPLATE`.

    Returns:
        uint8 (112, 112, 3); what lies outside the image is black.
    """
    return np.asarray(cv2.warpAffine(image, similarity(points), (SIDE, SIDE)))
