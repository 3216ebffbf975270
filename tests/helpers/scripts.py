"""Programs in processes of their own, which start at once: each is a fork of a server that has imported PyTorch.

Every process of pytest has one server, which ends with it. A program behaves as under a new interpreter. It has its own
process, arguments, environment, `sys.path`, standard streams and `__main__`, and an exit status as every program. These
differ: its parent is the server, its entries in /proc show the command and the environment of the server, it finds
PyTorch imported, and modules are not torn down at its end. Where that matters, ask for a `new_interpreter`.
"""

from __future__ import annotations

import atexit
import functools
import gc
import inspect
import io
import json
import multiprocessing
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import types
from pathlib import Path
from typing import Any

SLOWNESS = max(1.0, float(os.environ.get("TEST_IMPORT_SECONDS", "1")) / 1.5)
"""How much longer this machine needs for the import of PyTorch than limits are made for, as it is just now."""
DEADLINE = 120.0 * SLOWNESS
LARGEST_REQUEST = 200_000
PRELOADED = ("torch._dynamo", "numpy", "helios_lite.training.loop", "helios_lite.tools.command")
_lock = threading.Lock()


def start(*program: object, new_interpreter: bool = False, **options: Any) -> subprocess.Popen[str]:
    """Start a program.

    Args:
        program: what `python` is given: a file, "-m" and a module, "-c" and a text, or "-", and arguments.
        new_interpreter: whether Python itself is started, which takes seconds.
        options: those of subprocess.Popen; `env` has what differs from this process's environment, None for nothing.
    """
    environment = {**os.environ, **options.pop("env", {})}
    options["env"] = {name: value for name, value in environment.items() if value is not None}
    command = [str(part) for part in program]
    if new_interpreter:
        return subprocess.Popen([sys.executable, *command], text=True, **options)
    return _Fork(command, text=True, **options)


def run(
    *program: object, input: str | None = None, timeout: float = DEADLINE, check: bool = True, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a program, and return what it printed; with `check` it must succeed. For the rest see `start`."""
    if input is not None:
        options["stdin"] = subprocess.PIPE
    with start(*program, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}) as process:
        try:
            output, errors = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    assert process.returncode == 0 or not check, errors
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


class _Fork(subprocess.Popen):  # type: ignore[type-arg]
    """A Popen whose process is started and waited for by the server."""

    def _execute_child(self, *arguments: Any) -> None:
        given = inspect.signature(super()._execute_child).bind(*arguments).arguments
        folder = str(given["cwd"] or os.getcwd())
        request = json.dumps([given["args"], folder, given["env"], given["start_new_session"]]).encode()
        streams = [given["p2cread"], given["c2pwrite"], given["errwrite"]]
        self._status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # Keeps messages apart.
        fds = [number if fd == -1 else fd for number, fd in enumerate(streams)]
        socket.send_fds(_server(), [request], [*fds, theirs.fileno()])
        theirs.close()
        self.pid = int(self._status.recv(16))
        self._child_created = True
        ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(given[end] for end in ends))

    def _try_wait(self, flags: int) -> tuple[int, int]:
        self._status.setblocking(flags != os.WNOHANG)
        try:
            status = int(self._status.recv(16))
        except BlockingIOError:
            return 0, 0
        self._status.close()
        return self.pid, status

    def _internal_poll(self, _deadstate: int | None = None) -> int | None:
        try:
            return self._wait(timeout=0)
        except subprocess.TimeoutExpired:
            return None


def _server() -> socket.socket:
    with _lock:
        return _started_server()


@functools.cache
def _started_server() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TEST_MARK")}
    command = [sys.executable, __file__, str(theirs.fileno()), os.environ.get("PYTHONPATH", "")]
    server = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], start_new_session=True)
    theirs.close()

    def end() -> None:
        ours.close()
        server.wait()

    atexit.register(end)
    return ours


# In the server.


def _serve(requests: socket.socket) -> list[str]:
    """Fork for every request until there is nobody left to ask; return the command in the fork."""
    selector = selectors.DefaultSelector()
    selector.register(requests, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.data is not None:
                pid, status = key.data
                status.send(b"%d" % os.waitpid(pid, 0)[1])
                selector.unregister(key.fd)
                _close(key)
                continue
            request, fds, *_ = socket.recv_fds(requests, LARGEST_REQUEST, 4)
            if not request:
                for other in [each for each in selector.get_map().values() if each.data is not None]:
                    os.kill(other.data[0], signal.SIGKILL)
                os._exit(0)
            pid = os.fork()
            if pid == 0:
                for other in selector.get_map().values():
                    _close(other)
                selector.close()
                return _become(*json.loads(request), fds)
            status = socket.socket(fileno=fds.pop())
            for fd in fds:
                os.close(fd)
            status.send(b"%d" % pid)
            selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))


def _close(key: selectors.SelectorKey) -> None:
    if key.data is None:
        key.fileobj.close()  # type: ignore[union-attr]
    else:
        os.close(key.fd)
        key.data[1].close()


def _become(command: list[str], folder: str, environment: dict[str, str], new_session: bool, fds: list[int]) -> Any:
    """Make this fork what a new process is, and return its command."""
    if new_session:
        os.setsid()
    for number, fd in enumerate(fds[:3]):
        os.dup2(fd, number)
    for fd in fds:
        os.close(fd)
    os.chdir(folder)
    multiprocessing.process.ORIGINAL_DIR = folder  # type: ignore[attr-defined]
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [os.path.abspath(path) for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = _output(1, "strict")
    sys.stderr = sys.__stderr__ = _output(2, "backslashreplace")
    sys.modules["torch"].seed()  # A new interpreter draws other numbers than the one before it.
    sys.modules["numpy"].random.seed()
    return command


def _output(fd: int, errors: str) -> io.TextIOWrapper:
    is_unbuffered = os.environ.get("PYTHONUNBUFFERED", "") != ""
    file = open(fd, "wb", buffering=0 if is_unbuffered else -1, closefd=False)  # noqa: SIM115
    is_by_line = not is_unbuffered and (fd == 2 or os.isatty(fd))
    return io.TextIOWrapper(file, errors=errors, line_buffering=is_by_line, write_through=is_unbuffered)


def _run(command: list[str]) -> None:
    """Do what `python` does with a command, and end this process."""
    number = None
    try:
        _execute(command)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if not isinstance(error.code, int | None):
            print(error.code, file=sys.stderr)
    except BaseException as error:
        status, number = 1, signal.SIGINT if isinstance(error, KeyboardInterrupt) else None
        own = error.__traceback__.tb_next  # type: ignore[union-attr]  # It has the lines of this file.
        sys.excepthook(type(error), error.with_traceback(own and own.tb_next), own and own.tb_next)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        sys.exit(status)  # Python says what it thinks of that.
    if number is not None:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(status & 0xFF)  # Tearing down takes longer than the rest of a small program.


def _execute(command: list[str]) -> None:
    name, *sys.argv = ["", *command]
    if command[0] == "-m":
        sys.argv = command[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if command[0] == "-c":
        sys.argv = ["-c", *command[2:]]
        source: Any = command[1]
        name, folder = "<string>", ""
    elif command[0] == "-":
        source = sys.stdin.read()
        name, folder = "<stdin>", ""
    else:
        source = Path(command[0]).read_bytes()
        name = main.__file__ = os.path.abspath(command[0])
        folder = os.path.dirname(os.path.realpath(name))
    sys.path.insert(0, folder)
    exec(compile(source, name, "exec", dont_inherit=True), main.__dict__)


if __name__ == "__main__":
    preload, sys.path[0] = sys.argv[2], ""
    own = sys.path[1:]
    sys.path[:] = [*filter(None, preload.split(os.pathsep)), *own]
    for each in PRELOADED:
        __import__(each)
    sys.path[:] = own
    gc.freeze()
    _run(_serve(socket.socket(fileno=int(sys.argv[1]))))
