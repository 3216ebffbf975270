"""Starts processes that are as fresh as a new interpreter, but have imported PyTorch already.

They are copies of one process, the "forkserver" of multiprocessing, that has imported it and nothing of the program.
The server starts with the first of them, and ends with the program.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from helios_lite.processes.peers import is_alive
from helios_lite.processes.signals import SIGNALS, held_back, keep_for_call, receive_again

PRELOADED = [
    "helios_lite.processes.forkserver",
    "torch._dynamo",  # Every optimizer of PyTorch imports its compiler, which takes a second.
    "helios_lite.training.loop",
    "helios_lite.tools.audit.processes",
]
"""What the server imports: nothing that touches CUDA or starts threads."""
_server: Any = forkserver._forkserver
_RESTORED = "HELIOS_LITE_RESTORED"
"""The environment variable with those that the server has to restore, as JSON."""


def fresh_process(function: Callable[..., object], *arguments: object, name: str, by_copy: bool = True) -> BaseProcess:
    """Return a process that has not been started yet.

    Args:
        function, arguments: what it calls.
        name: its name, for messages.
        by_copy: whether it is a copy of the server, if there can be one; otherwise it is a new interpreter.
    """
    method = "spawn"
    if by_copy and sys.platform == "linux" and _inherited_by_server(os.getpid()) == _inherited():
        if not is_alive(_server._forkserver_pid):  # Somebody has killed it.
            _start_server()
        method, name = "forkserver", _Name(name)
    context: Any = multiprocessing.get_context(method)
    process: BaseProcess = context.Process(target=function, args=arguments, name=name, daemon=False)
    return process


class _Name(str):
    """The name of a copy of the server. When it reads its name, before it imports the program, it begins afresh.

    Until then it has the environment variables and the random numbers of the server.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how the process reads it."""
        return _begin, (str(self), dict(os.environ))


def _begin(name: str, variables: Mapping[str, str]) -> str:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # It dies of it while it imports the program, without a traceback.
    receive_again(signal.SIGINT, signal.SIGUSR1)
    gc.freeze()  # What the server has imported stays; to look through it would copy its memory.
    os.environ.clear()
    os.environ.update(variables)
    torch.default_generator.seed()  # That of the module `random` is another one after every fork.
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()
    return name


def _inherited() -> Any:
    """Return what a process inherits from the one that starts it: where it prints, and the rights of new files."""
    files = [os.stat(path)[:3] if os.path.exists(path) else None for path in ("/dev/fd/1", "/dev/fd/2")]
    umask = re.search("Umask.*", Path("/proc/self/status").read_text())  # `os.umask` would change it meanwhile.
    return files, umask and umask[0]


@functools.cache
def _inherited_by_server(process: int) -> Any:
    """Start the server of this process; return what it inherits, None if the program has or prepares one of its own."""
    # In a process that was forked, the server is that of its parent.
    if _server._forkserver_pid is not None or _server._preload_modules != ["__main__"]:
        return None
    multiprocessing.set_forkserver_preload(PRELOADED)
    _start_server()
    return _inherited()


def _start_server() -> None:
    # It shall find the packages that this process has found, also those beside the program, and none where it happens
    # to be.
    path = os.pathsep.join(map(os.path.abspath, sys.path))
    with _environment({"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}):
        with held_back(SIGNALS):  # The tracker lets SIGUSR1 end it otherwise, and receives the others again by itself.
            resource_tracker.ensure_running()
        with held_back(SIGNALS):
            forkserver.ensure_running()


@contextlib.contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Context in which variables have other values; the server restores them when it has imported this module."""
    before = {name: os.environ.get(name) for name in (*changes, _RESTORED)}
    os.environ.update(changes, **{_RESTORED: json.dumps(before)})
    try:
        yield
    finally:
        _restore(before)


def _restore(before: dict[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


if _RESTORED in os.environ:
    _restore(json.loads(os.environ[_RESTORED]))
    signal.signal(signal.SIGUSR1, keep_for_call)  # Its copies inherit that.
    receive_again(signal.SIGTERM)
    # A Ctrl-C in a terminal reaches the server too, which ignores it later, and so does a copy that has just been made;
    # and what a handler in Python got before `os.fork` has returned is forgotten. A copy receives both when it begins
    # afresh, or, if it is a process of the program itself, when it begins.
    util.register_after_fork(receive_again, lambda receive: receive(signal.SIGINT, signal.SIGUSR1))
