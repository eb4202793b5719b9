"""Clips of the puppet world with everything that is true about them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np

from xdyna.perception.types import PoseTrack, mark_face, mark_outside, missing_points
from xdyna.puppets.world.canvas import OVERSAMPLE, Canvas
from xdyna.puppets.world.face import Head, face_landmarks
from xdyna.puppets.world.figure import Pose, draw_figure
from xdyna.puppets.world.identity import Body, Face, Identity, make_identity
from xdyna.puppets.world.motion import EXPRESSIONS, MOTION_KINDS, Motion, kind_of_motion, make_motion
from xdyna.puppets.world.scene import Scene
from xdyna.puppets.world.scenes_dynamic import clouds, fire, sea, waterfall
from xdyna.puppets.world.scenes_particles import fireworks, grass, rain, snow
from xdyna.puppets.world.scenes_static import STATIC_SCENES, draw_static
from xdyna.puppets.world.secondary import Hanging, hang
from xdyna.puppets.world.skeleton import HEAD_WIDTH, Skeleton, make_skeleton

FPS = 12.0
SPLITS = {"train": range(1_000_000), "validation": range(1_000_000, 1_100_000), "test": range(2_000_000, 2_100_000)}
"""Seeds of identities, motions and scenes by split."""

_MOVING: dict[str, Callable[[tuple[int, int], np.random.Generator], Scene]] = {
    "fire": fire, "waterfall": waterfall, "sea": sea, "rain": rain,
    "snow": snow, "fireworks": fireworks, "grass": grass, "clouds": clouds,
}  # fmt: skip
DYNAMIC_SCENES = tuple(_MOVING)

_STEPS = 2  # simulation steps per world frame
_GROUND = 0.972  # image heights
_OUTLINE = 0.0055  # figure heights
_SMALLEST = 64


@dataclass(frozen=True)
class PuppetClip:
    """N frames of a puppet, or of a scene alone, and their ground truth.

    Keypoints that lie outside the image, and all of a clip without a figure, have confidence 0; others 1.

    Attributes:
        frames: (N, H, W, 3) uint8 RGB.
        body: (N, 18, 3) float32 x px, y px, confidence; OpenPose-18.
        hands: (N, 2, 21, 3) float32; 0 is the left hand.
        face: (N, 68, 3) float32; iBUG-68.
        mask: (N, H, W) bool, the figure with hair and clothes.
        dynamic: (N, H, W) bool, where the scene moves by itself, outside the figure.
        secondary: (N, H, W) bool, hair, skirt, scarf and ribbons; part of the mask.
        expression: (N, E) float32, see `EXPRESSIONS`; 0 in a clip without a figure.
        fps: frames per second.
        scene_kind: one of `STATIC_SCENES` and `DYNAMIC_SCENES`.
        motion_kind: one of `MOTION_KINDS`; "none" in a clip without a figure.
        kind: "human" or "scene".
        start: world frame of the first frame.
        stride: world frames from frame to frame.
    """

    frames: np.ndarray
    body: np.ndarray
    hands: np.ndarray
    face: np.ndarray
    mask: np.ndarray
    dynamic: np.ndarray
    secondary: np.ndarray
    expression: np.ndarray
    fps: float
    scene_kind: str
    motion_kind: str
    kind: str
    start: int
    stride: int

    def track(self) -> PoseTrack:
        """The keypoints as perception would return them, times from 0."""
        count, height, width = self.frames.shape[:3]
        return PoseTrack(
            body=self.body,
            hands=self.hands,
            face=self.face,
            size=(height, width),
            times=np.arange(count) / self.fps,
            frame_index=np.arange(count),
            source="puppet",
        )


def render_clip(
    identity: int,
    motion: int,
    scene: int,
    *,
    frames: int = 16,
    start: int = 0,
    stride: int = 1,
    size: tuple[int, int] = (128, 128),
    kind: str = "human",
    face_identity: int | None = None,
    scene_kind: str | None = None,
    motion_kind: str | None = None,
    expression: np.ndarray | None = None,
    yaw: np.ndarray | None = None,
) -> PuppetClip:
    """Render a clip.

    Frame k shows the world at frame `start + k * stride` of 12 per second, so overlapping clips agree exactly.

    Args:
        identity: seed of the puppet, at least 0.
        motion: seed of motion and expressions.
        scene: seed of the scene.
        frames: N, at least 1.
        start: first world frame, at least 0.
        stride: world frames from frame to frame, at least 1.
        size: (H, W) px, each at least 64.
        kind: "human", or "scene" for the scene alone.
        face_identity: seed of another puppet who takes this one's place: its face, hair and clothes on `identity`'s
            bones, in the same pose with the same expression (a cross-identity face and what surrounds it).
        scene_kind: one of `STATIC_SCENES` and `DYNAMIC_SCENES` instead of the seed's.
        motion_kind: one of `MOTION_KINDS` instead of the seed's.
        expression: (N, E), see `EXPRESSIONS`, instead of the motion's.
        yaw: (N,) rad, turn of the head to the right of the image instead of the motion's, which then does not nod.

    Returns:
        The clip; equal arguments give equal bytes.

    Raises:
        ValueError: an argument out of range.
    """
    size = _checked_size(size)
    numbers = {"identity": (identity, 0), "motion": (motion, 0), "scene": (scene, 0), "frames": (frames, 1),
               "start": (start, 0), "stride": (stride, 1)}  # fmt: skip
    if face_identity is not None:
        numbers["face_identity"] = (face_identity, 0)
    for name, (value, least) in numbers.items():
        _check_number(name, value, least)
    _check_choice("kind", kind, ("human", "scene"))
    _check_choice("scene_kind", scene_kind, (*STATIC_SCENES, *DYNAMIC_SCENES, None))
    _check_choice("motion_kind", motion_kind, (*MOTION_KINDS, None))
    shown = start + stride * np.arange(frames)
    scene_kind = scene_kind or _scene_kind(scene)
    world = _make_scene(scene_kind, scene, size)
    images = [world.frame(float(k) / FPS) for k in shown]
    if kind == "scene":
        return _scene_clip(images, world.region, scene_kind, start=start, stride=stride)
    chosen = motion_kind or kind_of_motion(motion)
    puppet = make_identity(identity)
    if face_identity is not None:
        puppet = replace(make_identity(face_identity), body=puppet.body)
    face = puppet.face
    acted = _act(puppet, motion, chosen, shown)
    acted = replace(acted, motion=_directed(acted.motion, expression, yaw))
    place = _Placement(puppet, size)
    marks = face_landmarks(face, acted.motion.expression, acted.motion.yaw, acted.motion.pitch)
    points, masks = [], []
    for k in range(frames):
        pose = acted.pose(k, puppet, marks[k])
        images[k], mask = _compose(images[k], pose, puppet, face, place)
        points.append(_keypoints(pose, place))
        masks.append(mask)
    body, hands, faces = (np.stack([p[part] for p in points]) for part in range(3))
    mask, secondary = (np.stack([m[part] for m in masks]) for part in range(2))
    return PuppetClip(
        frames=np.stack(images), body=body, hands=hands, face=faces, mask=mask, dynamic=world.region & ~mask,
        secondary=secondary, expression=acted.motion.expression.astype(np.float32), fps=FPS / stride,
        scene_kind=scene_kind, motion_kind=chosen, kind=kind, start=start, stride=stride,
    )  # fmt: skip


def puppet_track(
    identity: int,
    motion: int,
    *,
    frames: int = 16,
    start: int = 0,
    stride: int = 1,
    size: tuple[int, int] = (128, 128),
    motion_kind: str | None = None,
    body: Body | None = None,
) -> PoseTrack:
    """The keypoints of a puppet without its images: those of `render_clip`, for another body where one is given.

    Args:
        identity: seed of the puppet, at least 0.
        motion: seed of motion and expressions.
        frames: N, at least 1.
        start: first world frame, at least 0.
        stride: world frames from frame to frame, at least 1.
        size: (H, W) px, each at least 64.
        motion_kind: one of `MOTION_KINDS` instead of the seed's.
        body: lengths instead of the identity's.

    Returns:
        N frames, times from 0; equal arguments give equal bytes.
    """
    shown = start + stride * np.arange(frames)
    puppet = make_identity(identity)
    puppet = puppet if body is None else replace(puppet, body=body)
    acted = _posed(puppet, motion, motion_kind or kind_of_motion(motion), shown)
    marks = face_landmarks(puppet.face, acted.motion.expression, acted.motion.yaw, acted.motion.pitch)
    place = _Placement(puppet, _checked_size(size))
    points = [_keypoints(acted.pose(k, puppet, marks[k]), place) for k in range(frames)]
    body_points, hands, faces = (np.stack([p[part] for p in points]) for part in range(3))
    return PoseTrack(
        body=body_points, hands=hands, face=faces, size=place.size, times=np.arange(frames) * stride / FPS,
        frame_index=np.arange(frames), source="puppet",
    )  # fmt: skip


def _directed(motion: Motion, expression: np.ndarray | None, yaw: np.ndarray | None) -> Motion:
    """The motion with a given expression and turn of the head."""
    if expression is not None:
        if np.shape(expression) != motion.expression.shape:
            raise ValueError(f"expression has shape {np.shape(expression)}; expected {motion.expression.shape}")
        motion = replace(motion, expression=np.asarray(expression, np.float64))
    if yaw is not None:
        if np.shape(yaw) != motion.yaw.shape:
            raise ValueError(f"yaw has shape {np.shape(yaw)}; expected {motion.yaw.shape}")
        motion = replace(motion, yaw=np.asarray(yaw, np.float64), pitch=np.zeros_like(motion.pitch))
    return motion


def _check_number(name: str, value: int, least: int) -> None:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise ValueError(f"{name} is {value!r}; expected a whole number from {least}") from error
    if number < least:
        raise ValueError(f"{name} is {value!r}; expected a whole number from {least}")


def _check_choice(name: str, value: str | None, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(str(choice) for choice in choices)}")


def _checked_size(size: tuple[int, int]) -> tuple[int, int]:
    try:
        height, width = (operator.index(side) for side in size)
    except (TypeError, ValueError) as error:
        raise ValueError(f"size is {size!r}; expected (height, width) in px, both whole numbers") from error
    if min(height, width) < _SMALLEST:
        raise ValueError(f"size is {size!r}; expected (height, width) of at least {_SMALLEST} px each")
    return height, width


def _scene_kind(seed: int) -> str:
    """Half of the seeds move."""
    rng = np.random.default_rng([303, 0, seed])
    kinds = DYNAMIC_SCENES if rng.uniform() < 0.5 else STATIC_SCENES
    return kinds[int(rng.integers(len(kinds)))]


def _make_scene(kind: str, seed: int, size: tuple[int, int]) -> Scene:
    rng = np.random.default_rng([303, 1, (*STATIC_SCENES, *DYNAMIC_SCENES).index(kind), seed])
    if kind in DYNAMIC_SCENES:
        return _MOVING[kind](size, rng)
    image = draw_static(kind, size, rng)
    return Scene(lambda time: image.copy(), np.zeros(size, bool))


def _scene_clip(
    images: list[np.ndarray], region: np.ndarray, scene_kind: str, *, start: int, stride: int
) -> PuppetClip:
    count, nothing = len(images), np.zeros((len(images), *region.shape), bool)
    return PuppetClip(
        frames=np.stack(images), body=missing_points(count, 18), hands=missing_points(count, 2, 21),
        face=missing_points(count, 68), mask=nothing, dynamic=np.repeat(region[None], count, 0),
        secondary=nothing.copy(), expression=np.zeros((count, len(EXPRESSIONS)), np.float32), fps=FPS / stride,
        scene_kind=scene_kind, motion_kind="none", kind="scene", start=start, stride=stride,
    )  # fmt: skip


class _Placement:
    """Where a figure stands in an image: px = origin + unit * figure heights."""

    def __init__(self, puppet: Identity, size: tuple[int, int]) -> None:
        height, width = size
        self.size = size
        self.unit = puppet.body.frame_share * min(height, 1.12 * width)
        self.origin = np.array([0.5 * width - 0.5, _GROUND * height - 0.5])

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) figure heights to (..., 3) px with confidence 1."""
        xy = self.origin + self.unit * points
        return np.concatenate([xy, np.ones_like(xy[..., :1])], -1).astype(np.float32)


@dataclass(frozen=True)
class _Act:
    """A motion on a puppet, at the shown frames."""

    motion: Motion
    skeleton: Skeleton
    hanging: Hanging

    def pose(self, k: int, puppet: Identity, landmarks: np.ndarray) -> Pose:
        body, s = puppet.body, self.skeleton
        head = Head(s.head[k], HEAD_WIDTH * body.head / 2, body.head / 2, float(s.head_angle[k]))
        return Pose(
            pelvis=s.pelvis[k], neck=s.neck[k], line=float(self.motion.lean[k] + self.motion.shrug[k]),
            spine=float(s.spine[k]), turn=float(np.cos(self.motion.twist[k])), hip=s.hip[k], knee=s.knee[k],
            ankle=s.ankle[k], shoulder=s.shoulder[k], elbow=s.elbow[k], wrist=s.wrist[k], hands=s.hands[k], head=head,
            landmarks=landmarks, expression=self.motion.expression[k],
            hanging={part: points[k] for part, points in self.hanging.items()},
        )  # fmt: skip


def _act(puppet: Identity, seed: int, kind: str, shown: np.ndarray) -> _Act:
    """Simulate from the world's beginning and keep the shown frames."""
    step = 1 / (FPS * _STEPS)
    times = np.arange(_STEPS * (int(shown[-1]) + 1) + 1) * step
    motion = make_motion(seed, kind, times)
    skeleton = make_skeleton(puppet.body, motion)
    rng = np.random.default_rng([202, 3, seed])
    speed, phase = rng.uniform(0.7, 1.6), rng.uniform(0, 2 * np.pi, 2)
    wind = 0.05 * np.sin(2.1 * speed * times + phase[0]) + 0.035 * np.sin(5.3 * speed * times + phase[1])
    hanging = hang(puppet, motion, skeleton, wind=wind, step=step)
    rows = _STEPS * shown
    return _Act(
        replace(motion, **{f.name: getattr(motion, f.name)[rows] for f in fields(motion)}),
        replace(skeleton, **{f.name: getattr(skeleton, f.name)[rows] for f in fields(skeleton)}),
        {part: points[rows] for part, points in hanging.items()},
    )


def _posed(puppet: Identity, seed: int, kind: str, shown: np.ndarray) -> _Act:
    """`_act` without what hangs: poses do not depend on what was before."""
    motion = make_motion(seed, kind, _STEPS * shown * (1 / (FPS * _STEPS)))
    return _Act(motion, make_skeleton(puppet.body, motion), {})


def _compose(
    under: np.ndarray, pose: Pose, puppet: Identity, face: Face, place: _Placement
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The image with the figure on it, and the figure's mask and that of hair and cloth."""
    height, width = place.size
    pixels = np.zeros((height * OVERSAMPLE, width * OVERSAMPLE, 4), np.uint8)
    label = np.zeros(pixels.shape[:2], np.uint8)
    canvas = Canvas(pixels, unit=place.unit, origin=tuple(place.origin), outline=_OUTLINE, label=label)
    draw_figure(canvas, pose, puppet, face)
    figure = canvas.image()
    cover = figure[..., 3]
    rest = 255 - cover.astype(np.uint16)
    image = figure[..., :3] + ((under * rest[..., None] + 127) // 255).astype(np.uint8)
    mask = cover >= 128
    return image, (mask, (label[::OVERSAMPLE, ::OVERSAMPLE] == 2) & mask)


def _keypoints(pose: Pose, place: _Placement) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Body (18, 3), hands (2, 21, 3) and face (68, 3) in px."""
    marks = pose.head.at(pose.landmarks)
    turn = pose.landmarks[27:31, 0].mean()
    ears = pose.head.at(np.array([(-1.0 - 0.1 * turn, 0.1), (1.0 - 0.1 * turn, 0.1)]))
    body = np.stack([
        marks[30], pose.neck, pose.shoulder[1], pose.elbow[1], pose.wrist[1], pose.shoulder[0], pose.elbow[0],
        pose.wrist[0], pose.hip[1], pose.knee[1], pose.ankle[1], pose.hip[0], pose.knee[0], pose.ankle[0],
        marks[36:42].mean(0), marks[42:48].mean(0), ears[0], ears[1],
    ])  # fmt: skip
    return (
        mark_outside(place.pixels(body), place.size),
        mark_outside(place.pixels(pose.hands), place.size),
        mark_face(place.pixels(marks), place.size),
    )
