"""One evaluation within a training, and a call of `validate` or `test`."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from helios_lite.engine import console
from helios_lite.engine.batches import Loader
from helios_lite.engine.checkpointing import load_checkpoint
from helios_lite.engine.limits import with_limits
from helios_lite.engine.run_loggers import RunLoggers
from helios_lite.engine.session import Session
from helios_lite.runtime import rng
from helios_lite.runtime.checkpoint_files import evaluation_state
from helios_lite.runtime.devices import cudnn_benchmark
from helios_lite.runtime.metrics import MetricAccumulator
from helios_lite.runtime.metrics_file import append_evaluation
from helios_lite.runtime.stateful import networks
from helios_lite.state import TrainingState

logger = logging.getLogger("helios_lite")


class Evaluator:
    """Evaluates a split. The state of a training is left bit for bit as it was."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def evaluate(self, phase: str, loaders: dict[str, Loader], cycle: int, limit: int | None) -> dict[str, float]:
        """Evaluate and return the metrics over all ranks by full name. Call on every rank.

        Args:
            phase: "valid" or "test".
            loaders: the loaders of the split, by the prefix of their metrics.
            cycle: the number of the validation; not used for a test.
            limit: number of batches of each loader, None for all.
        """
        session, model, context = self._session, self._session.model, self._session.context
        testing = phase == "test"
        name = "on_testing" if testing else "on_validation"
        arguments = () if testing else (cycle,)
        metrics = MetricAccumulator(session.device)
        with _evaluation_mode(session):
            context.begin_phase(phase, metrics)
            model.eval()
            session.hooks.call(f"{name}_start", *arguments)
            context.parallel.finish_forward()
            context.parallel.share_buffers()  # Once more, since the hooks may have put averaged weights in place.
            is_idle = self._run_batches(phase, loaders, limit, metrics)
            context.parallel.finish_forward()  # What a hook sends between ranks needs all of them.
            context.begin_phase(phase, metrics)
            session.hooks.call(f"{name}_end", *arguments)
            context.parallel.finish_forward()
            for score_name, score in (model._test_scores if testing else model._val_scores).items():
                metrics.update(f"{phase}/{score_name}", score, 1)
            values = metrics.compute(session.world, is_idle=is_idle).values
            return session.hooks.process_metrics(phase, values)

    def _run_batches(
        self, phase: str, loaders: dict[str, Loader], limit: int | None, metrics: MetricAccumulator
    ) -> bool:
        """Evaluate the batches of this rank, and return whether a loader had none, so that its names are missing."""
        session, model, context = self._session, self._session.model, self._session.context
        name, run_step = ("on_testing", model.test_step) if phase == "test" else ("on_validation", model.valid_step)
        has_batch_hooks = session.hooks.is_overridden(f"{name}_batch_start", f"{name}_batch_end")
        step, is_idle = 0, False
        limit = None if limit is None else min(limit, sys.maxsize)
        for prefix, loader in loaders.items():
            batches, length = loader.epoch(0)
            session.progress.start(prefix, length)
            done = 0
            for done, (data, size, *_) in enumerate(itertools.islice(batches, limit), start=1):
                context.begin_phase(prefix, metrics, size)
                if has_batch_hooks:
                    session.hooks.call(f"{name}_batch_start", step)
                run_step(model.batch_to_device(data, phase) if session.needs_transfer else data, step)
                if has_batch_hooks:
                    session.hooks.call(f"{name}_batch_end", step)
                step += 1
                session.progress.update(done)
            session.progress.finish()
            is_idle |= done == 0
        return is_idle


@contextlib.contextmanager
def _evaluation_mode(session: Session) -> Iterator[None]:
    """Context without gradients and cuDNN's measurements.

    On exit it restores RNG states, modes of modules and the training's metrics.
    """
    model, context = session.model, session.context
    modes = [(module, module.training) for net in networks(model) for module in net.modules()]
    # no_grad and not inference_mode: a buffer that is made here (a cache of positions) must be usable in training.
    # cuDNN would measure its algorithms again for every new shape of a batch, and results would depend on the choice.
    with rng.fork_rng(session.device), torch.no_grad(), context.parallel.uneven_forward(), cudnn_benchmark(False):
        rng.seed_all(rng.derive_seed(session.options.seed), session.device)  # Every validation gets the same numbers.
        yield
    model.train()
    for module, training in modes:  # A part that the user had frozen stays in the mode it had.
        module.training = training
    context.begin_phase("train", session.metrics)


def run_evaluation(session: Session, phase: str, choice: str | os.PathLike[str] | None) -> dict[str, float]:
    """Do a call of `validate` or `test`, and return the metrics. Call on every rank.

    Args:
        session: the session.
        phase: "valid" or "test".
        choice: "best", "last", a path, or None for the weights that the model has.
    """
    model, options = session.model, session.options
    with RunLoggers(options.loggers, is_main=session.world.is_main, is_training=False) as loggers:
        session.setup(fast_init=True)
        loaders = session.loaders(phase)
        if not loaders:
            raise ValueError(f"the datamodule has no {phase} split")
        path, state = load_for_evaluation(session, choice)
        metrics = Evaluator(session).evaluate(phase, loaders, cycle=1, limit=1 if options.fast_dev_run else None)
        session.context.record(metrics)
        model.eval()
        session.progress.close()
        title = with_limits(phase if path is None else f"{phase} of {path.name}", options, phase)
        if session.world.is_main:
            row = {"epoch": state.epoch, "seconds": state.seconds, **metrics}
            _write_row(session, loggers, phase, path, state.step, row)
            logger.debug("%s: %s", title, console.metrics_text(metrics))
        if session.prints:
            console.show_metrics(title, metrics)
    return metrics


def load_for_evaluation(session: Session, choice: str | os.PathLike[str] | None) -> tuple[Path | None, TrainingState]:
    """Give the model the weights to evaluate, and return the path and the counters of their checkpoint.

    Call on every rank, after `setup`. The path is None if the weights are of no checkpoint.
    """
    model, state = session.model, TrainingState()
    found = None if choice is None else load_checkpoint(session, choice, for_evaluation=True)
    if found is None:
        if choice is not None or not session.was_set_up:
            model.load_for_testing()
        return None, state
    path, content = found
    state.load_state_dict(content["state"])
    # Averaged weights are tested as they were validated, also without the callback that has averaged them.
    model.load_state_dict(evaluation_state(content), fast_init=True)
    session.hooks.load_state_dict(content["callbacks"], warn_unknown=False)
    return path, state


def _write_row(
    session: Session, loggers: RunLoggers, phase: str, path: Path | None, step: int, row: dict[str, float]
) -> None:
    """Append the row of an evaluation to metrics.jsonl and send it to the loggers, unless a training is running there.

    The result does not depend on it: a folder that cannot be written to is a warning.
    """
    kind = "validate" if phase == "valid" else phase
    with contextlib.ExitStack() as stack:
        if session.folder is not None and session.checkpoints is not None:
            try:
                stack.enter_context(session.checkpoints.locked())
                checkpoint = None if path is None else path.name
                append_evaluation(session.folder / "metrics.jsonl", row, step, kind=kind, checkpoint=checkpoint)
            except (OSError, RuntimeError) as error:
                logger.warning("no row of this %s is written to metrics.jsonl and the loggers: %s", kind, error)
                return
        loggers.log_metrics(row, step)
