"""SIGINT, SIGTERM and SIGUSR1 during training: finish the step, save, then stop or go on. Standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing.sharedctypes import RawValue
from types import FrameType, TracebackType
from typing import Any, Self

from helios_lite.processes.output import write_stderr

OUTSIDE, WAITING, RECEIVED = range(3)
"""The phases of a process: without a `GracefulShutdown`, in one, and in one that has received a signal."""


@functools.cache
def _phase_of(pid: int) -> ctypes.c_byte:
    return RawValue(ctypes.c_byte, OUTSIDE)


def shared_phase() -> ctypes.c_byte:
    """Return the phase of this process, in memory that it can share with the processes that it starts."""
    return _phase_of(os.getpid())


def exit_status(error: BaseException | None) -> int:
    """Return the exit status of a program that an exception ends, and 0 for None."""
    if error is None:
        return 0
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if not isinstance(error, SystemExit):
        return 1
    return int(error.code is not None) if not isinstance(error.code, int) else error.code & 0xFF


def signal_of(error: BaseException) -> signal.Signals | None:
    """Return the signal that has caused an exception, None if none has."""
    is_exit = isinstance(error, KeyboardInterrupt | SystemExit)
    numbers = {128 + number: number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    return numbers.get(exit_status(error)) if is_exit else None


class GracefulShutdown:
    """A context in which the first SIGINT or SIGTERM only sets `received`, and a SIGUSR1 only `save_requested`.

    At its end the former handlers are restored. Then a received SIGINT becomes a KeyboardInterrupt, which says what
    `explain` was given, and another signal the SystemExit with the status of a process that it ended (143 for SIGTERM),
    unless another exception is being raised. A second SIGINT raises KeyboardInterrupt at once. Outside of the main
    thread, where Python allows no signal handlers, the context does nothing.

    Args:
        announces: whether to print on stderr, at the first signal, that the process is about to stop.
        ignore_further_signals: after the context, ignore further signals if one was received: the process is about
            to end.
        stops_on_usr1: whether SIGUSR1 ends the training, as SIGTERM does.

    Attributes:
        received: the signal that ends the training, None if there is none.
        save_requested: whether a SIGUSR1 has asked for a checkpoint since `take_save_request`.
        is_pending: whether there is either, or something else that the next boundary must look at.
        explanation: where the training has stopped, and how it goes on.
    """

    def __init__(
        self, announces: bool = True, ignore_further_signals: bool = False, *, stops_on_usr1: bool = False
    ) -> None:
        self.received: signal.Signals | None = None
        self.save_requested = self.is_pending = False
        self.explanation = ""
        self._stops_on_usr1 = stops_on_usr1
        self._announces = announces
        self._ignore_further_signals = ignore_further_signals
        self._pid = os.getpid()
        self._phase = shared_phase()
        self._previous_phase = self._phase.value
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._pid, self._phase = os.getpid(), shared_phase()
        self._previous_phase = self._phase.value
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                self._previous_handlers[number] = signal.signal(number, self._handle)
            self._phase.value = WAITING
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous_handlers.items():
            if self._ignore_further_signals and self.received is not None:
                handler = signal.SIG_IGN
            # None stands for a handler that was not set from Python, which Python cannot set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self._previous_handlers:
            self._phase.value = self._previous_phase
        self._previous_handlers.clear()
        if error is None and self.received is not None:
            if self.received is not signal.SIGINT:
                raise SystemExit(128 + self.received)
            raise KeyboardInterrupt(self.explanation) if self.explanation else KeyboardInterrupt

    def receive(self, number: signal.Signals) -> None:
        """Set `received`: to the signal of another rank, or of a process that this one has started."""
        self.received, self.is_pending = number, True

    def explain(self, text: str) -> None:
        """Set `explanation`."""
        self.explanation = text

    def wake(self) -> None:
        """Set `is_pending`, as a request to save does, until `take_save_request`."""
        self.is_pending = True

    def take_save_request(self) -> bool:
        """Return whether a SIGUSR1 has asked for a checkpoint, once for each."""
        requested, self.save_requested = self.save_requested, False
        self.is_pending = self.received is not None
        return requested

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # A process forked from this one, which has not set handlers of its own.
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if number == signal.SIGUSR1 and not self._stops_on_usr1:
            self.save_requested = self.is_pending = True
            return
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:  # The first is the cause: after Ctrl-C the launching process sends SIGTERM.
            return
        if self._announces:
            write_stderr("finishing the step and saving; press Ctrl-C again to end at once\n")
        self.receive(signal.Signals(number))
        self._phase.value = RECEIVED


@contextlib.contextmanager
def usr1_without_effect() -> Iterator[None]:
    """A context in which a SIGUSR1 does not end the process, which a scheduler may send at any time.

    A handler that the program has set stays, also one that it sets within the context.
    """
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not is_main_thread or signal.getsignal(signal.SIGUSR1) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGUSR1, do_nothing)
    try:
        yield
    finally:  # An iterator that nobody uses any more may end in another thread.
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGUSR1) is do_nothing:
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def do_nothing(number: int, frame: FrameType | None) -> None:
    """Unlike SIG_IGN, a handler is not inherited by programs that the process runs."""
