"""Guards of a running training: losses that are not finite or jump, and the wish to stop."""

import enum
import json
import logging
import math
import statistics
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xdyna.core.atomic import write_file
from xdyna.training.errors import NonFiniteLossError, TrainingError

POLICIES = ("stop", "skip")
SKIPS_IN_A_ROW = 10  # then the weights themselves are broken, and skipping would go on for ever
LEAST_HISTORY = 8  # losses before a jump can be told from noise

log = logging.getLogger(__name__)


class Verdict(enum.StrEnum):
    """What to do with a batch: take the step, leave it out, or take it and know that the loss jumped."""

    OK = "ok"
    SKIP = "skip"
    SPIKE = "spike"


class LossGuard:
    """Looks at every loss before the step is taken.

    Args:
        run_dir: folder of the run; bad batches are written to its `bad_batches/`.
        policy: "stop" raises on NaN and infinity, "skip" says to leave the batch out (ten in a row stop all the same).
        spike_factor: a loss above this many times the running median is a spike; > 1.
        window: losses that the median is taken over.
        rank: of this process; part of the file's name.

    Raises:
        TrainingError: an unknown policy or a value out of range.
    """

    def __init__(self, run_dir: Path, *, policy: str, spike_factor: float, window: int = 100, rank: int = 0) -> None:
        if policy not in POLICIES:
            raise TrainingError(f"policy for non-finite losses is {policy!r}, expected one of {', '.join(POLICIES)}")
        if not spike_factor > 1:
            raise TrainingError(f"spike_factor is {spike_factor}, expected more than 1, for example 5")
        if window < LEAST_HISTORY:
            raise TrainingError(f"window of the loss guard is {window}, expected {LEAST_HISTORY} or more losses")
        self.run_dir, self.policy, self.spike_factor, self.rank = run_dir, policy, spike_factor, rank
        self._history: deque[float] = deque(maxlen=window)
        self._skipped = 0

    def check(self, loss: float, *, step: int, ids: Sequence[Any]) -> Verdict:
        """Judge one loss.

        Args:
            loss: of the batch. With several processes, the mean over all, so that all come to the same verdict.
            step: the step it is for.
            ids: what this process's batch was made of; anything JSON or `str` can write.

        Returns:
            Verdict: SKIP only with policy "skip".

        Raises:
            NonFiniteLossError: NaN or infinity with policy "stop", or the tenth in a row with "skip".
            TrainingError: the batch cannot be written to the run's folder.
        """
        median = statistics.median(self._history) if len(self._history) >= LEAST_HISTORY else None
        if not math.isfinite(loss):
            return self._bad(loss, step=step, ids=ids, median=median)
        self._skipped = 0
        self._history.append(loss)
        if median is not None and loss > self.spike_factor * median:
            log.warning("step %d: loss %.4g is more than %g x the median %.4g", step, loss, self.spike_factor, median)
            return Verdict.SPIKE
        return Verdict.OK

    def _bad(self, loss: float, *, step: int, ids: Sequence[Any], median: float | None) -> Verdict:
        name = f"step-{step}.json" if self.rank == 0 else f"step-{step}-rank-{self.rank}.json"
        path = self.run_dir / "bad_batches" / name
        entries = {"step": step, "rank": self.rank, "loss": str(loss), "ids": list(ids)}
        entries |= {"median": median, "losses_before": list(self._history)}
        try:
            write_file(path, (json.dumps(entries, indent=1, default=str) + "\n").encode())
        except OSError as error:
            raise TrainingError(f"the loss of step {step} is {loss}; {path} cannot be written ({error})") from error
        self._skipped += 1
        shown = ", ".join(str(i) for i in ids[:16]) + (", ..." if len(ids) > 16 else "")
        if self.policy == "stop":
            raise NonFiniteLossError(
                f"the loss of step {step} is {loss}, expected a finite number; batch: {shown}; written to {path}. "
                "Resume from the last checkpoint with a lower learning rate or in float32 or bfloat16, or leave such "
                "batches out (policy skip)"
            )
        if self._skipped >= SKIPS_IN_A_ROW:
            raise NonFiniteLossError(
                f"the losses of {self._skipped} steps in a row up to step {step} are not finite (now {loss}); last "
                f"batch: {shown}; written to {path}. The weights have diverged: resume from an earlier checkpoint "
                "with a lower learning rate"
            )
        log.warning("step %d: loss %s, batch left out; written to %s", step, loss, path)
        return Verdict.SKIP

    def state_dict(self) -> dict[str, Any]:
        """What `check` remembers; plain values."""
        return {"history": list(self._history), "skipped": self._skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._history.clear()
        self._history.extend(state["history"])
        self._skipped = state["skipped"]
