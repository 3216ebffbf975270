"""What SIGINT, SIGTERM and SIGUSR1 do from the first line of a call to its last. Standard library only.

In a training they finish the step and save; everywhere else in a call they end it at once, by an exception.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.sharedctypes import RawValue
from types import FrameType, TracebackType
from typing import Any, Self

from helios_lite.processes.output import write_stderr

OUTSIDE, WAITING, RECEIVED, ENDING = range(4)
"""The phases of a process: without a `GracefulShutdown`, in one, and in one that has received a signal.

The last is that of a launched process whose call a signal ends at once.
"""


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
    numbers = {128 + number: number for number in SIGNALS}
    return numbers.get(exit_status(error)) if is_exit else None


class GracefulShutdown:
    """What the signals do in this process during a call: `at_once` is the context of the call, and this of a training.

    In this context the first SIGINT or SIGTERM only sets `received`, and a SIGUSR1 only `save_requested`.

    At its end the former handlers are restored. Then a received SIGINT becomes a KeyboardInterrupt, which says what
    `explain` was given, and another signal the SystemExit with the status of a process that it ended (143 for SIGTERM),
    unless another exception is being raised. A second SIGINT raises KeyboardInterrupt at once. Outside of the main
    thread, where Python allows no signal handlers, the context does nothing.

    A handler that the program has set is called later: when the call is over, or the checkpoint of a SIGUSR1 is saved.

    Args:
        announces: whether to print on stderr, at the first signal in a training, that it is about to stop. One process
            of a machine does it, since Ctrl-C in a terminal reaches all of them.
        saves: whether a training finishes its step and saves. Otherwise a signal ends that at once too, such as the
            training of a replay.
        is_worker: whether the trainer has launched this process, which ends after the call: signals are ignored after
            `at_once`.
        stops_on_usr1: whether SIGUSR1 ends the call, as SIGTERM does.

    Attributes:
        received: the signal that ends the call, None if there is none.
        save_requested: whether a SIGUSR1 has asked for a checkpoint since `take_save_request`.
        is_pending: whether there is either, or something else that the next boundary must look at.
        has_ended_call: whether a signal has ended the call at once.
        explanation: where the training has stopped, and how it goes on.
    """

    def __init__(
        self, announces: bool = True, *, saves: bool = True, is_worker: bool = False, stops_on_usr1: bool = False
    ) -> None:
        self.received: signal.Signals | None = None
        self.save_requested = self.is_pending = False
        self.explanation = ""
        self._stops_on_usr1 = stops_on_usr1
        self._announces = announces and not is_worker
        self._saves, self._is_worker = saves, is_worker
        self._pid = os.getpid()
        self._phase: ctypes.c_byte | None = None
        self._previous_phase = OUTSIDE
        self._previous_handlers: dict[signal.Signals, Any] = {}
        self.has_ended_call = self._is_over = False
        self._late: list[int] = []  # What the handlers that were there before get when the call is over.
        self._is_own = self._asked_to_save = False  # Whether this process got the signal, of which others may know.

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A context around a call, in which a signal ends it at once wherever it stands, but in this object's context.

        SIGINT is a KeyboardInterrupt, and another signal the SystemExit with its status, so that everything is cleaned
        up. That exception leaves the context whatever others come from it, or if the program has dropped it. SIGUSR1
        does nothing unless it ends the call. A handler that the program has set stays, also one that it sets within the
        context. What `keep_for_call` has kept is received at the start. Without effect within itself, and outside of
        the main thread.
        """
        self._pid, self._is_over = os.getpid(), False
        before: dict[signal.Signals, Any] = {}
        try:
            for number in SIGNALS if _is_main_thread() else ():
                if (handler := signal.getsignal(number)) in _OF_NOBODY:
                    before[number] = handler
                    signal.signal(number, self._end_call)
            while _kept:
                signal.raise_signal(_kept.pop())
            yield
        except BaseException as error:
            if self.has_ended_call and before and not isinstance(error, _PASSED_ON):
                raise self._exception() from error
            raise
        else:
            if self.has_ended_call and before:
                raise self._exception()
        finally:
            self._is_over = bool(before)
            for own, handler in before.items() if _is_main_thread() else ():  # An iterator may end in any thread.
                if signal.getsignal(own) in (self._end_call, self._handle):
                    signal.signal(own, signal.SIG_IGN if self._is_worker else handler)
            for late in self._late:
                signal.raise_signal(late)

    def __enter__(self) -> Self:
        self._pid, phase = os.getpid(), shared_phase()
        self._phase, self._previous_phase = phase, phase.value
        if _is_main_thread() and self._saves:
            for number in SIGNALS:
                self._previous_handlers[number] = signal.signal(number, self._handle)
            phase.value = WAITING
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._previous_handlers and self._phase is not None:
            self._phase.value = self._previous_phase
        if self._is_own and self.received is not None and self._handler_of_program(self.received) is not None:
            self._late.append(self.received)
        for number, handler in self._previous_handlers.items():
            # None stands for a handler that was not set from Python, which Python cannot set again.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous_handlers.clear()
        if error is None and self.received is not None:
            raise self._exception()

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

    def after_save(self) -> None:
        """Call the handler that the program has for SIGUSR1, if one has asked for the checkpoint that is saved now."""
        has_asked, self._asked_to_save = self._asked_to_save, False
        handler = self._handler_of_program(signal.SIGUSR1) if has_asked else None
        if handler is not None:
            handler(signal.SIGUSR1, None)

    def _handler_of_program(self, number: signal.Signals) -> Callable[[int, FrameType | None], Any] | None:
        """Return what the program has set for a signal before the training, None if nothing."""
        handler = self._previous_handlers.get(number)
        return handler if callable(handler) and handler not in (*_OF_NOBODY, self._end_call) else None

    def _exception(self) -> BaseException:
        """Return what the received signal ends the call with."""
        assert self.received is not None
        if self.received is not signal.SIGINT:
            return SystemExit(128 + self.received)
        return KeyboardInterrupt(self.explanation) if self.explanation else KeyboardInterrupt()

    def _end_call(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal outside of a training."""
        if os.getpid() != self._pid:
            _handle_in_fork(number)
        elif self._is_over:
            self._late.append(number)
        elif number == signal.SIGUSR1 and not self._stops_on_usr1:
            pass
        elif (self.received is None or number == signal.SIGINT) and not _is_interruptible(frame):
            _thread.start_new_thread(_send_again, (number,))  # Here `threading` may be in the middle of something.
        elif self.received is None:
            self.has_ended_call = True
            self.receive(signal.Signals(number))
            if self._is_worker:
                shared_phase().value = ENDING
            raise self._exception()
        elif number == signal.SIGINT:  # The call is ending; another Ctrl-C does not wait for that.
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal in a training."""
        if os.getpid() != self._pid:
            _handle_in_fork(number)
            return
        if number == signal.SIGUSR1 and not self._stops_on_usr1:
            self.save_requested = self.is_pending = self._asked_to_save = True
            return
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:  # The first is the cause: after Ctrl-C the launching process sends SIGTERM.
            return
        if self._announces and os.environ.get("LOCAL_RANK", "0") == "0":
            write_stderr("finishing the step and saving; press Ctrl-C again to end at once\n")
        self.receive(signal.Signals(number))
        self._is_own = True
        if self._phase is not None:
            self._phase.value = RECEIVED


def _is_interruptible(frame: FrameType | None) -> bool:
    """Return whether an exception that is raised there is not dropped by Python, and leaves nothing half done.

    That is not so in `__del__`, in what Python calls when it forks or drops an object (such as the lock of an import or
    of logging), and while a process is being started, which nobody would know of.
    """
    if frame is not None and _module(frame) in _CALLED_BY_PYTHON:
        return False
    while frame is not None:
        name = frame.f_code.co_name
        if name == "__del__" or (name in _STARTS_PROCESSES and _module(frame).startswith("multiprocessing.")):
            return False
        frame = frame.f_back
    return True


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__"))


def _send_again(number: int) -> None:
    """Send a signal to this process once more, a little later."""
    time.sleep(_SECONDS_TO_WAIT)
    os.kill(os.getpid(), number)


def _handle_in_fork(number: int) -> None:
    """Handle a signal in a process that was forked during a call, and has not set handlers of its own."""
    if number == signal.SIGTERM:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def held_back(numbers: Iterable[int]) -> Iterator[None]:
    """A context in which this thread receives none of these signals; those that came are received at its end.

    A process that starts in it is born so, and can set its handlers before it calls `receive_again`.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def receive_again(*numbers: int) -> None:
    """Receive signals that were held back when this process was started."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def do_nothing(number: int, frame: FrameType | None) -> None:
    """Unlike SIG_IGN, a handler is not inherited by programs that the process runs."""


def keep_for_call(number: int, frame: FrameType | None) -> None:
    """Let the next `at_once` receive a signal: that of a launched process which has not come to its call yet."""
    _kept.append(number)


_kept: list[int] = []
_PASSED_ON = (KeyboardInterrupt, SystemExit, GeneratorExit)
_SECONDS_TO_WAIT = 0.01
_CALLED_BY_PYTHON = ("importlib._bootstrap", "logging", "weakref")
_STARTS_PROCESSES = ("_launch", "ensure_running")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_OF_NOBODY = (signal.SIG_DFL, signal.default_int_handler, do_nothing, keep_for_call)
"""The handlers of a program that has set none."""
