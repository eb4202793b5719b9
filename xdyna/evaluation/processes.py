"""Several processes of one evaluation: they tell each other what they found, and end together.

They talk through PyTorch's TCP store, at the address that launchers give. Nobody waits inside a collective: every wait
is a loop that signals can end, that sees the failure of another process, and that gives up on one that fell silent.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore

from xdyna.core.errors import UsageError

PAUSE = 0.2  # s between looks
BEAT = 2.0  # s between signs of life
SILENCE = 300.0  # s without a sign of life after which a process counts as lost
PREFIX = "xdyna-eval"


class ProcessError(ValueError):
    """Another process of the evaluation failed."""


class Team:
    """The processes of an evaluation. A team of one needs no launcher.

    Args:
        rank: number of this process.
        world: number of processes.
        silence: s without a sign of life after which a process counts as lost.

    Raises:
        UsageError: several processes without the launcher's MASTER_ADDR and MASTER_PORT.
        ProcessError: process 0 cannot be reached.
    """

    def __init__(self, rank: int = 0, world: int = 1, *, silence: float = SILENCE) -> None:
        self.rank, self.world, self._silence = rank, world, silence
        self._store: Store | None = None
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._ended = threading.Event()
        if world > 1:
            self._store = _connect(rank, silence)
            threading.Thread(target=self._beat, daemon=True).start()

    def check(self) -> None:
        """See that the others are well.

        Raises:
            ProcessError: one failed, or gave no sign of life for long.
        """
        if self._store is None:
            return
        with self._reached():
            for rank in range(self.world):
                if self._store.check([f"failed/{rank}"]) and rank != self.rank:
                    reason = self._store.get(f"failed/{rank}").decode()
                    raise ProcessError(f"process {rank} of {self.world} failed ({reason}); this one ends, too")
                if not self._store.check([f"found/{rank}"]):
                    self._see(rank)

    def fail(self, reason: str) -> None:
        """Tell the others that this process fails."""
        if self._store is not None:
            with contextlib.suppress(RuntimeError):  # process 0 may have ended already
                self._store.set(f"failed/{self.rank}", reason)
        self._ended.set()

    def gather(self, found: str) -> list[str] | None:
        """What all processes found, in their order, in process 0; None in the others, which need not wait.

        Args:
            found: of this process.

        Raises:
            ProcessError: another process failed or fell silent.
        """
        if self._store is None:
            return [found]
        with self._reached():
            self._store.set(f"found/{self.rank}", found)
        if self.rank > 0:
            self._ended.set()
            return None
        keys = [f"found/{rank}" for rank in range(self.world)]
        while not self._store.check(keys):
            self.check()
            time.sleep(PAUSE)
        self._ended.set()
        return [self._store.get(key).decode() for key in keys]

    def _see(self, rank: int) -> None:
        """Note a process's sign of life; a ProcessError where there was none for long."""
        assert self._store is not None
        key, now = f"alive/{rank}", time.monotonic()
        beat = self._store.get(key) if self._store.check([key]) else b""
        before, since = self._seen.setdefault(rank, (beat, now))
        if beat != before:
            self._seen[rank] = (beat, now)
        elif now - since > self._silence:
            raise ProcessError(f"process {rank} of {self.world} gave no sign of life for {now - since:.0f} s")

    def _beat(self) -> None:
        assert self._store is not None
        number = 0
        while not self._ended.wait(BEAT if number else 0):
            number += 1
            with contextlib.suppress(RuntimeError):  # the main thread sees and says it
                self._store.set(f"alive/{self.rank}", str(number))

    @contextlib.contextmanager
    def _reached(self):  # type: ignore[no-untyped-def]
        try:
            yield
        except RuntimeError as error:
            raise ProcessError(f"process 0 of {self.world} ended; this one ends, too") from error


def _connect(rank: int, patience: float) -> Store:
    """The store, which process 0 keeps (or torchrun's agent). Waits for it, not for the other processes."""
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if not address or not port.isdecimal():
        raise UsageError("WORLD_SIZE asks for several processes without MASTER_ADDR and MASTER_PORT; use a launcher")
    keeps = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    end = time.monotonic() + patience
    while not keeps:
        try:
            socket.create_connection((address, int(port)), timeout=1).close()
            break
        except OSError as error:
            if time.monotonic() > end:
                raise ProcessError(f"process 0 at {address}:{port} cannot be reached ({error})") from error
            time.sleep(PAUSE)
    try:
        store = TCPStore(address, int(port), is_master=keeps, timeout=timedelta(seconds=60), wait_for_workers=False)
    except RuntimeError as error:
        raise ProcessError(f"the processes' store at {address}:{port} cannot be used ({error})") from error
    return PrefixStore(f"{PREFIX}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
