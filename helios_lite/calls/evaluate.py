"""A call of `validate` or `test`."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

from helios_lite.checkpoints.reading import evaluation_state
from helios_lite.display import console
from helios_lite.display.lines import with_limits
from helios_lite.metrics.rows import append_evaluation
from helios_lite.model_internals.evaluation_weights import expect_evaluation_weights
from helios_lite.processes.output import harmless_errors
from helios_lite.processes.signals import GracefulShutdown
from helios_lite.state import TrainingState
from helios_lite.training.evaluator import Evaluator
from helios_lite.training.resuming import is_best, load_checkpoint
from helios_lite.training.session import Session

logger = logging.getLogger("helios_lite")


def evaluate(
    session: Session, shutdown: GracefulShutdown, *, phase: str, checkpoint: str | os.PathLike[str] | None
) -> dict[str, float]:
    """Evaluate a split, and return its metrics. Call on every rank.

    Args:
        session: the session.
        shutdown: not used: a signal ends an evaluation at once, because it changes nothing that could be lost.
        phase: "valid" or "test".
        checkpoint: "best", "last", a path, or None for the weights that the model has.
    """
    model, options = session.model, session.options
    session.setup(fast_init=True)
    names = session.open_split(phase)
    if options.limit_of(phase) == 0:
        raise ValueError(f"limit_{phase}_batches=0: turns the {phase} split off; set it to None to evaluate the split")
    if not names:
        raise ValueError(f"the datamodule has no {phase} split")
    path, state = load_for_evaluation(session, checkpoint)
    metrics = Evaluator(session, in_training=False).evaluate(phase, names, cycle=1)
    session.context.record(metrics)
    model.eval()
    session.progress.close()
    title = with_limits(phase if path is None else f"{phase} of {path.name}", options, phase)
    if session.world.is_main:
        row = {"epoch": state.epoch, "seconds": state.seconds, **metrics}
        _write_row(session, phase, path, state.step, row)
        logger.debug("%s: %s", title, console.metrics_text(metrics))
    if session.prints:
        console.show_metrics(title, metrics)
    return metrics


@harmless_errors()
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
    if choice == "best" and not is_best(session, path, content["state"]) and state.best_step is not None:
        logger.warning(
            'checkpoint="best": that of step %d was not kept (keep_best=%d); %s is used in its place',
            state.best_step, session.options.keep_best, path.name,
        )  # fmt: skip
    expect_evaluation_weights(model)
    # Averaged weights are tested as they were validated, also without the callback that has averaged them.
    model.load_state_dict(evaluation_state(content), fast_init=True)
    session.hooks.load_state_dict(content["callbacks"], warn_unknown=False)
    return path, state


def _write_row(session: Session, phase: str, path: Path | None, step: int, row: dict[str, float]) -> None:
    """Append the row of an evaluation to metrics.jsonl and send it to the loggers, unless a training is running there.

    The result does not depend on it: a folder that cannot be written to is a warning.
    """
    kind = "validate" if phase == "valid" else phase
    with contextlib.ExitStack() as stack:
        if session.folder is not None and session.checkpoints is not None:
            try:
                stack.enter_context(session.checkpoints.locked())
                checkpoint = None if path is None else path.name
                limit = session.options.limit_of(phase)
                about: dict[str, Any] = {"kind": kind, "checkpoint": checkpoint, "limit": limit}
                append_evaluation(session.folder / "metrics.jsonl", row, step, **about)
            except (OSError, RuntimeError) as error:
                logger.warning("no row of this %s is written to metrics.jsonl and the loggers: %s", kind, error)
                return
        session.loggers.log_metrics(row, step)
