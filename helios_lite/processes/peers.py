"""Watches other processes: a process ends when its parent or another rank has ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import active_children
from pathlib import Path
from typing import NoReturn

from helios_lite.processes.output import flush_output
from helios_lite.processes.signals import OUTSIDE, GracefulShutdown, shared_phase
from helios_lite.processes.world import PARENT, World

_SECONDS_TO_FLUSH = 2.0  # Of a pipe whose reader has stopped nobody knows when it is read.
_MAX_POLLS_ALONE = 20  # 5 seconds, of which those do not count in which the process is stopped.
SECONDS_FOR_FILES = 5.0
"""How long a process that is about to end at once waits for a file system, which may be stuck."""


@contextlib.contextmanager
def watch_peers(
    world: World, shutdown: GracefulShutdown, before_end: Callable[[BaseException, str], object]
) -> Iterator[None]:
    """A context in which a process that torchrun has started ends on SIGTERM at once if another rank is gone.

    torchrun sends SIGTERM to all ranks when one has failed. They would finish their step first, but a step may
    wait for the dead rank without a limit. Processes that the trainer has launched are watched by it (`RankWatch`).
    Call on every rank.

    Args:
        world: the ranks; a single process has no peers.
        shutdown: tells which signal this process has received.
        before_end: called with what ends the process, and why, before it ends.
    """
    if world.size == 1 or PARENT in os.environ:
        yield
        return
    host = socket.gethostname()
    local_pids = [pid for other, pid in world.gather((host, os.getpid())) if other == host and pid != os.getpid()]
    done = threading.Event()

    def poll() -> None:
        while all(map(is_alive, local_pids)):
            if done.wait(0.5):
                return
        # Ranks may exit at different times, so wait for the signal without a limit.
        while shutdown.received is not signal.SIGTERM:
            if done.wait(0.1):
                return
        within(SECONDS_FOR_FILES, before_end, SystemExit(128 + signal.SIGTERM), "another rank has ended")
        exit_now(128 + signal.SIGTERM)

    thread = threading.Thread(target=poll, name="watch_peers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def exit_with_parent(parent: int, end: Path, left_alone: Path) -> None:
    """End this process when the process that launched it is gone, or has made the file `end`.

    Also some seconds after that has made the file `left_alone`, if this process is neither in a training nor ending its
    call: the signal that has ended another does not reach it, because it waits for that one where Python handles none.

    Returns at once, and watches in a thread.
    """
    phase = shared_phase()

    def poll() -> None:
        polls_alone = 0
        while is_alive(parent) and not end.exists() and polls_alone < _MAX_POLLS_ALONE:
            time.sleep(0.25)
            polls_alone += left_alone.exists() and phase.value == OUTSIDE
        exit_now(128 + signal.SIGTERM)

    threading.Thread(target=poll, name="exit_with_parent", daemon=True).start()


def within(seconds: float, function: Callable[..., object], *arguments: object) -> bool:
    """Call a function in a thread, and return whether it has ended after so many seconds. Its error is dropped."""

    def call() -> None:
        with contextlib.suppress(Exception):
            function(*arguments)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def exit_now(status: int) -> NoReturn:
    """End this process and its children at once, without cleaning up."""
    try:
        for child in active_children():
            child.kill()
        within(_SECONDS_TO_FLUSH, flush_output)
    finally:
        os._exit(status)


def is_alive(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    return process_state(pid) not in (None, "Z")


def process_start(pid: int) -> int | None:
    """Return when a process has started, in clock ticks since the machine has; None if it is gone, or without /proc.

    No two processes of a machine have the same number and the same start.
    """
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return None


def process_state(pid: int) -> str | None:
    """Return the state of a process as Linux names it ("R", "S", "T" for stopped, "Z"), None if it does not exist.

    On a system without /proc every process that exists is said to run.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    return "R"
