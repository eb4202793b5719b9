"""How long work tells where it stands, and how it is cancelled: by callbacks, whoever calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tqdm import tqdm

if TYPE_CHECKING:
    import numpy as np

Progress = Callable[[str, int, int], None]
"""Called as (stage, done, total), for example ("denoising", 3, 10)."""


class CancelledError(RuntimeError):
    """The caller's `cancel` said to stop; what can be continued later was kept."""


@dataclass(frozen=True)
class Watch:
    """The caller's callbacks.

    Attributes:
        progress: told how far each stage is; None for nobody.
        cancel: asked between the parts of a stage; True stops. None never stops.
        tell: given each note and warning as one sentence; None for nobody.
        show: given the frame in the middle as it stands after each denoising step, uint8 (H, W, 3): noisy at first.
            Each costs the decoding of one frame; None for nobody.
    """

    progress: Progress | None = None
    cancel: Callable[[], bool] | None = None
    tell: Callable[[str], None] | None = None
    show: Callable[[np.ndarray], None] | None = None

    def step(self, stage: str, done: int, total: int) -> None:
        """Report a part of a stage.

        Raises:
            CancelledError: the caller wants to stop.
        """
        if self.progress is not None:
            self.progress(stage, done, total)
        if self.cancel is not None and done < total and self.cancel():
            raise CancelledError(f"cancelled while {stage} ({done} of {total})")

    def say(self, text: str) -> None:
        """Hand over one sentence."""
        if self.tell is not None:
            self.tell(text)


class Bars:
    """Progress as bars on the terminal, with the time that remains; one per stage, the next replaces the last.

    Args:
        units: of the stages, for the bars; "it" where none is named.
    """

    def __init__(self, units: dict[str, str]) -> None:
        self.units = units
        self._bar: tqdm | None = None
        self._stage = ""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """See `Progress`."""
        if self._bar is None or stage != self._stage or done < self._bar.n:
            self.close()
            self._bar, self._stage = tqdm(desc=stage, total=total, unit=self.units.get(stage, "it")), stage
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        if done >= total:
            self.close()

    def close(self) -> None:
        """End the bar that is shown, if any."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
