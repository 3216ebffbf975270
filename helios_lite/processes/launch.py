"""Starts the processes of a run by torch elastic, and returns their result or raises their error.

A launched process imports the program's main module before it can run a task.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from helios_lite.processes.rank_watch import RankFailure, RankWatch, StartedProcesses
from helios_lite.processes.signals import GracefulShutdown
from helios_lite.processes.worker import (
    TASK_FILE,
    Interruption,
    WorkerError,
    end_file,
    error_file,
    read_statuses,
    run_worker,
)

Result = TypeVar("Result")
logger = logging.getLogger("helios_lite")


def launch(
    function: Callable[..., Result],
    arguments: dict[str, Any],
    *,
    before_start: Callable[[], object] = lambda: None,
    processes: int,
    max_restarts: int,
    shutdown: GracefulShutdown | None = None,
) -> Result:
    """Run a function in several new processes of this machine, and return the result of rank 0.

    Args:
        function: a function at the top level of a module, called with the arguments in every process.
        arguments: the arguments by name; all are sent to the processes.
        before_start: called once in this process, after the arguments are known to be picklable.
        processes: the number of processes.
        max_restarts: how often all processes are started again after one has failed.
        shutdown: what says that a signal was received; by default what this process receives.

    Raises:
        TypeError: an argument cannot be sent; the message names the attribute.
        Exception: the first exception of any process, with that process's traceback as its cause.
        RuntimeError: a process died without an exception, or could not import the program.
        KeyboardInterrupt, SystemExit: after a signal; the processes have finished their update and saved.
    """
    result: Any = None
    leave_if_importing()
    with contextlib.ExitStack() as stack:
        # A killed worker may have left files here that cannot be removed; that must not hide the error that we raise.
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="helios_lite-", ignore_cleanup_errors=True))
        )
        _write_task(function, arguments, folder)
        check_main_is_importable(folder / TASK_FILE, processes)
        before_start()
        shutdown = stack.enter_context(GracefulShutdown() if shutdown is None else shutdown)
        for attempt in range(max_restarts + 1):
            try:
                result = WorkerGroup(folder, processes, attempt).run(shutdown)
                break
            except RankFailedError as failed:
                error, cause = _first_error(folder, attempt, failed.failure)
            if shutdown.received is not None and cause is None:
                break  # The signal ended the workers before they could handle it.
            if shutdown.received is not None or attempt == max_restarts:
                raise error from cause
            logger.warning("%s: %s; all processes start again", type(error).__name__, error)
        if isinstance(result, Interruption):
            shutdown.receive(shutdown.received or signal.Signals(result.number))
    return result  # type: ignore[no-any-return]


@contextlib.contextmanager
def launched_beside(
    function: Callable[..., Any], arguments: dict[str, Any], *, processes: int
) -> Iterator[Future[Any]]:
    """Context in which several new processes run a function while this one goes on; on exit they have ended.

    Args:
        function, arguments, processes: as for `launch`.

    Yields:
        What `launch` returns or raises, once the processes have ended.
    """
    shutdown = GracefulShutdown()
    with ThreadPoolExecutor(1, thread_name_prefix="launch") as thread:
        future = thread.submit(launch, function, arguments, processes=processes, max_restarts=0, shutdown=shutdown)
        try:
            yield future
        finally:
            shutdown.receive(signal.SIGTERM)  # Without effect if they have ended.


class RankFailedError(Exception):
    """An attempt has failed.

    Attributes:
        failure: the process that failed first.
    """

    def __init__(self, failure: RankFailure) -> None:
        super().__init__(str(failure))
        self.failure = failure


def _store_on_free_port() -> Any:
    """Return a TCPStore that others of this process with the same port share.

    The port is not left to the store (port 0): one that an earlier store of this process had would not be shared then.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # It is documented there.
    from torch.distributed.elastic.utils.distributed import get_free_port

    attempts = 10
    while True:
        port = get_free_port()  # type: ignore[no-untyped-call]
        try:
            return TCPStore("localhost", port, is_master=True, wait_for_workers=False, multi_tenant=True)
        except RuntimeError:  # Another program has taken the port meanwhile.
            attempts -= 1
            if attempts == 0:
                raise


class WorkerGroup:
    """The processes of one attempt, started by torch elastic.

    Elastic's own restarts are not used: they keep the store, in which new processes find the addresses of dead ones.

    Args:
        folder: the folder with the task.
        processes: the number of processes.
        attempt: how many attempts have failed before.
    """

    def __init__(self, folder: Path, processes: int, attempt: int) -> None:
        self._folder, self._processes, self._attempt = folder, processes, attempt
        self._started = StartedProcesses()
        self._watch = RankWatch(folder, attempt, processes, self._started)
        self._thread = threading.Thread(target=self._run_elastic, name="elastic", daemon=True)
        self._signalled: set[int] = set()
        self._values: dict[int, Any] = {}
        self._error: BaseException | None = None
        # An event, because a thread whose join was interrupted may be reported as ended while it runs.
        self._done = threading.Event()

    def run(self, shutdown: GracefulShutdown) -> Any:
        """Start the processes, wait for them, and return the result of rank 0. A received signal is passed on to them.

        Raises:
            RankFailedError: a process failed; all have been ended.
        """
        with _quiet_elastic():
            try:
                # In a thread elastic installs no signal handlers, so that ours decide what a signal means.
                self._thread.start()
                while not self._done.wait(0.1) and self._watch.failure is None:
                    self._watch.poll()
                    if self._watch.received is not None and shutdown.received is None:
                        shutdown.receive(self._watch.received)  # By one process; others may be waiting for it.
                    if shutdown.received is not None:
                        self._terminate()
                    elif shutdown.take_save_request():
                        self._request_save()
                self._end()
            except BaseException:  # A second Ctrl-C.
                self._kill(seconds=5.0)
                raise
        if self._error is None and self._values:
            return self._values[0]
        failure = self._first_failure()
        if failure is None and self._error is not None:
            raise self._error
        raise RankFailedError(failure or RankFailure(0, None))

    def _run_elastic(self) -> None:
        try:
            from torch.distributed.launcher.api import LaunchConfig, elastic_launch

            store = _store_on_free_port()  # Elastic shares it.
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=self._processes,
                run_id=uuid.uuid4().hex,
                rdzv_backend="static",  # Nodes that have to find each other first would wait for a random time.
                rdzv_endpoint=f"localhost:{store.port}",
                rdzv_configs={"rank": 0},
                local_addr="localhost",
                max_restarts=0,
                monitor_interval=0.1,
            )
            num_threads = max(1, torch.get_num_threads() // self._processes)
            run = elastic_launch(config, run_worker)
            self._values = run(str(self._folder), self._attempt, os.getpid(), num_threads, self._started)
        except BaseException as error:
            self._error = error
        self._done.set()

    def _terminate(self) -> None:
        """Send SIGTERM once to each process: it finishes its update and saves, or dies if it is only starting.

        A Ctrl-C in a terminal may have reached the processes already.
        """
        for process in self._started:
            if process.pid not in self._signalled:
                self._signalled.add(process.pid)
                process.terminate()

    def _request_save(self) -> None:
        """Pass SIGUSR1 on to the processes that have started their task; a process that is starting would die of it."""
        for status in read_statuses(self._folder, self._attempt).values():
            if not status.is_done:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(status.pid, signal.SIGUSR1)

    def _end(self) -> None:
        """End the remaining processes after a failure. Elastic waits 30 seconds for those that ignore SIGTERM.

        Elastic does not notice that a process has exited with status 0, and would wait for its result for ever.
        """
        end_file(self._folder, self._attempt).touch()
        if not self._done.wait(1.5):
            self._kill(seconds=2.0)
        if not self._done.is_set():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread.ident or 0), ctypes.py_object(SystemExit)
            )
            self._done.wait(2.0)

    def _kill(self, seconds: float) -> None:
        """Kill the processes, also those that are only starting, until elastic has ended or the time is up."""
        limit = time.monotonic() + seconds
        while not self._done.wait(0.05) and time.monotonic() < limit:
            for process in self._started:
                process.kill()

    def _first_failure(self) -> RankFailure | None:
        """Return the process that failed first: the one that the watch detected, else the one that elastic reports."""
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

        failure, error = self._watch.failure, self._error
        if isinstance(error, ChildFailedError):
            rank, noticed = error.get_first_failure()
            if failure is None or (failure.rank == rank and failure.status is None):
                return RankFailure(rank, noticed.exitcode, failure is not None and failure.is_stopped)
        return failure


@contextlib.contextmanager
def _quiet_elastic() -> Iterator[None]:
    """Silence the loggers of elastic and of the spawner: the exception that we raise says more than they do."""
    loggers = [logging.getLogger(f"torch.{name}") for name in ("distributed.elastic", "multiprocessing.spawn")]
    levels = [noisy.level for noisy in loggers]
    for noisy in loggers:
        noisy.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for noisy, level in zip(loggers, levels, strict=True):
            noisy.setLevel(level)


class RemoteTraceback(Exception):
    """The traceback of an exception in another process, as text."""

    def __str__(self) -> str:
        """Return the text on lines of its own."""
        return f"\n{self.args[0]}"


def _first_error(folder: Path, attempt: int, failure: RankFailure) -> tuple[BaseException, BaseException | None]:
    """Return the first error of a failed attempt, and its cause. Ranks that lose a peer raise errors of their own."""
    if not error_file(folder, attempt, failure.rank).exists():
        return RuntimeError(NO_GUARD_TEXT if failure.status == NO_GUARD_STATUS else str(failure)), None
    paths = [path for path in folder.glob(f"{attempt}-*") if path.suffix == ""]
    errors = {path.name.split("-")[1]: WorkerError(*pickle.loads(path.read_bytes())) for path in paths}
    first_rank, first = min(errors.items(), key=lambda item: item[1].time_ns)
    return first.error, RemoteTraceback(f"in the process of rank {first_rank}:\n{first.traceback}")


def _write_task(function: Callable[..., Any], arguments: dict[str, Any], folder: Path) -> None:
    """Write what the processes do. By torch.save: torch.multiprocessing would let all processes train one tensor."""
    try:
        torch.save((function, arguments), folder / TASK_FILE, pickle_protocol=pickle.DEFAULT_PROTOCOL)
    except Exception:
        for name, value in arguments.items():
            require_picklable(value, name)
        raise


def require_picklable(value: Any, name: str, parents: tuple[int, ...] = ()) -> None:
    """Raise a TypeError that names the attribute, if a value cannot be sent to another process.

    Args:
        value: the value.
        name: the name of the value in the message.
        parents: ids of the objects that contain it, since an object may refer to itself.
    """
    if id(value) in parents:
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
            require_picklable(item, part, (*parents, id(value)))
        raise TypeError(f"{name} cannot be sent to another process: {error}") from error


NO_GUARD_STATUS = 96
"""The exit status of a launched process that came to a call of the trainer while it imported the main module."""
NO_GUARD_TEXT = (
    "the processes import the program, which calls the trainer when it is imported: put this call under "
    'if __name__ == "__main__":'
)


def leave_if_importing() -> None:
    """End this process if it is a launched one that imports the main module, before it launches others itself."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(NO_GUARD_STATUS)  # The process that has launched this one says why.


def check_main_is_importable(task: Path, processes: int) -> None:
    """Check that launched processes find the classes of the main module, which a notebook does not have in a file.

    Args:
        task: a file written by `torch.save` with what is sent to the processes.
        processes: their number.

    Raises:
        RuntimeError: they would not find them; the message says what to do.
    """
    main = sys.modules["__main__"]
    path = getattr(main, "__file__", None)
    is_file = path is not None and Path(path).is_file()
    if is_file or (path is None and not _names_main(task)) or getattr(main, "__spec__", None) is not None:
        return
    raise RuntimeError(
        f"{processes} processes cannot be launched from a notebook, an interactive session or standard input: they "
        "would have to import the classes that are defined there. Put the model and its data into a file, import them "
        "from it, and start again; or use devices=1"
    )


def _names_main(task: Path) -> bool:
    with zipfile.ZipFile(task) as archive:
        return any(b"__main__" in archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
