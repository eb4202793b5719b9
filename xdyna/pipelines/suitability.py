"""How well an image and a driving video suit each other: said of every run, before anything slow.

Each check gives a score in [0, 1] and one sentence; the pair is as good as its weakest check. Below `WARN` a check is
a warning, below `REFUSE` the run is refused unless it is forced. Without a person in the reference nothing can be
compared: that is "unknown", said and never refused.

| check      | score                                                                                           |
| presence   | share of the frames that show somebody                                                          |
| visibility | mean confidence of the joints that are seen, over 0.6; times the person's size in px over 48    |
| scale      | 1 - |ln r| / ln 3, r: size in the video over that in the reference; aligned: 1 - (|ln s| - ln 2) |
|            | / ln 6, s: factor by which the person is scaled                                                 |
| place      | 1 - d / 3, d: torso lengths between the two necks; not where aligned                            |
| facing     | 1 - share of the frames that show the other side, at least 0.4: a mirror image can be meant     |
| posture    | 0.4 where one sits and the other stands                                                         |
| limbs      | 1 - 0.6 x share of the joints that only one of the two shows                                    |
| crop       | share of the person that stays in the image, in the reference and in the frames                 |
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from xdyna.core.errors import FileError
from xdyna.perception.draw import CONFIDENCE
from xdyna.perception.figure import (
    LEGS,
    MID_HIP,
    Figure,
    figure_of,
    high_quantile,
    postures_differ,
    reference_figure,
    resting_place,
    share_turned,
)  # fmt: skip
from xdyna.perception.topology import LEFT_SHOULDER, NECK, NOSE, RIGHT_SHOULDER
from xdyna.perception.types import Person, PoseTrack
from xdyna.pipelines import crop as crops

WARN, REFUSE = 0.6, 0.25
_SEEN_OFTEN = 0.5  # share of the frames from which on a joint counts as shown
_SMALLEST = 48  # px: people below are found, but their limbs hardly
_SURE = 0.6  # mean confidence of a person who is seen well
_LIMBS = {
    "the head": (NOSE, 14, 15, 16, 17), "the right arm": (3, 4), "the left arm": (6, 7), "the hips": (8, 11),
    "the right leg": LEGS[0][1:], "the left leg": LEGS[1][1:],
}  # fmt: skip
_MEASURES = ((NECK, MID_HIP), (RIGHT_SHOULDER, LEFT_SHOULDER), (NECK, NOSE), (14, 15), (16, 17))


class SuitabilityError(FileError):
    """Image and driving video do not suit each other; the message says why and what to do."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: as in the table at the head of this file.
        score: in [0, 1].
        sentence: what was found.
        advice: what to do about it; "" where nothing is to be done.
    """

    name: str
    score: float
    sentence: str
    advice: str = ""

    @property
    def level(self) -> str:
        """ "pass", "warn" or "fail"."""
        return "pass" if self.score >= WARN else "warn" if self.score >= REFUSE else "fail"


@dataclass(frozen=True)
class Suitability:
    """How well an image and a driving video suit each other.

    Attributes:
        checks: what was looked at.
        unknown: why nothing could be compared; "" where it could.
    """

    checks: tuple[Check, ...]
    unknown: str = ""

    @property
    def score(self) -> float | None:
        """That of the weakest check; None where nothing could be compared."""
        return None if self.unknown else min(check.score for check in self.checks)

    @property
    def verdict(self) -> str:
        """ "good", "warn", "refuse" or "unknown"."""
        if self.score is None:
            return "unknown"
        return "good" if self.score >= WARN else "warn" if self.score >= REFUSE else "refuse"

    def lines(self) -> Iterator[str]:
        """For people: the verdict, then each check that is no pass."""
        if self.score is None:
            yield f"suitability: unknown ({self.unknown})"
        else:
            weakest = min(self.checks, key=lambda check: check.score)
            yield f"suitability: {self.score:.2f} ({self.verdict}; weakest: {weakest.name})"
        for check in self.checks:
            if check.level != "pass":
                yield f"warning: {check.name} {check.score:.2f}: {check.sentence}; {check.advice}"

    def require(self) -> None:
        """Refuse what cannot become anything.

        Raises:
            SuitabilityError: a check failed.
        """
        if self.verdict != "refuse":
            return
        failed = [check for check in self.checks if check.level == "fail"]
        reasons = "; ".join(f"{check.sentence} ({check.name} {check.score:.2f}): {check.advice}" for check in failed)
        raise SuitabilityError(
            f"image and driving video do not suit each other: {reasons}. Expected {REFUSE:g} or more of every check; "
            "--force goes on all the same, --preview FILE.png draws what would be animated"
        )

    def entries(self) -> dict[str, Any]:
        """For the run manifest."""
        checks = [
            {"name": c.name, "score": round(c.score, 4), "level": c.level, "sentence": c.sentence, "advice": c.advice}
            for c in self.checks
        ]
        score = None if self.score is None else round(self.score, 4)
        return {"verdict": self.verdict, "score": score, "unknown": self.unknown, "checks": checks}


def assess(
    track: PoseTrack | None,
    person: Person | None,
    *,
    placed: PoseTrack | None,
    shape: tuple[int, ...],
    crop: crops.CropResize,
    aligned: float | None = None,
    counts: np.ndarray | None = None,
) -> Suitability:
    """Compare a driving track with the person in the reference.

    Args:
        track: T distinct driving frames, in px of the driving file; None where there are no keypoints (a pose video).
        person: in the reference image; None where nobody is known.
        placed: the same frames as they will be drawn, in px of the video.
        shape: (H, W, ...) of the reference image.
        crop: of the reference image to the video.
        aligned: factor by which the driving person was scaled; None where it was not moved.
        counts: (T,) how often each frame is shown; None: once.

    Returns:
        Suitability: "unknown" without keypoints on either side; what can be said without them is still said.
    """
    if track is None or placed is None:
        return Suitability((), "the driving file is a pose video: it has no keypoints to compare")
    presence = _presence(track, counts)
    driving = figure_of(track.body[track.found], track.face[track.found])
    if not driving.seen.any():
        return Suitability((presence,), "no driving frame shows a joint clearly")
    if person is None or max(person.body[:, 2].max(), person.face[:, 2].mean()) < CONFIDENCE:
        return Suitability((presence, _visibility(track)), "nobody is known in the reference image")
    target = reference_figure(person)
    moved = figure_of(placed.body[placed.found], placed.face[placed.found])
    shown = _drawn(person, crop)
    checks = [
        presence,
        _visibility(track),
        _scale(moved, shown, aligned),
        *([] if aligned is not None else [_place(moved, shown)]),
        _facing(driving, target),
        _posture(driving, target),
        _limbs(driving, target),
        _crop(person, crop, shape, placed, moved=aligned is not None),
    ]
    return Suitability(tuple(checks))


def _presence(track: PoseTrack, counts: np.ndarray | None) -> Check:
    gone = ~track.found
    if not gone.any():
        return Check("presence", 1.0, "every driving frame shows somebody")
    weights = np.ones(len(track)) if counts is None else counts
    share = float(1 - weights[gone].sum() / weights.sum())
    advice = "choose a part of the driving video that shows the person throughout"
    return Check("presence", share, f"nobody is seen in {track.share(gone, counts)}", advice)


def _visibility(track: PoseTrack) -> Check:
    body = track.body[track.found]
    seen = body[..., 2] >= CONFIDENCE
    sure = float(body[seen][:, 2].mean()) if seen.any() else 0.0
    points = np.concatenate([body, track.face[track.found]], axis=1)
    xy = np.where(points[..., 2:] > 0, points[..., :2], np.nan)  # found: some point is there
    sides = np.nanmax(xy, axis=1) - np.nanmin(xy, axis=1)
    size = float(np.median(sides.max(axis=1)))
    score = min(1.0, sure / _SURE) * min(1.0, size / _SMALLEST)
    sentence = f"the driving person is {size:.0f} px large, joints are seen with a confidence of {sure:.2f}"
    return Check("visibility", score, sentence, "choose a driving video that shows the person large and well lit")


def _drawn(person: Person, crop: crops.CropResize) -> Figure:
    """The person in the reference, in px of the video."""
    figure = reference_figure(person)
    return Figure(crop.points(figure.xy), figure.seen)


def _measure(moved: Figure, shown: Figure) -> tuple[float, float] | None:
    """Lengths in px of the first part that both show: the driving person's, the reference's."""
    for start, end in _MEASURES:
        ours, theirs = moved.length(start, end), shown.length(start, end)
        if len(ours) and len(theirs) and high_quantile(ours) > 1e-3 and theirs[0] > 1e-3:
            return high_quantile(ours), float(theirs[0])
    return None


def _scale(moved: Figure, shown: Figure, aligned: float | None) -> Check:
    if aligned is not None:
        off = max(0.0, abs(np.log(aligned)) - np.log(2))
        sentence = f"the driving person is scaled by {aligned:.2f}"
        advice = "choose a driving video that shows the person about as large as the reference does"
        return Check("scale", float(max(0.0, 1 - off / np.log(6))), sentence, advice)
    lengths = _measure(moved, shown)
    if lengths is None:
        return Check("scale", 0.5, "no part of the body could be compared in size", "choose a video and an image that "
                     "show the same part of the body")  # fmt: skip
    ratio = lengths[0] / lengths[1]
    size = f"{ratio:.2f} times as large as" if abs(np.log(ratio)) > 0.05 else "as large as"
    advice = "give --align, which scales the driving person, or choose one of the same size"
    score = float(max(0.0, 1 - abs(np.log(ratio)) / np.log(3)))
    return Check("scale", score, f"the driving person is {size} the one in the reference", advice)


def _place(moved: Figure, shown: Figure) -> Check:
    lengths = _measure(moved, shown)
    point = next((p for p in (NECK, NOSE, MID_HIP) if shown.seen[0, p] and moved.seen[:, p].mean() >= 0.25), None)
    if lengths is None or point is None:
        advice = "choose a video and an image that show the same part of the body"
        return Check("place", 0.5, "the two show no point in common", advice)
    at = resting_place(moved.xy[moved.seen[:, point], point])
    torso = lengths[1] if shown.seen[0, MID_HIP] and shown.seen[0, NECK] else 1.5 * lengths[1]
    distance = float(np.linalg.norm(at - shown.xy[0, point])) / torso
    sentence = f"the driving person stands {distance:.1f} torso lengths away from the one in the reference"
    advice = "give --align, which moves the driving person there, or choose one in the same place"
    return Check("place", max(0.0, 1 - distance / 3), sentence, advice)


def _facing(driving: Figure, target: Figure) -> Check:
    share = share_turned(driving, target)
    sentence = (
        f"left and right are the other way round than in the reference in {share:.0%} of the frames that show it"
        if share
        else "both face the same way, as far as it is seen"
    )
    advice = "one of the two shows the back or is mirrored: choose a driving video that faces as the reference does"
    return Check("facing", max(0.4, 1 - share), sentence, advice)


def _posture(driving: Figure, target: Figure) -> Check:
    if not postures_differ(driving, target):
        return Check("posture", 1.0, "sitting and standing agree, as far as it is seen")
    advice = "the result may bend or stretch the legs: choose a driving video with the reference's posture"
    return Check("posture", 0.4, "one of the two stands, the other sits or kneels", advice)


def _limbs(driving: Figure, target: Figure) -> Check:
    ours, theirs = driving.seen[:, :14].mean(axis=0) >= _SEEN_OFTEN, target.seen[0, :14]
    either = ours | theirs
    only = {
        "driven, but hidden in the reference": ours & ~theirs,
        "shown by the reference, but not driven": theirs & ~ours,
    }
    words = []
    for what, joints in only.items():
        names = [name for name, points in _LIMBS.items() if any(p < 14 and joints[p] for p in points)]
        if names:
            words.append(f"{', '.join(names)}: {what}")
    share = float((ours ^ theirs).sum() / max(int(either.sum()), 1))
    advice = "what is hidden is invented, what is not driven may vanish: choose two that show the same parts"
    return Check("limbs", 1 - 0.6 * share, "; ".join(words) or "both show the same limbs", advice)


def _crop(person: Person, crop: crops.CropResize, shape: tuple[int, ...], placed: PoseTrack, *, moved: bool) -> Check:
    box = crops.person_box(person, shape)
    cut = crops.what_is_cut(crop, box)
    left, top, width, height = crop.box
    across = max(0.0, min(box[2], left + width) - max(box[0], left)) / max(box[2] - box[0], 1.0)
    down = max(0.0, min(box[3], top + height) - max(box[1], top)) / max(box[3] - box[1], 1.0)
    body = placed.body[placed.found]
    seen = body[..., 2] > 0
    limit = np.array(placed.size[::-1]) - 0.5
    within = seen & ((body[..., :2] >= -0.5) & (body[..., :2] <= limit)).all(axis=-1)
    away = float((2 * within.sum(axis=1) < seen.sum(axis=1)).mean()) if len(body) else 0.0
    words = [f"the crop cuts the person in the reference ({cut})"] if cut else []
    if away:
        words.append(f"most of the driving person is outside of the video in {away:.0%} of the frames that show it")
    advice = "crop=person keeps the person in the reference, crop=none all of it" if cut else (
        "choose a reference with more room around the person" if moved else "give --align, or a --size of its aspect"
    )  # fmt: skip
    score = min(float(across * down), 1 - away)
    return Check("crop", score, "; ".join(words) or "both stay inside the video", advice)
