"""Frames of a video that are decoded when they are asked for, so that memory does not grow with the video.

Shape legend: T frames, H W pixels.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import cv2
import numpy as np

BLOCK = 16  # frames that are decoded at once
KEPT_BYTES = 256 * 2**20  # of decoded frames per video: shorter videos are decoded once


class VideoError(ValueError):
    """A video that could be opened breaks when it is decoded."""


class FrameSequence(Protocol):
    """What metrics see of a video: an array uint8 (T, H, W, 3), or what behaves like one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, H, W, 3)."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def __getitem__(self, index: Any, /) -> Any: ...


class LazyFrames(abc.ABC):
    """uint8 (T, H, W, 3), frame by frame. An index gives a frame; a slice, numbers or booleans give an array.

    Args:
        shape: (T, H, W, 3).
    """

    ndim, dtype = 4, np.dtype(np.uint8)

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    @abc.abstractmethod
    def frame(self, number: int) -> np.ndarray:
        """Frame `number` of 0 to T - 1, uint8 (H, W, 3)."""

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.frame(number) for number in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        chosen = np.arange(len(self))[index]  # an IndexError where it is out of range
        if chosen.ndim == 0:
            return self.frame(int(chosen))
        out = np.empty((len(chosen), *self.shape[1:]), np.uint8)
        for row, number in enumerate(chosen):
            out[row] = self.frame(int(number))
        return out


class Decoded(LazyFrames):
    """Frames of a file or folder.

    Args:
        read: decodes the frames of a range, in order.
        shape: (T, H, W, 3).
        name: how messages call the video.
    """

    def __init__(self, read: Callable[[range], Iterable[np.ndarray]], shape: tuple[int, ...], name: str) -> None:
        super().__init__(shape)
        self._read, self._name = read, name
        self._blocks: dict[int, list[np.ndarray]] = {}  # the least recently used first

    def frame(self, number: int) -> np.ndarray:
        """See `LazyFrames.frame`.

        Raises:
            VideoError: it cannot be decoded, or has another size than the first.
        """
        block = number // BLOCK
        frames = self._blocks.pop(block, None)
        if frames is None:
            frames = self._decode(range(block * BLOCK, min((block + 1) * BLOCK, len(self))))
            while self._blocks and (len(self._blocks) + 1) * BLOCK * frames[0].nbytes > KEPT_BYTES:
                del self._blocks[next(iter(self._blocks))]
        self._blocks[block] = frames
        return frames[number % BLOCK]

    def _decode(self, wanted: range) -> list[np.ndarray]:
        try:
            frames = list(self._read(wanted))
        except (ValueError, OSError) as error:
            raise VideoError(str(error)) from error
        if len(frames) < len(wanted):
            raise VideoError(f"'{self._name}' ends after {wanted.start + len(frames)} of {len(self)} frames")
        if any(frame.shape != self.shape[1:] for frame in frames):
            raise VideoError(f"'{self._name}' has images of several sizes; expected the frames of one video")
        return frames


class Part(LazyFrames):
    """The first frames of a sequence, in another size (bilinear without antialiasing, as published protocols do).

    Args:
        frames: the sequence.
        length: how many of them.
        size: (H, W) in px.
    """

    def __init__(self, frames: FrameSequence, length: int, size: tuple[int, int]) -> None:
        super().__init__((length, *size, 3))
        self._frames = frames

    def frame(self, number: int) -> np.ndarray:
        """See `LazyFrames.frame`."""
        frame, (height, width) = self._frames[number], self.shape[1:3]
        if frame.shape[:2] == (height, width):
            return np.asarray(frame)
        return np.asarray(cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR))
