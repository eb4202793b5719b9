"""Reads mouth and eye opening from the pixels of a face: a small network, for comparing generated faces with the truth.

A face is cut out upright by two landmarks that no expression moves (the ends of the jaw line at the ears), so that the
place of the cut tells nothing about the expression: what is read comes from pixels.

Shape legend: T frames, N faces, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from einops import rearrange, reduce
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from xdyna.core.atomic import atomic_output

READINGS = ("eye_open_left", "eye_open_right", "mouth_open")
"""What is read, each 0 (shut) to 1 (wide open); left and right are the person's."""
SIDE = 32
"""Height and width of a cut-out face, px."""

_REACH, _DROP = 1.15, 0.12  # side of the cut and its centre below the ears, in face widths
_WEIGHTS, _CONFIG = "reader.safetensors", "config.json"


class ExpressionReader(nn.Module):
    """Three strided convolutions and two linear layers.

    Args:
        channels: of the convolutions.
        hidden: width between the linear layers.
    """

    def __init__(self, channels: Sequence[int] = (16, 32, 48), hidden: int = 32) -> None:
        super().__init__()
        self.sizes = {"channels": list(channels), "hidden": hidden}
        layers: list[nn.Module] = []
        for low, high in zip((3, *channels[:-1]), channels, strict=True):
            layers += [nn.Conv2d(low, high, 3, stride=2, padding=1), nn.SiLU()]
        grid = SIDE // 2 ** len(channels)
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Sequential(
            nn.Linear(channels[-1] * grid**2, hidden), nn.SiLU(), nn.Linear(hidden, len(READINGS))
        )

    def forward(self, faces: Tensor) -> Tensor:
        """Args: faces: (N, 3, 32, 32) in [0, 1]. Returns: (N, 3) in the order of `READINGS`, about 0 to 1."""
        # Each face's own brightness and contrast are taken out: skin and light are not what is read.
        middle = faces.mean(dim=(1, 2, 3), keepdim=True)
        spread = faces.std(dim=(1, 2, 3), keepdim=True)
        return self.head(self.features((faces - middle) / (spread + 0.05)))

    @torch.no_grad()
    def read(self, frames: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
        """Read every frame of a clip.

        Args:
            frames: uint8 (T, H, W, 3) RGB.
            landmarks: (T, 68, 2 or 3) x, y in px (and confidence), iBUG-68: where the faces are.

        Returns:
            float64 (T, 3) in the order of `READINGS`, in [0, 1].

        Raises:
            ValueError: wrong shapes, or a face without width.
        """
        faces = np.stack([cut_face(frame, points) for frame, points in zip(frames, landmarks, strict=True)])
        pixels = rearrange(torch.from_numpy(faces), "n h w c -> n c h w").float() / 255
        return self(pixels).clamp(0, 1).double().numpy()

    def save(self, folder: Path, *, facts: dict[str, object]) -> None:
        """Write config.json and reader.safetensors. Args: folder: made if missing. facts: kept in config.json."""
        with atomic_output(folder / _WEIGHTS, overwrite=True) as path:
            path.write_bytes(save(self.state_dict()))
        with atomic_output(folder / _CONFIG, overwrite=True) as path:
            path.write_text(json.dumps({"sizes": self.sizes, "readings": READINGS, **facts}, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> ExpressionReader:
        """Read what `save` wrote.

        Raises:
            ValueError: missing or damaged files, or another network.
        """
        try:
            config = json.loads((folder / _CONFIG).read_text())
            reader = cls(**config["sizes"])
            reader.load_state_dict(load_file(folder / _WEIGHTS))
        except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"{folder} holds no usable expression reader ({reason}); expected {_CONFIG} and {_WEIGHTS}, which "
                "scripts/puppets.py train-reader makes"
            ) from error
        if tuple(config["readings"]) != READINGS:
            raise ValueError(f"{folder} reads {config['readings']}, expected {list(READINGS)}; train it again")
        return reader.eval()


def cut_face(
    frame: np.ndarray, landmarks: np.ndarray, *, side: int = SIDE, reach: float = _REACH, drop: float = _DROP
) -> np.ndarray:
    """Cut out a face, turned upright.

    Args:
        frame: uint8 (H, W, 3) RGB.
        landmarks: (68, 2 or 3) x, y in px, iBUG-68; only the first and the last point of the jaw line count.
        side: of the result, px.
        reach: side of the cut in face widths (distance of the two points).
        drop: how far its centre lies below the middle of the two points, face widths.

    Returns:
        uint8 (side, side, 3); what lies outside the frame repeats its edge.

    Raises:
        ValueError: wrong shapes, or both points in one place.
    """
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"a frame has shape {frame.shape} and type {frame.dtype}, expected uint8 (H, W, 3)")
    if landmarks.shape[0] != 68 or landmarks.ndim != 2:
        raise ValueError(f"face landmarks have shape {landmarks.shape}, expected (68, 2) or (68, 3)")
    right, left = landmarks[0, :2].astype(np.float64), landmarks[16, :2].astype(np.float64)
    across = left - right
    width = float(np.linalg.norm(across))
    if not width > 0.5:
        raise ValueError(f"a face is {width:.2f} px wide, expected landmarks of a visible face (0.5 px or more)")
    down = np.array([-across[1], across[0]])
    fine = max(1, round(reach * width / side))  # subpixels per side that are averaged where the face is larger
    step = reach / (side * fine)
    corner = (left + right) / 2 + drop * down - (side * fine - 1) / 2 * step * (across + down)
    to_frame = np.column_stack([step * across, step * down, corner])  # from the cut to the frame
    cut = cv2.warpAffine(
        frame,
        to_frame,
        (side * fine, side * fine),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    averaged = reduce(cut.astype(np.float32), "(h a) (w b) c -> h w c", "mean", a=fine, b=fine)
    return averaged.round().astype(np.uint8)
