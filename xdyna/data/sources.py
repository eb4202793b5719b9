"""What videos there are to train on: the interface that every kind of video has, and how a source is opened by name."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from xdyna.config.data import DataConfig, DataError
from xdyna.data.schedule import Bucket, ClipPlace
from xdyna.perception import PoseTrack


@dataclass(frozen=True)
class Faces:
    """Images that the face conditions are cut out of.

    Attributes:
        frames: uint8 (T, H, W, 3) RGB; of use around the face only.
        landmarks: float32 (T, 68, 3), in px of these frames.
    """

    frames: np.ndarray
    landmarks: np.ndarray


@dataclass(frozen=True)
class Latents:
    """The posterior of the autoencoder, unscaled, and image tokens where they were kept.

    Attributes:
        mean: float32 (N, 4, h, w).
        std: float32 (N, 4, h, w).
        image_tokens: float32 (S, D), of the reference; None for none.
    """

    mean: np.ndarray
    std: np.ndarray
    image_tokens: np.ndarray | None = None


@dataclass(frozen=True)
class ClipWindow:
    """Some frames of a video, cropped to the size that is trained on.

    Attributes:
        reference: uint8 (H, W, 3) RGB.
        frames: uint8 (T, H, W, 3) RGB; None where there are latents.
        latents: of reference and frames, N = 1 + T; None where there are frames.
        track: keypoints of the T frames, in px of these images.
        faces: another identity's face over the same body, or None where the video has none or none was asked for.
    """

    reference: np.ndarray
    frames: np.ndarray | None
    latents: Latents | None
    track: PoseTrack
    faces: Faces | None


class Video(Protocol):
    """One video."""

    @property
    def clip_id(self) -> str:
        """Its name."""

    @property
    def length(self) -> int:
        """Number of frames."""

    @property
    def fps(self) -> float:
        """Frames per second."""

    @property
    def caption(self) -> str:
        """Text, or ""."""

    def window(self, rows: np.ndarray, *, reference: int) -> ClipWindow:
        """Frames `rows` (T,) in equal steps, and frame `reference`."""

    def own_faces(self, rows: np.ndarray, shot: ClipWindow) -> Faces:
        """The video's own face in the frames `rows`, given their shot."""

    def mask(self, rows: np.ndarray) -> np.ndarray:
        """Where the person is in the frames `rows` as `shot` shows them: bool (T, H, W)."""


class Source(Protocol):
    """Videos of both kinds, at one or several sizes."""

    @property
    def buckets(self) -> Sequence[Bucket]:
        """What there is of each size."""

    def video(self, bucket: int, slot: ClipPlace, rng: np.random.Generator) -> Video:
        """The video of a slot (without a number: a new one); what is random about it is drawn from `rng`.

        Args:
            bucket: place of its size in `buckets`.
            slot: its kind, set and number.
            rng: of the sample.
        """


class ClipError(DataError):
    """One video cannot be read; others may."""


SOURCES = {
    "puppet": "xdyna.puppets.source.PuppetSource",
    "footage": "xdyna.data.footage.FootageSource",
    "shards": "xdyna.data.shards.ShardSource",
    "cache": "xdyna.data.cached.CachedClips",
}
"""The class behind each name of `DataConfig.source`; it is imported when it is asked for."""


def named(dotted: str) -> Any:
    """The class or function of a dotted name ("package.module.Name").

    Raises:
        DataError: there is none.
    """
    module, _, attribute = dotted.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise DataError(f"data.source: there is no {dotted} ({error}); expected the dotted name of a class") from error


def open_source(config: DataConfig, *, vae: str | None = None, tokens: str | None = None) -> Source:
    """Open the source that the options name.

    Args:
        config: the options.
        vae: digest of the autoencoder that the run uses; for a cache.
        tokens: digest of what makes image tokens; for a cache.

    Raises:
        DataError: options that cannot be met, or a cache that does not fit them.
    """
    source = named(SOURCES.get(config.source, config.source))
    return source(config, vae=vae, tokens=tokens) if config.source == "cache" else source(config)
