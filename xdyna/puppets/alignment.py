"""Is alignment right? Pairs of puppets of other builds, whose right joints are known; `scripts/puppets.py alignment`.

The same motion moves two puppets. One is the driving person: its keypoints, in an image of another size and place. The
other is seen in the reference, in a pose of another motion. Where the motion puts the other one's joints is the truth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from xdyna.media import CropResize
from xdyna.perception.retarget import fit_track
from xdyna.perception.types import Person, PoseTrack, mark_face, mark_outside
from xdyna.pipelines.crop import published_crop
from xdyna.puppets.world import MOTION_KINDS, SPLITS, puppet_track
from xdyna.puppets.world.identity import Body, make_identity

PAIRS, FRAMES = 40, 24
KINDS = ("whole", "half reference", "bad start", "half driving", "hidden limbs", "half both", "close-up", "far away")
"""What is special about a pair; they take turns."""
MODES = ("none", "global", "bones", "face", "auto")
_SIZE = (256, 256)  # px, of the world before cameras
_NOISE = 0.004  # of the figure's height: what a detector is off by


@dataclass(frozen=True)
class AlignmentPair:
    """One pair.

    Attributes:
        number: of the pair.
        kind: one of `KINDS`.
        driving: the driving puppet's keypoints.
        reference: the other puppet in the reference image.
        size: (H, W) of the reference image, px.
        truth: the driving motion on the other puppet, in px of the reference image; joints outside it are missing.
        height: of the other puppet, px.
    """

    number: int
    kind: str
    driving: PoseTrack
    reference: Person
    size: tuple[int, int]
    truth: PoseTrack
    height: float


def make_pair(number: int, *, first: int = SPLITS["test"].start) -> AlignmentPair:
    """The pair of a number; equal numbers give equal pairs.

    Args:
        number: at least 0.
        first: seed of the first identity and motion.
    """
    kind = KINDS[number % len(KINDS)]
    rng = np.random.default_rng([404, number, first])
    ours, theirs, motion, other = (first + int(seed) for seed in rng.choice(90_000, 4, replace=False))
    move = MOTION_KINDS[number % len(MOTION_KINDS)]
    bodies = [other_build(make_identity(seed).body, rng) for seed in (ours, theirs)]
    own = puppet_track(ours, motion, frames=FRAMES, size=_SIZE, motion_kind=move, body=bodies[0])
    truth = puppet_track(theirs, motion, frames=FRAMES, size=_SIZE, motion_kind=move, body=bodies[1])
    poses = puppet_track(theirs, other, frames=2 * FRAMES, size=_SIZE, body=bodies[1])
    still = poses.select([_calm(poses, rng)])
    truth = _moved(truth, np.array([_spot(still) - _spot(truth), 0.0]))
    height = bodies[1].frame_share * _SIZE[0]
    driving = _camera(own, kind, rng)
    box = _frame(still, kind)
    still, truth = (_cut(track, box) for track in (still, truth))
    height *= box.size[0] / box.box[3]
    still, driving = _noisy(still, _NOISE * height, rng), _noisy(driving, _NOISE * driving.size[0], rng)
    if kind == "hidden limbs":
        still.body[0, list(((3, 4, 6, 7), (4, 7, 9, 10), (2, 3, 4), (6, 7, 12, 13))[number // len(KINDS) % 4])] = 0
    if kind == "bad start":
        driving.body[:3] = _scrambled(driving.body[:3], driving.size, rng)
    body = still.body[0]
    seen = body[body[:, 2] > 0, :2]
    around = np.concatenate([seen.min(0), seen.max(0)])
    person = Person(body=body, hands=still.hands[0], face=still.face[0], box=around, score=1.0)
    return AlignmentPair(number, kind, driving, person, still.size, truth, height)


def other_build(body: Body, rng: np.random.Generator) -> Body:
    """A body of other proportions: larger or smaller head, longer or shorter arms and legs, broader shoulders."""
    head, arms, across = rng.uniform(0.7, 1.2), rng.uniform(0.8, 1.3), rng.uniform(0.8, 1.3)
    rest = 1 - head * body.head - body.neck - body.ankle
    torso = rest * rng.uniform(0.3, 0.45)
    legs = rest - torso
    upper, thigh = rng.uniform(0.47, 0.55, 2)
    arm = arms * (body.upper_arm + body.forearm)
    return replace(
        body, head=head * body.head, torso=torso, shoulder=across * body.shoulder,
        hip=rng.uniform(0.85, 1.2) * body.hip, upper_arm=upper * arm, forearm=(1 - upper) * arm,
        hand=arms * body.hand, thigh=thigh * legs, shin=(1 - thigh) * legs,
    )  # fmt: skip


def _calm(poses: PoseTrack, rng: np.random.Generator) -> int:
    """A frame for a picture: of those half whose neck is nearest to its usual height, any one."""
    height = poses.body[:, 1, 1]
    return int(rng.choice(np.argsort(np.abs(height - np.median(height)), kind="stable")[: len(poses) // 2]))


def _spot(track: PoseTrack) -> float:
    """Where somebody stands: the usual x between the ankles, px."""
    return float(np.median(track.body[:, [10, 13], 0].mean(axis=1)))


def _moved(track: PoseTrack, offset: np.ndarray, scale: float = 1.0) -> PoseTrack:
    def moved(points: np.ndarray) -> np.ndarray:
        return np.concatenate([np.where(points[..., 2:] > 0, scale * points[..., :2] + offset, 0), points[..., 2:]], -1)

    return replace(track, body=moved(track.body), hands=moved(track.hands), face=moved(track.face))


def _camera(track: PoseTrack, kind: str, rng: np.random.Generator) -> PoseTrack:
    """The driving person in an image of another size, at another place and scale."""
    scale = rng.uniform(0.3, 0.45) if kind == "far away" else rng.uniform(0.6, 1.6)
    size = (int(rng.integers(200, 500)), int(rng.integers(200, 600)))
    cut = kind in ("half driving", "half both")
    low = track.body[:, [8, 11], 1].max() if cut else 0.98 * _SIZE[0]
    scale *= size[0] / _SIZE[0] / max(scale, 1)
    across, bottom = rng.uniform(0.4, 0.6) * size[1], size[0] * (1 if cut else rng.uniform(0.85, 0.98))
    offset = np.array([across - scale * _SIZE[1] / 2, bottom - scale * low])
    return _inside(replace(_moved(track, offset, scale), size=size))


def _frame(still: PoseTrack, kind: str) -> CropResize:
    """What of the other puppet's image is the reference."""
    height = width = _SIZE[0]
    body = still.body[0]
    bottom = {"half reference": body[[8, 11], 1].max() + 8, "half both": body[[8, 11], 1].max() + 4,
              "close-up": body[1, 1] - 2}.get(kind, height)  # fmt: skip
    rows = int(min(max(bottom, 64), height))
    side = min(width, max(rows, 96))
    left = int(np.clip(body[0, 0] - side / 2, 0, width - side))
    return CropResize(box=(left, 0, side, rows), size=(rows * 320 // side, 320))


def _cut(track: PoseTrack, box: CropResize) -> PoseTrack:
    return _inside(track.transform(box))


def _inside(track: PoseTrack) -> PoseTrack:
    """Without what lies outside the image: nobody sees it."""
    face = np.stack([mark_face(points, track.size) for points in track.face])
    return replace(
        track, body=mark_outside(track.body, track.size), hands=mark_outside(track.hands, track.size), face=face
    )


def _noisy(track: PoseTrack, sigma: float, rng: np.random.Generator) -> PoseTrack:
    def moved(points: np.ndarray) -> np.ndarray:
        off = np.zeros(points.shape)
        off[..., :2] = rng.normal(0, sigma, points[..., :2].shape)
        return np.where(points[..., 2:] > 0, points + off, 0)

    return replace(track, body=moved(track.body), hands=moved(track.hands), face=moved(track.face))


def _scrambled(body: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Frames in which a detector went wrong: half of the joints anywhere, others missing."""
    wrong = body.copy()
    anywhere = rng.uniform(size=body.shape[:2]) < 0.5
    wrong[anywhere, :2] = rng.uniform(0, 1, (int(anywhere.sum()), 2)) * size[::-1]
    wrong[rng.uniform(size=body.shape[:2]) < 0.2] = 0
    return wrong


def errors(pair: AlignmentPair) -> dict[str, float]:
    """Mean distance of the fitted joints from the truth's, by mode, in heights of the reference's puppet.

    Joints count that the driving frame shows and whose right place lies in the reference image; frames whose detection
    went wrong do not. A mode that cannot be used is NaN.
    """
    found = {}
    for mode in MODES:
        if mode == "none":
            aligned = pair.driving.transform(published_crop(pair.driving.size, pair.size, face=False))
        else:
            try:
                aligned = fit_track(pair.driving, pair.reference, size=pair.size, mode=mode).track
            except ValueError:
                found[mode] = float("nan")
                continue
        found[mode] = joint_error(aligned, pair)
    return found


def joint_error(aligned: PoseTrack, pair: AlignmentPair) -> float:
    """See `errors`."""
    both = (pair.driving.body[..., 2] > 0) & (pair.truth.body[..., 2] > 0)
    if pair.kind == "bad start":
        both[:3] = False
    distance = np.linalg.norm(aligned.body[both, :2].astype(np.float64) - pair.truth.body[both, :2], axis=-1)
    return float(distance.mean() / pair.height)
