"""Options of the training data (the `data:` section of a training configuration)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xdyna.config.contract import PoseStyle
from xdyna.config.settings import check_settings, setting
from xdyna.core.errors import XDynaWarning

SOURCES = ("puppet", "footage", "shards", "cache")
DATASET_SOURCES = ("footage", "shards")  # those that `manifests` belong to
SPLITS = ("train", "validation", "test")
KINDS = ("human", "scene")  # a clip shows a person, or a scene without one (its conditions are black)
REFERENCES = ("any", "first", "outside")
FACES = ("none", "self", "cross", "landmarks")
SIZE_MULTIPLE = 8  # pixels per latent
MIN_SIDE = 64  # px
USUAL_STRIDE = (1, 2)
_NTSC = 2e-3  # 29.97 frames/s count as 30


class DataError(ValueError):
    """Training data that cannot be made or read, or an option that cannot be met."""


class DataWarning(XDynaWarning):
    """Training data are usable only in part; the message says what is left out."""


@dataclass
class DataConfig:
    """What a training run sees.

    Attributes:
        source: "puppet" (rendered on the fly), "footage" (data sets of `scripts/preprocess.py`), "shards" (tar files
            of its `--shards`) or "cache" (written by `scripts/preprocess.py cache`).
        cache: folder of the cache; for source "cache" only.
        manifests: folders of data sets for source "footage", of shards (or their fsspec addresses) for "shards", or
            {folder, weight} each: clips of either kind are drawn from them by weight, without weights by their numbers
            of clips.
        verify: see that the videos have the bytes that the data set was made of. "footage": they are read once, before
            training (and not again while size and time are the same), then size and time count; "shards": clip by clip.
        split: "train", "validation" or "test"; no identity, motion, scene or source video is in two of them.
        height: of the images in px, a multiple of 8, at least 64.
        width: of the images in px, a multiple of 8, at least 64.
        buckets: [[height, width], ...] of sources "footage" and "shards": every step shows the clips whose aspect is
            nearest to one of these sizes at that size; height and width become those of the largest. Empty: all at one
            size.
        frames: T, generated frames of a clip, >= 1.
        fps: [lowest, highest] frames per second of a clip: steps between its frames follow from the rate of its own
            video. Not together with `stride`.
        stride: [lowest, highest] step between frames of a clip in frames of the video; drawn per clip, both included,
            at whatever rate; null: [1, 2] where there is no `fps`.
        reference: which frame of the video is the reference: "any", "first" (of the clip) or "outside" (none of the T).
        scene_ratio: share of clips that show a scene without a person, in [0, 1] (0: the paper's wo/fusion).
        crop_scale: [lowest, highest] share of the image's area that the random resized crop keeps, in (0, 1]; [1, 1]
            switches it off.
        drop_image: probability that the image tokens are dropped.
        drop_text: probability that the text tokens are dropped, whether the image's are or not.
        drop_both: probability that both are dropped at once, besides.
        drop_face: probability that a clip is shown without the face ControlNet, whatever else is dropped. Of use where
            the rest trains along with it: without, what it was never without fails where no face was found.
        face: face conditions: "none" (black), "self", "cross" (another identity's face with the same expression:
            X-Dyna's second stage) or "landmarks" (drawn into the pose maps, patches black: the paper's w/lmk).
        pose_width: factor of all widths in the pose maps, above 0; 1 as published and as inference draws them.
        pose_hands: draw hands into the pose maps.
        pose_head: draw eyes and ears into the pose maps.
        num_clips: only the first so many human videos, and as many scene videos, each shown once per epoch; None: all
            (puppet: without end, no video twice but by chance).
        video_frames: length of a puppet video in frames; clip and reference are drawn inside it. Footage has its own.
        workers: processes that make batches; 0 makes them in the training process.
        prefetch: batches that each worker makes ahead, >= 1.

    Raises:
        DataError: a value out of range, or values that contradict each other.
    """

    source: str = setting("puppet", choices=SOURCES)
    cache: str | None = None
    manifests: list[Any] = setting([], needed=True)  # noqa: RUF009 (a copy for each)
    verify: bool = True
    split: str = setting("train", choices=SPLITS)
    height: int = 128
    width: int = 128
    buckets: list[list[int]] = field(default_factory=list)
    frames: int = setting(16, low=1, high=10_000)
    fps: list[float] | None = None
    stride: list[int] | None = None
    reference: str = setting("any", choices=REFERENCES)
    scene_ratio: float = setting(0.25, low=0, high=1)
    crop_scale: list[float] = field(default_factory=lambda: [0.85, 1.0])
    drop_image: float = setting(0.1, low=0, high=1)
    drop_text: float = setting(0.1, low=0, high=1)
    drop_both: float = setting(0.0, low=0, high=1)
    drop_face: float = setting(0.0, low=0, high=1)
    face: str = setting("none", choices=FACES)
    pose_width: float = setting(1.0, above=0)
    pose_hands: bool = True
    pose_head: bool = False
    num_clips: int | None = setting(None, low=1)
    video_frames: int = setting(48, low=1, high=1_000_000)
    workers: int = setting(0, low=0)
    prefetch: int = setting(4, low=1)

    def __post_init__(self) -> None:
        self.crop_scale = list(self.crop_scale)
        if self.fps is not None and self.stride is not None:
            raise DataError(
                f"data.fps={list(self.fps)} and data.stride={list(self.stride)} both say how far apart frames are; "
                "give one of them, and set the other to null"
            )
        check_settings(self, section="data", error=DataError)
        self.buckets = [_checked_size("buckets", size) for size in self.buckets]
        if self.buckets:
            self.height, self.width = max(self.buckets, key=math.prod)
        for name in ("height", "width"):
            side = getattr(self, name)
            _require(
                side >= MIN_SIDE and side % SIZE_MULTIPLE == 0, name, side, f"a multiple of {SIZE_MULTIPLE} from 64 on"
            )
        if self.stride is not None:
            self.stride = list(self.stride)
            _check_pair("stride", self.stride, lowest=1, highest=None)
        if self.fps is not None:
            self.fps = list(self.fps)
            _check_pair("fps", self.fps, lowest=0.1, highest=240)
        _check_pair("crop_scale", self.crop_scale, lowest=0.1, highest=1)
        if (self.source == "cache") != (self.cache is not None):
            raise DataError(
                f"data.source is {self.source!r} and data.cache is {self.cache!r}; give the folder with source 'cache' "
                f"and with no other"
            )
        self._check_footage()

    def _check_footage(self) -> None:
        self.manifests = [_checked_manifest(entry) for entry in self.manifests]
        if (self.source in DATASET_SOURCES) != bool(self.manifests):
            raise DataError(
                f"data.source is {self.source!r} and data.manifests is {self.manifests!r}; give the data set folders "
                f"with source 'footage' or 'shards' and with no other"
            )
        if self.buckets and self.source not in DATASET_SOURCES:
            raise DataError(
                f"data.buckets is for sources 'footage' and 'shards'; data.source is {self.source!r}: leave it out"
            )
        if len({height / width for height, width in self.buckets}) < len(self.buckets):
            raise DataError(f"data.buckets: got {self.buckets}, expected sizes of different aspects")
        weighted = [entry for entry in self.manifests if entry["weight"] is not None]
        if weighted and len(weighted) < len(self.manifests):
            raise DataError(
                "data.manifests: some have a weight and some have none; give one to each, or to none (then every clip "
                "is shown equally often)"
            )

    def pose_style(self) -> PoseStyle:
        """How people are drawn in pose maps."""
        landmarks = self.face == "landmarks"
        return PoseStyle(landmarks=landmarks, hands=self.pose_hands, head=self.pose_head, width=self.pose_width)

    @property
    def unconditional(self) -> float:
        """Probability that a clip is shown without image and text: the state of the unconditional branch."""
        return self.drop_both + (1 - self.drop_both) * self.drop_image * self.drop_text

    def strides(self, rate: float) -> tuple[int, int]:
        """Lowest and highest step between frames of a clip.

        Args:
            rate: frames per second of its video.

        Returns:
            tuple: both 1 or more; where no step gives a rate of `fps`, twice the one that comes nearest.
        """
        if self.fps is None:
            lowest, highest = self.stride or USUAL_STRIDE
            return lowest, highest
        slow, fast = self.fps[0] / (1 + _NTSC), self.fps[1] * (1 + _NTSC)
        lowest, highest = max(1, math.ceil(rate / fast)), math.floor(rate / slow)
        if lowest <= highest:
            return lowest, highest
        nearest = min(
            (max(1, highest), lowest), key=lambda step: min(abs(math.log(rate / step / end)) for end in (slow, fast))
        )
        return nearest, nearest

    def shortest(self, rate: float) -> int:
        """Frames that a video must have at least. Args: rate: frames per second of the video."""
        span = (self.frames - 1) * self.strides(rate)[0] + 1
        return max(span, self.frames + 1) if self.reference == "outside" else span

    def check_length(self, rate: float) -> None:
        """See that the longest clip, and a reference beside it, fit into a puppet video.

        Args:
            rate: frames per second of the video.

        Raises:
            DataError: they do not.
        """
        highest = self.strides(rate)[1]
        span = (self.frames - 1) * highest + 1
        if span > self.video_frames:
            pace = f"data.stride up to {highest}" if self.fps is None else f"data.fps={list(self.fps)}"
            raise DataError(
                f"data.frames={self.frames} at {pace} span {span} frames, but data."
                f"video_frames is {self.video_frames}; raise it, or lower one of the others"
            )
        if self.reference == "outside" and self.frames >= self.video_frames:
            raise DataError(
                f"data.reference='outside' needs a frame beside the {self.frames} of the clip, but data.video_frames "
                f"is {self.video_frames}; raise it or choose another reference"
            )

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images, px."""
        return self.height, self.width


def _checked_manifest(entry: object) -> dict[str, Any]:
    """{"folder", "weight"} of an entry of `manifests`."""
    known = {"folder": entry, "weight": None} if isinstance(entry, str) else entry
    expected = "the folder of a data set, or {folder, weight} with a weight above 0"
    if not isinstance(known, Mapping) or not {"folder"} <= set(known) <= {"folder", "weight"}:
        raise DataError(f"data.manifests: got {entry!r}, expected {expected}")
    folder, weight = known["folder"], known.get("weight")
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not (isinstance(folder, str) and folder) or not (weight is None or (is_number and 0 < weight < math.inf)):
        raise DataError(f"data.manifests: got {entry!r}, expected {expected}")
    return {"folder": folder, "weight": weight}


def _checked_size(name: str, size: Sequence[int]) -> list[int]:
    good = len(size) == 2 and all(side >= MIN_SIDE and side % SIZE_MULTIPLE == 0 for side in size)
    _require(good, name, list(size), f"[height, width], multiples of {SIZE_MULTIPLE} from {MIN_SIDE} on")
    return list(size)


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise DataError(f"data.{name}: got {value!r}, expected {expected}")


def _check_pair(name: str, pair: Sequence[float], *, lowest: float, highest: float | None) -> None:
    bound = f"{lowest:g} or more" if highest is None else f"{lowest:g} to {highest:g}"
    fits = len(pair) == 2 and lowest <= pair[0] <= pair[1] and (highest is None or pair[1] <= highest)
    _require(fits, name, pair, f"[lowest, highest], each {bound}")
