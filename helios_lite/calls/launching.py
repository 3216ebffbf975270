"""How a call of the trainer is run: in this process, or in processes that it launches.

`run` is the way of all calls: `here` is the context of the work in one process, `launched` that of the process that
launches others. It prepares the data before them, and gives the model their final weights after them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

from helios_lite.calls.claiming import own_run_folder
from helios_lite.checkpoints.files import FORMAT_VERSION, to_serializable, write_file
from helios_lite.checkpoints.lock import folder_lock
from helios_lite.checkpoints.reading import read_checkpoint
from helios_lite.checkpoints.sharded_content import take_sharded
from helios_lite.data import DataModule
from helios_lite.display.run_log import RunLog
from helios_lite.loading.planned_steps import PlannedSteps
from helios_lite.loading.train_data import TrainData
from helios_lite.model import Model
from helios_lite.model_internals.inference import set_up_trained
from helios_lite.nested import count_samples
from helios_lite.options import Options
from helios_lite.processes import rng
from helios_lite.processes.hang_watch import HangWatch, hang_seconds
from helios_lite.processes.launch import launch
from helios_lite.processes.output import guarded_output
from helios_lite.processes.signals import GracefulShutdown
from helios_lite.processes.worker import WorkerInterrupted, leave_error
from helios_lite.processes.world import World, ending_after_failure
from helios_lite.training.cleanup import cleanup
from helios_lite.training.run_loggers import RunLoggers, report_failure
from helios_lite.training.session import Session, checkpoint_folder, open_session, run_folder
from helios_lite.training.status_file import StatusFile

Result = TypeVar("Result")
logger = logging.getLogger("helios_lite")

_running: dict[int, list[str]] = {}
"""What is running, by process id: a forked process inherits the entry of its parent, and is not the parent."""


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a method of the trainer.

    Attributes:
        method: its name.
        options: the trainer.
        model: the model.
        datamodule: its data.
        processes: the number of processes to launch; 1 if the call runs in this one.
        directory: the working directory in which it has begun, to which relative paths belong.
        shutdown: what signals do in this process.
    """

    method: str
    options: Options
    model: Model
    datamodule: DataModule
    processes: int
    directory: Path
    shutdown: GracefulShutdown

    def __str__(self) -> str:
        """Return the method, the model and the run folder, for messages."""
        folder = run_folder(self.options, self.model, self.directory)
        where = "without files" if folder is None else f"in {folder}"
        return f"Trainer.{self.method} of {self.model.save_name!r} {where}"

    @property
    def trains(self) -> bool:
        """Whether the call trains: no other one may write to the run folder, and the loggers are told how it ends."""
        return self.method in ("fit", "replay")

    def arguments(self, work: Callable[..., Any]) -> dict[str, Any]:
        """Return the arguments of `do_as_worker`, by the names that messages about them have."""
        names = {"method": self.method, "trainer": self.options, "model": self.model, "datamodule": self.datamodule}
        return {**names, "directory": self.directory, "work": work}


@contextlib.contextmanager
def alone(call: Call, *, is_worker: bool = False) -> Iterator[None]:
    """Context of a call, which excludes all others of this process. A training claims its run folder here.

    The RNG states, the gradient mode and the signal handlers belong to the process, so two calls would disturb each
    other.

    Args:
        call: the call.
        is_worker: whether the trainer has launched this process, and has claimed the run folder before.

    Raises:
        RuntimeError: another call is running in this process, in another thread or around this one.
    """
    process = os.getpid()
    own = [str(call)]  # A list, because two calls may have the same description.
    first = _running.setdefault(process, own)  # Atomic, so that one of two threads wins.
    if first is not own:
        raise RuntimeError(
            f"{call}: {first[0]} is running in this process, whose random numbers, gradient mode and signal "
            "handlers it uses; wait until it has ended, or start another process"
        )
    try:
        with contextlib.ExitStack() as stack:
            if call.method == "fit" and not is_worker:
                stack.enter_context(own_run_folder(call.options, call.model, call.directory))
                own[0] = str(call)
            call.options.begin_use(own[0])
            yield
    finally:
        call.options.end_use()
        del _running[process]


def run(call: Call, work: Callable[[Session, GracefulShutdown], Result]) -> Result:
    """Do the work of a call in this process or in launched ones, and return its result.

    Args:
        call: the call.
        work: called on every rank, with the session and with what signals ask for. In launched processes it is a
            function at the top level of a module, or a `functools.partial` of one.
    """
    if call.processes == 1:
        with rng.callers_rng(), here(call) as (session, shutdown):
            return work(session, shutdown)
    # This process waits until the others have ended, also if they end at once.
    stops_on_usr1 = call.options.sigusr1 == "stop"
    waiting = call.shutdown if call.method == "fit" else GracefulShutdown(False, stops_on_usr1=stops_on_usr1)
    with rng.callers_rng(), launched(call) as (final, prepare):
        result: Result = launch(
            do_as_worker,
            {**call.arguments(work), "final": final},
            before_start=prepare,
            processes=call.processes,
            max_restarts=call.options.max_restarts,
            shutdown=waiting,
        )
    return result


@contextlib.contextmanager
def here(call: Call, *, is_worker: bool = False) -> Iterator[tuple[Session, GracefulShutdown]]:
    """Context of a call in this process. Call on every rank.

    Args:
        call: the call.
        is_worker: whether the trainer has launched this process.

    Yields:
        The session; and what is told of signals while it is entered as a context, which a training does.

    """
    options = call.options
    status = StatusFile(writes_end=not is_worker)

    def fail(error: Exception, stack: str) -> None:
        leave_error(error, stack)
        if not is_worker:  # Otherwise the process that has launched this one ends the call.
            status.end(error)

    watch = HangWatch(hang_seconds(options.hang_minutes), fail)
    with (
        guarded_output(),
        alone(call, is_worker=is_worker),
        status,
        ending_after_failure(),
        watch,
        open_session(
            options,
            call.model,
            call.datamodule,
            call.directory,
            method=call.method,
            status=status,
            data_is_prepared=is_worker,
        ) as session,
    ):
        folder = None if session.folder is None else session.folder / "hangs"
        watch.start(session.world, folder, session.context.progress, session.context.parallel.last_message)
        yield session, call.shutdown


@contextlib.contextmanager
def launched(call: Call) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Context in which this process launches others for a call.

    After it the model has the final weights of rank 0, its `hparams` and `metrics`. An exception is also written to
    train.log and told to the loggers, because rank 0 may have been ended before it could, after a failure of another
    rank.

    Yields:
        The path to which the processes write the final weights, in a folder that is private to this user; and what
        prepares the data, which is called before they start.
    """
    with (
        guarded_output(),
        alone(call),
        StatusFile() as status,
        tempfile.TemporaryDirectory(prefix="helios_lite-", ignore_cleanup_errors=True) as name,
    ):
        final = Path(name) / "final"
        try:
            yield final, functools.partial(prepare, call, status)
        except Exception as error:
            with contextlib.suppress(Exception):  # It must not hide the error.
                _report_failure(call, error)
            raise
        take_final_weights(call, final)


def _report_failure(call: Call, error: Exception) -> None:
    folder = run_folder(call.options, call.model, call.directory)
    with contextlib.ExitStack() as stack:
        if folder is not None and folder.is_dir():  # Otherwise nothing has begun there.
            if call.trains:  # Nothing is reported if another run is running in the folder.
                stack.enter_context(checkpoint_folder(call.options, call.model, folder).locked())
            with RunLog(folder / "train.log", call.options.log_level, is_required=False) as log:
                log.record_failure(error)
        if call.trains:
            report_failure(call.options.loggers, folder)


def prepare(call: Call, status: StatusFile) -> None:
    """Prepare the data before processes are launched; after an error it is torn down. A training begins here."""
    folder = run_folder(call.options, call.model, call.directory)
    if call.method == "fit" and folder is not None:
        with contextlib.suppress(OSError, RuntimeError):  # The processes raise it, such as that another run is here.
            (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
            with folder_lock(folder / "checkpoints"):
                status.begin(folder)
    try:
        call.datamodule.prepare_data()
    except BaseException:
        call.datamodule.teardown()
        raise


def do_as_worker(
    method: str,
    trainer: Options,
    model: Model,
    datamodule: DataModule,
    directory: Path,
    work: Callable[[Session, GracefulShutdown], Result],
    final: Path,
) -> Result:
    """Do the work of a call in a launched process, leave the final weights, and return the result.

    Args:
        method, trainer, model, datamodule, directory: what the call consists of; see `Call`.
        work: see `run`.
        final: where the process that has launched this one reads the final weights: a file, or a folder if networks
            are sharded, so that no rank needs memory for all of them.

    Raises:
        WorkerInterrupted: a signal has ended the call.
    """
    stops_on_usr1 = trainer.sigusr1 == "stop"
    shutdown = GracefulShutdown(saves=method == "fit", is_worker=True, stops_on_usr1=stops_on_usr1)
    call = Call(method, trainer, model, datamodule, 1, directory, shutdown)
    try:
        with shutdown.at_once(), here(call, is_worker=True) as (session, _):
            result = work(session, shutdown)
    except (KeyboardInterrupt, SystemExit):
        if shutdown.received is None:
            raise
        is_alone = shutdown.has_ended_call
        raise WorkerInterrupted(shutdown.received, shutdown.explanation, is_alone=is_alone) from None
    content = {"format": FORMAT_VERSION, "model": model.state_dict(), "metrics": model.metrics}
    if call.trains:
        content["hparams"] = model.hparams
    if session.context.parallel.sharded_parameter() is not None:
        from helios_lite.checkpoints.sharded import ShardWriter, write_main

        main, tensors = take_sharded(content, {})
        ShardWriter(session.world).write(
            tensors, final, lambda places: write_main(to_serializable(main), places, final), background=False
        )
    elif session.world.is_main:
        write_file(content, final)
    return result


def take_final_weights(call: Call, final: Path) -> None:
    """Give the model of this process what that of rank 0 had in the end: its networks, `hparams` and `metrics`.

    For it `setup` of the data and of the model are called. If they fail, a warning has the exception: the call has
    ended, and its result must not be lost.

    Args:
        call: the call. The model is left in evaluation mode if it does not train.
        final: the file or folder that `do_as_worker` has left.
    """
    options, model, datamodule = call.options, call.model, call.datamodule
    try:
        content = read_checkpoint(final)
        # Rank 0 has called the loggers; what `setup` gives them here once more is not kept.
        loggers = RunLoggers(options.loggers, run_folder=None, method=call.method, keeps=False)
        with rng.fork_rng(torch.device("cpu")), cleanup(datamodule.teardown), loggers:
            rng.seed_cpu(options.seed)
            datamodule.setup()
            rng.seed_cpu(options.seed)
            train_data = TrainData(datamodule, options, World(size=call.processes), count_samples)
            folder = run_folder(options, model, call.directory)
            set_up_trained(model, content, options, datamodule, folder, PlannedSteps(options, train_data))
        if not call.trains:
            model.eval()
    except Exception as error:
        logger.warning(
            "the run has ended, and its result is returned; but after the run the model could not be set up in the "
            "calling process (%s: %s), so it does not have the final networks: use %s.load_from_checkpoint",
            type(error).__name__,
            error,
            type(model).__name__,
            exc_info=True,
        )
