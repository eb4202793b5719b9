"""Settings of preprocessing (`configs/preprocess.yaml`): what is kept, and every threshold of the filters."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from xdyna.config.data import KINDS, DataConfig, DataError
from xdyna.config.infer import POSE_BACKENDS
from xdyna.config.settings import check_settings, setting

ENGINES = ("local", "ray")
REENACTORS = ("mesh-warp", "liveportrait")


@dataclass
class PreprocessOptions:
    """What becomes a clip.

    Attributes:
        kinds: wanted kinds of clips, of "human" and "scene".
        backend: what finds keypoints: "mediapipe" or "dwpose", the one that is to be used for inference.
        min_frames: a clip has at least so many frames; 16 training frames at stride 1 with room for a reference.
        max_frames: and at most so many; longer shots give several clips.
        max_clips: kept clips per video, the first ones; None: all.
        min_side: shorter side of the image without letterbox, px.
        letterbox: cut black bars off.
        cut_ratio: a cut is where the image changes so many times as much as in the frames around.
        cut_change: and by at least so much, mean change of hue, saturation and brightness, in [0, 255].
        looks: frames of a clip that are looked at to tell people from scenes.
        person_share: a human clip shows exactly one person in at least this share of the frames; half of them or less
            is no person's clip.
        min_person: smallest height of the person in heights of the image, median over the clip.
        min_confidence: lowest mean confidence of the joints that are seen.
        max_hidden: largest share of the 14 joints below the head's (nose and neck included) that are not seen.
        min_face: the face is seen in at least this share of the frames.
        min_motion: least mean optical flow, heights of the image per second.
        max_camera: fastest mean motion of the background, heights of the image per second.
        max_text: a clip may show lines of text over the image in at most this share of the frames.

    Raises:
        DataError: a value out of range, or values that contradict each other.
    """

    kinds: list[str] = setting(list(KINDS), choices=KINDS)  # noqa: RUF009 (a copy for each)
    backend: str = setting("mediapipe", choices=POSE_BACKENDS)
    min_frames: int = setting(24, low=2)
    max_frames: int = setting(240, low=2)
    max_clips: int | None = setting(None, low=1)
    min_side: int = setting(256, low=16)
    letterbox: bool = True
    cut_ratio: float = setting(3.0, low=0)
    cut_change: float = setting(15.0, low=0)
    looks: int = setting(8, low=2)
    person_share: float = setting(0.8, above=0.5, high=1)
    min_person: float = setting(0.25, low=0, high=1)
    min_confidence: float = setting(0.5, low=0, high=1)
    max_hidden: float = setting(0.6, low=0, high=1)
    min_face: float = setting(0.3, low=0, high=1)
    min_motion: float = setting(0.004, low=0)
    max_camera: float = setting(0.3, low=0)
    max_text: float = setting(0.5, low=0, high=1)

    def __post_init__(self) -> None:
        self.kinds = [self.kinds] if isinstance(self.kinds, str) else list(self.kinds)
        check_settings(self, section="preprocess", error=DataError)
        if not self.kinds or len(set(self.kinds)) != len(self.kinds):
            raise DataError(
                f"preprocess.kinds: got {self.kinds}, expected one or more of {', '.join(KINDS)}, each once"
            )
        if self.min_frames > self.max_frames:
            raise DataError(
                f"preprocess.min_frames is {self.min_frames} and preprocess.max_frames {self.max_frames}; the first "
                f"must not be larger"
            )


@dataclass
class FinishOptions:
    """What happens to the clips of all videos together; may be changed later without processing anything again.

    Attributes:
        duplicate_bits: clips of different videos whose perceptual hashes differ in at most so many of 64 bits count as
            one; -1 keeps all.
        validation: share of groups in the validation split, in [0, 1).
        test: share of groups in the test split, in [0, 1).
        split_seed: another seed draws other groups.

    Raises:
        DataError: a value out of range.
    """

    duplicate_bits: int = setting(4, low=-1, high=16)
    validation: float = 0.01
    test: float = 0.01
    split_seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self, section="finish", error=DataError)
        shares = (self.validation, self.test)
        if not all(math.isfinite(share) and share >= 0 for share in shares) or sum(shares) >= 1:
            raise DataError(
                f"finish.validation and finish.test: got {self.validation} and {self.test}, expected shares whose sum "
                f"is below 1"
            )


@dataclass
class PreprocessConfig:
    """Settings of `scripts/preprocess.py`.

    Attributes:
        kind: of all videos whose list does not say it, "human" or "scene"; None: found out.
        engine: who does the work: processes of this machine ("local") or a Ray cluster ("ray").
        workers: tasks at a time; None: as many as there are cores.
        faces: "mesh-warp" or "liveportrait" give human clips another identity's face afterwards; None: nothing does.
        faces_seed: of who lends the face.
        preprocess: what becomes a clip; see `PreprocessOptions`.
        finish: duplicates and splits; see `FinishOptions`.
    """

    kind: str | None = setting(None, choices=KINDS)
    engine: str = setting("local", choices=ENGINES)
    workers: int | None = setting(None, low=1)
    faces: str | None = setting(None, choices=REENACTORS)
    faces_seed: int = setting(0, low=0)
    preprocess: PreprocessOptions = field(default_factory=PreprocessOptions)
    finish: FinishOptions = field(default_factory=FinishOptions)

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass
class CacheConfig:
    """Settings of `scripts/preprocess.py cache` (`configs/cache.yaml`).

    Attributes:
        seed: of clips and crops.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        data: what is made or read; see `DataConfig`.
    """

    seed: int = setting(0, low=0)
    device: str = "auto"
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        check_settings(self)
