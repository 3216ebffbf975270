"""SIGINT and SIGTERM during training: finish the update, save, then stop. Standard library only."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


def spare_loading_process(number: int, frame: FrameType | None) -> None:
    """Handle a signal in a loading process, which gets it too when it is sent to a group.

    The update under way still needs its batches, so it goes on; after a SIGTERM for ten seconds at most.
    """
    if number == signal.SIGTERM:
        signal.alarm(10)


class Interrupts:
    """A context in which the first SIGINT or SIGTERM only sets `received`.

    At its end the former handlers are back, and a received SIGINT becomes a KeyboardInterrupt, a SIGTERM the
    SystemExit with status 143 that a process ended by it has; unless another exception is under way. A second SIGINT
    raises KeyboardInterrupt at once. Outside of the main thread, where Python allows no handlers, nothing happens.
    """

    received: signal.Signals | None = None
    final = False
    """Whether the process ends after the context: then it takes no further signal once it has received one."""

    def __enter__(self) -> Self:
        self._pid = os.getpid()
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            if self.final and self.received is not None:
                handler = signal.SIG_IGN
            # None stands for a handler that was not set from Python, which Python cannot set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if error is None and self.received is not None:
            raise KeyboardInterrupt if self.received is signal.SIGINT else SystemExit(143)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # A forked loading process.
            spare_loading_process(number, frame)
            return
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            os.write(2, b"finishing the update and saving; Ctrl-C ends at once\n")  # print is not safe in a handler.
        self.received = signal.Signals(number)
