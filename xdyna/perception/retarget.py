"""Fit a driving person to the one in a reference image: by one similarity, bone by bone, or by the face.

"global"  one similarity for the clip (`align_track`): nothing about the person's build changes.
"bones"   every bone keeps its angle and its foreshortening of the moment and takes the length it has in the reference:
              joint' = parent' + r[part] * (joint - parent),   r[part] = length in the reference / length in the clip,
          lengths as in `align_track`. Sides are measured together, the longer one of the reference counts: turning away
          only shortens. A part that the reference hides takes its neighbour's ratio (forearm: upper arm, shin: thigh),
          else the torso's; ratios stay within `BOUNDS` of the torso's, which stays within 2 of the person's scale.
          Where both stand with their feet in view, feet stand on the reference's ground and under its person; else the
          anchor of `align_track` stays where it was.
"face"    one similarity again, its scale taken from the frame whose head is turned most like the reference's; the
          face's resting place goes to the reference's face.
"auto"    "bones" where a torso or shoulders can be compared; else "face" where the reference's head is turned otherwise
          than the clip's usually is, and some frame has that turn; else "global".
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from xdyna.perception.align import USABLE, AlignmentReport, align_track
from xdyna.perception.errors import PerceptionError
from xdyna.perception.figure import (
    FACE,
    LENGTH_QUANTILE,
    MID_HIP,
    Figure,
    figure_of,
    high_quantile,
    postures_differ,
    reference_figure,
    resting_place,
)  # fmt: skip
from xdyna.perception.topology import BODY_JOINTS, LEFT_SHOULDER, NECK, NOSE, RIGHT_SHOULDER
from xdyna.perception.types import Person, PoseTrack

MODES = ("auto", "global", "bones", "face")
BOUNDS = {"neck": 4.0, "head": 4.0}
"""A part's ratio is within this factor of the torso's, others within 2: limbs that point at the camera are not; drawn
figures may have heads of any size."""

_BOUND = 2.0
_ALONE = 0.8  # how far a ratio below the torso's is believed where the reference shows one side alone
_TURNED = 0.3  # of `head_turns`: below it, lengths of the whole clip tell more than those of one frame
_ANKLES = (10, 13)
_SIDES: dict[str, tuple[tuple[int, int], ...]] = {
    "torso": ((NECK, MID_HIP),), "neck": ((NECK, NOSE),), "shoulders": ((RIGHT_SHOULDER, LEFT_SHOULDER),),
    "upper arms": ((2, 3), (5, 6)), "forearms": ((3, 4), (6, 7)), "hips": ((8, 11),),
    "thighs": ((8, 9), (11, 12)), "shins": ((9, 10), (12, 13)),
}  # fmt: skip
_NEIGHBOUR = {"forearms": "upper arms", "upper arms": "forearms", "shins": "thighs", "thighs": "shins"}
_HEAD = ((16, 17), (14, 15), (FACE, FACE + 16), (FACE + 36, FACE + 45), (FACE + 27, FACE + 8))
# Each joint with the part that ends in it and its ancestors, nearest first. A missing ancestor is left out.
_TREE: tuple[tuple[int, str, tuple[int, ...]], ...] = (
    (NOSE, "neck", (NECK,)),
    (14, "head", (NOSE, NECK)), (15, "head", (NOSE, NECK)), (16, "head", (NOSE, NECK)), (17, "head", (NOSE, NECK)),
    (2, "shoulders", (NECK,)), (3, "upper arms", (2, NECK)), (4, "forearms", (3, 2, NECK)),
    (5, "shoulders", (NECK,)), (6, "upper arms", (5, NECK)), (7, "forearms", (6, 5, NECK)),
    (MID_HIP, "torso", (NECK,)),
    (8, "hips", (MID_HIP, NECK)), (9, "thighs", (8, MID_HIP, NECK)), (10, "shins", (9, 8, MID_HIP, NECK)),
    (11, "hips", (MID_HIP, NECK)), (12, "thighs", (11, MID_HIP, NECK)), (13, "shins", (12, 11, MID_HIP, NECK)),
)  # fmt: skip
_PART_OF = {joint: part for joint, part, _ in _TREE}


@dataclass(frozen=True)
class Fit:
    """A driving track that was fitted to a reference.

    Attributes:
        track: T frames in px of the reference image.
        report: what was done; its similarity also places whole driving images.
        heads: (T, 3) float64: scale, x, y of the similarity that brings each driving image's head to the track's;
            None where the report's does.
    """

    track: PoseTrack
    report: AlignmentReport
    heads: np.ndarray | None = None


def fit_track(track: PoseTrack, reference: Person | np.ndarray, *, size: tuple[int, int], mode: str = "auto") -> Fit:
    """Fit a driving track to the person in the reference image; see the head of this file.

    Args:
        track: T frames of the driving person.
        reference: the person in the reference image, or its body alone, (18, 3).
        size: (H, W) of the reference image, px.
        mode: one of `MODES`.

    Returns:
        Fit: of the mode that was used, which its report names.

    Raises:
        PerceptionError: as `align_track`; an unknown mode; "face" where one of the two shows none.
    """
    if mode not in MODES:
        raise PerceptionError(f"alignment {mode!r} is unknown; expected one of {', '.join(MODES)}")
    moved, report = align_track(track, reference, size=size)
    target, driving = reference_figure(reference), figure_of(track.body, track.face)
    if mode == "auto":
        mode = _choice(driving, target)
    if mode == "face":
        return _by_face(track, driving, target, report)
    return _by_bones(track, reference, driving, target, report) if mode == "bones" else Fit(moved, report)


def _choice(driving: Figure, target: Figure) -> str:
    """What "auto" means for two people."""
    for ends in (*_SIDES["torso"], *_SIDES["shoulders"]):
        if len(target.length(*ends)) and len(driving.length(*ends)):
            return "bones"
    if not (target.seen[0, FACE] and driving.seen[:, FACE].any()):
        return "global"
    turns = head_turns(driving) - head_turns(target)
    usual = float(np.linalg.norm(np.nanmedian(turns, axis=0)))
    nearest = float(np.nanmin(np.linalg.norm(turns, axis=1)))
    return "face" if usual > _TURNED and nearest < usual / 2 else "global"


# --- bones ------------------------------------------------------------------------------------------------------------


def _by_bones(
    track: PoseTrack, reference: Person | np.ndarray, driving: Figure, target: Figure, report: AlignmentReport
) -> Fit:
    legs = not postures_differ(driving, target)
    ratios, usual = _ratios(driving, target, base=report.scale, legs=legs)
    ratios["hands"] = _hand_ratio(track, reference, ratios)
    xy = report.scale * driving.xy + report.offset  # where nothing better is known
    known = np.zeros_like(driving.seen)
    known[:, NECK] = driving.seen[:, NECK]
    for joint, part, ancestors in _TREE:
        path, open_rows = [part], driving.seen[:, joint].copy()
        for ancestor in ancestors:
            rows = open_rows & known[:, ancestor]
            step = driving.xy[rows, joint] - driving.xy[rows, ancestor]
            xy[rows, joint] = xy[rows, ancestor] + _along(path, ratios, usual) * step
            known[rows, joint], open_rows = True, open_rows & ~rows
            path.append(_PART_OF.get(ancestor, ""))
    shift = _shift(xy, driving, target, known, report, ground=legs)
    xy += shift[:, None]
    heads = _heads(xy, driving, ratios["head"], report, shift)
    body = _points(xy[:, :18], track.body)
    face = _points(heads[:, None, :1] * track.face[..., :2] + heads[:, None, 1:], track.face)
    hands = track.hands[..., :2].astype(np.float64)
    for side, wrist in enumerate((7, 4)):
        seen = track.hands[:, side, :, 2:] > 0
        middle = (hands[:, side] * seen).sum(axis=1) / seen.sum(axis=1).clip(1)
        held = driving.seen[:, wrist, None]  # a hand goes with its wrist, else with its own middle
        before = np.where(held, driving.xy[:, wrist], middle)
        after = np.where(held, xy[:, wrist], report.scale * middle + report.offset + shift)
        hands[:, side] = after[:, None] + ratios["hands"] * (hands[:, side] - before[:, None])
    aligned = replace(track, body=body, hands=_points(hands, track.hands), face=face, size=report.size)
    told = {part: round(float(value), 4) for part, value in ratios.items()}
    score = min(report.score / max(report.agreement, 0.1), 1.0)  # bones of other lengths are what this is for
    usable = score >= USABLE and not report.limited
    return Fit(aligned, replace(report, mode="bones", ratios=told, score=score, usable=usable), heads)


def _ratios(driving: Figure, target: Figure, *, base: float, legs: bool) -> tuple[dict[str, float], dict[str, float]]:
    """Ratio of each part, and its usual length in the clip, px; `legs`: whether the legs may be compared."""
    usual: dict[str, float] = {}
    found: dict[str, float] = {}
    for part, sides in _SIDES.items():
        ours = np.concatenate([driving.length(*side) for side in sides])
        theirs = np.concatenate([target.length(*side) for side in sides])
        # Of two sides the longer one counts in the reference, so the clip's are taken as high.
        quantile = LENGTH_QUANTILE if len(sides) == 2 else 0.5
        usual[part] = high_quantile(ours, quantile=quantile) if len(ours) else 0.0
        if usual[part] > 1e-3 and len(theirs) and theirs.max() > 1.0 and (legs or part not in ("thighs", "shins")):
            found[part] = float(theirs.max()) / usual[part]
    heads = [
        target.length(*ends)[0] / high_quantile(driving.length(*ends))
        for ends in _HEAD
        if len(target.length(*ends)) and len(driving.length(*ends)) and high_quantile(driving.length(*ends)) > 1e-3
    ]
    if heads:
        found["head"] = float(np.median(heads))
    usual["head"] = 0.5 * usual["neck"]
    torso = base * _bounded(found["torso"] / base) if "torso" in found else base
    ratios = {}
    for part in (*_SIDES, "head"):
        source = part if part in found else _NEIGHBOUR.get(part, "")
        near = _bounded(found.get(source, torso) / torso, BOUNDS.get(part, _BOUND))
        alone = len(_SIDES.get(source, ())) == 2 and sum(len(target.length(*side)) for side in _SIDES[source]) < 2
        ratios[part] = torso * (near**_ALONE if alone and near < 1 else near)
    return ratios | {"torso": torso}, usual  # which has its bound already


def _bounded(ratio: float, bound: float = _BOUND) -> float:
    return min(max(ratio, 1 / bound), bound)


def _along(path: list[str], ratios: dict[str, float], usual: dict[str, float]) -> float:
    """Ratio of a way over several parts: weighted by their usual lengths."""
    weights = np.array([max(usual[part], 1e-6) for part in path])
    return float((weights * [ratios[part] for part in path]).sum() / weights.sum())


def _hand_ratio(track: PoseTrack, reference: Person | np.ndarray, ratios: dict[str, float]) -> float:
    """By the palms where both show one, else as the forearms."""
    if isinstance(reference, Person):
        ours, theirs = (_palms(hands) for hands in (track.hands.reshape(-1, 21, 3), reference.hands))
        if len(ours) and len(theirs) and high_quantile(ours) > 1e-3:
            torso = ratios["torso"]
            return torso * _bounded(float(theirs.max()) / high_quantile(ours) / torso)
    return ratios["forearms"]


def _palms(hands: np.ndarray) -> np.ndarray:
    """(N,) lengths from wrist to the middle finger's root of the hands (M, 21, 3) that show both."""
    seen = (hands[:, [0, 9], 2] > 0).all(axis=1)
    return np.linalg.norm(hands[seen, 0, :2].astype(np.float64) - hands[seen, 9, :2], axis=1)


def _shift(
    xy: np.ndarray, driving: Figure, target: Figure, known: np.ndarray, report: AlignmentReport, *, ground: bool
) -> np.ndarray:
    """(T, 2) by which the rebuilt figure is moved: feet onto the ground, else the anchor to where it was."""
    feet = driving.seen[:, _ANKLES].all(axis=1) & known[:, _ANKLES].all(axis=1)
    if ground and target.seen[0, _ANKLES].all() and feet.mean() >= 0.5:

        def middle_and_low(points: np.ndarray) -> np.ndarray:
            return np.stack([points[:, _ANKLES, 0].mean(axis=1), points[:, _ANKLES, 1].max(axis=1)], axis=1)

        ours = middle_and_low(driving.xy)
        # Feet leave the ground upwards only, so it is low among where they were.
        low = high_quantile(ours[feet, 1], slack=0.05 * np.ptp(driving.xy[feet][:, [NECK, *_ANKLES], 1]))
        rest = np.array([np.median(ours[feet, 0]), low])
        wanted = middle_and_low(target.xy)[0] + report.scale * (ours - rest)
        return _filled(wanted - middle_and_low(xy), feet)
    names = {name.replace("_", " "): joint for joint, name in enumerate(BODY_JOINTS)} | {"middle of the hips": MID_HIP}
    joint = names.get(report.anchor, NOSE)  # "face": it goes with the nose
    rows = known[:, joint]
    if not rows.any():  # without a neck nothing was rebuilt: all is where one similarity puts it
        return np.zeros((len(xy), 2))
    return _filled(report.scale * driving.xy[:, joint] + report.offset - xy[:, joint], rows)


def _filled(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(T, 2) values of some rows, the others between their neighbours."""
    times, there = np.arange(len(values)), np.flatnonzero(rows)
    return np.stack([np.interp(times, there, values[there, axis]) for axis in range(2)], axis=1)


def _heads(xy: np.ndarray, driving: Figure, ratio: float, report: AlignmentReport, shift: np.ndarray) -> np.ndarray:
    """(T, 3) similarity of the head in each frame: about the nose, where it is seen."""
    offset = np.array(report.offset) + shift
    plain = np.concatenate([np.full((len(xy), 1), report.scale), offset], axis=1)
    about = np.concatenate([np.full((len(xy), 1), ratio), xy[:, NOSE] - ratio * driving.xy[:, NOSE]], axis=1)
    return np.where(driving.seen[:, NOSE, None], about, plain)


def _points(xy: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Points with the confidence they had; missing ones stay at (0, 0)."""
    kept = np.where(before[..., 2:] > 0, xy.clip(-1e6, 1e6), 0)
    return np.concatenate([kept, before[..., 2:]], axis=-1)


# --- face -------------------------------------------------------------------------------------------------------------


def head_turns(figure: Figure) -> np.ndarray:
    """Turn, nod and tilt of the head, as far as 68 landmarks tell them.

    Args:
        figure: T frames.

    Returns:
        (T, 3): nose beside the middle of the jaw's ends over half their distance; nose below the eyes over the eyes'
        height above the chin; slope of the eyes, rad. NaN where no face is seen.
    """
    face = figure.xy[:, FACE : FACE + 68]
    right, left, nose, chin = face[:, 36:42].mean(1), face[:, 42:48].mean(1), face[:, 30], face[:, 8]
    across, eyes = face[:, 16] - face[:, 0], (right + left) / 2
    turn = ((nose - (face[:, 0] + face[:, 16]) / 2) * across).sum(-1) / np.maximum((across**2).sum(-1) / 2, 1e-6)
    down = chin - eyes
    nod = ((nose - eyes) * down).sum(-1) / np.maximum((down**2).sum(-1), 1e-6)
    tilt = np.arctan2(left[:, 1] - right[:, 1], left[:, 0] - right[:, 0])
    return np.where(figure.seen[:, FACE, None], np.stack([turn, nod, tilt], axis=1), np.nan)


def _by_face(track: PoseTrack, driving: Figure, target: Figure, report: AlignmentReport) -> Fit:
    away = np.linalg.norm(head_turns(driving) - head_turns(target), axis=1)
    if np.isnan(away).all():
        raise PerceptionError(
            "align=face needs a face in the reference and in the driving video; one of the two shows none: choose "
            "another align (auto, global, bones), or a picture and a video that show the face large"
        )
    best = int(np.nanargmin(away))
    ours, theirs = driving.xy[:, FACE : FACE + 68], target.xy[0, FACE : FACE + 68]
    spread = [float(np.linalg.norm(points - points.mean(0))) for points in (ours[best], theirs)]
    scale = spread[1] / max(spread[0], 1e-6)
    offset = theirs.mean(0) - scale * resting_place(ours[driving.seen[:, FACE]].mean(1))
    xy = scale * driving.xy + offset
    hands = scale * track.hands[..., :2].astype(np.float64) + offset
    moved = replace(
        track,
        body=_points(xy[:, :18], track.body),
        hands=_points(hands, track.hands),
        face=_points(xy[:, FACE : FACE + 68], track.face),
        size=report.size,
    )
    told = replace(report, mode="face", scale=scale, offset=(float(offset[0]), float(offset[1])), anchor="face",
                   ground=False, frame=best)  # fmt: skip
    return Fit(moved, told)
