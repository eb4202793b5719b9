"""Options of the training data (the `data:` section of a training configuration)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field

SOURCES = ("puppet", "cache")
SPLITS = ("train", "validation", "test")
REFERENCES = ("any", "first", "outside")
FACES = ("none", "self", "cross", "landmarks")
SIZE_MULTIPLE = 8  # pixels per latent
MIN_SIDE = 64  # px


class DataError(ValueError):
    """Training data that cannot be made or read, or an option that cannot be met."""


@dataclass
class DataConfig:
    """What a training run sees.

    Attributes:
        source: "puppet" (rendered on the fly) or "cache" (written by `scripts/cache.py`).
        cache: folder of the cache; for source "cache" only.
        split: "train", "validation" or "test"; no identity, motion or scene is in two of them.
        height: of the pictures in px, a multiple of 8, at least 64.
        width: of the pictures in px, a multiple of 8, at least 64.
        frames: T, generated frames of a clip, >= 1.
        stride: [lowest, highest] step between frames of a clip in frames of the video; drawn per clip, both included.
        reference: which frame of the video is the reference: "any", "first" (of the clip) or "outside" (none of the T).
        scene_ratio: share of clips that show a scene without a person, in [0, 1] (0: the paper's wo/fusion).
        crop_scale: [lowest, highest] share of the picture's area that the random resized crop keeps, in (0, 1]; [1, 1]
            switches it off.
        drop_image: probability that only the image tokens are dropped.
        drop_text: probability that only the text tokens are dropped.
        drop_both: probability that both are dropped.
        face: face conditions: "none" (black), "self", "cross" (another identity's face with the same expression:
            X-Dyna's second stage) or "landmarks" (drawn into the pose pictures, patches black: the paper's w/lmk).
        num_clips: only the first so many human videos, and as many scene videos, each shown once per epoch; None: all
            (puppet: without end, no video twice but by chance).
        video_frames: length of a puppet video in frames; clip and reference are drawn inside it.
        workers: processes that make batches; 0 makes them in the training process.
        prefetch: batches that each worker makes ahead, >= 1.

    Raises:
        DataError: a value out of range, or values that contradict each other.
    """

    source: str = "puppet"
    cache: str | None = None
    split: str = "train"
    height: int = 128
    width: int = 128
    frames: int = 16
    stride: list[int] = field(default_factory=lambda: [1, 2])
    reference: str = "any"
    scene_ratio: float = 0.25
    crop_scale: list[float] = field(default_factory=lambda: [0.85, 1.0])
    drop_image: float = 0.1
    drop_text: float = 0.1
    drop_both: float = 0.0
    face: str = "none"
    num_clips: int | None = None
    video_frames: int = 48
    workers: int = 0
    prefetch: int = 4

    def __post_init__(self) -> None:
        self.stride, self.crop_scale = list(self.stride), list(self.crop_scale)
        for name, choices in (("source", SOURCES), ("split", SPLITS), ("reference", REFERENCES), ("face", FACES)):
            _check_choice(name, getattr(self, name), choices)
        for name in ("height", "width"):
            side = getattr(self, name)
            _require(
                side >= MIN_SIDE and side % SIZE_MULTIPLE == 0, name, side, f"a multiple of {SIZE_MULTIPLE} from 64 on"
            )
        for name, lowest in (("frames", 1), ("video_frames", 1), ("num_clips", 1), ("workers", 0), ("prefetch", 1)):
            value = getattr(self, name)
            _require(value is None or value >= lowest, name, value, f"{lowest} or more")
        for name in ("scene_ratio", "drop_image", "drop_text", "drop_both"):
            value = getattr(self, name)
            _require(0 <= value <= 1, name, value, "0 to 1")
        _check_pair("stride", self.stride, lowest=1, highest=None)
        _check_pair("crop_scale", self.crop_scale, lowest=0.1, highest=1)
        dropped = self.drop_image + self.drop_text + self.drop_both
        if dropped > 1 + 1e-9:
            raise DataError(
                f"data.drop_image + data.drop_text + data.drop_both is {dropped:g}; they exclude each other, so "
                f"expected at most 1"
            )
        if (self.source == "cache") != (self.cache is not None):
            raise DataError(
                f"data.source is {self.source!r} and data.cache is {self.cache!r}; give the folder with source 'cache' "
                f"and with no other"
            )
        self._check_length()

    def _check_length(self) -> None:
        """The longest clip, and a reference beside it, must fit into the video."""
        span = (self.frames - 1) * self.stride[1] + 1
        if span > self.video_frames:
            raise DataError(
                f"data.frames={self.frames} at data.stride up to {self.stride[1]} span {span} frames, but data."
                f"video_frames is {self.video_frames}; raise it, or lower one of the others"
            )
        if self.reference == "outside" and self.frames >= self.video_frames:
            raise DataError(
                f"data.reference='outside' needs a frame beside the {self.frames} of the clip, but data.video_frames "
                f"is {self.video_frames}; raise it or choose another reference"
            )

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the pictures, px."""
        return self.height, self.width


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise DataError(f"data.{name}: got {value!r}, expected {expected}")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    _require(value in choices, name, value, f"one of {', '.join(choices)}{hint}")


def _check_pair(name: str, pair: Sequence[float], *, lowest: float, highest: float | None) -> None:
    bound = f"{lowest:g} or more" if highest is None else f"{lowest:g} to {highest:g}"
    fits = len(pair) == 2 and lowest <= pair[0] <= pair[1] and (highest is None or pair[1] <= highest)
    _require(fits, name, pair, f"[lowest, highest], each {bound}")
