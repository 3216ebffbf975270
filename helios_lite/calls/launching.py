"""How a call of the trainer is run: in this process, or in processes that it launches.

One call runs at a time in a process. A process that launches others prepares the data before them, and takes over the
model after them.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from helios_lite.checkpoints.files import FORMAT_VERSION, to_serializable, write_file
from helios_lite.checkpoints.reading import read_checkpoint
from helios_lite.checkpoints.sharded_content import take_sharded
from helios_lite.data import DataModule
from helios_lite.display.run_log import RunLog
from helios_lite.model import Model
from helios_lite.model_internals import inference
from helios_lite.options import Options
from helios_lite.processes import rng
from helios_lite.processes.hang_watch import HangWatch, hang_seconds
from helios_lite.processes.signals import GracefulShutdown, usr1_without_effect
from helios_lite.processes.worker import WorkerInterrupted, leave_error
from helios_lite.training.cleanup import cleanup
from helios_lite.training.run_loggers import report_failure
from helios_lite.training.session import Session, checkpoint_folder, run_folder

logger = logging.getLogger("helios_lite")

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


def run_task(
    trainer: Options, model: Model, datamodule: DataModule, task: str, checkpoint: Any, outcome: Path | None = None
) -> Any:
    """Do a task in this process, and return its result.

    Args:
        trainer: the options.
        model: the model.
        datamodule: its data.
        task: "fit", "valid" or "test".
        checkpoint: the checkpoint to evaluate.
        outcome: in a process that the trainer has launched, the file or folder for what the model has in the end.
    """
    # Imported when a task is run, so that `import helios_lite` stays fast.
    from helios_lite.calls.evaluate import run_evaluation
    from helios_lite.training.loop import Training
    from helios_lite.training.session import open_session

    is_worker = outcome is not None
    # Ctrl-C in a terminal reaches all processes of this machine, of which one prints.
    announces = not is_worker and int(os.environ.get("LOCAL_RANK", "0")) == 0
    stops_on_usr1 = trainer.sigusr1 == "stop"
    shutdown = GracefulShutdown(announces, ignore_further_signals=is_worker, stops_on_usr1=stops_on_usr1)
    is_training = task == "fit"
    watch = HangWatch(hang_seconds(trainer.hang_minutes), leave_error)
    try:
        with (
            usr1_without_effect(),
            single_call(describe_call(task, trainer, model)),
            watch,
            open_session(trainer, model, datamodule, is_training=is_training, data_is_prepared=is_worker) as session,
        ):
            folder = None if session.folder is None else session.folder / "hangs"
            watch.start(session.world, folder, lambda: session.context.num_begun)
            if is_training:
                result: Any = Training(session, shutdown).run()
            else:
                result = run_evaluation(session, task, checkpoint)
    except (KeyboardInterrupt, SystemExit):
        if not is_worker or shutdown.received is None:
            raise
        raise WorkerInterrupted(shutdown.received) from None
    if outcome is not None:
        content = {"model": model.state_dict(), "metrics": model.metrics}
        if is_training:
            content["hparams"] = model.hparams
        write_outcome(content, session, outcome)
    return result


@contextlib.contextmanager
def failure_reported(options: Options, model: Model, *, is_training: bool) -> Iterator[None]:
    """Context of the processes that this one launches: an exception is written to train.log and told to the loggers.

    Rank 0 may have been ended before it could, because another rank had failed.

    Args:
        options: the trainer.
        model: the model.
        is_training: whether the processes train; the loggers have then noted that a training runs.
    """
    try:
        yield
    except Exception as error:
        # Not if another run is running in the folder, and it must not hide the error.
        with contextlib.suppress(Exception), contextlib.ExitStack() as stack:
            folder = run_folder(options, model)
            if folder is not None and folder.is_dir():  # Otherwise nothing has begun there.
                if is_training:
                    stack.enter_context(checkpoint_folder(options, model, folder).locked())
                with RunLog(folder / "train.log", options.log_level, is_required=False) as log:
                    log.record_failure(error)
            if is_training:
                report_failure(options.loggers)
        raise


def describe_call(task: str, options: Options, model: Model) -> str:
    """Return the name of a call of the trainer, its model and its run folder, for messages."""
    folder = run_folder(options, model)
    where = "without files" if folder is None else f"in {folder}"
    return f"Trainer.{'validate' if task == 'valid' else task} of {model.save_name!r} {where}"


def prepare_data(datamodule: DataModule) -> None:
    """Prepare the data before processes are launched; after an error it is torn down."""
    try:
        datamodule.prepare_data()
    except BaseException:
        datamodule.teardown()
        raise


def write_outcome(outcome: dict[str, Any], session: Session, path: Path) -> None:
    """Leave what a model has in the end where the process reads it that has launched this one. Call on every rank.

    It is a file, or a folder if networks are sharded, so that no rank needs memory for all of it.
    """
    outcome = {"format": FORMAT_VERSION, **outcome}
    if session.context.parallel.sharded_parameter() is None:
        if session.world.is_main:
            write_file(to_serializable(outcome), path)
        return
    from helios_lite.checkpoints.sharded import ShardWriter, write_main

    main, sharded = take_sharded(outcome, {})
    ShardWriter(session.world).write(sharded, path, lambda: write_main(to_serializable(main), path), background=False)


def take_over(outcome: Path, options: Options, model: Model, datamodule: DataModule, *, is_training: bool) -> None:
    """Give the model of this process what that of rank 0 had in the end: its networks, `hparams` and `metrics`.

    Args:
        outcome: the file or folder of `write_outcome`. If the model cannot take it over, a warning has the exception:
            the run has ended, and its result must not be lost.
        options: the trainer, which `setup` may use.
        model: the model; its `setup` is called.
        datamodule: its data; `setup` is called before, and `teardown` after that of the model.
        is_training: whether the processes have trained; otherwise the model is left in evaluation mode.
    """
    try:
        content = read_checkpoint(outcome)
        with rng.fork_rng(torch.device("cpu")), cleanup(datamodule.teardown):
            rng.seed_cpu(options.seed)
            datamodule.setup()
            rng.seed_cpu(options.seed)
            inference.take_over(model, content, options)
        if not is_training:
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
