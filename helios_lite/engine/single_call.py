"""One call of the trainer at a time in a process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_running: dict[int, list[str]] = {}
"""What is running, by process id: a forked process inherits the entry of its parent, and is not the parent."""


@contextlib.contextmanager
def single_call(description: str) -> Iterator[None]:
    """Context of a call of the trainer, which excludes all others of this process.

    The RNG states, the gradient mode and the signal handlers belong to the process, so two calls would disturb each
    other.

    Args:
        description: what runs, for the message of another call.

    Raises:
        RuntimeError: another call is running in this process, in another thread or around this one.
    """
    process = os.getpid()
    own = [description]  # A list, because two calls may have the same description.
    first = _running.setdefault(process, own)  # Atomic, so that one of two threads wins.
    if first is not own:
        raise RuntimeError(
            f"{description}: {first[0]} is running in this process, whose random numbers, gradient mode and signal "
            "handlers it uses; wait until it has ended, or start another process"
        )
    try:
        yield
    finally:
        del _running[process]
