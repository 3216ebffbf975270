"""What people see of a training: its banner, its lines, the text beside its bar, and its rows in train.log."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from helios_lite.display import console, lines
from helios_lite.display.plan import Plan
from helios_lite.state import TrainingState
from helios_lite.training.clock import Clock
from helios_lite.training.session import Session

logger = logging.getLogger("helios_lite")
_SECONDS_BETWEEN_ROWS = 1.0  # The least time between two rows of a phase in train.log, which is read by people.


class TrainingReport:
    """Shows a training on the screen and in train.log. Only rank 0 shows anything."""

    def __init__(self, session: Session, state: TrainingState, clock: Clock) -> None:
        self._session, self._state, self._clock = session, state, clock
        self._next_described = {"train": 0.0, "valid": 0.0}  # When train.log gets the next row.
        self._validation: tuple[Mapping[str, float], bool] = ({}, False)  # Of the present epoch.

    def open(self, plan: Plan | None) -> None:
        """Show the banner, with the plan of a run that has not finished, and the bar. Called on rank 0."""
        session, options, model, state = self._session, self._session.options, self._session.model, self._state
        where = "without files" if session.folder is None else f"in {session.folder}"
        text = console.banner_text(where, session.device, session.world.size, options)
        planned = [] if plan is None else plan.lines()
        text = "\n".join([text, *(["plan: 1 step (fast_dev_run)"] if options.fast_dev_run else planned)])
        self._describe_run(text)
        if session.prints:
            console.show_banner(model.append_to_banner(text))
            console.show_table(model.summary())
        if options.max_steps is None:
            session.progress.show_run(options.max_epochs, "epoch", lambda: (state.epoch, self._status()))
        else:
            session.progress.show_run(options.max_steps, "step", lambda: (state.step, self._status()))

    def show_row(self, values: Mapping[str, float], epoch_batches: int | None) -> None:
        """Show a row of metrics in a line of its own where there are no bars, and in train.log.

        Args:
            values: the metrics by full name.
            epoch_batches: number of batches in the present epoch, None if unknown.
        """
        self._describe_sometimes("train", values)
        progress, state, options = self._session.progress, self._state, self._session.options
        if progress.enabled and not progress.has_bars and "train/step_seconds" in values:
            epoch_part = None if epoch_batches is None else state.epoch_batch / epoch_batches
            done = lines.finished_part(state, options, epoch_part)
            progress.write(lines.log_line(state, options, values, done))

    def show_validation(self, values: Mapping[str, float], *, is_best: bool) -> None:
        """Show a validation in a line of its own; beside bars it is a part of the line of its epoch."""
        self._validation = (values, is_best)
        self._describe_sometimes("valid", values)
        progress = self._session.progress
        if not progress.has_bars:
            progress.write(lines.validation_line(self._state, self._session.options, values, is_best))

    def show_epoch(self, means: Mapping[str, float]) -> None:
        """Leave a line of the epoch that has ended, with the means of its metrics by full name."""
        line = lines.epoch_line(self._state, self._session.options, means, *self._validation)
        self._session.progress.write(line)
        self._validation = ({}, False)

    def describe_row(self, values: Mapping[str, float]) -> None:
        """Log a row of metrics for train.log; nothing if it is empty."""
        if values and self._session.world.is_main and logger.isEnabledFor(logging.DEBUG):
            logger.debug("step %d, epoch %d: %s", self._state.step, self._state.epoch, console.metrics_text(values))

    def _describe_sometimes(self, phase: str, values: Mapping[str, float]) -> None:
        """Log a row for train.log, unless it has one of the same phase that is not older than a second."""
        if self._clock.now >= self._next_described[phase]:
            self._next_described[phase] = self._clock.now + _SECONDS_BETWEEN_ROWS
            self.describe_row(values)

    def _describe_run(self, banner: str) -> None:
        """Log the versions, the options, the hyperparameters and the numbers of parameters for train.log."""
        model = self._session.model
        for line in banner.splitlines():
            logger.debug("%s", line)
        for name, value in self._session.options.config().items():
            logger.debug("option %s: %r", name, value)
        for name, value in model.hparams.items():
            logger.debug("hparams[%r]: %r", name, value)
        total, trainable = model.num_parameters(), model.num_parameters(trainable_only=True)
        logger.debug("parameters: %s, of which %s are trained", f"{total:,}", f"{trainable:,}")

    def _status(self) -> str:
        """Return the text beside the bar of the run: the best monitored value, and what is logged with `bar=True`.

        If there is neither, it is the loss.
        """
        context, score = self._session.context, self._state.best_score
        values = {} if score is None else {"best": score}
        values |= {name: context.latest[name] for name in context.shown if name in context.latest}
        if not values and "train/loss" in context.latest:
            values["loss"] = context.latest["train/loss"]
        return " ".join(f"{name}={value:.4g}" for name, value in values.items())
