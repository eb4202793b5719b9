"""Figure and background: where the masks of a case come from, and cutting videos along them.

Shape legend: T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from xdyna.evaluation.metric import Case, Video
from xdyna.media.folder import IMAGES, frame_files
from xdyna.media.image import read_image
from xdyna.media.video import read_frames

FULL, FIGURE, BACKGROUND = "full", "figure", "background"
REGIONS = (FULL, FIGURE, BACKGROUND)
THRESHOLD = 128  # of stored masks
FILL = 0  # the grey level of what is cut away


class Segmenter(Protocol):
    """Tells people from the scene (as `xdyna.perception.base.MaskBackend`)."""

    name: str
    version: str

    def segment(self, frame: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) -> float32 (H, W) in [0, 1], 1 on people."""
        ...


def cut(frames: np.ndarray, masks: np.ndarray, region: str) -> np.ndarray:
    """x * m + fill * (1 - m), in uint8, before anything is resized.

    Args:
        frames: uint8 (T, H, W, 3).
        masks: bool (T, H, W), true on the figure.
        region: "full" (nothing is cut), "figure" or "background".

    Returns:
        uint8 (T, H, W, 3).

    Raises:
        ValueError: an unknown region, or masks of another shape.
    """
    if region == FULL:
        return frames
    if region not in REGIONS:
        raise ValueError(f"region is {region!r}, expected one of {', '.join(REGIONS)}")
    if masks.shape != frames.shape[:3]:
        raise ValueError(f"masks have shape {masks.shape}, the frames {frames.shape}; expected one mask per frame")
    kept = masks if region == FIGURE else ~masks
    return np.where(kept[..., None], frames, np.uint8(FILL))


class Masker:
    """Masks of a case: those given with it, or segmented, the truth's and the generated video's each by itself.

    Args:
        segmenter: None where all cases bring their masks.

    Attributes:
        version: names the segmenter, for reports and stored records.
    """

    def __init__(self, segmenter: Segmenter | None) -> None:
        self._segmenter = segmenter
        self.version = f"{segmenter.name}-{segmenter.version}" if segmenter is not None else "given"
        self._last: dict[str, np.ndarray] = {}

    def masks(self, case: Case, which: str) -> np.ndarray:
        """Figure masks of a case's video.

        Args:
            case: the case.
            which: "truth" or "generated".

        Returns:
            bool (T, H, W) in the video's own size.

        Raises:
            ValueError: no such video; no masks and no segmenter; or given masks that do not fit the video.
        """
        video = case.truth if which == "truth" else case.generated
        if video is None:
            raise ValueError(f"{case.id} has no {which} video to take masks of")
        if case.masks is not None:
            given = case.masks[0 if which == "truth" else 1]
            if given.shape != video.frames.shape[:3]:
                raise ValueError(
                    f"{case.id}: the masks of the {which} video are {_shape(given.shape)}, its frames "
                    f"{_shape(video.frames.shape)}; give one mask per frame in the video's size"
                )
            return given
        if self._segmenter is None:
            raise ValueError(f"{case.id} has no masks; give a mask folder or a segmenter")
        if video.digest not in self._last:
            if len(self._last) >= 4:  # truth and generated of this case and of the one before
                self._last.pop(next(iter(self._last)))
            self._last[video.digest] = segment_video(video, self._segmenter)
        return self._last[video.digest]


def segment_video(video: Video, segmenter: Segmenter) -> np.ndarray:
    """Figure masks by a segmenter, frame by frame: bool (T, H, W)."""
    return np.stack([segmenter.segment(frame) >= 0.5 for frame in video.frames])


def read_masks(path: Path, *, frames: int) -> np.ndarray:
    """Masks from a video, a folder of images (in the order of their numbers) or one image (for all frames).

    Args:
        path: of the masks; grey levels of 128 and more are the figure.
        frames: T, of the video that they belong to.

    Returns:
        bool (T, H, W).

    Raises:
        ValueError: nothing there, fewer masks than frames, or unequal sizes.
    """
    if path.is_dir():
        images: Iterable[np.ndarray] = (read_image(p) for p in frame_files(path)[:frames])
    elif path.suffix.lower() in IMAGES:
        images = [read_image(path)] * frames
    elif path.is_file():
        images = read_frames(path, range(frames))
    else:
        raise ValueError(f"masks {path} do not exist; expected a video, a folder of images or an image")
    masks = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) >= THRESHOLD for image in images]
    if len(masks) < frames:
        raise ValueError(f"masks {path} has {len(masks)} images for a video of {frames} frames; give one per frame")
    sizes = sorted({mask.shape for mask in masks})
    if len(sizes) > 1:
        raise ValueError(f"masks {path} has images of several sizes ({sizes[0]}, {sizes[1]}); give them in one")
    return np.stack(masks)


def _shape(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} x {shape[1]} x {shape[2]} px"
