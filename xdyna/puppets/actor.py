"""A puppet that makes a person's faces: face patches for models that know puppets only, from a video of a person.

The person's mouth, eyes, brows and turn of the head are read off the 68 landmarks and acted by a rendered puppet, whose
head is put where the person's is, at the size of that in the reference image: puppets have large heads.
"""

from dataclasses import replace

import cv2
import numpy as np

from xdyna.evaluation.metrics.people import expression_coefficients
from xdyna.perception.errors import NoFaceError
from xdyna.perception.face_patch import filled_landmarks
from xdyna.perception.types import PoseTrack, mark_face, mark_outside
from xdyna.pipelines.controls import ActedFaces
from xdyna.puppets.world.motion import EXPRESSIONS
from xdyna.puppets.world.render import render_clip

ACTOR = (2_080_054, 2_000_000, 2_080_054)  # seeds of identity, motion and scene: of the test split
NOSE, NECK, EARS = 0, 1, [16, 17]
HEAD = [0, 14, 15, 16, 17]  # nose, eyes, ears
_WIDE_MOUTH = 0.5  # of people, in eye distances
_SHUT_EYE = 0.35  # of people, of what their eyes usually are open
_OPEN_EYE = 0.8  # of a puppet that looks about
_SMILE, _BROWS = 4.0, 5.0  # from eye distances off the person's usual to [-1, 1]
_MOST_YAW = 0.6  # rad
_LARGEST = 512  # px, of what is rendered
_PERIOD = 240  # frames after which the sway of a live animation begins again: later ones take longer to render


class PuppetFaces:
    """The face source of models that know puppets only (`face_source`): see `act`."""

    def __call__(self, track: PoseTrack, reference: np.ndarray, *, history: PoseTrack | None = None) -> ActedFaces:
        """See `FaceSource`."""
        return act(track, reference, history=history)


def act(track: PoseTrack, reference: np.ndarray, *, history: PoseTrack | None = None) -> ActedFaces:
    """Let a puppet make the faces of a track.

    Args:
        track: of a person, T frames, fitted to the figure in the reference image.
        reference: (18, 3) body of that figure, in px of the same image; ears and neck must be there.
        history: the frames before: what the person's face usually looks like is measured on both.

    Returns:
        ActedFaces: of the track's size; where no face was found, the last one stays (the first one before it).

    Raises:
        NoFaceError: no face in any frame, or no head in the reference.
    """
    if not (reference[[NOSE, NECK, *EARS], 2] > 0).all():
        raise NoFaceError("the reference's keypoints have no head (nose, neck, ears), so its size is not known")
    side = min(2 * max(track.size), _LARGEST)
    bodies, landmarks = (
        np.concatenate([getattr(history, name), getattr(track, name)]) if history is not None else getattr(track, name)
        for name in ("body", "face")
    )
    landmarks = filled_landmarks(landmarks)
    acted = expressions(landmarks)[-len(track) :]
    landmarks = landmarks[-len(track) :]
    start = 0 if history is None else int(track.frame_index[0]) % _PERIOD
    clip = render_clip(
        *ACTOR, frames=len(track), start=start, size=(side, side), motion_kind="sway",
        expression=acted, yaw=turns(landmarks),
    )  # fmt: skip
    width = np.linalg.norm(reference[EARS[0], :2] - reference[EARS[1], :2])
    rendered = np.linalg.norm(clip.body[:, EARS[0], :2] - clip.body[:, EARS[1], :2], axis=1).mean()
    noses, angles = _noses(bodies, reference)[-len(track) :], _angles(landmarks) - _angles(clip.face)
    body, face = track.body.copy(), np.empty_like(track.face)
    images = np.empty((len(track), *track.size, 3), np.uint8)
    for k in range(len(track)):
        matrix = _similarity(clip.body[k, NOSE, :2], noses[k], scale=float(width / rendered), angle=float(angles[k]))
        height, across = track.size
        images[k] = cv2.warpAffine(
            clip.frames[k], matrix, (across, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        body[k, HEAD] = _moved(clip.body[k, HEAD], matrix)
        face[k] = mark_face(_moved(clip.face[k], matrix), track.size)
    placed = replace(track, body=mark_outside(body, track.size), face=face)
    return ActedFaces(placed, images)


def expressions(face: np.ndarray) -> np.ndarray:
    """What a puppet does to look like a person.

    Args:
        face: (T, 68, 3) landmarks in px, confidence 0 where there is none.

    Returns:
        float64 (T, E) in the order of the puppet's `EXPRESSIONS`; gaps repeat the last face, the first one before it.
    """
    seen = expression_coefficients(filled_landmarks(face))
    gap, _, smile, right, left, brow_right, brow_left, _ = seen.T
    padded = np.pad((right + left) / 2, 1, mode="edge")  # of small faces one eye in one frame is mostly noise
    eyes = np.median([padded[:-2], padded[1:-1], padded[2:]], axis=0)
    looks = _OPEN_EYE * (eyes / max(float(np.quantile(eyes, 0.6)), 1e-3) - _SHUT_EYE) / (1 - _SHUT_EYE)
    brows = (brow_right + brow_left) / 2
    values = {
        "mouth_open": np.clip(gap / _WIDE_MOUTH, 0, 1),
        "smile": np.clip(_SMILE * (smile - np.median(smile)), -1, 1),
        "eye_open_right": np.clip(looks, 0, 1),
        "eye_open_left": np.clip(looks, 0, 1),
        "brow_raise": np.clip(_BROWS * (brows - np.median(brows)), -1, 1),
    }
    still = np.zeros(len(face))
    return np.stack([values.get(name, still) for name in EXPRESSIONS], axis=1)


def turns(face: np.ndarray) -> np.ndarray:
    """(T,) turn of the head in rad, to the right of the image positive. Args: face: as in `expressions`."""
    points = filled_landmarks(face)
    middle, half = (points[:, 0] + points[:, 16]) / 2, (points[:, 16] - points[:, 0]) / 2
    off = ((points[:, 30] - middle) * half).sum(-1) / np.maximum((half**2).sum(-1), 1e-6)
    return np.clip(np.arcsin(np.clip(off, -1, 1)), -_MOST_YAW, _MOST_YAW)


def _noses(bodies: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(T, 2) where the puppet's nose goes: in the person's direction from the neck, as far as in the reference."""
    nose, neck = bodies[:, NOSE], bodies[:, NECK]
    seen = (nose[:, 2] > 0) & (neck[:, 2] > 0)
    far = float(np.linalg.norm(reference[NOSE, :2] - reference[NECK, :2]))
    step = np.zeros((len(bodies), 2))
    length = np.linalg.norm(nose[:, :2] - neck[:, :2], axis=1)
    usual = float(np.median(length[seen])) if seen.any() else 1.0
    step[:] = (0.0, -far)
    step[seen] = (nose[seen, :2] - neck[seen, :2]) * (far / max(usual, 1e-6))
    start = np.where(neck[:, 2:] > 0, neck[:, :2], reference[NECK, :2])
    return np.asarray(start + step)


def _angles(face: np.ndarray) -> np.ndarray:
    """(T,) slope of the line of the eyes, rad."""
    points = filled_landmarks(face)
    across = points[:, 42:48].mean(1) - points[:, 36:42].mean(1)
    return np.asarray(np.arctan2(across[:, 1], across[:, 0]))


def _similarity(source: np.ndarray, target: np.ndarray, *, scale: float, angle: float) -> np.ndarray:
    """(2, 3) matrix that turns and scales about `source` and takes it to `target`."""
    c, s = scale * np.cos(angle), scale * np.sin(angle)
    turn = np.array([[c, -s], [s, c]])
    return np.concatenate([turn, (np.asarray(target) - turn @ np.asarray(source))[:, None]], axis=1)


def _moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """(..., 3) points with confidence, through a (2, 3) matrix."""
    moved = points[..., :2] @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([moved, points[..., 2:]], axis=-1).astype(np.float32)
