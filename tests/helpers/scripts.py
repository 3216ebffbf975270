"""Programs in processes of their own, which start at once: each is a fork of a server that has imported PyTorch.

All processes of one pytest share a server, which ends with the last of them. A program behaves as under a new
interpreter. It has its own process, arguments, environment, `sys.path`, standard streams and `__main__`, and an exit
status as every program. These differ: its parent is the server, its entries in /proc show the command and the
environment of the server, it finds PyTorch imported, and modules are not torn down at its end. Where that matters, ask
for a `new_interpreter`.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import gc
import inspect
import io
import json
import multiprocessing.util
import os
import re
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import threading
import types
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

LEEWAY = 3.0
"""For what shares the processors after the start has been measured: other processes of pytest, and other programs."""
SLOWNESS = LEEWAY * max(1.0, float(os.environ.get("TEST_IMPORT_SECONDS", "1")) / 1.5)
"""How much longer than on an idle quick machine a limit is, by what the import of PyTorch takes here."""
DEADLINE = 120.0 * SLOWNESS
LARGEST_REQUEST = 200_000
PRELOADED = ("torch._dynamo", "numpy", "helios_lite.training.loop", "helios_lite.tools.command")
PRELOADED_IF_INSTALLED = ("mlflow", "wandb")
_lock = threading.Lock()
MARK = 400
"""What programs have started by a fork has an open file of this number, which has the name of TEST_MARK."""
_is_program = __name__ == "__main__"
os.environ.setdefault("TEST_MARK", uuid.uuid4().hex)  # Set by pytest's configuration, but for programs of their own.
_own_server: list[socket.socket] = []
"""That of this program, until it has become something else."""


HANDLERS = {
    number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
}


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
    return (subprocess.Popen if new_interpreter else _Program)([sys.executable, *command], text=True, **options)


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


class _Program(subprocess.Popen):  # type: ignore[type-arg]
    """A Popen whose process is forked and waited for by the server, if it runs Python and asks for nothing special."""

    _status: socket.socket | None = None

    def _execute_child(self, *arguments: Any) -> None:
        given = inspect.signature(super()._execute_child).bind(*arguments).arguments
        args = [given["args"]] if isinstance(given["args"], str) else [os.fspath(part) for part in given["args"]]
        asks_for_more = [given["preexec_fn"], given["shell"], not given["close_fds"], given["executable"]]
        server = None if any(asks_for_more) or not _is_understood(args) else _server()
        if server is None:
            super()._execute_child(*arguments)
            return
        streams = [given["p2cread"], given["c2pwrite"], given["errwrite"]]
        fds = {number: number if fd == -1 else fd for number, fd in enumerate(streams)}
        fds |= {fd: fd for fd in given["pass_fds"]}
        self._status, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # Keeps messages apart.
        _send(server, args, fds, theirs, given["cwd"], given["env"], given["start_new_session"])
        theirs.close()
        self.pid = int(self._status.recv(16))
        self._child_created = True
        ends = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(given[end] for end in ends))

    def _try_wait(self, flags: int) -> tuple[int, int]:
        if self._status is None:
            return super()._try_wait(flags)  # type: ignore[misc,no-any-return]
        self._status.setblocking(flags != os.WNOHANG)
        try:
            status = int(self._status.recv(16) or 0)  # Nothing if the server was killed.
        except BlockingIOError:
            return 0, 0
        self._status.close()
        return self.pid, status

    def _internal_poll(self, *arguments: Any, **options: Any) -> int | None:
        if self._status is None:
            return super()._internal_poll(*arguments, **options)  # type: ignore[misc,no-any-return]
        try:
            return self._wait(timeout=0)
        except subprocess.TimeoutExpired:
            return None


def _is_understood(args: list[str]) -> bool:
    rest = args[2:] if args[1:2] == ["-u"] else args[1:]
    return (
        args[0] == sys.executable
        and rest != []
        and (rest[:1] in (["-m"], ["-c"], ["-"]) or not rest[0].startswith("-"))
    )


def _send(
    server: socket.socket,
    args: list[str],
    fds: dict[int, int],
    status: socket.socket | None = None,
    folder: Any = None,
    environment: Any = None,
    new_session: bool = False,
) -> None:
    """Ask a server for a process with these files by number; without `status` it becomes that process itself."""
    umask = int(re.findall(r"Umask:\s*(\d+)", Path("/proc/self/status").read_text())[0], 8)
    held_back = [*signal.pthread_sigmask(signal.SIG_BLOCK, ())]
    variables = {**(environment or os.environ)}
    request = [args[1:], str(folder or os.getcwd()), variables, new_session, umask, held_back, [*fds]]
    own = [] if status is None else [status.fileno()]
    socket.send_fds(server, [json.dumps([status is not None, *request]).encode()], [*fds.values(), *own])


def _server() -> socket.socket | None:
    if _is_program:
        return _own_server[0] if _own_server else None
    with _lock:
        return _started_server()


# For shell scripts: a file that does what `python` does with its arguments. Signals are passed on to the program.
AS_PYTHON = f"""#!{sys.executable} -ES
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from helpers import scripts
program = scripts.start(*{{first}}, *sys.argv[1:])
for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: program.send_signal(number))
status = program.wait()
os._exit(status if status >= 0 else 128 - status)
"""


def write_python(path: Path, *first: str) -> dict[str, str]:
    """Write a file that shell scripts may start as `python` followed by these arguments.

    Returns:
        What it has to find in its environment.
    """
    path.write_text(AS_PYTHON.format(first=first))
    path.chmod(0o755)
    _server()
    return {"TEST_SERVER": _address()}


def _address() -> str:
    own = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    return os.environ.get("TEST_SERVER", f"tests of {own}")


@functools.cache
def _started_server() -> socket.socket:
    address = f"\0{_address()}"
    listener, ours = (socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2))
    with listener:
        try:
            listener.bind(address)
        except OSError:
            pass  # Another process of this pytest was earlier.
        else:
            listener.listen()
            environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TEST_MARK")}
            command = [sys.executable, __file__, str(listener.fileno()), os.environ.get("PYTHONPATH", "")]
            server = subprocess.Popen(command, env=environment, pass_fds=[listener.fileno()], start_new_session=True)
            server.returncode = 0  # Nobody waits for it.
    ours.connect(address)
    atexit.register(ours.close)
    return ours


# In the server.


class _Forked(NamedTuple):
    """A process that was forked, where its status is sent, and who has asked for it."""

    pid: int
    status: socket.socket
    asked_by: socket.socket


def _serve(requests: socket.socket, is_of_program: bool = False) -> list[str]:
    """Fork for every request until there is nobody left to ask; return the command in the fork.

    Args:
        requests: the connection to the program; of all processes of pytest, what they connect to.
        is_of_program: which of these it is.
    """
    selector = selectors.DefaultSelector()
    selector.register(requests, selectors.EVENT_READ)
    num_asking = int(is_of_program)
    while True:
        for key, _ in selector.select():
            if isinstance(key.data, _Forked):
                key.data.status.send(b"%d" % os.waitpid(key.data.pid, 0)[1])
                selector.unregister(key.fd)
                _close(key)
                continue
            asking: socket.socket = key.fileobj  # type: ignore[assignment]
            if asking is requests and not is_of_program:
                selector.register(requests.accept()[0], selectors.EVENT_READ)
                num_asking += 1
                continue
            message, fds, *_ = socket.recv_fds(asking, LARGEST_REQUEST, 20)
            if not message:
                for other in selector.get_map().values():
                    if isinstance(other.data, _Forked) and other.data.asked_by is asking and not is_of_program:
                        os.kill(other.data.pid, signal.SIGKILL)
                selector.unregister(asking)
                asking.close()
                num_asking -= 1
                if num_asking == 0:
                    os._exit(0)
                continue
            is_fork, *request = json.loads(message)
            status = socket.socket(fileno=fds.pop()) if is_fork else None
            pid = os.fork() if is_fork else 0
            if pid == 0:
                for other in selector.get_map().values():
                    _close(other)
                selector.close()
                if status is not None:
                    status.close()
                return _become(*request, fds, is_of_program)
            for fd in fds:
                os.close(fd)
            status.send(b"%d" % pid)
            selector.register(os.pidfd_open(pid), selectors.EVENT_READ, _Forked(pid, status, asking))


def _close(key: selectors.SelectorKey) -> None:
    if isinstance(key.data, _Forked):
        os.close(key.fd)
        key.data.status.close()
    else:
        key.fileobj.close()  # type: ignore[union-attr]


def _become(
    command: list[str],
    folder: str,
    environment: dict[str, str],
    new_session: bool,
    umask: int,
    held_back: list[int],
    numbers: list[int],
    fds: list[int],
    is_of_program: bool,
) -> list[str]:
    """Make this process what a new one is, and return its command."""
    signal.pthread_sigmask(signal.SIG_SETMASK, held_back)  # As it is inherited, and before it handles them.
    if new_session:
        os.setsid()
    fds = [_moved(fd) for fd in fds]
    for number, fd in zip(numbers, fds, strict=True):
        os.dup2(fd, number)
        os.close(fd)
    if is_of_program:
        for number, handler in HANDLERS.items():
            signal.signal(number, handler)
        os.dup2(os.memfd_create(environment["TEST_MARK"]), MARK)
    else:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            ours.close()
            for number in HANDLERS:
                signal.signal(number, signal.SIG_IGN)
            for number in range(3):
                os.dup2(os.open(os.devnull, os.O_RDWR), number)
            return _serve(theirs, is_of_program=True)
        theirs.close()
        _own_server.append(ours)
        multiprocessing.util.spawnv_passfds = functools.partial(_spawn, pid, multiprocessing.util.spawnv_passfds)
    os.chdir(folder)
    os.umask(umask)
    multiprocessing.process.ORIGINAL_DIR = folder  # type: ignore[attr-defined]
    os.environ.clear()
    os.environ.update(environment)
    if command[0] == "-u":
        command = command[1:]
        os.environ["PYTHONUNBUFFERED"] = "1"
    sys.path[:0] = [os.path.abspath(path) for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = _output(1, "strict")
    sys.stderr = sys.__stderr__ = _output(2, "backslashreplace")
    sys.modules["torch"].seed()  # A new interpreter draws other numbers than the one before it.
    sys.modules["numpy"].random.seed()
    return command


def _moved(fd: int) -> int:
    """Return a copy of a file, whose number is none that a program was promised."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD, 500)
    os.close(fd)
    return moved


def _spawn(server: int, real: Callable[..., int], path: Any, args: list[Any], fds: Any) -> int:
    """What starts a process for multiprocessing, in a program: let its server be the fork server."""
    args = [os.fsdecode(part) for part in args]
    if not _own_server or not _is_understood(args) or "multiprocessing.forkserver" not in args[-1]:
        return real(path, args, fds)
    _send(_own_server[0], args, {fd: fd for fd in (0, 1, 2, *fds)})
    _own_server.pop().close()
    return server


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
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not getattr(stream, "closed", False):
                stream.flush()
    except OSError:
        if number is None:
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
    subprocess.Popen = _Program  # type: ignore[misc]
    preload, sys.path[0] = sys.argv[2], ""
    own = sys.path[1:]
    sys.path[:] = [*filter(None, preload.split(os.pathsep)), *own]
    for each in PRELOADED:
        __import__(each)
    for each in PRELOADED_IF_INSTALLED:
        with contextlib.suppress(ImportError):
            __import__(each)
    sys.path[:] = own
    gc.freeze()
    _run(_serve(socket.socket(fileno=int(sys.argv[1]))))
