"""Training data from the puppet world: videos that are rendered when they are asked for (`data=puppet`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xdyna.config.data import DataConfig, DataError
from xdyna.data.schedule import Bucket, ClipPlace, ClipPool
from xdyna.data.sources import ClipWindow, Faces
from xdyna.data.transforms import random_resized_crop
from xdyna.media import CropResize
from xdyna.puppets.world import FPS, SPLITS, PuppetClip, render_clip


@dataclass(frozen=True)
class PuppetVideo:
    """A video that is rendered when it is asked for.

    Attributes:
        kind: "human" or "scene".
        identity: seed of the figure.
        motion: seed of its motion.
        scene: seed of the scene.
        face_identity: seed of the other identity whose face is shown in `ClipWindow.faces`; None for no such faces.
        face_scene: seed of the scene behind that face: another one, because the patches show some of it; or None.
        length: frames.
        render_size: (H, W) it is rendered at, px.
        crop: from there to the size that is trained on.
    """

    kind: str
    identity: int
    motion: int
    scene: int
    face_identity: int | None
    face_scene: int | None
    length: int
    render_size: tuple[int, int]
    crop: CropResize

    @property
    def clip_id(self) -> str:
        """The seeds, for example "puppet-human-i12-m34-s56"."""
        return f"puppet-{self.kind}-i{self.identity}-m{self.motion}-s{self.scene}"

    @property
    def fps(self) -> float:
        """Frames per second of every rendered video."""
        return FPS

    @property
    def has_faces(self) -> bool:
        """Whether another identity's face belongs to the video."""
        return self.face_identity is not None and self.kind == "human"

    def without_faces(self) -> PuppetVideo:
        """The same without another identity's face."""
        return dataclasses.replace(self, face_identity=None, face_scene=None)

    def recipe(self) -> dict[str, Any]:
        """What it is rendered from, as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any]) -> PuppetVideo:
        """The video of a recipe."""
        crop = CropResize(box=tuple(recipe["crop"]["box"]), size=tuple(recipe["crop"]["size"]))
        return cls(**{**recipe, "render_size": tuple(recipe["render_size"]), "crop": crop})

    @property
    def caption(self) -> str:
        """Rendered clips have none, as the published model was trained and used."""
        return ""

    def window(self, rows: np.ndarray, *, reference: int) -> ClipWindow:
        """Render; see `Video`."""
        clip = self._render(rows)
        image = self._render(np.array([reference])).frames[0]
        faces = None
        if self.face_identity is not None and self.face_scene is not None and self.kind == "human":
            other = dataclasses.replace(self, scene=self.face_scene)._render(rows, face_identity=self.face_identity)
            faces = Faces(self._cut(other.frames), other.track().transform(self.crop).face)
        track = clip.track().transform(self.crop)
        return ClipWindow(self.crop.image(image), self._cut(clip.frames), None, track, faces)

    def own_faces(self, rows: np.ndarray, shot: ClipWindow) -> Faces:
        """See `Video`."""
        assert shot.frames is not None
        return Faces(shot.frames, shot.track.face)

    def mask(self, rows: np.ndarray) -> np.ndarray:
        """See `Video`."""
        return self.truth(rows).mask

    def truth(self, rows: np.ndarray) -> PuppetClip:
        """The rendered clip with everything that is known of it, cropped as in `shot`."""
        clip = self._render(rows)
        track = clip.track().transform(self.crop)
        return dataclasses.replace(
            clip,
            frames=self._cut(clip.frames),
            body=track.body,
            hands=track.hands,
            face=track.face,
            mask=self._cut(clip.mask),
            dynamic=self._cut(clip.dynamic),
            secondary=self._cut(clip.secondary),
        )

    def _render(self, rows: np.ndarray, *, face_identity: int | None = None) -> PuppetClip:
        stride = int(rows[1] - rows[0]) if len(rows) > 1 else 1
        return render_clip(
            self.identity,
            self.motion,
            self.scene,
            frames=len(rows),
            start=int(rows[0]),
            stride=stride,
            size=self.render_size,
            kind=self.kind,
            face_identity=face_identity,
        )

    def _cut(self, images: np.ndarray) -> np.ndarray:
        """The crop of (T, H, W, ...) images or masks; it never resamples."""
        left, top, width, height = self.crop.box
        return images[:, top : top + height, left : left + width]


class PuppetSource:
    """Videos of the puppet world, of one split.

    Args:
        config: the options; `num_clips` makes it a finite set.
    """

    def __init__(self, config: DataConfig) -> None:
        config.check_length(FPS)
        self.config = config
        self.seeds = SPLITS[config.split]
        if config.num_clips is not None and config.num_clips > len(self.seeds):
            raise DataError(
                f"data.num_clips is {config.num_clips}, but the {config.split} split has {len(self.seeds)} videos; "
                f"lower it, or leave it out for videos without end"
            )

    @property
    def buckets(self) -> Sequence[Bucket]:
        """One size; `num_clips` of either kind."""
        stocks = (ClipPool(count=self.config.num_clips),)
        return (Bucket(self.config.size, 1.0, {"human": stocks, "scene": stocks}),)

    def video(self, bucket: int, slot: ClipPlace, rng: np.random.Generator) -> PuppetVideo:
        """Video of a number of the split (the same in every run), or one with new seeds; always with a new crop."""
        low, high = self.seeds.start, self.seeds.stop
        identity, motion, scene = rng.integers(low, high, size=3).tolist()
        if slot.number is not None:
            identity = motion = scene = low + slot.number
        face_identity = face_scene = None
        if self.config.face == "cross":
            face_identity, face_scene = (self._another(seed, rng) for seed in (identity, scene))
        render_size, crop = random_resized_crop(rng, target=self.config.size, scale=self.config.crop_scale)
        return PuppetVideo(
            slot.kind, identity, motion, scene, face_identity, face_scene, self.config.video_frames, render_size, crop
        )

    def _another(self, seed: int, rng: np.random.Generator) -> int:
        """Any seed of the split but this one."""
        other = int(rng.integers(self.seeds.start, self.seeds.stop - 1))
        return other + 1 if other >= seed else other
