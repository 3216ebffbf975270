"""Detects which of the launched processes has failed first; used in the process that launched them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import defaultdict
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from helios_lite.processes.peers import is_alive, process_state
from helios_lite.processes.worker import error_file, read_statuses

MAX_SECONDS_STOPPED = 5.0
UNKNOWN = 255
"""The exit status that multiprocessing reports of all processes of a fork server that was killed."""


class RankFailure(NamedTuple):
    """A process that failed.

    Attributes:
        rank: its rank.
        status: its exit status, minus the signal that killed it.
        is_stopped: whether it still exists, but was stopped by a signal.
    """

    rank: int
    status: int = UNKNOWN
    is_stopped: bool = False

    def __str__(self) -> str:
        """Return a sentence that says what has happened, for a process that has left no exception."""
        if self.is_stopped:
            return f"rank {self.rank} was stopped by a signal (SIGSTOP) for {MAX_SECONDS_STOPPED:.0f} seconds"
        if self.status == UNKNOWN:
            return f"rank {self.rank} ended without an exception (exit status unknown)"
        how = f"was killed by {signal.Signals(-self.status).name}" if self.status < 0 else "ended without an exception"
        text = f"rank {self.rank} {how} (exit status {self.status})"
        if self.status != -signal.SIGABRT:
            return text
        return text + (
            "; messages of different sizes end a process so, too: all ranks must call backward, optimizer_step and all "
            "that communicates in the same order, run the same blocks of sharded networks, and their networks must "
            "have buffers of the same shapes"
        )


def exit_status(process: BaseProcess) -> int | None:
    """Return the exit status of a process that has been started, minus the signal that killed it; None if it runs."""
    status = process.exitcode
    return None if status == UNKNOWN and is_alive(process.pid or 0) else status


def send_signal(process: BaseProcess, number: int) -> None:
    """Send a signal to a process, if it runs. Unlike multiprocessing, also if its fork server was killed."""
    if exit_status(process) is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid or 0, number)


class RankWatch:
    """Watches the processes of one attempt, from their start until all have ended.

    One that has ended before it has returned from its task has failed, whatever its exit status is.

    Args:
        folder: the folder with the task, where processes leave their status.
        attempt: how many attempts have failed before.
        processes: the processes that have been started, by rank.

    Attributes:
        failure: the process that failed first, None if none has.
        received: the signal after which a process has ended its task, None if there was none.
    """

    def __init__(self, folder: Path, attempt: int, processes: Sequence[BaseProcess]) -> None:
        self._folder, self._attempt, self._processes = folder, attempt, processes
        self.failure: RankFailure | None = None
        self.received: signal.Signals | None = None
        self._polled = time.monotonic()
        self._seconds_stopped: dict[int, float] = defaultdict(float)

    def poll(self) -> bool:
        """Check all processes; return whether any runs. Call it several times per second.

        The first process to fail is the cause.
        """
        # Time in which this process was stopped too, as by Ctrl-Z, does not count.
        elapsed = min(time.monotonic() - self._polled, 0.5)
        self._polled = time.monotonic()
        # Their statuses are read afterwards, so that those of processes that have ended by then are complete.
        exit_statuses = [exit_status(process) for process in self._processes]
        statuses = read_statuses(self._folder, self._attempt)
        failures = []
        for rank, (process, ended) in enumerate(zip(self._processes, exit_statuses, strict=True)):
            status = statuses.get(rank)
            if status is not None and status.received is not None:
                self.received = signal.Signals(status.received)
            if ended is not None:
                if ended not in (0, UNKNOWN) or status is None or not status.is_done:
                    failures.append(RankFailure(rank, ended))
            elif process_state(process.pid or 0) != "T":
                self._seconds_stopped[rank] = 0.0
            else:
                self._seconds_stopped[rank] += elapsed
                if self._seconds_stopped[rank] > MAX_SECONDS_STOPPED:
                    failures.append(RankFailure(rank, is_stopped=True))
        if failures and self.failure is None:
            # A process with an exception may have failed only because it lost one that left none.
            self.failure = min(
                failures, key=lambda failure: error_file(self._folder, self._attempt, failure.rank).exists()
            )
        return None in exit_statuses
