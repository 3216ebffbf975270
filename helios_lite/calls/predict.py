"""A call of `predict` or `write_predictions`: the outputs of a split, batch by batch, in order."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from helios_lite.calls.evaluate import load_for_evaluation
from helios_lite.calls.launching import (
    describe_call,
    failure_reported,
    prepare_data,
    single_call,
    take_over,
    write_outcome,
)
from helios_lite.calls.prediction_output import OutputWriter, take_in_turn, write_predictions
from helios_lite.data import DataModule
from helios_lite.loading.batches import Loader
from helios_lite.loading.loaders import make_loader
from helios_lite.loading.split_loader import SplitLoader
from helios_lite.model import Model
from helios_lite.options import Options
from helios_lite.processes import rng
from helios_lite.processes.devices import DeviceMover, cudnn_benchmark
from helios_lite.processes.hang_watch import HangWatch, hang_seconds
from helios_lite.processes.launch import launched_beside
from helios_lite.processes.worker import leave_error
from helios_lite.training.session import Session, open_session

logger = logging.getLogger("helios_lite")
_MOST_WAITING = 16
"""The batches of a rank that may wait for the caller."""


class _Prediction(NamedTuple):
    """What `predict_step` returned for a batch, on the CPU.

    Attributes:
        indices: the indices of the samples, int64; None for a custom loader.
        size: number of samples.
        output: the output.
    """

    indices: Tensor | None
    size: int
    output: Any


def predict(
    options: Options, model: Model, datamodule: DataModule, checkpoint: Any, processes: int
) -> Iterator[tuple[Tensor, Any]]:
    """Yield indices and output of each batch; see `Trainer.predict`.

    Args:
        options: the trainer.
        model: the model.
        datamodule: its data.
        checkpoint: the checkpoint, as in `Trainer.test`.
        processes: the number of processes to launch; 1 predicts in this process.
    """
    if processes > 1:
        return _numbered(_predict_in_processes(options, model, datamodule, checkpoint, processes))
    return _numbered(_predict_here(options, model, datamodule, checkpoint))


def predict_to_file(
    options: Options, model: Model, datamodule: DataModule, checkpoint: Any, processes: int, path: Path
) -> None:
    """Write the indices and outputs of all ranks to a file. Arguments as for `predict`. Call on every rank."""
    if processes > 1:
        write_predictions(predict(options, model, datamodule, checkpoint, processes), path)
        return
    with _opened(options, model, datamodule, is_worker=False) as (session, activity):
        predictions = _numbered(_run(session, activity, checkpoint, gathers=True))
        if session.world.is_main:
            write_predictions(predictions, path)
        else:
            assert next(predictions, None) is None  # This rank takes part, and rank 0 gets all.
        session.world.barrier()  # The file exists before any rank goes on.


class _Activity:
    """Counts what a prediction has done. Time that its caller takes with an output is no hang."""

    def __init__(self) -> None:
        self._num_given = 0
        self._is_callers_turn = False

    def progress(self) -> float:
        """Return a number that changes as long as the prediction goes on, or its caller has the turn."""
        return time.monotonic() if self._is_callers_turn else self._num_given

    @contextlib.contextmanager
    def callers_turn(self) -> Iterator[None]:
        """Context in which the caller has an output."""
        self._is_callers_turn = True
        yield
        self._is_callers_turn = False
        self._num_given += 1


@contextlib.contextmanager
def _opened(
    options: Options, model: Model, datamodule: DataModule, *, is_worker: bool
) -> Iterator[tuple[Session, _Activity]]:
    watch, activity = HangWatch(hang_seconds(options.hang_minutes), leave_error), _Activity()
    with (
        single_call(describe_call("predict", options, model)),
        watch,
        open_session(options, model, datamodule, is_training=False, data_is_prepared=is_worker) as session,
    ):
        watch.start(session.world, None if session.folder is None else session.folder / "hangs", activity.progress)
        yield session, activity


def _predict_here(options: Options, model: Model, datamodule: DataModule, checkpoint: Any) -> Iterator[_Prediction]:
    # A caller that takes no more outputs has ended the prediction and not interrupted it.
    with _opened(options, model, datamodule, is_worker=False) as opened, contextlib.suppress(GeneratorExit):
        yield from _run(*opened, checkpoint)


def _predict_in_processes(
    options: Options, model: Model, datamodule: DataModule, checkpoint: Any, processes: int
) -> Iterator[_Prediction]:
    with (
        single_call(describe_call("predict", options, model)),
        tempfile.TemporaryDirectory(prefix="helios_lite-", ignore_cleanup_errors=True) as name,
    ):
        folder, outcome = Path(name), Path(name) / "outcome"
        arguments = {"options": options, "model": model, "datamodule": datamodule, "checkpoint": checkpoint}
        arguments |= {"folder": folder, "outcome": outcome}
        prepare_data(datamodule)
        with (
            failure_reported(options, model, is_training=False),
            launched_beside(_predict_as_worker, arguments, processes=processes) as ended,
        ):
            yield from take_in_turn(folder, processes, ended)
        take_over(outcome, options, model, datamodule, is_training=False)


def _predict_as_worker(
    options: Options, model: Model, datamodule: DataModule, checkpoint: Any, folder: Path, outcome: Path
) -> None:
    with _opened(options, model, datamodule, is_worker=True) as (session, activity):
        writer = None
        for prediction in _run(session, activity, checkpoint):
            if writer is None:  # Ranks with sharded networks run in turns, so none may wait for the caller alone.
                is_sharded = session.context.parallel.sharded_parameter() is not None
                writer = OutputWriter(folder, session.world.rank, None if is_sharded else _MOST_WAITING)
            writer.put(prediction)
        (writer or OutputWriter(folder, session.world.rank, None)).close()
    write_outcome({"model": model.state_dict(), "metrics": model.metrics}, session, outcome)


def _run(
    session: Session, activity: _Activity, choice: str | os.PathLike[str] | None, *, gathers: bool = False
) -> Iterator[_Prediction]:
    """Set the model up, and yield what it predicts. Call on every rank.

    The caller's code runs between the outputs, so the random numbers, the gradient mode and the flags of a prediction
    hold for one batch at a time.

    Args:
        session: the session.
        activity: is told when the caller has an output.
        choice: the checkpoint, as in `Trainer.test`.
        gathers: yield the predictions of all ranks on rank 0, and nothing on the others.
    """
    model, parallel, hooks = session.model, session.context.parallel, session.hooks
    session.setup(fast_init=True)
    loader = make_loader(_source(session.datamodule), "predict", session.options.seed, session.world)
    path, _ = load_for_evaluation(session, choice)
    logger.debug("predict%s", "" if path is None else f" of {path.name}")
    model.eval()
    with parallel.uneven_forward(), session.context.refuse_log():
        with _prediction_mode(session):
            hooks.call("on_predicting_start")
            parallel.finish_forward()
            parallel.share_buffers()  # Once more, since the hooks may have put averaged weights in place.
        predictions = _predictions(session, loader)
        with contextlib.suppress(GeneratorExit):
            for prediction in _gathered(session, predictions) if gathers else predictions:
                with activity.callers_turn():
                    yield prediction
        with _prediction_mode(session):
            parallel.finish_forward()  # What a hook sends between ranks needs all of them.
            hooks.call("on_predicting_end")
            parallel.finish_forward()
    session.progress.close()
    model.eval()


def _source(datamodule: DataModule) -> Any:
    name = "test" if datamodule.predict is None else "predict"
    source = getattr(datamodule, name)
    if source is None:
        raise ValueError("the datamodule has no predict split, and no test split in its place")
    if isinstance(source, Mapping):
        raise ValueError(f"the {name} split is a dict of splits: assign one of them to `predict` of the datamodule")
    return source


@contextlib.contextmanager
def _prediction_mode(session: Session, step: int = 0) -> Iterator[None]:
    """Context of one batch. Its random numbers depend on the seed and its index alone, and not on the ranks."""
    with rng.fork_rng(session.device), torch.no_grad(), cudnn_benchmark(False):
        rng.seed_all(rng.derive_seed(session.options.seed, step), session.device)
        yield


def _predictions(session: Session, loader: Loader) -> Iterator[_Prediction]:
    """Yield the predictions of this rank."""
    model, world, progress = session.model, session.world, session.progress
    to_cpu = DeviceMover(torch.device("cpu"))
    batches, length = loader.epoch(0)
    indices = loader.indices() if isinstance(loader, SplitLoader) else itertools.repeat(None)
    progress.start("predict", length)
    for i in range(1 if session.options.fast_dev_run else sys.maxsize):
        step = i * world.size + world.rank
        with _prediction_mode(session, step):
            batch = next(batches, None)
            if batch is None:
                break
            data, size, *_ = batch
            data = model.batch_to_device(data, "predict") if session.needs_transfer else data
            prediction = _Prediction(next(indices), size, to_cpu(model.predict_step(data, step)))
        progress.update(i + 1)
        yield prediction
    progress.finish()


def _gathered(session: Session, predictions: Iterator[_Prediction]) -> Iterator[_Prediction]:
    """Yield the predictions of all ranks in turn on rank 0, and nothing on the others. Call on every rank."""
    world = session.world
    while True:
        own = next(predictions, None)
        session.context.parallel.finish_forward()  # While a rank computes, the others must not communicate otherwise.
        if not any(world.gather(own is not None)):
            return
        yield from (prediction for prediction in world.gather_to_main(own) if prediction is not None)


def _numbered(predictions: Iterable[_Prediction]) -> Iterator[tuple[Tensor, Any]]:
    """Yield indices and outputs. The samples of a custom loader are counted, in the order in which they come."""
    done = 0
    for prediction in predictions:
        indices = prediction.indices
        yield torch.arange(done, done + prediction.size) if indices is None else indices, prediction.output
        done += prediction.size
