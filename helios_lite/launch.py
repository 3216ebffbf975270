"""Starting the processes of a run by torch elastic, and bringing back what comes of them."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from multiprocessing import active_children
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

from helios_lite.distributed import PARENT, World
from helios_lite.interrupts import Interrupts

Result = TypeVar("Result")
logger = logging.getLogger("helios_lite")

_INTERRUPTED = "interrupted"
_ALONE = 75  # The exit status of a process that has missed another one.


def launch(
    function: Callable[..., Result],
    arguments: dict[str, Any],
    *,
    first: Callable[[], object] = lambda: None,
    processes: int,
    max_restarts: int,
) -> Result:
    """Run a function in several new processes of this machine and return what rank 0 returns.

    Args:
        function: of the top level of a module; called with the arguments in every process.
        arguments: by name; all are sent to the processes.
        first: called once in this process, when the arguments are known to be such as can be sent.
        processes: how many.
        max_restarts: how often all are started again after one failed.

    Raises:
        TypeError: an argument cannot be sent; the message names the attribute.
        Exception: the first one that a process raised, with that process's traceback as its cause.
        RuntimeError: a process died without an exception.
        KeyboardInterrupt, SystemExit: after a signal, which the processes finish their update and save for.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    result: Any = None
    with contextlib.ExitStack() as stack:
        # A process that was killed may have been writing there: not what the caller is to hear of.
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="helios_lite-", ignore_cleanup_errors=True))
        )
        _write(function, arguments, folder)
        first()
        interrupts = stack.enter_context(Interrupts())
        for attempt in range(max_restarts + 1):
            try:
                result = _attempt(folder, processes, attempt, interrupts)
                break
            except ChildFailedError as failed:
                error, cause = _first_error(folder, attempt, failed)
            if interrupts.received is not None and cause is None:
                break  # It came before they could handle it.
            if interrupts.received is not None or attempt == max_restarts:
                raise error from cause
            logger.warning("%s: %s; all processes start again", type(error).__name__, error)
        if isinstance(result, tuple) and result[:1] == (_INTERRUPTED,):
            interrupts.received = interrupts.received or signal.Signals(result[1])
    return result  # type: ignore[no-any-return]


class Interrupted(BaseException):
    """A run was interrupted by a signal and has saved its state; told to the process that launched it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class RemoteTraceback(Exception):
    """The traceback of an exception in another process, as text."""

    def __str__(self) -> str:
        """Return the text on lines of its own."""
        return f"\n{self.args[0]}"


def require_picklable(value: Any, name: str, seen: tuple[int, ...] = ()) -> None:
    """Raise a TypeError that names the attribute, if a value cannot be sent to another process."""
    if id(value) in seen:  # It refers to itself.
        return
    try:
        pickle.dumps(value)
    except Exception as error:
        parts = {f"{name}.{part}": item for part, item in getattr(value, "__dict__", {}).items()}
        if isinstance(value, dict):
            parts |= {f"{name}[{key!r}]": item for key, item in value.items()}
        if isinstance(value, list | tuple):
            parts |= {f"{name}[{i}]": item for i, item in enumerate(value)}
        for part, item in parts.items():
            require_picklable(item, part, (*seen, id(value)))
        raise TypeError(f"{name} cannot be sent to another process: {error}") from error


@contextlib.contextmanager
def watch(world: World, interrupts: Interrupts) -> Iterator[None]:
    """End this process if, during the context, another one of this machine is gone.

    Then an update may wait for the dead, and a process that was told to end (SIGTERM) would finish its update first.
    Call on every rank.

    Args:
        world: the ranks.
        interrupts: what signals have come.
    """
    host = socket.gethostname()
    here = [pid for other, pid in world.gather((host, os.getpid())) if other == host and pid != os.getpid()]
    over = threading.Event()

    def look() -> None:
        while all(map(_is_alive, here)):
            if over.wait(0.5):
                return
        # Those that a trainer has launched end all at once; it is given the time to see who was first. One that waits
        # inside of C++ is told in vain. Those of torchrun may end one by one.
        deadline = time.monotonic() + (3.0 if PARENT in os.environ else math.inf)
        while interrupts.received is not signal.SIGTERM:
            if time.monotonic() > deadline:
                _leave(_ALONE)
            if over.wait(0.1):
                return
        _leave(128 + signal.SIGTERM)

    thread = threading.Thread(target=look, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _attempt(folder: Path, processes: int, attempt: int, interrupts: Interrupts) -> Any:
    """Start the processes once and return what rank 0 returns; a signal that comes is passed on to them."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Without elastic's own restarts: those keep the store, where processes then find addresses of the dead.
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # A port that the operating system chooses.
        local_addr="localhost",
        max_restarts=0,
        monitor_interval=0.1,
    )
    outcome: dict[str, Any] = {}
    done = threading.Event()  # After an interrupted join, a thread that is running says that it is not.

    def run() -> None:
        try:
            threads = max(1, torch.get_num_threads() // processes)
            outcome["values"] = elastic_launch(config, _work)(str(folder), attempt, os.getpid(), threads)
        except BaseException as error:
            outcome["error"] = error
        done.set()

    # What elastic and the spawner say of a failure is said better by the exception that we raise.
    noisy = [logging.getLogger(f"torch.{name}") for name in ("distributed.elastic", "multiprocessing.spawn")]
    levels = [noise.level for noise in noisy]
    for noise in noisy:
        noise.setLevel(logging.CRITICAL)
    others = active_children()  # The caller's, if there are any: not ours to end.
    told: set[int | None] = set()
    # In a thread: elastic installs no signal handlers there, and so it is us who decide what a signal means.
    try:
        threading.Thread(target=run, name="elastic", daemon=True).start()
        while not done.wait(0.1):
            if interrupts.received is not None:
                # They finish their update and save; those that are only starting die. Ctrl-C may have reached them.
                for child in set(active_children()) - {*others}:
                    if child.pid not in told:
                        told.add(child.pid)
                        child.terminate()
    except BaseException:  # A second Ctrl-C.
        limit = time.monotonic() + 5.0
        while not done.wait(0.05) and time.monotonic() < limit:
            for child in set(active_children()) - {*others}:  # Each time: one may just be starting.
                child.kill()
        raise
    finally:
        for noise, level in zip(noisy, levels, strict=True):
            noise.setLevel(level)
    if "error" in outcome:
        raise outcome["error"]
    return outcome["values"][0]


def _write(function: Callable[..., Any], arguments: dict[str, Any], folder: Path) -> None:
    """Write what the processes are to do. Tensors too: sent by torch.multiprocessing, all would train the same ones."""
    try:
        torch.save((function, arguments), folder / "work", pickle_protocol=pickle.DEFAULT_PROTOCOL)
    except Exception:
        for name, value in arguments.items():
            require_picklable(value, name)
        raise


def _work(folder: str, attempt: int, parent: int, threads: int) -> Any:
    """Run in every process that elastic starts."""
    torch.set_num_threads(threads)
    os.environ[PARENT] = str(parent)
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(attempt)
    threading.Thread(target=_follow, args=(parent,), name="follow", daemon=True).start()
    try:
        # The folder is private to this user and made by the process that launched this one. Mapped, not read: data
        # takes its memory once, and what one process changes is still its own.
        function, arguments = torch.load(Path(folder) / "work", mmap=True, weights_only=False)
        result = function(**arguments)
    except Interrupted as interrupted:
        result = (_INTERRUPTED, interrupted.number)
    except BaseException as error:
        when, text = time.time_ns(), traceback.format_exc()
        try:
            content = pickle.dumps((when, error, text))
            pickle.loads(content)
        except Exception:
            content = pickle.dumps((when, RuntimeError(f"{type(error).__name__}: {error}"), text))
        path = Path(folder) / f"{attempt}-{os.environ['RANK']}"
        path.with_suffix(".part").write_bytes(content)
        path.with_suffix(".part").rename(path)
        time.sleep(0.5)  # A process that was killed is to be noticed before those that miss it and fail for that.
        _leave(1)  # Whatever was raised: exit(0), too, is a failure here. And no thread of the user's can delay it.
    for number in (signal.SIGINT, signal.SIGTERM):  # Elastic waits for the others now, and hangs if one dies meanwhile.
        signal.signal(number, signal.SIG_IGN)
    return result


def _leave(status: int) -> NoReturn:
    """End this process and its loading processes, now."""
    for child in active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _follow(parent: int) -> None:
    """End this process when the one that launched it is gone, and so nobody is there to tell it anything."""
    while os.getppid() == parent:
        time.sleep(0.5)
    _leave(128 + signal.SIGTERM)


def _first_error(folder: Path, attempt: int, failed: Any) -> tuple[BaseException, BaseException | None]:
    """Return what went wrong first, and its cause: ranks that lose a peer raise errors of their own right after."""
    rank, failure = failed.get_first_failure()
    if not (folder / f"{attempt}-{rank}").exists():
        status = failure.exitcode
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else "ended without an exception"
        if status == _ALONE:
            how = "missed another rank, which ended without an exception"
        return RuntimeError(f"rank {rank} {how} (exit status {status})"), None
    paths = [path for path in folder.glob(f"{attempt}-*") if path.suffix == ""]
    contents = {path.name.split("-")[1]: pickle.loads(path.read_bytes()) for path in paths}
    number, (_, error, text) = min(contents.items(), key=lambda item: item[1][0])
    return error, RemoteTraceback(f"in the process of rank {number}:\n{text}")


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
