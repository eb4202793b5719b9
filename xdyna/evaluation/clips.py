"""Which frames of a video a network of clips sees. The choice is data: a protocol, applied to every video alike."""

from dataclasses import dataclass

import numpy as np

CHOICES = ("first", "centre", "uniform", "seeded", "windows")
SHORT = ("loop", "repeat_last", "error")


@dataclass
class ClipProtocol:
    """Frames of a clip.

    Attributes:
        frames: N, frames of a clip.
        choice: "first" N frames; the "centre" N; N spread over the whole video ("uniform": first and last included); a
            "seeded" start, the same for a video of this length in every run; or all "windows": consecutive clips
            without overlap, what remains at the end is left out.
        stride: step between frames ("uniform" has its own).
        short: videos that are too short "loop" from their start, "repeat_last" frame, or are an "error".
        seed: of "seeded".

    Raises:
        ValueError: a value out of range.
    """

    frames: int = 16
    choice: str = "first"
    stride: int = 1
    short: str = "loop"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.choice not in CHOICES:
            raise ValueError(f"clip choice is {self.choice!r}, expected one of {', '.join(CHOICES)}")
        if self.short not in SHORT:
            raise ValueError(f"policy for short videos is {self.short!r}, expected one of {', '.join(SHORT)}")
        if self.frames < 1 or self.stride < 1:
            raise ValueError(f"clips of {self.frames} frames at stride {self.stride}: expected at least 1 each")

    @property
    def span(self) -> int:
        """Frames of the video that a clip reaches over."""
        return (self.frames - 1) * self.stride + 1

    def is_short(self, length: int) -> bool:
        """Whether a video of so many frames does not fill one clip."""
        return length < (self.frames if self.choice == "uniform" else self.span)

    def indices(self, length: int) -> list[np.ndarray]:
        """Frame numbers of the clips of a video.

        Args:
            length: its frames, at least 1.

        Returns:
            int arrays of `frames` numbers below `length`; one clip, or several for "windows".

        Raises:
            ValueError: no frames, or too few with short="error".
        """
        if length < 1:
            raise ValueError("a video without frames has no clips")
        if self.is_short(length):
            if self.short == "error":
                raise ValueError(f"the video has {length} frames, the protocol needs {self.span}; allow short='loop'")
            steps = np.arange(self.frames) * (1 if self.choice == "uniform" else self.stride)
            return [steps % length if self.short == "loop" else steps.clip(max=length - 1)]
        if self.choice == "uniform":
            return [np.linspace(0, length - 1, self.frames).round().astype(np.int64)]
        steps, free = np.arange(self.frames) * self.stride, length - self.span
        starts = {
            "first": [0],
            "centre": [free // 2],
            "seeded": [int(np.random.default_rng([self.seed, length]).integers(free + 1))],
            "windows": list(range(0, free + 1, self.span)),
        }[self.choice]
        return [start + steps for start in starts]
