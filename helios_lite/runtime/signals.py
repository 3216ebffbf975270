"""SIGINT and SIGTERM during training: finish the update, save a checkpoint, then stop. Standard library only."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


def handle_signal_in_worker(number: int, frame: FrameType | None) -> None:
    """Handle a signal in a DataLoader worker, which receives it too if it was sent to the process group.

    The update that is being finished still needs its batches, so the worker continues; after a SIGTERM for ten
    seconds at most.
    """
    if number == signal.SIGTERM:
        signal.alarm(10)


class GracefulShutdown:
    """A context in which the first SIGINT or SIGTERM only sets `received`.

    At its end the former handlers are restored. Then a received SIGINT becomes a KeyboardInterrupt, and a SIGTERM the
    SystemExit with status 143 of a process that SIGTERM ended, unless another exception is being raised. A second
    SIGINT raises KeyboardInterrupt at once. Outside of the main thread, where Python allows no signal handlers, the
    context does nothing.

    Args:
        ignore_further_signals: after the context, ignore further signals if one was received: the process is about
            to end.

    Attributes:
        received: the signal that ends the training, None if there is none.
    """

    def __init__(self, ignore_further_signals: bool = False) -> None:
        self.received: signal.Signals | None = None
        self._ignore_further_signals = ignore_further_signals
        self._pid = os.getpid()
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._pid = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous_handlers.items():
            if self._ignore_further_signals and self.received is not None:
                handler = signal.SIG_IGN
            # None stands for a handler that was not set from Python, which Python cannot set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous_handlers.clear()
        if error is None and self.received is not None:
            raise KeyboardInterrupt if self.received is signal.SIGINT else SystemExit(143)

    def receive(self, number: signal.Signals | None) -> None:
        """Set `received`: to the signal of another rank, or of a process that this one has started."""
        self.received = number

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # A forked DataLoader worker.
            handle_signal_in_worker(number, frame)
            return
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            os.write(2, b"finishing the update and saving; Ctrl-C ends at once\n")  # print is not safe in a handler.
        self.received = signal.Signals(number)
