"""The training set: sample `index` is a pure function of (seed, index)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset

from xdyna.data.cached import CachedClips
from xdyna.data.conditions import face_pictures, pose_pictures
from xdyna.data.options import DataConfig, DataError
from xdyna.data.puppet import PuppetClip
from xdyna.data.samples import Sample
from xdyna.data.schedule import Schedule, sample_rng
from xdyna.data.sources import Latents, PuppetSource, Shot, Source, Video

SOURCES: dict[str, Callable[[DataConfig, str | None], Source]] = {
    "puppet": lambda config, vae: PuppetSource(config),
    "cache": lambda config, vae: CachedClips(config, vae=vae),
}
"""How each source of `DataConfig.source` is opened, from the options and the digest of the run's autoencoder."""


def build_dataset(config: DataConfig, *, seed: int, vae: str | None = None) -> ClipDataset:
    """The training set that the options ask for.

    Args:
        config: the options.
        seed: of everything random, >= 0.
        vae: digest of the autoencoder that the run uses (`cache.vae_digest`); needed for a cache only, which is refused
            if it was written with another one.

    Returns:
        The set.

    Raises:
        DataError: options that cannot be met, or a cache that does not fit them.
    """
    if seed < 0:
        raise DataError(f"seed: got {seed}, expected 0 or more")
    return ClipDataset(config, SOURCES[config.source](config, vae), seed=seed)


@dataclass(frozen=True)
class Take:
    """What was drawn for one sample.

    Attributes:
        video: where the frames are from.
        kind: "human" or "scene".
        rows: int64 (T,), frames of the video.
        reference: the frame of the video that is the reference.
        drop_image: see `Sample`.
        drop_text: see `Sample`.
    """

    video: Video
    kind: str
    rows: np.ndarray
    reference: int
    drop_image: bool
    drop_text: bool


class ClipDataset(Dataset[Sample]):
    """Endless map-style set of samples; indices count from 0 through the whole run.

    Args:
        config: the options.
        source: the videos.
        seed: of everything random.
    """

    def __init__(self, config: DataConfig, source: Source, *, seed: int) -> None:
        self.config, self.source, self.seed = config, source, seed
        counts = {kind: source.count(kind) for kind in ("human", "scene")}
        for kind, needed in (("human", config.scene_ratio < 1), ("scene", config.scene_ratio > 0)):
            if needed and counts[kind] == 0:
                raise DataError(
                    f"data.scene_ratio is {config.scene_ratio:g}, but there are no {kind} videos; set it to "
                    f"{1 if kind == 'human' else 0}, or add {kind} videos"
                )
        self.schedule = Schedule(seed, config.scene_ratio, counts["human"], counts["scene"])

    def take(self, index: int) -> Take:
        """Draw what sample `index` shows.

        Raises:
            DataError: a negative index.
        """
        if index < 0:
            raise DataError(f"sample {index} does not exist; samples count from 0")
        config, rng = self.config, sample_rng(self.seed, index)
        slot = self.schedule.slot(index)
        drawn = rng.random()  # first of all: it does not depend on how the rest is drawn
        edges = np.cumsum([config.drop_image, config.drop_text, config.drop_both])
        dropped = int(np.searchsorted(edges, drawn, side="right"))
        video = self.source.video(slot.kind, slot.number, rng)
        stride = int(rng.integers(config.stride[0], config.stride[1] + 1))
        start = int(rng.integers(0, video.length - (config.frames - 1) * stride))
        rows = start + stride * np.arange(config.frames)
        reference = _draw_reference(config.reference, rows, video.length, rng)
        return Take(video, slot.kind, rows, reference, dropped in (0, 2), dropped in (1, 2))

    def __getitem__(self, index: int) -> Sample:
        """Make sample `index`.

        Raises:
            DataError: a negative index, or a damaged cache.
        """
        take = self.take(index)
        shot = take.video.shot(take.rows, reference=take.reference)
        pose, face = self._conditions(take, shot)
        pictures = shot.reference[None]
        if shot.frames is not None:
            pictures = np.concatenate([pictures, shot.frames])
        mean, std = _latent_tensors(shot.latents)
        return Sample(
            index=index,
            clip_id=take.video.clip_id,
            kind=take.kind,
            pixels=_pictures_tensor(pictures),
            pose=_pictures_tensor(pose),
            face=_pictures_tensor(face),
            latents_mean=mean,
            latents_std=std,
            drop_image=take.drop_image,
            drop_text=take.drop_text,
            caption="",
        )

    def truth(self, index: int) -> PuppetClip:
        """Everything that is known of the T frames of sample `index`, cropped as the sample is.

        Returns:
            Clip with frames, key points, masks and expression, aligned with the sample's pixels.

        Raises:
            DataError: a negative index.
        """
        take = self.take(index)
        return take.video.truth(take.rows)

    def _conditions(self, take: Take, shot: Shot) -> tuple[np.ndarray, np.ndarray]:
        """Pose (T, H, W, 3) and face pictures (T, H, W, 6); black for scenes."""
        shape, face = (len(take.rows), *self.config.size), self.config.face
        if take.kind == "scene":
            return np.zeros((*shape, 3), np.uint8), np.zeros((*shape, 6), np.uint8)
        pose = pose_pictures(shot.track, landmarks=face == "landmarks")
        if face in ("none", "landmarks"):
            return pose, np.zeros((*shape, 6), np.uint8)
        faces = shot.faces if face == "cross" else take.video.own_faces(take.rows, shot)
        assert faces is not None, "the source gives other faces where face='cross'"
        return pose, face_pictures(faces.frames, faces.landmarks)


def _draw_reference(which: str, rows: np.ndarray, length: int, rng: np.random.Generator) -> int:
    """The reference frame's number; always one draw, so that the choice changes nothing else."""
    drawn = rng.random()
    if which == "first":
        return int(rows[0])
    candidates = np.arange(length) if which == "any" else np.setdiff1d(np.arange(length), rows)
    return int(candidates[int(drawn * len(candidates))])


def _pictures_tensor(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rearrange(pictures, "t h w c -> t c h w")))


def _latent_tensors(latents: Latents | None) -> tuple[Tensor | None, Tensor | None]:
    return (None, None) if latents is None else (torch.from_numpy(latents.mean), torch.from_numpy(latents.std))
