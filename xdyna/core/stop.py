"""The wish to stop: signals become a flag, so that a loop can save and leave."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from xdyna.core.program import ending_signals, leave_terminal


class StopSignal:
    """While the block runs, SIGTERM, SIGHUP (but for nohup) and SIGINT (Ctrl-C) set a flag, so that the loop can save
    and leave.

    A SIGINT after the first signal interrupts at once. The former handlers come back when the block ends. Outside the
    main thread Python allows no handlers: there the flag stays as it is. With several processes a signal may reach only
    some of them: let all agree (any of the flags) before acting on it.
    """

    def __init__(self) -> None:
        self.requested = False
        self.signal: str | None = None
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (*ending_signals(), signal.SIGINT):
                self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            # None: a handler that was not installed from Python, which cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._former.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested, self.signal = True, signal.Signals(number).name
        if self.signal == "SIGHUP":
            leave_terminal()
