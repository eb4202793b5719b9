"""Made-up tracks, and a backend that reads people from the colours of a made-up video."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from xdyna.media import VideoWriter
from xdyna.perception import Person, PoseTrack


def build_track(count: int = 5, *, size: tuple[int, int] = (120, 80), seed: int = 0) -> PoseTrack:
    rng = np.random.default_rng(seed)

    def points(*shape: int) -> np.ndarray:
        values = rng.uniform(1, [size[1] - 1, size[0] - 1, 1], (count, *shape, 3)).astype(np.float32)
        values[..., 2] = rng.uniform(0.05, 1, values.shape[:-1])
        return values

    body = points(18)
    body[:, 3] = 0  # one joint that is never seen
    return PoseTrack(
        body=body,
        hands=points(2, 21),
        face=points(68),
        size=size,
        times=np.arange(count) / 8,
        frame_index=np.arange(count) * 2,
        source="a.mp4",
    )


@pytest.fixture(scope="session")
def make_track() -> Callable[..., PoseTrack]:
    """Makes tracks of random points with confidences above 0; joint 3 of the body is missing."""
    return build_track


class ColorBackend:
    """A backend for made-up videos: a red, a green and a blue rectangle are people. Counts its calls."""

    name = "color"
    version = "1"

    def __init__(self) -> None:
        self.calls = 0

    def detect(self, frame: np.ndarray) -> list[Person]:
        self.calls += 1
        people = []
        for channel in range(3):
            others = np.delete(frame, channel, axis=2).max(axis=2)
            ys, xs = np.nonzero((frame[..., channel] > 150) & (others < 100))
            if len(xs) > 30:
                people.append(rectangle_person(xs.min(), ys.min(), xs.max(), ys.max()))
        return sorted(people, key=lambda person: -person.area)


def rectangle_person(left: float, top: float, right: float, bottom: float) -> Person:
    """A person standing in a box: joints spread over it, the hands at the wrists, the face at the top."""
    body = np.ones((18, 3), np.float32)
    body[:, 0] = np.linspace(left, right, 18)
    body[:, 1] = np.linspace(top, bottom, 18)
    hands = np.ones((2, 21, 3), np.float32)
    for side, wrist in enumerate((7, 4)):
        hands[side, :, :2] = body[wrist, :2] + np.stack([np.arange(21), np.arange(21) % 5], axis=1)
    face = np.ones((68, 3), np.float32)
    face[:, :2] = [(left + right) / 2, top]
    box = np.array([left, top, right, bottom], np.float32)
    return Person(body=body, hands=hands, face=face, box=box, score=0.9)


@pytest.fixture
def color_backend() -> ColorBackend:
    """A new `ColorBackend`."""
    return ColorBackend()


@pytest.fixture
def make_people() -> Callable[..., Person]:
    """Makes a person of a box (left, top, right, bottom)."""
    return rectangle_person


@pytest.fixture
def make_video(tmp_path: Path) -> Callable[..., Path]:
    """Writes a video: for each frame a list of (colour 0-2, left, top, right, bottom)."""

    def make(frames: list[list[tuple[int, int, int, int, int]]], *, name: str = "drive.mp4", fps: int = 8) -> Path:
        with VideoWriter(tmp_path / name, fps=fps, size=(160, 240)) as writer:
            for boxes in frames:
                image = np.zeros((160, 240, 3), np.uint8)
                for channel, left, top, right, bottom in boxes:
                    image[top:bottom, left:right, channel] = 255
                writer.write(image)
        return tmp_path / name

    return make
