"""The guard of a running training: losses and gradients that are not finite, losses that jump, norms that do."""

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
OVERFLOWS_IN_A_ROW = 40  # of scaled losses: each halves the scale, and 2^-24 is the least that float16 holds
LEAST_HISTORY = 8  # steps before a jump can be told from noise
NORM_QUANTILE = 0.9  # of the running norms, which a cap is relative to

log = logging.getLogger(__name__)


class Verdict(enum.StrEnum):
    """What to do with a step: take it, leave it out, or have taken it and know that the loss jumped."""

    OK = "ok"
    SKIP = "skip"
    SPIKE = "spike"


class StepGuard:
    """Looks at the losses and the gradient norm of every step before it is taken.

    Args:
        run_dir: folder of the run; bad batches are written to its `bad_batches/`.
        policy: "stop" raises on NaN and infinity, "skip" says to leave the step out (ten in a row stop all the same).
        spike_factor: a loss above this many times the running median is a spike; > 1.
        window: steps that the running median and quantile are taken over.
        rank: of this process; part of the file's name.
        norm_ratio: largest gradient norm relative to the running `NORM_QUANTILE` of the norms, > 1; None for no cap.
        scaled: losses are scaled (float16): gradients that overflow are ordinary, the scale is lowered for them.

    Raises:
        TrainingError: an unknown policy or a value out of range.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        policy: str,
        spike_factor: float,
        window: int = 100,
        rank: int = 0,
        norm_ratio: float | None = None,
        scaled: bool = False,
    ) -> None:
        if policy not in POLICIES:
            raise TrainingError(f"policy for non-finite losses is {policy!r}, expected one of {', '.join(POLICIES)}")
        if not spike_factor > 1:
            raise TrainingError(f"spike_factor is {spike_factor}, expected more than 1, for example 5")
        if window < LEAST_HISTORY:
            raise TrainingError(f"window of the guard is {window}, expected {LEAST_HISTORY} or more steps")
        self.run_dir, self.policy, self.spike_factor, self.rank = run_dir, policy, spike_factor, rank
        self.norm_ratio, self.scaled = norm_ratio, scaled
        self._losses: deque[float] = deque(maxlen=window)
        self._norms: deque[float] = deque(maxlen=window)
        self._skipped = 0

    def check(self, losses: Sequence[float], norm: float | None, *, step: int, ids: Sequence[Sequence[Any]]) -> Verdict:
        """Judge a step that is not taken yet.

        Args:
            losses: of its micro-steps. With several processes, the means over all, so that all come to the same
                verdict.
            norm: of all gradients together, unscaled and not clipped; None where it is not known yet.
            step: its number.
            ids: what this process's batches were made of, one entry per loss; anything JSON or `str` can write.

        Returns:
            Verdict: OK, or SKIP (with policy "skip", or where gradients overflowed that are scaled).

        Raises:
            NonFiniteLossError: NaN or infinity with policy "stop", or the tenth such step in a row with "skip".
            TrainingError: the batch cannot be written to the run's folder.
        """
        for loss, batch in zip(losses, ids, strict=True):
            if not math.isfinite(loss):
                return self._bad(f"loss is {loss}", step=step, ids=batch)
        if norm is not None and not math.isfinite(norm):
            every = [entry for batch in ids for entry in batch]
            if self.scaled and self._skipped + 1 < OVERFLOWS_IN_A_ROW:
                self._skipped += 1
                log.info("step %d: gradients overflow, step left out; the loss scale is lowered", step)
                return Verdict.SKIP
            return self._bad(f"gradient norm is {norm}", step=step, ids=every)
        return Verdict.OK

    def taken(self, loss: float, norm: float, *, step: int) -> Verdict:
        """Remember a step that was taken. Returns: OK, or SPIKE where the loss jumped."""
        median = statistics.median(self._losses) if len(self._losses) >= LEAST_HISTORY else None
        self._skipped = 0
        self._losses.append(loss)
        self._norms.append(norm)
        if median is not None and loss > self.spike_factor * median:
            log.warning("step %d: loss %.4g is more than %g x the median %.4g", step, loss, self.spike_factor, median)
            return Verdict.SPIKE
        return Verdict.OK

    def largest_norm(self, clip: float) -> float:
        """What the gradients of the present step are clipped to.

        Args:
            clip: largest norm by the settings; 0 for none.

        Returns:
            float: `clip`, or `norm_ratio` times the running quantile of the norms where that is less; infinity for no
            limit.
        """
        largest = clip or math.inf
        if self.norm_ratio is None or len(self._norms) < LEAST_HISTORY:
            return largest
        ordered = sorted(self._norms)
        return min(largest, self.norm_ratio * ordered[math.ceil(NORM_QUANTILE * len(ordered)) - 1])

    def _bad(self, what: str, *, step: int, ids: Sequence[Any]) -> Verdict:
        name = f"step-{step}.json" if self.rank == 0 else f"step-{step}-rank-{self.rank}.json"
        path = self.run_dir / "bad_batches" / name
        entries = {"step": step, "rank": self.rank, "what": what, "ids": list(ids)}
        entries |= {"losses_before": list(self._losses), "norms_before": list(self._norms)}
        try:
            write_file(path, (json.dumps(entries, indent=1, default=str) + "\n").encode())
        except OSError as error:
            raise TrainingError(f"the {what} in step {step}; {path} cannot be written ({error})") from error
        self._skipped += 1
        shown = ", ".join(str(i) for i in ids[:16]) + (", ..." if len(ids) > 16 else "")
        if self.policy == "stop":
            raise NonFiniteLossError(
                f"the {what} in step {step}, expected a finite number; batch: {shown}; written to {path}. The step was "
                "not taken. Resume from the last checkpoint with a lower learning rate or in float32 or bfloat16, or "
                "leave such steps out (on_nan=skip)"
            )
        if self._skipped >= SKIPS_IN_A_ROW:
            raise NonFiniteLossError(
                f"{self._skipped} steps in a row up to step {step} had losses or gradients that are not finite (now "
                f"the {what}); last batch: {shown}; written to {path}. The weights have diverged: resume from an "
                "earlier checkpoint with a lower learning rate"
            )
        log.warning("step %d: the %s, step left out; written to %s", step, what, path)
        return Verdict.SKIP

    def state_dict(self) -> dict[str, Any]:
        """What the guard remembers; plain values."""
        return {"losses": list(self._losses), "norms": list(self._norms), "skipped": self._skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        for memory, name in ((self._losses, "losses"), (self._norms, "norms")):
            memory.clear()
            memory.extend(state[name])
        self._skipped = state["skipped"]
