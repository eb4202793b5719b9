"""Made-up footage: coloured blocks are people, and a backend that sees them and nothing else."""

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from xdyna.media import VideoWriter
from xdyna.perception import Person

JOINTS = np.array(
    [
        [0.5, 0.12], [0.5, 0.2], [0.2, 0.25], [0.1, 0.4], [0.05, 0.55], [0.8, 0.25], [0.9, 0.4], [0.95, 0.55],
        [0.35, 0.55], [0.35, 0.75], [0.3, 0.95], [0.65, 0.55], [0.65, 0.75], [0.7, 0.95],
        [0.45, 0.06], [0.55, 0.06], [0.4, 0.08], [0.6, 0.08],
    ]
)  # fmt: skip
"""Where the 18 joints lie in a person's block, in [0, 1]."""

BRIGHT = 230
Block = tuple[int, int, int, int]  # left, top, right, bottom


def backdrop(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """A grey image with corners and soft shades, uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(60, 200, (size[0] // 8 + 1, size[1] // 8 + 1), dtype=np.uint8)
    grey = cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    return np.repeat(grey[..., None], 3, axis=2)


def put_person(
    frame: np.ndarray, block: Block, *, channel: int = 0, sure: float = 0.9, face: bool = True, hidden: float = 0.0
) -> np.ndarray:
    """A copy of the frame with a person; `hidden` of the lower part is covered in white."""
    left, top, right, bottom = block
    frame = frame.copy()
    color = np.full(3, 20)
    color[channel] = round(100 + sure * 155)
    frame[top:bottom, left:right] = color
    if face:
        middle, row = (left + right) // 2, top + (bottom - top) // 8
        frame[row - 3 : row + 3, middle - 4 : middle + 4, 2] = BRIGHT
    if hidden:
        frame[round(bottom - hidden * (bottom - top)) : bottom, left:right] = 250
    return frame


class BlockBackend:
    """Sees red and green blocks as people. A joint that is covered is not seen, blue on the head is a face."""

    name = "blocks"
    version = "1"

    def detect(self, frame: np.ndarray) -> list[Person]:
        people = []
        for channel in (0, 1):
            rows, columns = np.nonzero(self._block(frame, channel))
            if len(rows) > 60:
                people.append(self._person(frame, channel, np.array([columns.min(), rows.min(),
                                                                     columns.max() + 1, rows.max() + 1])))  # fmt: skip
        return sorted(people, key=lambda person: -person.area)

    def segment(self, frame: np.ndarray) -> np.ndarray:
        return (self._block(frame, 0) | self._block(frame, 1)).astype(np.float32)

    @staticmethod
    def _block(frame: np.ndarray, channel: int) -> np.ndarray:
        other = frame[..., 1 - channel].astype(np.int16)
        return (frame[..., channel] > other + 60) & (other < 90)

    def _person(self, frame: np.ndarray, channel: int, box: np.ndarray) -> Person:
        seen = self._block(frame, channel)
        # A block whose lower part is covered is still as tall as it was: three times as tall as broad.
        width = box[2] - box[0]
        body = np.zeros((18, 3), np.float32)
        for joint, (x, y) in enumerate(JOINTS):
            column, row = box[0] + x * width, box[1] + y * 2 * width
            if row < frame.shape[0] and seen[int(row), min(int(column), frame.shape[1] - 1)]:
                body[joint] = column, row, np.clip((int(frame[int(row), int(column), channel]) - 100) / 155, 0.01, 1)
        head = frame[box[1] : box[1] + width // 2, box[0] : box[2], 2] > 150
        face = np.zeros((68, 3), np.float32)
        if head.sum() > 20:
            rows, columns = np.nonzero(head)
            face[:] = columns.mean() + box[0], rows.mean() + box[1], 1
        return Person(body=body, hands=np.zeros((2, 21, 3), np.float32), face=face, box=box.astype(np.float32),
                      score=0.9)  # fmt: skip


def write_video(path: Path, frames: Iterable[np.ndarray], *, fps: int = 12) -> Path:
    frames = list(frames)
    with VideoWriter(path, fps=fps, size=frames[0].shape[:2]) as writer:
        for frame in frames:
            writer.write(frame)
    return path
