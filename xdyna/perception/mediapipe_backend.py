"""Pose backend on MediaPipe: body, then hands around the wrists and the face around the head, each on its own crop.

Every frame is treated as a single image (no tracking inside MediaPipe): a frame's result never depends on other
frames.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from xdyna.perception import mediapipe_models as models
from xdyna.perception.base import check_frame
from xdyna.perception.crowd import covered, distinct, tiles, torso
from xdyna.perception.errors import PerceptionError
from xdyna.perception.topology import (
    LEFT_ELBOW,
    LEFT_SHOULDER,
    LEFT_WRIST,
    MEDIAPIPE_TO_BODY,
    MEDIAPIPE_TO_IBUG68,
    NECK,
    NOSE,
    RIGHT_ELBOW,
    RIGHT_SHOULDER,
    RIGHT_WRIST,
)
from xdyna.perception.types import Person, mark_face, mark_outside, missing_points

_RULES = 2  # raise when the code below changes the numbers: cached keypoints are then detected again
_CROP = 256  # side of the crops handed to the hand and face models, px; the models work at 192 to 256
_HAND_CROPS = (2.0, 3.0, 1.4)  # sides of the crop around a wrist, in forearm lengths, tried in this order
_HAND_EXTENT = (0.2, 1.2)  # plausible diagonal of a hand, in forearm lengths
_HAND_REACH = 0.5  # farthest a hand's wrist may be from the body's wrist, in forearm lengths
_LONGEST_STRIP = 12  # sides; of a longer one there would be hundreds of tiles, in which nobody has room
_TILES = ((1.0, 0.5), (0.6, 0.4))  # side and distance of the tiles searched where nobody is found, in shorter sides
_SMALL_TILES = (0.35, 0.25)  # searched as well where everybody is looked for
_SMALLEST = 1.5  # side of the last tiles, in heights of the tallest person: who is a sixth as tall as a tile is found
_SURE = 0.9  # least mean visibility of somebody found in a tile: enlarged furniture looks like people now and then
_FACE_CROPS = (2.5, 4.0)  # sides of the crop around the head, in head sizes
_HANDS = (  # elbow, wrist (OpenPose-18); knuckles of little finger and index (MediaPipe Pose)
    (LEFT_ELBOW, LEFT_WRIST, (17, 19)),
    (RIGHT_ELBOW, RIGHT_WRIST, (18, 20)),
)


class MediaPipeBackend:
    """MediaPipe Pose, Hand and Face Mesh with its own models; also masks of people (`segment`).

    Args:
        models_dir: must be None: the models are part of the package, or downloaded on first use where it has none.

    Attributes:
        name: "mediapipe".
        version: library version and number of the rules here.

    Raises:
        PerceptionError: the package is missing, its models cannot be downloaded, or `models_dir` was given.
    """

    name = "mediapipe"

    def __init__(self, *, models_dir: Path | None = None) -> None:
        if models_dir is not None:
            raise PerceptionError(
                f"perception backend 'mediapipe' takes no models folder ('{models_dir}'); it has its own models"
            )
        self.version = f"{models.load_mediapipe().__version__}-r{_RULES}"
        self._quiet_calls: set[str] = set()

    def detect(self, frame: np.ndarray) -> list[Person]:
        """Find the people in a frame.

        A confidence is the landmark's visibility (body), the score of the handedness (hands), or 1 (face). Where no
        body is found but a face fills the image, a person with a face and a nose is returned.

        Args:
            frame: (H, W, 3) uint8 RGB.

        Returns:
            People, largest box first.

        Raises:
            PerceptionError: not such a frame.
        """
        frame = check_frame(frame)
        return self._people(frame, self._poses(frame))

    def detect_everybody(self, frame: np.ndarray) -> list[Person]:
        """Find all people in a frame: those of `detect`, and who is found in squares of the frame beside them.

        Squares show small people larger. Found are people who are seen whole (of the others those of `detect`), down to
        about a quarter of the tallest one's height.

        Args:
            frame: (H, W, 3) uint8 RGB.

        Returns:
            People, largest box first.

        Raises:
            PerceptionError: not such a frame.
        """
        frame = check_frame(frame)
        return self._people(frame, self._everybody(frame))

    def _people(self, frame: np.ndarray, poses: list[np.ndarray]) -> list[Person]:
        """Everything about the bodies of a frame, or about a face that fills it, largest first."""
        people = [person for pose in poses if (person := self._person(frame, pose)) is not None]
        if not people and (face := self._face(frame, _whole(frame))) is not None:
            people = [_face_only(face)]
        return sorted(people, key=lambda person: -person.area)

    def segment(self, frame: np.ndarray) -> np.ndarray:
        """Find the pixels that belong to people.

        The maximum of the found people's masks; the selfie model's mask where nobody is found.

        Args:
            frame: (H, W, 3) uint8 RGB.

        Returns:
            (H, W) float32 in [0, 1].

        Raises:
            PerceptionError: not such a frame.
        """
        frame = check_frame(frame)
        result = self._run("masks", lambda x: self._mask_landmarker.detect(x), models.as_image(frame))
        masks = [np.array(mask.numpy_view(), dtype=np.float32) for mask in result.segmentation_masks or []]
        if not masks:
            masks = [self._run("selfie", lambda x: self._selfie(x), frame)]
        return np.max([mask.reshape(frame.shape[:2]) for mask in masks], axis=0).clip(0, 1)

    # The detectors are made on first use: each takes up to half a second.
    @cached_property
    def _landmarker(self) -> Any:
        return models.pose_landmarker()

    @cached_property
    def _mask_landmarker(self) -> Any:
        return models.pose_landmarker(masks=True)

    @cached_property
    def _hands(self) -> Any:
        return models.hand_landmarker()

    @cached_property
    def _mesh(self) -> Callable[[np.ndarray], np.ndarray | None]:
        return models.face_mesh()

    @cached_property
    def _faces(self) -> Callable[[np.ndarray], np.ndarray]:
        return models.face_detector()

    @cached_property
    def _selfie(self) -> Callable[[np.ndarray], np.ndarray]:
        return models.selfie_segmenter()

    def _run(self, what: str, call: Callable[[Any], Any], argument: Any) -> Any:
        """Call a detector; the first time it is made here, quietly."""
        if what in self._quiet_calls:
            return call(argument)
        with models.quiet_stderr(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = call(argument)
        self._quiet_calls.add(what)
        return result

    def _poses(self, frame: np.ndarray) -> list[np.ndarray]:
        """(33, 3) px and visibility of each person.

        The detector sees the frame at 224 px and misses small people beside a large one; a face that belongs to nobody
        found yet is looked at again in a crop the size of a body. Where all that finds nobody, tiles are searched.
        """
        poses = self._poses_in(frame, left=0, top=0)
        height, width = frame.shape[:2]
        for x, y, w, h in self._run("faces", lambda x: self._faces(x), frame):
            center = np.array([(x + w / 2) * width, (y + h / 2) * height])
            size = max(w * width, h * height)
            if any(np.linalg.norm(pose[0, :2] - center) < size for pose in poses):
                continue
            left, right = np.clip([center[0] - 4 * size, center[0] + 4 * size], 0, width).astype(int)
            top, bottom = np.clip([center[1] - 2 * size, center[1] + 9 * size], 0, height).astype(int)
            if min(right - left, bottom - top) < 16:
                continue
            found = self._poses_in(frame[top:bottom, left:right], left=left, top=top)
            poses += [pose for pose in found if np.linalg.norm(pose[0, :2] - center) < size][:1]
        return poses or self._poses_in_tiles(frame)

    def _poses_in_tiles(self, frame: np.ndarray) -> list[np.ndarray]:
        """People too small for the whole frame: in squares as large as fit, else in smaller ones; each person once."""
        if max(frame.shape[:2]) > _LONGEST_STRIP * min(frame.shape[:2]):
            return []
        for side, step in _TILES:
            found: list[np.ndarray] = []
            for left, top, size in tiles(frame.shape[:2], side=side, step=step):
                found += self._poses_in(frame[top : top + size, left : left + size], left=left, top=top)
            kept: list[np.ndarray] = []
            for pose in sorted(found, key=lambda pose: -pose[:, 2].mean()):
                pose = self._closer(frame, pose)
                apart = [np.linalg.norm(pose[:, :2] - other[:, :2], axis=1).mean() for other in kept]
                if pose[:, 2].mean() >= _SURE and all(distance > 0.5 * torso(pose) for distance in apart):
                    kept.append(pose)
            if kept:
                return kept
        return []

    def _everybody(self, frame: np.ndarray) -> list[np.ndarray]:
        """(33, 3) px and visibility of each person, of those in squares of the frame, too, where they are seen surely.

        The squares become smaller until people of a quarter of the tallest one's height would be found. If that adds
        nobody, the result is that of `_poses`; else surer poses replace unsure ones.
        """
        known = self._poses(frame)
        if max(frame.shape[:2]) > _LONGEST_STRIP * min(frame.shape[:2]):
            return known
        firm, added = [pose for pose in known if _sure(pose)], list[np.ndarray]()
        for side, step in (*_TILES, _SMALL_TILES):
            found: list[np.ndarray] = []
            squares = tiles(frame.shape[:2], side=side, step=step)
            for left, top, size in squares:
                if not covered((left, top, size), known + added):
                    found += self._poses_in(frame[top : top + size, left : left + size], left=left, top=top)
            new = [self._closer(frame, pose) for pose in distinct(filter(_sure, found), known=firm + added)]
            added += distinct(new, known=firm + added)
            tallest = max((float(np.ptp(pose[:, 1])) for pose in known + added), default=0.0)
            if squares and squares[0][2] < _SMALLEST * tallest:
                break
        if not distinct(added, known=known):
            return known
        return firm + added + distinct([pose for pose in known if not _sure(pose)], known=firm + added)

    def _closer(self, frame: np.ndarray, pose: np.ndarray) -> np.ndarray:
        """The person again, seen in a square of its own: a tile may have cut through it."""
        low, high = pose[:, :2].min(axis=0), pose[:, :2].max(axis=0)
        center, reach = (low + high) / 2, 0.8 * float((high - low).max()) + 8
        left, right = np.clip([center[0] - reach, center[0] + reach], 0, frame.shape[1]).astype(int)
        top, bottom = np.clip([center[1] - reach, center[1] + reach], 0, frame.shape[0]).astype(int)
        if min(right - left, bottom - top) < 16:
            return pose
        again = self._poses_in(frame[top:bottom, left:right], left=left, top=top)
        return max([pose, *again], key=lambda each: each[:, 2].mean())

    def _poses_in(self, image: np.ndarray, *, left: int, top: int) -> list[np.ndarray]:
        """People of an image whose corner lies at (left, top) of the frame."""
        height, width = image.shape[:2]
        result = self._run("pose", lambda x: self._landmarker.detect(x), models.as_image(image))
        return [
            np.array([[p.x * width - 0.5 + left, p.y * height - 0.5 + top, p.visibility] for p in pose])
            for pose in result.pose_landmarks
        ]

    def _person(self, frame: np.ndarray, pose: np.ndarray) -> Person | None:
        """Everything about one body; None where too little of it lies in the image."""
        size = (frame.shape[0], frame.shape[1])
        raw = np.zeros((18, 3))
        for joint, landmark in MEDIAPIPE_TO_BODY.items():
            raw[joint] = pose[landmark]
        shoulders = raw[[RIGHT_SHOULDER, LEFT_SHOULDER]]
        raw[NECK] = [*shoulders[:, :2].mean(axis=0), shoulders[:, 2].min()]
        body = mark_outside(raw, size)
        seen = mark_outside(pose, size)
        seen = seen[seen[:, 2] > 0.1]
        if len(seen) < 3:
            return None
        hands = self._both_hands(frame, raw, pose)
        face = self._face(frame, _head(raw, pose))
        box = np.concatenate([seen[:, :2].min(axis=0), seen[:, :2].max(axis=0)]).astype(np.float32)
        face = missing_points(68) if face is None else mark_face(face, size)
        return Person(body=body, hands=hands, face=face, box=box, score=float(pose[:, 2].mean().clip(0, 1)))

    def _both_hands(self, frame: np.ndarray, body: np.ndarray, pose: np.ndarray) -> np.ndarray:
        """(2, 21, 3) hands of one body; a hand found from both wrists belongs to the nearer one."""
        hands, distances, forearms = np.zeros((2, 21, 3)), np.full(2, np.inf), np.ones(2)
        for side, (elbow, wrist, knuckles) in enumerate(_HANDS):
            # A forearm pointing at the camera looks short, the hand does not.
            forearms[side] = max(np.linalg.norm(body[elbow, :2] - body[wrist, :2]), 0.3 * torso(pose), 1.0)
            center = 0.4 * body[wrist, :2] + 0.6 * pose[list(knuckles), :2].mean(axis=0)
            found = self._hand(frame, center, wrist=body[wrist, :2], forearm=forearms[side])
            if found is not None:
                hands[side], distances[side] = found, np.linalg.norm(found[0, :2] - body[wrist, :2])
        apart = np.linalg.norm(hands[0, :, :2] - hands[1, :, :2], axis=1).mean()
        if np.isfinite(distances).all() and apart < 0.15 * forearms.max():
            hands[int(np.argmax(distances))] = 0
        return mark_outside(hands, (frame.shape[0], frame.shape[1]))

    def _hand(self, frame: np.ndarray, center: np.ndarray, *, wrist: np.ndarray, forearm: float) -> np.ndarray | None:
        """(21, 3) the hand at a wrist, or None."""
        for factor in _HAND_CROPS:
            side = factor * forearm
            crop = square_crop(frame, center=center, side=side)
            if crop is None:
                return None
            result = self._run("hand", lambda x: self._hands.detect(x), models.as_image(crop))
            best: np.ndarray | None = None
            nearest = _HAND_REACH * forearm
            for landmarks, handedness in zip(result.hand_landmarks, result.handedness, strict=True):
                points = _from_crop(np.array([[p.x, p.y] for p in landmarks]), center=center, side=side)
                extent = np.linalg.norm(np.ptp(points, axis=0)) / forearm
                distance = float(np.linalg.norm(points[0] - wrist))
                if distance < nearest and _HAND_EXTENT[0] < extent < _HAND_EXTENT[1]:
                    best, nearest = np.column_stack([points, np.full(21, handedness[0].score)]), distance
            if best is not None:
                return best
        return None

    def _face(self, frame: np.ndarray, head: tuple[np.ndarray, float]) -> np.ndarray | None:
        """(68, 3) the face within a head's place (centre px, size px), or None."""
        center, size = head
        for factor in _FACE_CROPS:
            side = factor * size
            crop = square_crop(frame, center=center, side=side)
            if crop is None:
                return None
            mesh = self._run("face", lambda x: self._mesh(x), crop)
            if mesh is None:
                continue
            points = _from_crop(mesh[MEDIAPIPE_TO_IBUG68, :2], center=center, side=side)
            # In a crowd the crop may hold another face; the head's own is at its centre.
            if np.linalg.norm(points[27:36].mean(axis=0) - center) < size:
                return np.column_stack([points, np.ones(68)])
        return None


def _sure(pose: np.ndarray) -> bool:
    return float(pose[:, 2].mean()) >= _SURE


def square_crop(frame: np.ndarray, *, center: np.ndarray, side: float, size: int = _CROP) -> np.ndarray | None:
    """Cut a square around a point and bring it to a size; what lies outside the frame repeats its edge.

    Args:
        frame: (H, W, 3) uint8.
        center: (2,) x, y in px.
        side: side of the square in px of the frame.
        size: side of the result in px.

    Returns:
        (size, size, 3) uint8, or None where the square does not meet the frame or is below 4 px.
    """
    height, width = frame.shape[:2]
    if not np.isfinite([*center, side]).all() or not 4 <= side <= 8 * max(height, width):
        return None
    left, top = center - side / 2
    if left >= width or top >= height or left + side <= 0 or top + side <= 0:
        return None
    if side > size:  # reduce first, or fine structures would alias
        x0, y0 = max(int(left) - 2, 0), max(int(top) - 2, 0)
        x1, y1 = min(int(left + side) + 3, width), min(int(top + side) + 3, height)
        part = frame[y0:y1, x0:x1]
        scale = size / side
        new = max(round(part.shape[1] * scale), 1), max(round(part.shape[0] * scale), 1)
        frame = cv2.resize(part, new, interpolation=cv2.INTER_AREA)
        scales = np.array([new[0] / part.shape[1], new[1] / part.shape[0]])
        left, top = (np.array([left, top]) + 0.5 - [x0, y0]) * scales - 0.5
        steps = side * scales / size
    else:
        steps = np.array([side / size, side / size])
    # dst pixel i samples the source at left + (i + 0.5) * step
    matrix = np.array([[steps[0], 0, left + steps[0] / 2], [0, steps[1], top + steps[1] / 2]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(frame, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _from_crop(points: np.ndarray, *, center: np.ndarray, side: float) -> np.ndarray:
    """Coordinates in [0, 1] of a square crop as px of the frame."""
    return points * side + center - side / 2


def _head(body: np.ndarray, pose: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre and size (px) of the head from the 11 head landmarks of MediaPipe Pose."""
    points = pose[:11, :2]
    extent = float(np.ptp(points, axis=0).max())
    center = 0.5 * (points.mean(axis=0) + body[NOSE, :2])
    return center, max(extent, 0.15 * torso(pose), 1.0)


def _whole(frame: np.ndarray) -> tuple[np.ndarray, float]:
    """The whole frame as if it were the crop around a head."""
    height, width = frame.shape[:2]
    return np.array([(width - 1) / 2, (height - 1) / 2]), max(height, width) / _FACE_CROPS[0]


def _face_only(face: np.ndarray) -> Person:
    """A person of whom only the face was found."""
    body = missing_points(18)
    body[NOSE] = face[30]
    box = np.concatenate([face[:, :2].min(axis=0), face[:, :2].max(axis=0)]).astype(np.float32)
    return Person(body=body, hands=missing_points(2, 21), face=face.astype(np.float32), box=box, score=1.0)
