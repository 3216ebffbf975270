"""Watching processes: a process ends itself when another one that it cannot do without is gone."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import active_children
from pathlib import Path
from typing import NoReturn

from helios_lite.runtime.distributed import PARENT, World
from helios_lite.runtime.signals import GracefulShutdown

PEER_LOST = 75
"""The exit status of a process that has lost another rank."""


@contextlib.contextmanager
def watch_peers(world: World, shutdown: GracefulShutdown) -> Iterator[None]:
    """A context in which this process ends if another rank on this machine is gone.

    An update may wait for a dead rank without a limit, and a process that was told to end by SIGTERM would finish its
    update first. Call on every rank.

    Args:
        world: the ranks; a single process has no peers.
        shutdown: tells which signal this process has received.
    """
    if world.size == 1:
        yield
        return
    host = socket.gethostname()
    local_pids = [pid for other, pid in world.gather((host, os.getpid())) if other == host and pid != os.getpid()]
    done = threading.Event()

    def poll() -> None:
        while all(map(is_alive, local_pids)):
            if done.wait(0.5):
                return
        # The trainer that launched the workers ends them all; it needs time to see which failed first. A worker blocked
        # in C++ (NCCL, gloo) cannot be interrupted by a Python signal handler. Workers started by torchrun may exit at
        # different times, so wait for them without a limit.
        deadline = time.monotonic() + (3.0 if PARENT in os.environ else math.inf)
        while shutdown.received is not signal.SIGTERM:
            if time.monotonic() > deadline:
                exit_now(PEER_LOST)
            if done.wait(0.1):
                return
        exit_now(128 + signal.SIGTERM)

    thread = threading.Thread(target=poll, name="watch_peers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def exit_with_parent(parent: int) -> None:
    """End this process when the process that launched it is gone; returns at once, and watches in a thread."""

    def poll() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        exit_now(128 + signal.SIGTERM)

    threading.Thread(target=poll, name="exit_with_parent", daemon=True).start()


def exit_now(status: int) -> NoReturn:
    """End this process and its children at once, without cleaning up."""
    for child in active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def is_alive(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
