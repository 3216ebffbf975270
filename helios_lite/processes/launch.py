"""Starts the processes of a run, and returns their result or raises their error.

A launched process imports the program's main module before it can run a task.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import torch

from helios_lite.file_errors import naming
from helios_lite.processes import memory_maps
from helios_lite.processes.forkserver import fresh_process
from helios_lite.processes.rank_watch import RankFailure, RankWatch, exit_status, send_signal
from helios_lite.processes.signals import SIGNALS, GracefulShutdown, held_back
from helios_lite.processes.tracebacks import RemoteTraceback
from helios_lite.processes.worker import (
    NO_ERROR_STATUS,
    TASK_FILE,
    WHEN_TEMPORARY_FULL,
    Interruption,
    WorkerError,
    end_file,
    error_file,
    left_file,
    read_statuses,
    result_file,
    run_worker,
)
from helios_lite.processes.world import PARENT

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
        KeyboardInterrupt, SystemExit: after a signal; the processes have finished their step and saved.
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
                if cause is None and shutdown.received is None and -failed.failure.status in SIGNALS:
                    shutdown.receive(signal.Signals(-failed.failure.status))
            has_left = any(status.is_alone for status in read_statuses(folder, attempt).values())
            if shutdown.received is not None and (cause is None or has_left):
                break  # The signal ended workers before they could handle it, and others have lost these.
            if shutdown.received is not None or attempt == max_restarts:
                raise error from cause
            logger.warning("%s: %s; all processes start again", type(error).__name__, error)
        if isinstance(result, Interruption):
            shutdown.receive(shutdown.received or signal.Signals(result.number))
            shutdown.explain(result.explanation)
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
        try:  # A signal may interrupt the start of the thread, when that has begun.
            yield thread.submit(launch, function, arguments, processes=processes, max_restarts=0, shutdown=shutdown)
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


class WorkerGroup:
    """The processes of one attempt.

    Each attempt has a store of its own: in one of an earlier attempt, ranks would find the addresses of dead ones.

    Args:
        folder: the folder with the task.
        processes: the number of processes.
        attempt: how many attempts have failed before.
    """

    def __init__(self, folder: Path, processes: int, attempt: int) -> None:
        self._folder, self._size, self._attempt = folder, processes, attempt
        self._processes: list[BaseProcess] = []
        self._watch = RankWatch(folder, attempt, self._processes)
        self._signalled: set[int] = set()

    def run(self, shutdown: GracefulShutdown) -> Any:
        """Start the processes, wait for them, and return the result of rank 0. A received signal is passed on to them.

        Raises:
            RankFailedError: a process failed; all have been ended.
        """
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # It is documented there.

        store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        try:
            self._start(store.port)
            while self._watch.poll() and self._watch.failure is None:
                if self._watch.received is not None and shutdown.received is None:
                    shutdown.receive(self._watch.received)  # By one process; others may be waiting for it.
                if shutdown.received is not None:
                    self._terminate()
                elif shutdown.take_save_request():
                    self._request_save()
                time.sleep(0.1)
        finally:  # Also after a second Ctrl-C.
            self._end()
        if self._watch.failure is not None:
            raise RankFailedError(self._watch.failure)
        return pickle.loads(result_file(self._folder, self._attempt).read_bytes())

    def _start(self, port: int) -> None:
        """Start the processes, which meet in the store at this port as those of torchrun do."""
        variables = {
            PARENT: str(os.getpid()),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": str(self._attempt),
            "WORLD_SIZE": str(self._size),
            "LOCAL_WORLD_SIZE": str(self._size),
        }
        start_method = multiprocessing.get_start_method(allow_none=True)
        num_threads = max(1, torch.get_num_threads() // self._size)
        for rank in range(self._size):
            own = {**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            arguments = (self._folder, self._attempt, os.getpid(), own, start_method, num_threads)
            process = fresh_process(run_worker, *arguments, name=f"rank {rank}")
            try:
                with held_back(SIGNALS):
                    process.start()
            except (EOFError, ConnectionError):  # The server was killed.
                raise RankFailedError(RankFailure(rank)) from None
            self._processes.append(process)

    def _terminate(self) -> None:
        """Send SIGTERM once to each process: it finishes its step and saves. One that is only starting is killed.

        A Ctrl-C in a terminal may have reached the processes already.
        """
        started = read_statuses(self._folder, self._attempt)
        if any(status.is_alone for status in started.values()):
            left_file(self._folder, self._attempt).touch()
        for rank, process in enumerate(self._processes):
            if rank not in self._signalled:
                self._signalled.add(rank)
                send_signal(process, signal.SIGTERM if rank in started else signal.SIGKILL)

    def _request_save(self) -> None:
        """Pass SIGUSR1 on to a process that has started its task.

        The ranks share it. Two of them might learn of it at different steps, and save twice.
        """
        running = [rank for rank, status in read_statuses(self._folder, self._attempt).items() if not status.is_done]
        if running:
            send_signal(self._processes[min(running)], signal.SIGUSR1)

    def _end(self) -> None:
        """End the processes that still run, and kill those that do not do so in time."""
        end_file(self._folder, self._attempt).touch()
        limit = time.monotonic() + 1.5
        while any(exit_status(process) is None for process in self._processes):
            if time.monotonic() > limit:
                for process in self._processes:
                    send_signal(process, signal.SIGKILL)
            time.sleep(0.02)


def _first_error(folder: Path, attempt: int, failure: RankFailure) -> tuple[BaseException, BaseException | None]:
    """Return the first error of a failed attempt, and its cause. Ranks that lose a peer raise errors of their own."""
    if not error_file(folder, attempt, failure.rank).exists():
        if failure.status == NO_ERROR_STATUS:
            text = f"{folder}: rank {failure.rank} has failed, and could not leave its error there"
            return RuntimeError(f"{text}; if {WHEN_TEMPORARY_FULL}"), None
        return RuntimeError(NO_GUARD_TEXT if failure.status == NO_GUARD_STATUS else str(failure)), None
    paths = [path for path in folder.glob(f"{attempt}-*") if path.suffix == ""]
    errors = {path.name.split("-")[1]: WorkerError(*pickle.loads(path.read_bytes())) for path in paths}
    first_rank, first = min(errors.items(), key=lambda item: item[1].time_ns)
    return first.error, RemoteTraceback(f"in the process of rank {first_rank}:\n{first.traceback}")


def _write_task(function: Callable[..., Any], arguments: dict[str, Any], folder: Path) -> None:
    """Write what the processes do. By torch.save: torch.multiprocessing would let all processes train one tensor."""
    try:
        protocol = pickle.DEFAULT_PROTOCOL
        path = folder / TASK_FILE
        with naming(path, when_full=WHEN_TEMPORARY_FULL), path.open("wb") as file:
            torch.save((function, arguments), file, memory_maps, protocol)
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
        raise TypeError(
            f"{name} cannot be sent to another process ({error}): make it in setup, which runs in each of them, or "
            "define its class or function at the top level of a file"
        ) from error


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
