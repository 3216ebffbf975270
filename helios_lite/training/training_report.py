"""What is seen of a training: its banner, its lines, the text beside its bar, its rows in train.log, its status."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import Signals
from typing import Any

from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import SWALR

from helios_lite.display import console, lines
from helios_lite.display.plan import Plan
from helios_lite.metrics.measurements import rate_names
from helios_lite.model_internals.attributes import moves, optimizers, stateful_parts
from helios_lite.state import TrainingState
from helios_lite.training.clock import Clock
from helios_lite.training.session import Session
from helios_lite.training.status_file import Phase
from helios_lite.training.verdict import Verdict

logger = logging.getLogger("helios_lite")
_SECONDS_BETWEEN_ROWS = 1.0  # The least time between two rows of a phase in train.log, which is read by people.
_SECONDS_BETWEEN_LINES = 30.0  # The least time between two lines on the screen inside of an epoch.


class TrainingReport:
    """Shows a training on the screen, in train.log and in status.json. Only rank 0 shows anything."""

    def __init__(self, session: Session, state: TrainingState, clock: Clock) -> None:
        self._session, self._state, self._clock = session, state, clock
        self._next_described = {"train": 0.0, "valid": 0.0}  # When train.log gets the next row.
        self._validation: tuple[Mapping[str, float], bool] = ({}, False)  # Of the present epoch.
        self._row: Mapping[str, float] = {}  # The last one, with the speed.
        self._line_written = clock.now
        self._verdict = Verdict()
        self._epoch_batches: int | None = None

    def open(self, plan: Plan | None) -> None:
        """Show the banner, with the plan of a run that has not finished, and the bar. Called on rank 0."""
        session, options, model, state = self._session, self._session.options, self._session.model, self._state
        where = "without files" if session.folder is None else f"in {session.name}"
        text = console.banner_text(where, session.device, session.world.size, options)
        planned = [] if plan is None else plan.lines()
        if number := int(options.fast_dev_run):
            planned = [f"plan: {number} step{'s' * (number > 1)} (fast_dev_run)"]
        text = "\n".join([text, *planned])
        self._describe_run(text)
        if session.prints:
            console.show_banner(model.append_to_banner(text))
            console.show_table(model.summary())
        if options.max_steps is None:
            session.progress.show_run(options.max_epochs, "epoch", lambda: (state.epoch, self._status()))
        else:
            session.progress.show_run(options.max_steps, "step", lambda: (state.step, self._status()))

    def show_row(self, values: Mapping[str, float], epoch_batches: int | None, *, ends_epoch: bool) -> None:
        """Show a row of metrics in train.log, and inside of a long epoch without bars in a line of its own.

        Args:
            values: the metrics by full name.
            epoch_batches: number of batches in the present epoch, None if unknown.
            ends_epoch: whether the line of the epoch follows, which has them as well.
        """
        self._describe_sometimes("train", values)
        self._epoch_batches = epoch_batches
        self.show_status("running")
        if "train/step_seconds" in values:
            self._row = values
            self._verdict.add(self._state.step, values)
            if not self._session.progress.has_bars and not ends_epoch and self._is_line_due():
                self._write(lines.row_line(self._state, self._session.options, values, self._finished_part()))

    def show_validation(
        self, values: Mapping[str, float], *, is_best: bool, ends_epoch: bool = False, ends_run: bool = False
    ) -> None:
        """Show a validation in the line of its epoch; inside of a long epoch, and at the end, in a line of its own."""
        self._validation = (values, is_best)
        self._describe_sometimes("valid", values)
        if not ends_run:
            self.show_status("running")
        if ends_run or (not ends_epoch and self._state.epoch_batch > 0 and self._is_line_due()):
            self._write(lines.validation_line(self._state, self._session.options, values, is_best), is_best=is_best)

    def show_epoch(self, means: Mapping[str, float]) -> None:
        """Leave a line of the epoch that has ended, with the means of its metrics by full name."""
        state, options, progress = self._state, self._session.options, self._session.progress
        about: dict[str, Any] = {"row": self._row, "done": lines.finished_part(state, options, 1.0)}
        if progress.has_bars:  # They say how fast it is, and when it will end.
            about = {"width": console.width()}
        line = lines.epoch_line(state, options, means, *self._validation, **about)
        self._write(line, is_best=self._validation[1])
        self._validation = ({}, False)

    def show_verdict(self, history: Sequence[float], *, is_whole: bool) -> None:
        """Say in at most two lines what somebody should look at, if there is anything. Call on every rank.

        Args:
            history: the monitored value of every validation, or of every epoch.
            is_whole: whether this start has trained from the first step on.
        """
        session, options = self._session, self._session.options
        waits = session.world.gather(self._verdict.waits)
        if session.world.is_main:
            names = [options.monitor] if isinstance(options.monitor, str) else options.monitor or ()
            for text in self._verdict.lines(
                waits,
                num_workers=getattr(getattr(session.datamodule, "train", None), "num_workers", None),
                schedules=self._initial_rates() if is_whole else {},
                history=history,
                monitor=" + ".join(names),
                is_higher_better=options.mode == "max",
            ):
                logger.info("verdict: %s", text)

    def _initial_rates(self) -> dict[str, dict[str, float]]:
        """Return the rates before the first step that each scheduler sets, by their names in rows."""
        parts, made = [*stateful_parts(self._session.model)], self._session.tables["made"]
        known, found = optimizers(parts), dict[str, dict[str, float]]()
        for scheduler, part in parts:
            is_function = isinstance(part, LambdaLR) and part.last_epoch > 0  # Stepped, it may be constant on purpose.
            if isinstance(part, LRScheduler) and not (is_function or isinstance(part, ReduceLROnPlateau | SWALR)):
                for name in (name for name, optimizer in known.items() if moves(part, optimizer)):
                    rates = [group.get("lr") for group in made.get(name, {}).get("groups", ())]
                    found[scheduler] = dict(zip(rate_names(name, len(known), len(rates)), rates, strict=True))
        return found

    def show_status(self, phase: Phase, reason: str | None = None) -> None:
        """Write status.json; see `StatusFile.write`."""
        self._session.status.write(phase, self._status_values, reason)

    def _status_values(self) -> dict[str, Any]:
        """Return what status.json has of the training."""
        session, state, done = self._session, self._state, self._finished_part()
        last, best = (None, None) if session.checkpoints is None else session.checkpoints.durable()
        return {
            "step": state.step,
            "total_steps": session.planned.known_total(),
            "epoch": state.epoch,
            "max_epochs": session.options.max_epochs,
            "progress": None if done is None else min(1.0, done),
            "seconds": state.seconds,
            "seconds_left": lines.seconds_left(state, done),
            "metrics": dict(session.context.latest),
            "best_step": state.best_step,
            "best_score": state.best_score,
            "best_checkpoint": None if best is None else str(best),
            "last_checkpoint": None if last is None else str(last),
        }

    def _finished_part(self) -> float | None:
        """Return the finished part of the run, from 0 to 1; None if unknown."""
        state, batches = self._state, self._epoch_batches
        part = 0.0 if state.epoch_batch == 0 else None if batches is None else state.epoch_batch / batches
        return lines.finished_part(state, self._session.options, part)

    def _is_line_due(self) -> bool:
        return self._clock.now - self._line_written >= _SECONDS_BETWEEN_LINES

    def _write(self, line: str, *, is_best: bool = False) -> None:
        """Write a line on the screen; one of the best validation so far ends with a green "best"."""
        self._line_written = self._clock.now
        if is_best:
            line = line.removesuffix("best") + console.painted("best", "green")
        self._session.progress.write(line)

    def describe_stop(self, received: Signals, checkpoint: Path | None) -> str:
        """Log where a signal has stopped the training and how it goes on; return it for the exception.

        Of Ctrl-C the exception alone tells it on the screen.
        """
        session, options, text = self._session, self._session.options, f"stopped at step {self._state.step}"
        if checkpoint is None:
            why = "fast_dev_run" if options.fast_dev_run else "root=None"
            text += f"; nothing is saved ({why})"
        else:
            named = f' and run_name="{session.folder.name}"' if options.resume == "new" and session.folder else ""
            way = "run the program again" if options.resume == "auto" else f'set resume="auto"{named}'
            text += f", saved {console.shown_path(checkpoint, session.directory)}; to go on from there, {way}"
        level = logging.DEBUG if received is Signals.SIGINT else logging.WARNING
        logger.log(level, "%s: %s", received.name, text)
        return text

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
        """Return the text beside the bar of the run: what is logged with `bar=True`, else the loss; and the best value.

        On the CPU the loss is the last one that was passed to `backward`. On a device it is that of the last row, since
        reading it would wait for the device.
        """
        context, options, score = self._session.context, self._session.options, self._state.best_score
        values = {name: context.latest[name] for name in context.shown if name in context.latest}
        loss = context.precision.last_loss
        if not values and loss is not None and loss.device.type == "cpu":
            values["loss"] = float(loss.detach())
        elif not values and "train/loss" in context.latest:
            values["loss"] = context.latest["train/loss"]
        if score is not None and options.monitor is not None:
            name = options.monitor if isinstance(options.monitor, str) else " + ".join(options.monitor)
            values[f"best {name}"] = score
        return " ".join(f"{name}={value:.4g}" for name, value in values.items())
