"""The training set: sample `index` is a pure function of (seed, index)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset

from xdyna.config.data import DataConfig, DataError, DataWarning
from xdyna.data.cached import paced
from xdyna.data.conditions import face_images, pose_images
from xdyna.data.samples import Sample
from xdyna.data.schedule import ClipPlace, Schedule, Sizes, sample_rng
from xdyna.data.sources import ClipError, ClipWindow, Latents, Source, Video, open_source
from xdyna.perception.errors import NoFaceError

ATTEMPTS = 100  # clips that are tried for one sample

Made = TypeVar("Made")


def build_dataset(
    config: DataConfig, *, seed: int, vae: str | None = None, tokens: str | None = None, step: int = 1
) -> ClipDataset:
    """The training set that the options ask for.

    Args:
        config: the options.
        seed: of everything random, >= 0.
        vae: digest of the autoencoder that the run uses (`cache.vae_digest`); needed for a cache only, which is refused
            if it was written with another one.
        tokens: digest of what makes image tokens (`cache.token_digest`), to take them from a cache that has them; None:
            they are computed while training.
        step: samples of an optimizer step, of all processes together: they have one size where there are several.

    Returns:
        The set.

    Raises:
        DataError: options that cannot be met, or a cache that does not fit them.

    Warns:
        DataWarning: clips that cannot be used as asked (too short, no size near their aspect, ...).
    """
    if seed < 0:
        raise DataError(f"seed: got {seed}, expected 0 or more")
    config = paced(config)
    return ClipDataset(config, open_source(config, vae=vae, tokens=tokens), seed=seed, step=step)


@dataclass(frozen=True)
class DrawnClip:
    """What was drawn for one sample.

    Attributes:
        video: where the frames are from.
        kind: "human" or "scene".
        rows: int64 (T,), frames of the video.
        reference: the frame of the video that is the reference.
        drop_image: see `Sample`.
        drop_text: see `Sample`.
        drop_face: see `Sample`.
    """

    video: Video
    kind: str
    rows: np.ndarray
    reference: int
    drop_image: bool
    drop_text: bool
    drop_face: bool


class ClipDataset(Dataset[Sample]):
    """Endless map-style set of samples; indices count from 0 through the whole run.

    A clip that cannot be read is replaced by another one, drawn from the same seed: whoever makes a sample, it is the
    same. The first time that a process meets such a clip it warns.

    Args:
        config: the options.
        source: the videos.
        seed: of everything random.
        step: see `build_dataset`.

    Attributes:
        broken: what is wrong with each clip that could not be read in this process.
    """

    def __init__(self, config: DataConfig, source: Source, *, seed: int, step: int = 1) -> None:
        self.config, self.source, self.seed = config, source, seed
        self.broken: dict[str, str] = {}
        ratio = config.scene_ratio
        for kind, needed in (("human", ratio < 1), ("scene", ratio > 0)):
            if needed and not all(bucket.stocks[kind] for bucket in source.buckets):
                raise DataError(
                    f"data.scene_ratio is {ratio:g}, but there are no {kind} videos; set it to "
                    f"{1 if kind == 'human' else 0}, or add {kind} videos"
                )
        self.sizes = Sizes(seed, [bucket.share for bucket in source.buckets], step)
        self.schedules = [
            Schedule(seed, ratio, bucket.stocks["human"], bucket.stocks["scene"], row)
            for row, bucket in enumerate(source.buckets)
        ]

    def take(self, index: int) -> DrawnClip:
        """Draw what sample `index` shows, if it can be read.

        Raises:
            DataError: a negative index.
        """
        if index < 0:
            raise DataError(f"sample {index} does not exist; samples count from 0")
        bucket, place = self.sizes.place(index)
        return self._draw(index, bucket, self.schedules[bucket].slot(place))

    def readable(self, index: int, make: Callable[[DrawnClip], Made]) -> Made:
        """What `make` makes of sample `index`, or of what replaces it where its clip cannot be read.

        Args:
            index: of the sample.
            make: reads; raises `ClipError` for a clip that cannot be read.

        Raises:
            DataError: a negative index, a damaged cache, or nothing but clips that cannot be read.

        Warns:
            DataWarning: a clip cannot be read; once for each.
        """
        for take in self._takes(index):
            try:
                return make(take)
            except ClipError as error:
                if take.video.clip_id not in self.broken:
                    self.broken[take.video.clip_id] = str(error)
                    message = f"clip '{take.video.clip_id}' is replaced by others ({error})"
                    warnings.warn(
                        f"{message}; unreadable so far in this process: {len(self.broken)}", DataWarning, stacklevel=2
                    )
        some = "; ".join(list(self.broken.values())[:3])
        raise DataError(
            f"sample {index}: none of {ATTEMPTS} clips in a row can be read ({some}); are the videos where the data "
            f"set was made? Check it with scripts/preprocess.py"
        )

    def __getitem__(self, index: int) -> Sample:
        """Make sample `index`.

        Raises:
            DataError: see `readable`.
        """
        return self.readable(index, lambda take: self._sample(index, take))

    def masked(self, index: int) -> tuple[Sample, np.ndarray]:
        """Sample `index`, and where the person is in its T frames: bool (T, H, W).

        Raises:
            DataError: see `readable`.
        """
        return self.readable(index, lambda take: (self._sample(index, take), take.video.mask(take.rows)))

    def _takes(self, index: int) -> Iterator[DrawnClip]:
        """Sample `index`, then what replaces it."""
        yield self.take(index)
        bucket, place = self.sizes.place(index)
        kind = self.schedules[bucket].slot(place).kind
        for attempt in range(1, ATTEMPTS):
            yield self._draw(index, bucket, self.schedules[bucket].replacement(index, kind, attempt))

    def _draw(self, index: int, bucket: int, slot: ClipPlace) -> DrawnClip:
        config, rng = self.config, sample_rng(self.seed, index)
        drawn = rng.random()  # first of all: it does not depend on how the rest is drawn
        drop_image, drop_text = _drops(drawn, config)
        video = self.source.video(bucket, slot, rng)
        steps = max(config.frames - 1, 1)
        lowest, highest = config.strides(video.fps)
        highest = min(highest, max((video.length - 1) // steps, lowest))
        stride = int(rng.integers(lowest, highest + 1))
        start = int(rng.integers(0, video.length - (config.frames - 1) * stride))
        rows = start + stride * np.arange(config.frames)
        reference = _draw_reference(config.reference, rows, video.length, rng)
        no_face = bool(rng.random() < config.drop_face)  # last of all: what comes before stays as it was without
        return DrawnClip(video, slot.kind, rows, reference, drop_image, drop_text, no_face)

    def _sample(self, index: int, take: DrawnClip) -> Sample:
        shot = take.video.window(take.rows, reference=take.reference)
        pose, face = self._conditions(take, shot)
        images = shot.reference[None]
        if shot.frames is not None:
            images = np.concatenate([images, shot.frames])
        mean, std = _latent_tensors(shot.latents)
        return Sample(
            index=index,
            clip_id=take.video.clip_id,
            kind=take.kind,
            pixels=_images_tensor(images),
            pose=None if pose is None else _images_tensor(pose),
            face=None if face is None else _images_tensor(face),
            latents_mean=mean,
            latents_std=std,
            drop_image=take.drop_image,
            drop_text=take.drop_text,
            drop_face=take.drop_face,
            caption=take.video.caption,
            image_tokens=_token_tensor(shot.latents),
        )

    def _conditions(self, take: DrawnClip, shot: ClipWindow) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Pose (T, H, W, 3) and face images (T, H, W, 6), None where they would be black."""
        config = self.config
        if take.kind == "scene":
            return None, None
        pose = pose_images(shot.track, config.pose_style())
        if config.face in ("none", "landmarks"):
            return pose, None
        faces = shot.faces if config.face == "cross" else take.video.own_faces(take.rows, shot)
        assert faces is not None, "the source gives other faces where face='cross'"
        try:
            return pose, face_images(faces.frames, faces.landmarks)
        except NoFaceError:  # turned away all the time: nothing to be driven by
            return pose, None


def _drops(drawn: float, config: DataConfig) -> tuple[bool, bool]:
    """Whether image and text are dropped: independent of each other, though of one number in [0, 1).

    What a number tells about one of them is taken out of it before the other is looked at.
    """
    if drawn < config.drop_both:
        return True, True
    rest = (drawn - config.drop_both) / (1 - config.drop_both)
    image = rest < config.drop_image
    rest = rest / config.drop_image if image else (rest - config.drop_image) / (1 - config.drop_image)
    return image, rest < config.drop_text


def _draw_reference(which: str, rows: np.ndarray, length: int, rng: np.random.Generator) -> int:
    """The reference frame's number; always one draw, so that the choice changes nothing else."""
    drawn = rng.random()
    if which == "first":
        return int(rows[0])
    candidates = np.arange(length) if which == "any" else np.setdiff1d(np.arange(length), rows)
    return int(candidates[int(drawn * len(candidates))])


def _images_tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rearrange(images, "t h w c -> t c h w")))


def _token_tensor(latents: Latents | None) -> Tensor | None:
    tokens = latents.image_tokens if latents is not None else None
    return torch.from_numpy(tokens) if tokens is not None else None


def _latent_tensors(latents: Latents | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if latents is None else (torch.from_numpy(latents.mean), torch.from_numpy(latents.std))
