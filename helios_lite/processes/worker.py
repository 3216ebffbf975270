"""A process that `launch` starts: it runs a function, and leaves its result or its error for the launching process."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import gc
import io
import json
import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from helios_lite.file_errors import naming
from helios_lite.processes.output import guard_output
from helios_lite.processes.peers import exit_now, exit_with_parent
from helios_lite.processes.signals import SIGNALS, keep_for_call, receive_again
from helios_lite.processes.tracebacks import ShortTraceback

_ERROR_FILE = "HELIOS_LITE_ERROR_FILE"
"""The environment variable with the file of `leave_error`."""
TASK_FILE = "task"
"""The file with the function and its arguments."""


WHEN_TEMPORARY_FULL = "the disk of the temporary folder is full: set TMPDIR to a folder with more space"
NO_ERROR_STATUS = 97
"""The exit status of a process that has failed and could not leave its error."""
_MOST_BYTES = 65_536  # Of an error and its traceback, for which a process keeps room on the disk.


class WorkerInterrupted(BaseException):
    """A signal has ended the run in this worker, and its state is saved. The launching process raises it in its place.

    Attributes:
        number: the signal.
        explanation: where the training has stopped, and how it goes on; of rank 0.
        is_alone: whether the other ranks may not know of it, because this one was not in the training.
    """

    def __init__(self, number: int, explanation: str = "", *, is_alone: bool = False) -> None:
        super().__init__(number, explanation)
        self.number, self.explanation, self.is_alone = number, explanation, is_alone


@dataclasses.dataclass(frozen=True)
class Interruption:
    """What a worker returns instead of a result after `WorkerInterrupted`."""

    number: int
    explanation: str


class WorkerStatus(NamedTuple):
    """What a worker tells the launching process while it runs.

    Attributes:
        is_done: whether it has returned from the task.
        received: the signal after which it has returned.
        is_alone: whether the signal has ended it outside of the training, in which others may have been already.
    """

    is_done: bool = False
    received: int | None = None
    is_alone: bool = False


class WorkerError(NamedTuple):
    """An error of a worker.

    Attributes:
        time_ns: when it was raised; the first error of a run is its cause.
        error: the exception itself, or a RuntimeError with its text if it cannot be pickled.
        traceback: its traceback as text.
    """

    time_ns: int
    error: BaseException
    traceback: str


def error_file(folder: Path, attempt: int, rank: int | str) -> Path:
    """Return the file in which a rank leaves its error."""
    return folder / f"{attempt}-{rank}"


def result_file(folder: Path, attempt: int) -> Path:
    """Return the file in which rank 0 leaves its result."""
    return folder / f"{attempt}.result"


def end_file(folder: Path, attempt: int) -> Path:
    """Return the file whose existence tells the processes of an attempt to end."""
    return folder / f"{attempt}.end"


def left_file(folder: Path, attempt: int) -> Path:
    """Return the file whose existence tells the processes of an attempt that a signal has ended one of them alone."""
    return folder / f"{attempt}.left"


def read_statuses(folder: Path, attempt: int) -> dict[int, WorkerStatus]:
    """Return the status of every rank that has started its task."""
    paths = folder.glob(f"{attempt}-*.status")
    return {int(path.stem.split("-")[1]): WorkerStatus(*json.loads(path.read_bytes())) for path in paths}


def run_worker(
    folder: Path, attempt: int, parent: int, variables: Mapping[str, str], start_method: str | None, num_threads: int
) -> None:
    """Run the task of a folder in a process that `launch` has started.

    Args:
        folder: the folder with the task.
        attempt: how many attempts have failed before.
        parent: the process that has called `launch`.
        variables: the environment variables of a rank.
        start_method: how the processes of loaders start, as in the parent.
        num_threads: the number of threads that PyTorch computes with.
    """
    os.environ.update(variables)
    rank = os.environ["RANK"]
    guard_output()
    multiprocessing.set_start_method(start_method, force=True)
    torch.set_num_threads(num_threads)
    exit_with_parent(parent, end_file(folder, attempt), left_file(folder, attempt))
    os.environ[_ERROR_FILE] = str(error_file(folder, attempt, rank))
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, keep_for_call)
    receive_again(*SIGNALS)
    received, is_alone = None, False
    try:
        keep_room(error_file(folder, attempt, rank))
        _write_status(WorkerStatus(), folder, attempt, rank)
        # The folder is private to this user, and made by the process that launched this one. The file is mapped, not
        # read: data takes its memory once for all processes, and what one of them changes is its own copy. What was on
        # a device comes to the CPU, or all processes would put it on the first device.
        function, arguments = torch.load(folder / TASK_FILE, map_location="cpu", mmap=True, weights_only=False)
        try:
            with ShortTraceback():
                result = function(**arguments)
        except WorkerInterrupted as interrupted:
            received = interrupted.number
            is_alone = interrupted.is_alone
            _write_status(WorkerStatus(False, received, is_alone), folder, attempt, rank)
            time.sleep(0.5 * is_alone)  # The others must get the signal before they lose this process.
            result = Interruption(received, interrupted.explanation)
        if rank == "0":
            _write(pickle.dumps(result), result_file(folder, attempt))
    except BaseException as error:
        try:
            leave_error(error, traceback.format_exc())
        except OSError:
            exit_now(NO_ERROR_STATUS)
        time.sleep(0.5)  # A killed process must be detected before the processes that fail because of it.
        exit_now(1)  # Also after exit(0), which is a failure here. No thread of the user can delay it.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # The task is done, which a signal to all processes must not change.
    _write_status(WorkerStatus(True, received, is_alone), folder, attempt, rank)
    _end_as_an_interpreter()


def _end_as_an_interpreter() -> None:
    """Do what an interpreter does at its end, which a process of a fork server reaches without one."""
    atexit._run_exitfuncs()
    for thing in gc.get_objects():
        if issubclass(type(thing), io.IOBase):
            with contextlib.suppress(Exception):  # It is closed.
                thing.flush()


def _write_status(status: WorkerStatus, folder: Path, attempt: int, rank: str) -> None:
    _write(json.dumps(status).encode(), folder / f"{attempt}-{rank}.status")


def keep_room(path: Path) -> None:
    """Take the room on the disk that the file of an error needs, which may come because the disk is full."""
    _part(path).write_bytes(bytes(_MOST_BYTES))


def leave_error(error: BaseException, text: str) -> None:
    """Leave an error and its traceback for the process that has launched this one, if a trainer has done so."""
    if _ERROR_FILE not in os.environ:
        return
    when, path = time.time_ns(), Path(os.environ[_ERROR_FILE])
    try:
        content = pickle.dumps(tuple(WorkerError(when, error, text)))
        pickle.loads(content)
    except Exception:
        replacement = RuntimeError(f"{type(error).__name__}: {error}")
        content = pickle.dumps(tuple(WorkerError(when, replacement, text)))
    with _part(path).open("r+b" if _part(path).exists() else "wb") as file:
        file.write(content)
        file.truncate()
    _part(path).rename(path)


def _write(content: bytes, path: Path) -> None:
    with naming(path, when_full=WHEN_TEMPORARY_FULL):
        _part(path).write_bytes(content)
        _part(path).rename(path)


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")
