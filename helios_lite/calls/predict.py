"""A call of `predict` or `write_predictions`: the outputs of a split, batch by batch, in order."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from helios_lite.calls.evaluate import load_for_evaluation
from helios_lite.calls.launching import Call, do_as_worker, here, launched
from helios_lite.calls.prediction_output import OutputWriter, take_in_turn, write_outputs
from helios_lite.data import DataModule
from helios_lite.display.run_log import RunLog
from helios_lite.loading.batches import Loader
from helios_lite.loading.split_loader import SplitLoader
from helios_lite.processes import rng
from helios_lite.processes.devices import DeviceMover
from helios_lite.processes.launch import launched_beside
from helios_lite.processes.signals import GracefulShutdown
from helios_lite.processes.tracebacks import ShortTraceback
from helios_lite.training.evaluator import evaluation_mode
from helios_lite.training.session import Session

logger = logging.getLogger("helios_lite")
Checkpoint: TypeAlias = "str | os.PathLike[str] | None"

_MOST_WAITING = 16
"""The batches of a rank that may wait for the caller."""


T = TypeVar("T")


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


def predict(call: Call, checkpoint: Checkpoint) -> Generator[tuple[Tensor, Any], None, None]:
    """Yield indices and output of each batch; see `Trainer.predict`.

    Args:
        call: the call.
        checkpoint: the checkpoint, as in `Trainer.test`.
    """
    predicted = _predict_here if call.processes == 1 else _predict_launched
    with ShortTraceback(), call.shutdown.at_once():
        yield from _numbered(predicted(call, checkpoint))


def predict_to_file(call: Call, checkpoint: Checkpoint, path: str | os.PathLike[str]) -> None:
    """Write the indices and outputs of all ranks to a file. Arguments as for `predict`. Call on every rank."""
    file = call.directory / path
    if call.processes > 1:
        with _ended(predict(call, checkpoint)) as outputs:
            written = write_outputs(outputs, file)
        with RunLog(None, call.options.log_level):  # The processes had their own.
            logger.info("wrote %s: %s", path, written)
        return
    with here(call) as (session, _), _ended(_run(session, checkpoint, gathers=True)) as run:
        predictions = _numbered(run)
        if session.world.is_main:
            written = write_outputs(predictions, file)
            logger.info("wrote %s: %s", path, written)
        else:
            next(predictions, None)  # This rank takes part, and rank 0 gets all.
        session.world.barrier()  # The file exists before any rank goes on.


@contextlib.contextmanager
def _ended(predictions: Generator[T, None, None]) -> Iterator[Iterator[T]]:
    """A context whose error ends the predictions too, at once.

    The traceback of the error holds them, so that they would end when the garbage is collected, which may be while
    PyTorch holds the lock of a random generator that they then wait for.
    """
    try:
        yield predictions
    except BaseException as error:
        predictions.throw(error)
        raise


def _predict_here(call: Call, checkpoint: Checkpoint) -> Iterator[_Prediction]:
    # A caller that takes no more outputs has ended the prediction and not interrupted it.
    with here(call) as (session, _), contextlib.suppress(GeneratorExit):
        yield from _run(session, checkpoint)


def _predict_launched(call: Call, checkpoint: Checkpoint) -> Iterator[_Prediction]:
    with launched(call) as (final, prepare):
        prepare()
        work = functools.partial(_leave_outputs, checkpoint=checkpoint, folder=final.parent)
        arguments = {**call.arguments(work), "final": final}
        with launched_beside(do_as_worker, arguments, processes=call.processes) as ended:
            yield from take_in_turn(final.parent, call.processes, ended)


def _leave_outputs(session: Session, shutdown: GracefulShutdown, *, checkpoint: Checkpoint, folder: Path) -> None:
    """Predict in a launched process, and leave the outputs for the one that has launched it."""
    writer = None
    for prediction in _run(session, checkpoint):
        if writer is None:  # Ranks with sharded networks run in turns, so none may wait for the caller alone.
            is_sharded = session.context.parallel.sharded_parameter() is not None
            writer = OutputWriter(folder, session.world.rank, None if is_sharded else _MOST_WAITING)
        writer.put(prediction)
    (writer or OutputWriter(folder, session.world.rank, None)).close()


def _run(session: Session, checkpoint: Checkpoint, *, gathers: bool = False) -> Generator[_Prediction, None, None]:
    """Set the model up, and yield what it predicts. Call on every rank.

    The caller's code runs between the outputs, so the random numbers, the gradient mode and the flags of a prediction
    hold for one batch at a time.

    Args:
        session: the session.
        checkpoint: the checkpoint, as in `Trainer.test`.
        gathers: yield the predictions of all ranks on rank 0, and nothing on the others.
    """
    model, hooks = session.model, session.hooks
    with rng.callers_rng():
        session.setup(fast_init=True)
        parallel = session.context.parallel  # That of an earlier call, if it has set up the model.
        name, source = _source(session.datamodule)
        loader = session.open_loader(source, "predict")
        path, _ = load_for_evaluation(session, checkpoint)
    logger.debug("predict%s", "" if path is None else f" of {path.name}")
    model.eval()
    session.context.begin_predictions(name)
    with parallel.uneven_forward(), session.context.refuse_log():
        with evaluation_mode(session, 0):
            hooks.call("on_predicting_start")
            parallel.finish_forward()
            parallel.share_buffers()  # Once more, since the hooks may have put averaged weights in place.
        predictions = _predictions(session, loader)
        with contextlib.suppress(GeneratorExit):
            for prediction in _gathered(session, predictions) if gathers else predictions:
                with session.context.callers_turn():
                    yield prediction
        with evaluation_mode(session, 0):
            parallel.finish_forward()  # What a hook sends between ranks needs all of them.
            hooks.call_in_reverse("on_predicting_end")
            parallel.finish_forward()
    session.progress.close()
    model.eval()


def _source(datamodule: DataModule) -> tuple[str, Any]:
    name = "test" if datamodule.predict is None else "predict"
    source = getattr(datamodule, name)
    if source is None:
        raise ValueError("the datamodule has no predict split, and no test split in its place")
    if isinstance(source, Mapping):
        raise ValueError(f"the {name} split is a dict of splits: assign one of them to `predict` of the datamodule")
    return name, source


def _predictions(session: Session, loader: Loader) -> Iterator[_Prediction]:
    """Yield the predictions of this rank."""
    model, world, progress = session.model, session.world, session.progress
    to_cpu = DeviceMover(torch.device("cpu"))
    batches, length = loader.epoch(0)
    # Copies: what is sent from rank to rank would be the order of the whole epoch, of which these are parts.
    indices = map(torch.clone, loader.indices()) if isinstance(loader, SplitLoader) else itertools.repeat(None)
    progress.start("predict", length)
    for i in range(session.options.fast_dev_run or sys.maxsize):
        step = i * world.size + world.rank
        with evaluation_mode(session, step):  # Its random numbers do not depend on the number of ranks.
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
