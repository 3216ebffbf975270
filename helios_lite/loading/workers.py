"""Initializes DataLoader workers: which signals they ignore, and that they end with their parent."""

from __future__ import annotations

import faulthandler
import functools
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

import torch.utils.data

from helios_lite.loading.seeding import SeededDataset
from helios_lite.processes import signals
from helios_lite.processes.output import guard_output, stderr_number
from helios_lite.processes.peers import is_alive

_SECONDS_TO_RECEIVE = 4.0
"""How long the parent may take to handle a signal: a Python handler waits for an operation in C++ to end. Shorter than
the five seconds for which a DataLoader waits for a worker that it has terminated."""


class WorkerInit:
    """Runs first in every DataLoader worker. Create it in the process that the worker loads for, its parent.

    A signal to the process group reaches the workers too, but a step that is being finished still needs its batches.
    SIGINT and SIGUSR1 are therefore ignored, and SIGTERM while the parent finishes a step after a signal of its own.
    When the parent does not, because it has failed or wants the worker to end, SIGTERM ends the worker at once. A
    worker whose parent is gone ends within a second. `get_worker_info().dataset` is the copy of the user's dataset, of
    which the samples are read: an attribute that `worker_init_fn` sets there is that of `self` in `__getitem__`.

    Args:
        user_init: the user's `worker_init_fn`, called with the number of the worker.
    """

    def __init__(self, user_init: Callable[[int], None] | None) -> None:
        self._user_init = user_init
        # Not os.getppid(), which may be the fork server.
        self._parent = os.getpid()
        self._parent_phase = signals.shared_phase()

    def __call__(self, worker: int) -> None:
        """Install the handlers, watch the parent in a thread, and call the user's function."""
        info = torch.utils.data.get_worker_info()
        if info is not None and isinstance(info.dataset, SeededDataset):  # Its class refuses plain assignments.
            object.__setattr__(torch.utils.data.get_worker_info(), "dataset", info.dataset.dataset)
        guard_output()  # What a dataset prints is no reason to fail either.
        sys.excepthook = functools.partial(_show_unless_parent_has_left, sys.excepthook)
        for number in signals.SIGNALS:
            signal.signal(number, signals.do_nothing)
        if (stderr := stderr_number()) is not None:
            faulthandler.register(signal.SIGUSR2, file=stderr)  # Of a hanging run: writes the stacks of this process.
        # The number of a signal goes to a pipe at once, whereas a Python handler waits for an operation in C++ to end.
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), name="data_worker", daemon=True).start()
        signals.receive_again(*signals.SIGNALS)
        if self._user_init is not None:
            self._user_init(worker)

    def _watch(self, reader: int) -> None:
        deadline: float | None = None
        poller = select.poll()  # Unlike select.select it takes any number of open files.
        poller.register(reader, select.POLLIN)
        while is_alive(self._parent):
            ready = poller.poll(250)
            is_terminated = bool(ready) and signal.SIGTERM in os.read(reader, 1024)
            if (
                is_terminated and signal.getsignal(signal.SIGTERM) is signals.do_nothing
            ):  # The user has set no other handler.
                deadline = time.monotonic() + _SECONDS_TO_RECEIVE
            if deadline is not None:
                phase = self._parent_phase.value
                if phase in (signals.OUTSIDE, signals.ENDING):
                    os._exit(0)  # As PyTorch's own handler does, because another status would be an error.
                if phase == signals.WAITING and time.monotonic() > deadline:
                    os._exit(128 + signal.SIGTERM)
        os._exit(1)


def _show_unless_parent_has_left(
    show: Callable[..., object], kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Show an exception, but not that the parent did not take a batch, because a signal has ended what it was doing.

    In a worker Python calls it for the thread that hands over tensors, and for no other.
    """
    if not isinstance(error, EOFError | ConnectionError):
        show(kind, error, traceback)
