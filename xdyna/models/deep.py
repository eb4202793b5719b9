"""Features of the deep levels, kept between denoising steps (DeepCache: Ma et al., arXiv 2312.00858, section 3.2).

The layers far from the UNet's input change little from one step to the next. A step in which they are kept runs only
the layers of the highest `depth` skip connections, on the way down and on the way up. Not exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass
class DeepFeatures:
    """What is kept of one window and branch.

    Attributes:
        depth: skip connections, counted from the highest resolution, whose layers run in every step; 1 or more.
        kept: input of the way up at the layer of the last of these, (B * F, C, H, W); None: not computed yet.
    """

    depth: int
    kept: Tensor | None = None


class DeepReuse:
    """The deep features of all windows of a video.

    They hold what motion modules and joint norms mixed over the frames of one window, so they are kept per window, not
    per frame: a frame's features in other company are others. Where windows move from one step to the next, all is
    computed anew; so that this does not happen, the windows of a step with new features hold until the next such step
    (`Windows.hold`). Which steps these are follows from the step's number alone, so that a continued run has the same.

    Args:
        interval: every so many steps, all layers run; 1 keeps nothing.
        depth: see `DeepFeatures`.
    """

    def __init__(self, interval: int, depth: int) -> None:
        self.interval, self.depth = interval, depth
        self._windows: list[tuple[int, ...]] = []
        self._rows = 0
        self._kept: dict[tuple[int, int], DeepFeatures] = {}

    def start(self, step: int, windows: Sequence[Sequence[int]], rows: int) -> int | None:
        """Begin a step.

        Args:
            step: its number.
            windows: frame numbers of its windows.
            rows: branches of guidance.

        Returns:
            int | None: skip connections whose residuals are read in this step; None for all.
        """
        found = [tuple(window) for window in windows]
        if step % self.interval == 0 or found != self._windows or rows != self._rows:
            self._kept.clear()
            self._windows, self._rows = found, rows
            return None
        return self.depth

    def of(self, window: Sequence[int], branch: int = 0) -> DeepFeatures | None:
        """What is kept of a window of the running step; None where nothing ever is."""
        if self.interval == 1:
            return None
        number = self._windows.index(tuple(window))
        return self._kept.setdefault((number, branch), DeepFeatures(self.depth))
