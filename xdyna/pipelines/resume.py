"""Where the tensors of a clip stand while it is sampled: in memory, or in files that outlive the process.

A folder beside the output, `NAME.partial`, holds the latents, the predictions of the running step's windows and the
frames that are decoded; `state.json` in it says which of these are complete, and has a fingerprint of everything that
decides the result. What it speaks of was flushed to the disk before, and is not written to until it speaks of
something else: after a kill -9 or a power cut the same command goes on from there and ends with the same bytes. Noise
and window offsets follow from the seed.
"""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from xdyna.core.atomic import flush, write_file
from xdyna.core.errors import writing_error
from xdyna.core.ranks import Ranks
from xdyna.core.scratch import mapped
from xdyna.pipelines.solvers import SolverState

SECONDS_BETWEEN_WRITES = 60.0  # at most; a write that takes a moment is made more often
SHARE_OF_TIME = 0.02  # that writes may take
BLOCK = 32  # frames that are worked on at a time where the whole clip would be too much


def fingerprint(entries: dict[str, Any]) -> str:
    """A hash of all values that decide the result."""
    return hashlib.sha256(json.dumps(entries, sort_keys=True, default=str).encode()).hexdigest()


def blocks(frames: int, size: int = BLOCK) -> Iterator[slice]:
    """The frames of a clip, some at a time."""
    return (slice(start, min(start + size, frames)) for start in range(0, frames, size))


def partial_folder(output: Path) -> Path:
    """Where the partial result of an output lies."""
    return output.with_name(f"{output.stem}.partial")


def chosen_before(output: Path) -> dict[str, Any]:
    """What an interrupted run of this output has chosen, to be chosen again; empty where there is none."""
    try:
        found = json.loads((partial_folder(output) / "state.json").read_text())["choices"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


class ClipStore:
    """Where a clip's tensors stand and how far it is: here in memory, nothing is kept.

    Args:
        ranks: processes that sample the clip together.

    Attributes:
        offsets: of the windows of each step, once they are drawn; see `xdyna.diffusion.windows`.
    """

    on_disk = False

    def __init__(self, ranks: Ranks | None = None) -> None:
        self.ranks = ranks or Ranks()
        self.offsets: list[int] = []

    def empty(self, name: str, shape: Sequence[int], *, like: Tensor) -> Tensor:
        """A tensor to write to, float32.

        Args:
            name: what it is; on disk there is one of each name.
            shape: of the tensor.
            like: on whose device it is, where it is in memory.
        """
        return torch.empty(tuple(shape), device=like.device)

    def latents(self, like: Tensor) -> Tensor:
        """Where the latents after a step are written to, float32 of the shape of `like`; never those before it."""
        return self.empty("latents", like.shape, like=like)

    def done(self, step: int) -> set[int]:
        """Parts of a step's predictions that an earlier process has made; see `predict_noise`."""
        return set()

    def add(self, step: int, parts: Iterable[int]) -> None:
        """Parts of a step's predictions were written."""


@dataclass
class State:
    """How far a clip is.

    Attributes:
        steps: finished steps.
        parts: finished parts of the next step.
        buffer: which latents are those after `steps` steps; None before the first.
        frames: decoded frames.
        sizes: of the files in bytes.
        solver: values that the solver remembers, see `SolverState`; its tensors are in a file.
    """

    steps: int = 0
    parts: list[int] = field(default_factory=list)
    buffer: int | None = None
    frames: int = 0
    choices: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    solver: str | None = None


class PartialRun(ClipStore):
    """A clip's tensors in the folder beside its output.

    Args:
        output: the final file; the folder is removed by `remove`.
        key: fingerprint of the run; a partial result with another one is not used.
        ranks: processes that sample the clip together; process 0 keeps the partial result.
        keep: False where a partial result is of no use, for temporary files; then this is working space alone.
        choices: what the program has chosen where the settings left it to it, see `chosen_before`; JSON values.
    """

    on_disk = True

    def __init__(
        self,
        output: Path,
        key: str,
        *,
        ranks: Ranks | None = None,
        keep: bool = True,
        choices: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(ranks)
        self.folder = partial_folder(output)
        self.key, self.keep = key, keep
        found = self._read() if keep else None
        self.state = State(**self.ranks.share(asdict(found or State(choices=choices or {}))))
        self._saved = found or State()
        self._changed, self._whole = False, True
        self.within_steps = True  # whether a run may go on from the middle of a step
        self._tensors: dict[str, Tensor] | None = None
        self._last = self.state.buffer
        self._written, self._pause = time.monotonic(), 0.0
        if found is None:
            with suppress(FileNotFoundError):
                shutil.rmtree(self.folder)

    def _read(self) -> State | None:
        """What is on the disk; None when there is nothing to go on from: the run starts from the beginning."""
        try:
            stored = json.loads((self.folder / "state.json").read_text())
            if stored.pop("key") != self.key:
                return None
            state = State(**stored)
            complete = all((self.folder / name).stat().st_size >= size for name, size in state.sizes.items())
            return state if complete else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _map(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        path = self.folder / name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("r+b" if path.exists() else "w+b") as file:
                return mapped(file, shape, dtype)
        except OSError as error:
            raise writing_error(error, path) from error

    def empty(self, name: str, shape: Sequence[int], *, like: Tensor) -> Tensor:
        """See `ClipStore.empty`; on the CPU. One that was there already keeps its numbers.

        Raises:
            FileError: the disk is full.
        """
        return self._map(name, shape, torch.float32)

    def frames(self, shape: Sequence[int]) -> Tensor:
        """The decoded frames, uint8; the first `state.frames` are there. Args: shape: (T, H, W, 3)."""
        return self._map("frames", shape, torch.uint8)

    def latents(self, like: Tensor) -> Tensor:
        """See `ClipStore.latents`; neither those before nor those that the disk speaks of."""
        self._last = next(number for number in range(3) if number not in (self._last, self._saved.buffer))
        return self.empty(f"latents-{self._last}", like.shape, like=like)

    def resumed(self, shape: Sequence[int]) -> Tensor | None:
        """The latents after `state.steps` steps, in all processes; None before the first."""
        if not self.state.steps:
            return None
        latents = self._map(f"latents-{self.state.buffer}", shape, torch.float32)
        if self.ranks.world > 1:
            for frames in blocks(shape[2]):
                latents[:, :, frames] = self.ranks.broadcast(latents[:, :, frames].contiguous())
        return latents

    def solver(self) -> SolverState | None:
        """What the solver remembered after `state.steps` steps, in all processes."""
        if self.state.solver is None:
            return None
        tensors = load_file(self.folder / f"solver-{self.state.buffer}") if self.ranks.rank == 0 else None
        return SolverState(self.ranks.share(tensors), self.state.solver)

    def done(self, step: int) -> set[int]:
        """See `ClipStore.done`."""
        return set(self.state.parts) if step == self.state.steps else set()

    def add(self, step: int, parts: Iterable[int]) -> None:
        """See `ClipStore.add`; writes them now and then."""
        assert step == self.state.steps
        self.state.parts.extend(parts)
        if self.within_steps:
            self._save_if_due()

    def step_done(self, steps: int, solver: SolverState | None, *, whole: bool) -> None:
        """The latents that `latents` gave last are complete.

        Args:
            steps: that are finished now.
            solver: what it remembers; None where it needs nothing.
            whole: whether a run may go on from here.
        """
        self.state.steps, self.state.parts, self.state.buffer = steps, [], self._last
        self.state.solver, self._tensors = (solver.values, solver.tensors) if solver is not None else (None, None)
        self._whole = whole
        # What the disk says of parts is not true any more once the next step writes its own.
        self._save_if_due(at_once=bool(self._saved.parts))

    def decoded(self, frames: int) -> None:
        """So many frames are decoded and written."""
        self.state.frames = frames
        self._save_if_due()

    def _save_if_due(self, *, at_once: bool = False) -> None:
        self._changed = True
        if at_once or time.monotonic() - self._written > min(SECONDS_BETWEEN_WRITES, self._pause):
            self.save()

    def save(self) -> bool:
        """Let the disk speak of the latest state. A failure (full disk, ...) is told and does not end the run.

        Returns:
            bool: whether there is something to go on from.
        """
        if not self.keep or self.ranks.rank > 0:
            return False
        if self._changed and self._whole:
            start = time.monotonic()
            try:
                self._write()
            except (OSError, SafetensorError) as error:
                print(f"warning: the partial result could not be written: {error}", file=sys.stderr)
            self._written = time.monotonic()
            self._pause = (self._written - start) / SHARE_OF_TIME
        return self._saved != State()

    def _write(self) -> None:
        sampling = f"latents-{self.state.buffer}" if self.state.steps else None
        if self._tensors is not None:
            save_file(self._tensors, self.folder / f"solver-{self.state.buffer}")
            flush(self.folder / f"solver-{self.state.buffer}")
            self._tensors = None
        parts = self.state.parts if self.within_steps else []
        written = replace(self.state, parts=parts, sizes={})
        names = (sampling, "predictions" if parts else None, "frames" if self.state.frames else None)
        for name in filter(None, names):
            flush(self.folder / name)
            written.sizes[name] = (self.folder / name).stat().st_size
        first = self._saved == State()
        write_file(self.folder / "state.json", json.dumps({"key": self.key, **asdict(written)}).encode())
        if first:
            flush(self.folder.parent)
        self._saved, self._changed = replace(written, parts=list(parts)), False

    def remove(self) -> None:
        """Forget the partial result: the output is complete, or there is nothing to go on from."""
        shutil.rmtree(self.folder, ignore_errors=True)
