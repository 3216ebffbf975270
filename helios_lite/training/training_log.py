"""Writes a row of metrics at every logging step: to metrics.jsonl, and to the loggers."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from helios_lite.checkpoints.files import write_json
from helios_lite.display import console, lines
from helios_lite.loading.batches import Batch
from helios_lite.metrics.accumulator import EpochMeans, MetricAccumulator, Summary
from helios_lite.metrics.measurements import LearningRates, Throughput, peak_memory_mib
from helios_lite.metrics.rows import JsonlLogger
from helios_lite.model_internals.attributes import networks, stateful_parts
from helios_lite.networks.dtensors import full_tensor
from helios_lite.networks.parallel import unwrap_model
from helios_lite.state import TrainingState
from helios_lite.training.cleanup import cleanup
from helios_lite.training.clock import Clock
from helios_lite.training.run_description import describe_run
from helios_lite.training.run_loggers import RunLoggers
from helios_lite.training.session import Session
from helios_lite.training.training_report import _SECONDS_BETWEEN_ROWS

logger = logging.getLogger("helios_lite")


class TrainingLog:
    """The rows of metrics of a training, and what people see of it at its start.

    Only rank 0 writes rows. As a context it closes the loggers, however the training ends.

    Attributes:
        end_values: the values logged in `on_training_end`, by full name, of the training that a checkpoint ends.
    """

    def __init__(self, session: Session, state: TrainingState, clock: Clock) -> None:
        self._session, self._state, self._clock = session, state, clock
        self._loggers = RunLoggers(session.options.loggers, is_main=session.world.is_main, is_training=True)
        self.end_values: dict[str, float] = {}
        self._has_end = False
        self._jsonl: JsonlLogger | None = None
        self._num_kept_rows = 0
        self._logged_step = 0
        self._next_described = {"train": 0.0, "valid": 0.0}  # When train.log gets the next row.
        # These times are moved on by what is no training, and moved back at a resume by what was done before it.
        self._row_start = clock.now
        self._epoch_start: float | None = None  # None if the time of the epoch is unknown, or in a row already.
        self._row_seconds_before = 0.0
        self._throughput = Throughput()
        self._epoch_means = EpochMeans()
        self._epoch_batches: int | None = None
        # What the line of the epoch shows.
        self._means: dict[str, float] = {}
        self._validation: tuple[dict[str, float], bool] = ({}, False)
        self._epoch_seconds_before: float | None = None
        self._rates = LearningRates()
        self._optimizers: dict[str, Optimizer] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._loggers)
        self._stack.callback(self._rates.unwatch)
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._stack.__exit__(*error)

    def open(self, *, goes_on: bool) -> None:
        """Write the configuration, open metrics.jsonl, show the banner and the bar of the run. Rank 0 does it.

        Args:
            goes_on: whether there is something left to train.
        """
        session, options, model = self._session, self._session.options, self._session.model
        if not session.world.is_main:
            return
        if session.folder is not None:
            write_json(describe_run(session), session.folder / "config.json")
            path = session.folder / "metrics.jsonl"
            self._jsonl = JsonlLogger(path, self._num_kept_rows, self._state.step, keep_end=not goes_on)
            self._stack.enter_context(cleanup(self._jsonl.close))
        self._loggers.start({**options.config(), "hparams": model.hparams}, self._state.step)
        where = "without files" if session.folder is None else f"in {session.folder}"
        text = console.banner_text(where, session.device, session.world.size, options.strategy, options.precision)
        self._describe(text)
        if session.prints:
            console.show_banner(model.append_to_banner(text))
            console.show_table(model.summary())
        if options.max_steps is None:
            session.progress.show_run(options.max_epochs, "epoch", lambda: (self._state.epoch, self._status()))
        else:
            session.progress.show_run(options.max_steps, "step", lambda: (self._state.step, self._status()))

    def restart(self) -> None:
        """Start the times of the row and of the epoch now; those of a resumed run go on."""
        self._row_start = self._clock.now - self._row_seconds_before
        if self._epoch_seconds_before is not None:
            self._epoch_start = self._clock.now - self._epoch_seconds_before
        self.end_values = {}  # Those of a checkpoint at which training had ended before.

    def begin_epoch(self, parts: Sequence[tuple[str, Any]]) -> None:
        """Note the optimizers among the stateful parts of the model, which may have replaced them."""
        self._optimizers = {name: part for name, part in parts if isinstance(part, Optimizer)}
        self._rates.set_optimizers(self._optimizers)
        self._means, self._validation = {}, ({}, False)
        if self._state.epoch_batch == 0:
            self._epoch_start = time.monotonic()
            self._epoch_means.begin()

    def timed(self, batches: Iterator[Batch], epoch_batches: int | None) -> Iterator[Batch]:
        """Return the rest of an epoch of so many batches (None if unknown), which measures how long they take."""
        self._epoch_batches = epoch_batches
        return self._throughput.timed(batches)

    def watch_learning_rates(self) -> None:
        """Note the learning rates that the next update uses, for the row that is written after it."""
        self._rates.watch()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time does not count as time of training steps."""
        started = time.monotonic()
        yield
        paused = time.monotonic() - started
        self._row_start += paused
        if self._epoch_start is not None:
            self._epoch_start += paused

    def compute(self) -> Summary:
        """Return the training metrics since the last row. Call on every rank.

        Raises:
            FloatingPointError: a value, or the loss passed to `backward` last, was not finite (`check_finite`); the
                message has its name and step.
        """
        session = self._session
        checks = session.options.check_finite
        summary = session.metrics.compute(session.world, loss=session.context.precision.last_loss if checks else None)
        session.context.precision.forget_loss()
        self._checked(summary)
        if not summary.loss_is_finite:
            raise self._not_finite("the loss passed to backward", self._state.step)
        return summary

    def unwritten(self) -> dict[str, float]:
        """Return the training metrics that no row has, with those of `on_training_end`. Call on every rank."""
        if self._has_end:
            return {}
        values = self.compute().values | self.end_values
        return self._session.hooks.process_metrics("train", values) if values else {}

    def write_row(self, *, ends_epoch: bool) -> None:
        """Write the training metrics since the last row; nothing without an update since. Call on every rank.

        Args:
            ends_epoch: whether the epoch has ended. Its last row has its time, and every metric over the whole epoch as
                "<name>/epoch"; if that row was written before the end was known, these have a row of their own.
        """
        values = {} if self._state.step == self._logged_step else self._take_values()
        if ends_epoch and self._epoch_start is not None:
            if not values:
                self._clock.tick()
            values["train/epoch_seconds"] = self._clock.now - self._epoch_start
            self._epoch_start = None
        if ends_epoch and (means := self._epoch_means.take()):
            self._means = means
            values |= {f"{name}/epoch": value for name, value in means.items()}
        if values:
            self.write(values)
            self._show_row(values)

    def _take_values(self) -> dict[str, float]:
        """Return the training metrics since the last row, and begin the next one. Call on every rank."""
        state = self._state
        if self._session.options.log_param_norm:
            self._report_parameters()
        summary = self.compute()
        self._epoch_means.add(summary.totals)
        self._clock.tick()
        if self._logged_step == 0 and not self._rates.used:
            self._warn_of_no_update()
        values = self._session.hooks.process_metrics("train", summary.values | self._rates.take())
        values |= self._throughput.take(self._clock.now - self._row_start, state.step - self._logged_step)
        if (peak := peak_memory_mib(self._session.device)) is not None:
            values.setdefault("train/memory_mib", peak)  # The callback DeviceMemory has that of all ranks.
        self._session.metrics.reset()
        self._logged_step, self._row_start = state.step, self._clock.now
        return values

    def _warn_of_no_update(self) -> None:
        """Say at the first row what is missing in `train_step`, if it has optimizers and none of them has stepped."""
        optimizers = self._optimizers.values()
        has_stepped = any(len(optimizer.state) > 0 for optimizer in optimizers) or self._state.skipped_steps > 0
        if not optimizers or has_stepped or not self._session.world.is_main:
            return
        has_gradients = any(
            p.grad is not None for each in optimizers for group in each.param_groups for p in group["params"]
        )
        missing = "optimizer_step(optimizer)" if has_gradients else "backward(loss) and optimizer_step(optimizer)"
        logger.warning(
            "no optimizer has changed a parameter up to step %d: train_step does not call %s", self._state.step, missing
        )

    def write(self, values: dict[str, float]) -> None:
        """Send a row of metrics to metrics.jsonl and the loggers. Rank 0 does it."""
        self._session.context.record(values)
        row = self._row(values)
        if self._jsonl is not None:
            self._jsonl.log_metrics(row, self._state.step)
        self._loggers.log_metrics(row, self._state.step)

    def _show_row(self, values: dict[str, float]) -> None:
        """Show a row in a line of its own where there are no bars, and in train.log."""
        self._describe_sometimes("train", values)
        progress, options, batches = self._session.progress, self._session.options, self._epoch_batches
        if progress.enabled and not progress.has_bars and "train/step_seconds" in values:
            epoch_part = None if batches is None else self._state.epoch_batch / batches
            done = lines.finished_part(self._state, options, epoch_part)
            progress.write(lines.log_line(self._state, options, values, done))

    def show_validation(self, values: dict[str, float], *, is_best: bool) -> None:
        """Show a validation in a line of its own; beside bars it is a part of the line of its epoch."""
        self._validation = (values, is_best)
        self._describe_sometimes("valid", values)
        progress = self._session.progress
        if not progress.has_bars:
            progress.write(lines.validation_line(self._state, self._session.options, values, is_best))

    def show_epoch(self) -> None:
        """Leave a line of the epoch that has ended."""
        line = lines.epoch_line(self._state, self._session.options, self._means, *self._validation)
        self._session.progress.write(line)

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """A context around `on_training_end`, whose values are kept apart. Call on every rank.

        A training that goes on later must not count them: it would differ from one that was never stopped.
        """
        metrics = MetricAccumulator(self._session.device)
        self._session.context.begin_phase("train", metrics)
        yield
        self._session.context.begin_phase("train", self._session.metrics)
        self.end_values = self._checked(metrics.compute(self._session.world))

    def write_end(self) -> None:
        """Write a row with all that has been logged since the last one, after the last save. Call on every rank.

        The checkpoint holds these values too, and a training that goes on from it writes them with its next row.
        """
        values = self.unwritten()
        self._has_end = True
        if values:
            self._session.context.record(values)
            self._describe_row(values)
            row = self._row(values)
            if self._jsonl is not None:
                self._jsonl.log_end(row, self._state.step)
            self._loggers.log_metrics(row, self._state.step)

    def report_gradients(self, optimizer: Optimizer, parameters: list[Tensor], norm: Tensor) -> None:
        """Log the 2-norm of an optimizer's gradients, and with "per-parameter" of each. Call on every rank."""
        names = [name for name, part in self._optimizers.items() if part is optimizer and len(self._optimizers) > 1]
        self._log_last("/".join(["grad_norm", *names]), norm)
        if self._session.options.log_grad_norm == "per-parameter":
            self._report_each("grad_norm", [(p, p.grad) for p in parameters if p.grad is not None])

    def state_dict(self) -> dict[str, Any]:
        """Return the step of the last row, the number of rows, what the next row needs, and the values of the end."""
        now = time.monotonic()
        state = {
            "flushed_step": self._logged_step,
            "rows": 0 if self._jsonl is None else self._jsonl.rows,
            "row_seconds": now - self._row_start,
            "epoch_seconds": None if self._epoch_start is None else now - self._epoch_start,
            "rates": dict(self._rates.used),
            "throughput": self._throughput.state_dict(),
            "epoch_totals": self._epoch_means.state_dict(),
        }
        return state | ({"end": self.end_values} if self.end_values else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; `open` then drops the rows that were written later."""
        self._logged_step, self._num_kept_rows = state_dict["flushed_step"], state_dict["rows"]
        # Files of earlier versions do not have all of these.
        self._row_seconds_before = state_dict.get("row_seconds", 0.0)
        self._epoch_seconds_before = state_dict.get("epoch_seconds")
        self._rates.restore(state_dict.get("rates", {}))
        self._throughput.load_state_dict(state_dict.get("throughput", {}))
        self._epoch_means.load_state_dict(state_dict.get("epoch_totals"))
        self.end_values = state_dict.get("end", {})

    def _checked(self, summary: Summary) -> dict[str, float]:
        """Return the values of a summary; raise a FloatingPointError if one is not finite (`check_finite`)."""
        if self._session.options.check_finite and summary.first_not_finite is not None:
            name, step = summary.first_not_finite
            raise self._not_finite(name, step)
        return summary.values

    def _not_finite(self, name: str, step: int) -> FloatingPointError:
        """Return the error of a value that is not finite, with the call that shows where it comes from."""
        hint = f"; Trainer.replay(model, datamodule, step={step}), or helios-lite replay FILE --step {step}, shows why"
        return FloatingPointError(f"{name} is not finite at step {step}" + hint * (self._session.folder is not None))

    def _row(self, values: dict[str, float]) -> dict[str, float]:
        """Return a row of metrics with its epoch and time."""
        return {"epoch": self._state.epoch, "seconds": self._state.seconds, **values}

    def _describe_sometimes(self, phase: str, values: dict[str, float]) -> None:
        """Log a row for train.log, unless it has one of the same phase that is not older than a second."""
        if self._clock.now >= self._next_described[phase]:
            self._next_described[phase] = self._clock.now + _SECONDS_BETWEEN_ROWS
            self._describe_row(values)

    def _describe_row(self, values: dict[str, float]) -> None:
        """Log a row for train.log."""
        if self._session.world.is_main and logger.isEnabledFor(logging.DEBUG):
            logger.debug("step %d, epoch %d: %s", self._state.step, self._state.epoch, console.metrics_text(values))

    def _describe(self, banner: str) -> None:
        """Log the versions, the options, the hyperparameters and the numbers of parameters."""
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

    @torch.no_grad()
    def _report_parameters(self) -> None:
        """Log the 2-norm of all trained parameters, and with "per-parameter" of each. Call on every rank."""
        trained = {id(p): p for net in networks(self._session.model) for p in net.parameters() if p.requires_grad}
        self._log_last("param_norm", full_tensor(nn.utils.get_total_norm(trained.values())))
        if self._session.options.log_param_norm == "per-parameter":
            self._report_each("param_norm", [(p, p) for p in trained.values()])

    def _report_each(self, name: str, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Log the 2-norm of the tensor that belongs to each parameter, under the parameter's name."""
        parts = stateful_parts(self._session.model)
        nets = [(part_name, unwrap_model(part)) for part_name, part in parts if isinstance(part, nn.Module)]
        paths = {id(p): f"{part_name}.{path}" for part_name, net in nets for path, p in net.named_parameters()}
        norms = torch._foreach_norm([tensor for _, tensor in pairs])
        for (parameter, _), norm in zip(pairs, norms, strict=True):
            self._log_last(f"{name}/{paths.get(id(parameter), '?')}", full_tensor(norm))

    def _log_last(self, name: str, value: Tensor) -> None:
        self._session.context.log(name, value, 1, "last")
