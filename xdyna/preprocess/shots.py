"""Shots and the windows in them that become clips, found while the frames stream by."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from xdyna.config.data import DataError
from xdyna.config.preprocess import PreprocessOptions
from xdyna.core.install import install_xdyna

_ANY_RATE = 25.0  # frames are numbered here; the detector asks for a rate all the same


@dataclass(frozen=True)
class Window:
    """Consecutive frames of one shot.

    Attributes:
        start: first frame in the video.
        frames: uint8 (T, h, w, 3) RGB, small and cropped.
        shot: frames of the shot up to the end of this window.
    """

    start: int
    frames: np.ndarray
    shot: int


class CutFinder:
    """Cuts between shots by PySceneDetect's adaptive detector, fed frame by frame.

    Args:
        options: thresholds.

    Attributes:
        delay: a cut is reported at most so many frames after its first frame was fed.

    Raises:
        DataError: PySceneDetect is not installed.
    """

    def __init__(self, options: PreprocessOptions) -> None:
        try:
            import scenedetect
        except ImportError as error:
            raise DataError(f"cutting shots needs scenedetect ({error}); run: {install_xdyna('data')}") from error
        self._timecode = scenedetect.FrameTimecode
        # A length of 1: every cut counts. The detector's own least length would leave cuts inside of shots.
        self._detector = scenedetect.AdaptiveDetector(
            adaptive_threshold=options.cut_ratio, min_content_val=options.cut_change, min_scene_len=1
        )
        self.delay = self._detector.event_buffer_length
        self._fed = 0
        self._latest: deque[np.ndarray] = deque(maxlen=self.delay + 1)

    def feed(self, frame: np.ndarray) -> list[int]:
        """Look at the next frame.

        Args:
            frame: uint8 (h, w, 3) RGB.

        Returns:
            Frames, counted from 0 as they are fed, with which a new shot begins.
        """
        if not self._latest:  # the detector compares a frame with those around it: the first ones need some before
            for _ in range(self.delay):
                self._process(frame)
        self._latest.append(frame)
        return self._process(frame)

    def finish(self) -> list[int]:
        """Cuts among the last frames; as if the video then ran backwards, so that they too have frames behind them."""
        behind = [*self._latest][-2::-1] or [*self._latest] * self.delay
        return [cut for frame in behind for cut in self._process(frame)]

    def _process(self, frame: np.ndarray) -> list[int]:
        cuts = self._detector.process_frame(
            self._timecode(self._fed, _ANY_RATE), np.ascontiguousarray(frame[..., ::-1])
        )
        self._fed += 1
        return [cut.frame_num - self.delay for cut in cuts]


def find_windows(frames: Iterable[np.ndarray], options: PreprocessOptions) -> Iterator[Window]:
    """Cut a stream of frames into windows of at most `max_frames` that never hold a cut.

    A shot gives as many full windows as fit and what is left over. Every frame is in exactly one window; those that are
    too short are marked. At most `max_frames` frames and a few more are held.

    Args:
        frames: uint8 (h, w, 3) RGB, all frames of the video in turn.
        options: lengths and thresholds.

    Yields:
        Windows in order.

    Raises:
        DataError: see `CutFinder`.
    """
    finder = CutFinder(options)
    held: list[np.ndarray] = []
    start = shot = 0  # of the first held frame, and of its shot

    def window(length: int) -> Window:
        nonlocal start
        taken = np.stack(held[:length])
        del held[:length]
        start += length
        return Window(start - length, taken, start - shot)

    def up_to(cut: int) -> Iterator[Window]:
        nonlocal shot
        while start < cut:
            yield window(min(options.max_frames, cut - start))
        shot = cut

    for frame in frames:
        cuts = finder.feed(frame)
        held.append(frame)
        for cut in cuts:
            yield from up_to(cut)
        while len(held) >= options.max_frames + finder.delay + 1:  # no cut can come inside of it any more
            yield window(options.max_frames)
    for cut in (*finder.finish(), start + len(held)):
        yield from up_to(cut)
