"""Two small networks that know puppets: what moves and how (`PuppetDynamics`), and whose face it is (`PuppetIdentity`).

They take the places of I3D and AdaFace in metrics of the puppet world (`dtfvd[puppet]`, `face_cos[puppet]`), need no
download, and mean nothing on other images.

Shape legend: B clips, T frames, N faces, C channels, H W pixels, D channels of a feature.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from xdyna.core.atomic import atomic_output
from xdyna.evaluation.frames import FrameSequence
from xdyna.puppets.expression import cut_face

if TYPE_CHECKING:
    from typing import Self

CLIP_FRAMES, CLIP_SIDE = 16, 64
"""Frames of a clip, and height and width (px) that they are scaled to."""
FACE_SIDE = 48
"""Height and width of a cut-out head, px."""
STATIC, STILL = "static", "still"
"""Kind of a scene that does not move; kind of motion of a figure that does not."""

_REACH, _DROP = 2.0, -0.12  # side of the cut and its centre below the ears, in face widths: hair and hat belong to it
_CHANGE_GAIN = 8.0  # of differences between frames, which are small
_LEAST_FACE = 2.0  # px between the ears
_CHUNK = 64  # faces in one go
_WEIGHTS, _CONFIG = "weights.safetensors", "config.json"


class _Shipped(nn.Module):
    """A network that is kept in a folder with config.json and weights.safetensors (float16)."""

    kind, made_by = "", "train-extractors"
    preprocessing = "1"  # changes whenever the same frames would give other features

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[str, Any] = {}
        self.version = f"{self.preprocessing}-untrained"  # then preprocessing and hash of the weights

    def load_weights(self, state: Mapping[str, Tensor]) -> Self:
        """Fill from a state dict, strictly. Returns: itself, in evaluation mode.

        Raises:
            ValueError: missing, unexpected or mis-shaped names, or values that are no numbers.
        """
        try:
            self.load_state_dict(dict(state))
        except RuntimeError as error:
            raise ValueError(f"the weights do not fit {self.kind}: {' '.join(str(error).split())}") from error
        if not all(bool(tensor.isfinite().all()) for tensor in self.state_dict().values()):
            raise ValueError(f"the weights of {self.kind} are not all finite; copy or train them again")
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        self.version = f"{self.preprocessing}-{digest.hexdigest()[:16]}"
        return self.eval()

    def save(self, folder: Path, *, facts: Mapping[str, object]) -> None:
        """Write both files. Args: folder: made if missing. facts: kept in config.json."""
        state = {n: t.half() if t.is_floating_point() else t for n, t in self.state_dict().items()}
        with atomic_output(folder / _WEIGHTS, overwrite=True) as path:
            path.write_bytes(save({name: tensor.contiguous() for name, tensor in state.items()}))
        with atomic_output(folder / _CONFIG, overwrite=True) as path:
            path.write_text(json.dumps({"kind": self.kind, "sizes": self.sizes, **facts}, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: missing or damaged files, or another network.
        """
        try:
            config = json.loads((folder / _CONFIG).read_text())
            if config["kind"] != cls.kind:
                raise ValueError(f"it is a {config['kind']}")
            return cls(**config["sizes"]).load_weights(load_file(folder / _WEIGHTS))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{folder} holds no usable {cls.kind} ({reason}); expected {_CONFIG} and {_WEIGHTS}, which "
                f"scripts/puppets.py {cls.made_by} makes"
            ) from error


class Answers(NamedTuple):
    """What `PuppetDynamics` says about clips.

    Attributes:
        scene: (B, kinds of scenes) logits.
        motion: (B, kinds of motions) logits.
        order: (B,) logit of "the frames are in order".
    """

    scene: Tensor
    motion: Tensor
    order: Tensor


class PuppetDynamics(_Shipped):
    """Four 3-D convolutions, the mean over time and space, a linear layer: the features; then three linear heads.

    What it sees are the frames and, enlarged, their differences: without these a network this small learns looks alone.
    It is an `Extractor` of clips of 16 frames.

    Args:
        scenes: kinds of scenes, with `STATIC`.
        motions: kinds of motions, with `STILL`.
        channels: of the convolutions.
        dim: D.
    """

    kind = name = "puppet-dynamics"
    batch = 1

    def __init__(
        self,
        scenes: Sequence[str],
        motions: Sequence[str],
        channels: Sequence[int] = (32, 32, 64, 96),
        dim: int = 64,
    ) -> None:
        super().__init__()
        self.scenes, self.motions, self.dim = tuple(scenes), tuple(motions), dim
        self.sizes = {"scenes": list(scenes), "motions": list(motions), "channels": list(channels), "dim": dim}
        first, second, third, fourth = channels
        self.body = nn.Sequential(
            *_conv3d(6, first, kernel=(3, 5, 5), stride=(2, 2, 2)),
            *_conv3d(first, second, kernel=(3, 3, 3), stride=(1, 2, 2)),
            *_conv3d(second, third, kernel=(3, 3, 3), stride=(2, 2, 2)),
            *_conv3d(third, fourth, kernel=(3, 3, 3), stride=(2, 2, 2)),
        )
        self.bottleneck = nn.Linear(fourth, dim)
        self.scene, self.motion = nn.Linear(dim, len(scenes)), nn.Linear(dim, len(motions))
        self.order = nn.Linear(dim, 1)

    def forward(self, clips: Tensor) -> Tensor:
        """Args: clips: (B, 3, 16, 64, 64) in [0, 1]. Returns: (B, D) features."""
        change = F.pad(clips[:, :, 1:] - clips[:, :, :-1], (0, 0, 0, 0, 1, 0))
        seen = torch.cat([2 * clips - 1, _CHANGE_GAIN * change], dim=1)
        return self.bottleneck(self.body(seen).mean(dim=(2, 3, 4)))

    def answers(self, features: Tensor) -> Answers:
        """What features (B, D) say about their clips."""
        active = F.relu(features)
        return Answers(self.scene(active), self.motion(active), rearrange(self.order(active), "b 1 -> b"))

    @torch.no_grad()
    def features(self, frames: FrameSequence | np.ndarray) -> np.ndarray:
        """Features of one clip (see `Extractor.features`).

        Args:
            frames: uint8 (16, H, W, 3) RGB, any size; what is cut away is black.

        Returns:
            float32 (1, D).

        Raises:
            ValueError: another shape or type.
        """
        frames = np.asarray(frames)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[::3] != (CLIP_FRAMES, 3):
            raise ValueError(
                f"a clip has shape {frames.shape} and type {frames.dtype}, expected uint8 ({CLIP_FRAMES}, H, W, 3)"
            )
        pixels = rearrange(small_clip(frames), "t h w c -> 1 c t h w")
        return self(pixels).numpy()


class PuppetIdentity(_Shipped):
    """Four strided convolutions and a linear layer onto the unit sphere.

    Args:
        channels: of the convolutions.
        dim: D.
    """

    kind = name = "puppet-identity"

    def __init__(self, channels: Sequence[int] = (32, 64, 96, 128), dim: int = 64) -> None:
        super().__init__()
        self.dim = dim
        self.sizes = {"channels": list(channels), "dim": dim}
        layers: list[nn.Module] = []
        for low, high in zip((3, *channels[:-1]), channels, strict=True):
            layers += [nn.Conv2d(low, high, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(high), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Linear(channels[-1] * (FACE_SIDE // 2 ** len(channels)) ** 2, dim)

    def forward(self, faces: Tensor) -> Tensor:
        """Args: faces: (N, 3, 48, 48) in [0, 1]. Returns: (N, D), of length 1."""
        return F.normalize(self.head(self.body(2 * faces - 1)), dim=1)

    @torch.no_grad()
    def embed(self, frames: np.ndarray, face: np.ndarray) -> np.ndarray:
        """Whose face it is, frame by frame.

        Args:
            frames: uint8 (T, H, W, 3) RGB.
            face: (T, 68, 3) x, y in px, confidence; iBUG-68: where the faces are. The first and the last point count.

        Returns:
            float32 (T, D), of length 1; NaN where the points are not seen or lie in one place.
        """
        result = np.full((len(frames), self.dim), np.nan, np.float32)
        numbers = np.nonzero(seen_faces(face))[0]
        for part in np.split(numbers, range(_CHUNK, len(numbers), _CHUNK)):
            if part.size:
                heads = np.stack([cut_head(frames[k], face[k]) for k in part])
                result[part] = self(rearrange(torch.from_numpy(heads), "n h w c -> n c h w").float() / 255).numpy()
        return result


def seen_faces(face: np.ndarray) -> np.ndarray:
    """Frames whose face can be cut out: both ends of the jaw line are seen and apart.

    Args:
        face: (T, 68, 3) x, y in px, confidence; iBUG-68.

    Returns:
        bool (T,).
    """
    ends = face[:, [0, 16]].astype(np.float64)
    width = np.linalg.norm(ends[:, 0, :2] - ends[:, 1, :2], axis=-1)
    return np.asarray((ends[..., 2] > 0).all(axis=1) & (width >= _LEAST_FACE))


def cut_head(frame: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """Cut out a head with its hair, turned upright: `xdyna.puppets.expression.cut_face` with a wider reach.

    Args:
        frame: uint8 (H, W, 3) RGB.
        landmarks: (68, 2 or 3) x, y in px, iBUG-68.

    Returns:
        uint8 (48, 48, 3).
    """
    return cut_face(frame, landmarks, side=FACE_SIDE, reach=_REACH, drop=_DROP)


def small_clip(frames: np.ndarray) -> Tensor:
    """Frames in the size that `PuppetDynamics` sees: bilinear with antialiasing.

    Args:
        frames: uint8 (T, H, W, C).

    Returns:
        float32 (T, 64, 64, C) in [0, 1].
    """
    pixels = rearrange(torch.from_numpy(np.ascontiguousarray(frames)), "t h w c -> t c h w").float() / 255
    small = F.interpolate(pixels, (CLIP_SIDE, CLIP_SIDE), mode="bilinear", antialias=True, align_corners=False)
    return rearrange(small, "t c h w -> t h w c")


def _conv3d(low: int, high: int, *, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> list[nn.Module]:
    time, height, width = (side // 2 for side in kernel)
    return [
        nn.Conv3d(low, high, kernel, stride=stride, padding=(time, height, width), bias=False),
        nn.BatchNorm3d(high),
        nn.ReLU(),
    ]
