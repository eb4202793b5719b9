"""Options of preprocessing: what is kept, and every threshold of the filters."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from xdyna.config.data import DataError
from xdyna.data.records import KINDS

BACKENDS = ("mediapipe", "dwpose")
_SHARES = ("person_share", "min_person", "min_confidence", "max_hidden", "min_face", "max_text")


@dataclass
class PreprocessOptions:
    """What becomes a clip.

    Attributes:
        kinds: wanted kinds of clips, of "human" and "scene".
        backend: what finds key points: "mediapipe" or "dwpose", the one that is to be used for inference.
        min_frames: a clip has at least so many frames; 16 training frames at stride 1 with room for a reference.
        max_frames: and at most so many; longer shots give several clips.
        max_clips: kept clips per video, the first ones; None: all.
        min_side: shorter side of the picture without letterbox, px.
        letterbox: cut black bars off.
        cut_ratio: a cut is where the picture changes so many times as much as in the frames around.
        cut_change: and by at least so much, mean change of hue, saturation and brightness, in [0, 255].
        looks: frames of a clip that are looked at to tell people from scenes, >= 2.
        person_share: a human clip shows its person in at least this share of the frames, in (0.5, 1].
        min_person: smallest height of the person in heights of the picture, median over the clip.
        min_confidence: lowest mean confidence of the joints that are seen.
        max_hidden: largest share of the 14 joints below the head's (nose and neck included) that are not seen.
        min_face: the face is seen in at least this share of the frames.
        min_motion: least mean optical flow, heights of the picture per second.
        max_camera: fastest mean motion of the background, heights of the picture per second.
        max_text: a clip may show lines of text over the picture in at most this share of the frames.

    Raises:
        DataError: a value out of range, or values that contradict each other.
    """

    kinds: list[str] = field(default_factory=lambda: list(KINDS))
    backend: str = "mediapipe"
    min_frames: int = 24
    max_frames: int = 240
    max_clips: int | None = None
    min_side: int = 256
    letterbox: bool = True
    cut_ratio: float = 3.0
    cut_change: float = 15.0
    looks: int = 8
    person_share: float = 0.8
    min_person: float = 0.25
    min_confidence: float = 0.5
    max_hidden: float = 0.6
    min_face: float = 0.3
    min_motion: float = 0.004
    max_camera: float = 0.3
    max_text: float = 0.5

    def __post_init__(self) -> None:
        if isinstance(self.kinds, str):
            self.kinds = [self.kinds]
        self.kinds = list(self.kinds)
        for kind in self.kinds:
            _check_choice("kinds", kind, KINDS)
        if not self.kinds or len(set(self.kinds)) != len(self.kinds):
            raise DataError(
                f"preprocess.kinds: got {self.kinds}, expected one or more of {', '.join(KINDS)}, each once"
            )
        _check_choice("backend", self.backend, BACKENDS)
        for name, lowest in (("min_frames", 2), ("max_frames", 2), ("max_clips", 1), ("min_side", 16), ("looks", 2)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            _require((value is None and name == "max_clips") or (whole and value >= lowest), name, value,
                     f"a whole number from {lowest} on")  # fmt: skip
        if self.min_frames > self.max_frames:
            raise DataError(
                f"preprocess.min_frames is {self.min_frames} and preprocess.max_frames {self.max_frames}; the first "
                f"must not be larger"
            )
        for name in _SHARES:
            value = getattr(self, name)
            _require(0 <= value <= 1, name, value, "0 to 1")
        _require(self.person_share > 0.5, "person_share", self.person_share, "more than 0.5: less is no person's clip")
        for name in ("cut_ratio", "cut_change", "min_motion", "max_camera"):
            value = getattr(self, name)
            _require(value >= 0 and math.isfinite(value), name, value, "a number from 0 on")


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise DataError(f"preprocess.{name}: got {value!r}, expected {expected}")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    _require(value in choices, name, value, f"one of {', '.join(choices)}{hint}")
