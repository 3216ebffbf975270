"""Detects which of the launched processes has failed first; used in the process that launched them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from multiprocessing.context import get_spawning_popen
from multiprocessing.popen_spawn_posix import Popen
from pathlib import Path
from typing import Any, NamedTuple

from helios_lite.processes.peers import process_state
from helios_lite.processes.worker import error_file, read_statuses

MAX_SECONDS_STOPPED = 5.0


class RankFailure(NamedTuple):
    """A process that failed.

    Attributes:
        rank: its rank.
        status: its exit status, minus the signal that killed it, None if it is unknown.
        is_stopped: whether it still exists, but was stopped by a signal.
    """

    rank: int
    status: int | None
    is_stopped: bool = False

    def __str__(self) -> str:
        """Return a sentence that says what has happened, for a process that has left no exception."""
        if self.is_stopped:
            return f"rank {self.rank} was stopped by a signal (SIGSTOP) for {MAX_SECONDS_STOPPED:.0f} seconds"
        if self.status is None:
            return f"rank {self.rank} ended without an exception (exit status unknown)"
        how = f"was killed by {signal.Signals(-self.status).name}" if self.status < 0 else "ended without an exception"
        return f"rank {self.rank} {how} (exit status {self.status})"


class StartedProcesses:
    """The processes that are started with this object among their arguments, by rank.

    multiprocessing pickles the arguments of a process immediately before it starts the process, so that none can end
    unseen. `multiprocessing.active_children` forgets a process that has ended before anyone asked for it.
    """

    def __init__(self) -> None:
        self._popens: list[Popen] = []

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        """Note the process that is being started; it gets None in place of this object."""
        popen: Any = get_spawning_popen()
        self._popens.append(popen)
        return type(None), ()

    def __iter__(self) -> Iterator[Popen]:
        """Return the processes that exist or have existed; the last one may still be about to start."""
        return iter([popen for popen in self._popens if hasattr(popen, "pid")])


class RankWatch:
    """Watches the processes of one attempt, from their start until all are done.

    A process ends only after all have returned from their task, so one that is gone before has failed, whatever its
    exit status is.

    Args:
        folder: the folder with the task, where processes leave their status.
        attempt: how many attempts have failed before.
        processes: the number of processes.
        started: the processes that this one has started for the attempt.

    Attributes:
        failure: the process that failed first, None if none has.
        received: the signal after which a process has ended its task, None if there was none.
    """

    def __init__(self, folder: Path, attempt: int, processes: int, started: StartedProcesses) -> None:
        self._folder, self._attempt, self._processes, self._started = folder, attempt, processes, started
        self.failure: RankFailure | None = None
        self.received: signal.Signals | None = None
        self._polled = time.monotonic()
        self._seconds_stopped: dict[int, float] = defaultdict(float)

    def poll(self) -> None:
        """Check all processes. Call it several times per second, because the first process to fail is the cause."""
        # Time in which this process was stopped too, as by Ctrl-Z, does not count.
        elapsed = min(time.monotonic() - self._polled, 0.5)
        self._polled = time.monotonic()
        # Elastic would wait for the result of a process that exits with status 0 before it has started its task. The
        # statuses are read afterwards, so that those of a process that has ended by then are complete.
        by_pid = {popen.pid: popen for popen in self._started}
        exited = [rank for rank, popen in enumerate(by_pid.values()) if popen.poll() == 0]
        statuses = read_statuses(self._folder, self._attempt)
        failures = [RankFailure(rank, 0) for rank in exited if rank not in statuses]
        for rank, status in statuses.items():
            if status.received is not None:
                self.received = signal.Signals(status.received)
            state = process_state(status.pid)
            self._seconds_stopped[rank] = self._seconds_stopped[rank] + elapsed if state == "T" else 0.0
            if state in (None, "Z"):
                exit_status = _exit_status(status.pid, by_pid.get(status.pid))
                if exit_status not in (0, None) or not self._are_done():
                    failures.append(RankFailure(rank, exit_status))
            elif self._seconds_stopped[rank] > MAX_SECONDS_STOPPED:
                failures.append(RankFailure(rank, None, is_stopped=True))
        if failures and self.failure is None:
            self.failure = min(failures, key=self._order)

    def _are_done(self) -> bool:
        """Return whether all have returned from their task; one that is gone has left its status before that."""
        statuses = read_statuses(self._folder, self._attempt)
        return len(statuses) == self._processes and all(status.is_done for status in statuses.values())

    def _order(self, failure: RankFailure) -> int:
        """Return 0 for the most likely cause among processes that have failed since the last `poll`.

        A process with an exception may have failed only because it lost one that left no exception. One that was ended
        by SIGTERM is the least likely cause, because elastic ends the other processes in this way.
        """
        if error_file(self._folder, self._attempt, failure.rank).exists():
            return 1
        return 2 if failure.status == -signal.SIGTERM else 0


def _exit_status(pid: int, popen: Popen | None) -> int | None:
    """Return the exit status of a process that is gone, None if it is unknown."""
    for _ in range(20):
        if popen is not None and (status := popen.poll()) is not None:
            return status
        with contextlib.suppress(ChildProcessError, AttributeError):  # The system has no `waitid`.
            result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if result is not None:
                return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
        time.sleep(0.01)  # The thread of elastic may be reading it just now.
    return None
