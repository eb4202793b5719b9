"""What is refused, and why: pure functions of measured numbers.

Each takes numbers and the options and returns a `Refusal`, or None where there is nothing to say against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xdyna.config.preprocess import PreprocessOptions
from xdyna.preprocess.measure import Motion
from xdyna.preprocess.people import Look, PersonNumbers

_SEVERAL = 0.25  # share of the frames with several people from which on a clip has them


class Refusal(NamedTuple):
    """Why something is not kept; fields as in `Skip`."""

    stage: str
    reason: str
    detail: str


def too_small(size: tuple[int, int], options: PreprocessOptions) -> Refusal | None:
    """The image without letterbox. Args: size: (H, W), px."""
    if min(size) >= options.min_side:
        return None
    return Refusal(
        "probe",
        "too_small",
        f"The image is {size[1]} x {size[0]} px without letterbox; its shorter side must have {options.min_side} px.",
    )


def too_short(frames: int, shot: int, options: PreprocessOptions) -> Refusal | None:
    """The length. Args: frames: of the window. shot: of its shot up to the window's end."""
    if frames >= options.min_frames:
        return None
    what = f"The shot has {frames} frames" if shot == frames else f"{frames} frames are left over of a shot of {shot}"
    return Refusal("cut", "too_short", f"{what}; a clip needs {options.min_frames}.")


def text_overlay(share: float, options: PreprocessOptions) -> Refusal | None:
    """Lines of text. Args: share: of the frames that show some."""
    if share <= options.max_text:
        return None
    return Refusal(
        "quality",
        "text_overlay",
        f"Lines of text lie over {share:.0%} of the frames looked at; at most {options.max_text:.0%} may have some.",
    )


def static(motion: Motion, options: PreprocessOptions) -> Refusal | None:
    """Optical flow."""
    if motion.flow >= options.min_motion:
        return None
    return Refusal(
        "quality",
        "static",
        f"The mean motion is {motion.flow:.4f} heights of the image per second; at least {options.min_motion:g} is "
        f"expected.",
    )


def camera_shake(motion: Motion, options: PreprocessOptions) -> Refusal | None:
    """Motion of the background."""
    if motion.camera <= options.max_camera:
        return None
    return Refusal(
        "quality",
        "camera_shake",
        f"The background moves by {motion.camera:.2f} heights of the image per second; at most "
        f"{options.max_camera:g} is allowed.",
    )


def decide_kind(looks: Sequence[Look], listed: str | None, options: PreprocessOptions) -> str | Refusal:
    """Human, scene, or neither.

    Args:
        looks: at frames of the window.
        listed: what the list says; a scene it is then, and a human clip must still have its person.
        options: the share of frames that must show the person.

    Returns:
        "human" or "scene", or why it is neither.
    """
    if listed == "scene":
        return "scene"
    people = np.array([look.people for look in looks])
    share, several = float((people > 0).mean()), float((people > 1).mean())
    if several >= _SEVERAL:
        return Refusal(
            "kind",
            "several_people",
            f"{several:.0%} of {len(people)} frames looked at show several people (up to {people.max()}); one person "
            f"alone is expected.",
        )
    if share >= options.person_share:
        return "human"
    if share > 0:
        return Refusal(
            "kind",
            "partly_people",
            f"{share:.0%} of {len(people)} frames looked at show a person; a human clip needs "
            f"{options.person_share:.0%}, a scene none.",
        )
    if listed == "human":
        return Refusal("kind", "no_person", f"None of {len(people)} frames looked at shows a person; the list says so.")
    return "scene"


def unwanted_kind(kind: str, options: PreprocessOptions) -> Refusal | None:
    """The kind. Args: kind: "human" or "scene"."""
    if kind in options.kinds:
        return None
    return Refusal("kind", "unwanted_kind", f"It is a {kind} clip; asked for: {', '.join(options.kinds)}.")


def partly_seen(person: PersonNumbers, options: PreprocessOptions) -> Refusal | None:
    """How often the person is there."""
    if person.share >= options.person_share:
        return None
    return Refusal(
        "people",
        "partly_people",
        f"The person is found in {person.share:.0%} of all frames; at least {options.person_share:.0%} is expected.",
    )


def others_beside(person: PersonNumbers, options: PreprocessOptions) -> Refusal | None:
    """How often others are there as well."""
    if person.others < _SEVERAL:
        return None
    return Refusal(
        "people",
        "several_people",
        f"{person.others:.0%} of all frames show several people; less than {_SEVERAL:.0%} may.",
    )


def small_person(person: PersonNumbers, options: PreprocessOptions) -> Refusal | None:
    """The person's height."""
    if person.height >= options.min_person:
        return None
    return Refusal(
        "quality",
        "small_person",
        f"The person takes {person.height:.0%} of the image's height; at least {options.min_person:.0%} is expected.",
    )


def low_confidence(person: PersonNumbers, options: PreprocessOptions) -> Refusal | None:
    """Confidence of the joints that are seen."""
    if person.confidence >= options.min_confidence:
        return None
    return Refusal(
        "quality",
        "low_confidence",
        f"The mean confidence of the joints seen is {person.confidence:.2f}; at least {options.min_confidence:g} is "
        f"expected.",
    )


def occluded(person: PersonNumbers, options: PreprocessOptions) -> Refusal | None:
    """Joints that are not seen."""
    if person.hidden <= options.max_hidden:
        return None
    return Refusal(
        "quality",
        "occluded",
        f"{person.hidden:.0%} of the person's joints are hidden or outside the image; at most "
        f"{options.max_hidden:.0%} may be.",
    )


def no_face(person: PersonNumbers, options: PreprocessOptions) -> Refusal | None:
    """How often the face is seen."""
    if person.face >= options.min_face:
        return None
    return Refusal(
        "quality",
        "no_face",
        f"The face is seen in {person.face:.0%} of the frames; at least {options.min_face:.0%} is expected.",
    )


PERSON_FILTERS = (partly_seen, others_beside, small_person, low_confidence, occluded, no_face)
"""In the order in which they are asked; the first refusal counts."""
MOTION_FILTERS = (static, camera_shake)
