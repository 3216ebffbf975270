"""Writes a row of metrics at every logging step: to metrics.jsonl, and to the loggers."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from helios_lite.changes.run_description import read_starts
from helios_lite.changes.sources import describe_code
from helios_lite.checkpoints.files import write_json
from helios_lite.loading.batches import Batch
from helios_lite.metrics.accumulator import EpochMeans, MetricAccumulator, Summary
from helios_lite.metrics.digests import Digests, added, digest_of_batch, digest_of_weights
from helios_lite.metrics.measurements import (
    LearningRates,
    Throughput,
    norms_by_parameter,
    parameter_norms,
    peak_memory_mib,
)
from helios_lite.metrics.metric_objects import is_network
from helios_lite.metrics.rows import HIGHEST_LOSS, JsonlLogger
from helios_lite.model_internals.attributes import metric_names, metric_objects, named_networks, optimizers
from helios_lite.networks.precision import gradient_values
from helios_lite.state import TrainingState
from helios_lite.training.cleanup import cleanup
from helios_lite.training.clock import Clock, Stopwatch
from helios_lite.training.session import Session

logger = logging.getLogger("helios_lite")


class TrainingLog:
    """The rows of metrics of a training.

    Only rank 0 writes rows. As a context it closes the file of rows, however the training ends.

    Attributes:
        epoch_means: the metrics over the present epoch by full name, after its last row.
        end_values: the values logged in `on_training_end`, by full name, of the training that a checkpoint ends.
    """

    def __init__(self, session: Session, state: TrainingState, clock: Clock) -> None:
        self._session, self._state, self._clock = session, state, clock
        self.epoch_means: dict[str, float] = {}
        self.end_values: dict[str, float] = {}
        self._has_end = False
        self._jsonl: JsonlLogger | None = None
        self.rows: list[dict[str, Any]] | None = [] if session.folder is None else None
        self._num_kept_rows = 0
        self._place_of_last_row: Sequence[int] | None = None
        self._logger_states: dict[str, Any] | None = None
        self._held: dict[str, Any] | None = None
        self._held_place: list[int] | None = None
        self._logged_step = 0
        self._row_time = Stopwatch(0.0)
        self._epoch_time = Stopwatch(None)  # Unknown too when a row has had it.
        self._throughput = Throughput()
        self._epoch_totals = EpochMeans()
        self._rates = LearningRates()
        # Only rows of a file have digests, and those of a replay, which are compared with them.
        self._has_digests = session.folder is not None or session.method == "replay"
        if not self._has_digests:
            session.train_data.leave_out_digests()
        self._digests = Digests()
        self._digested: list[nn.Module] = []  # The networks, to look for which in every row would take longer.
        self._last_batch: list[Tensor] = []  # The parts of its digest.
        self._window_digests: dict[str, Any] = {}
        self._optimizers: dict[str, Optimizer] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._stack.callback(self._rates.unwatch)
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._stack.__exit__(*error)

    def open(self, *, goes_on: bool, resumed_from: Path | None, goes_back: bool, changes_rows: bool) -> None:
        """Write the configuration, open metrics.jsonl and start the loggers. Rank 0 does it.

        Args:
            goes_on: whether there is something left to train.
            resumed_from: the checkpoint from which the run goes on. The rows of another run are in its own folder.
            goes_back: whether the run goes back to its best checkpoint, and the rows after it do not hold any more.
            changes_rows: whether they do not because something has changed.
        """
        session = self._session
        self._digested = [*self._networks().values()]
        weights = None if session.folder is None else self._digest_of_weights()
        if not session.world.is_main:
            return
        if session.folder is not None:
            # Loggers whose paths are the same for each run of the program have the rows of the one before.
            goes_back |= session.options.resume == "new" and not (session.folder / "config.json").exists()
            of_model = {"trainer": session.options.config(), "hparams": session.model.hparams}
            config_file, path = session.folder / "config.json", session.folder / "metrics.jsonl"
            own = (session.folder / "checkpoints").resolve()
            is_own = resumed_from is not None and resumed_from.resolve().parent == own
            if not is_own:
                self._num_kept_rows, self._logger_states = 0, None
            starts = [each for each in read_starts(config_file) if is_own or not goes_on]
            if goes_on:
                checkpoint = resumed_from.name if is_own and resumed_from is not None else resumed_from
                starts = [each for each in starts if each["step"] < self._state.step]
                starts.append(self._describe_start(None if checkpoint is None else str(checkpoint), weights))
            about = {"run_folder": str(session.folder), **of_model, **session.tables, "starts": starts}
            write_json(about, config_file)
            place = self._place_of_last_row
            rows, step = self._num_kept_rows, self._state.step
            self._jsonl = JsonlLogger(path, rows, step, keep_end=not goes_on, place=place)
            goes_back |= changes_rows and self._jsonl.has_cut
            self._stack.enter_context(cleanup(self._jsonl.close))
        config = {**session.options.config(), "hparams": session.model.hparams}
        if self._jsonl is None or self._jsonl.end is None:  # Otherwise the run has ended, and no row comes.
            session.loggers.go_on(self._state.step, self._logger_states, differs=goes_back)
        session.loggers.log_config(config)

    def _describe_start(self, checkpoint: str | None, weights: str | None) -> dict[str, Any]:
        """Return what this start begins from, for `read_starts`."""
        session = self._session
        modules = {type(module) for net in self._networks().values() for module in net.modules()}
        callbacks = {type(callback) for callback in session.options.callbacks}
        code = describe_code([type(session.model), type(session.datamodule)], [*modules, *callbacks])
        about = {"step": self._state.step, "checkpoint": checkpoint, "weights_digest": weights, **code}
        return {**about, "environment": session.tables.get("environment", {})}

    def restart(self) -> None:
        """Start the times of the row and of the epoch now; those of a resumed run go on."""
        self._row_time.start(self._clock.now)
        self._epoch_time.start(self._clock.now)
        self.end_values = {}  # Those of a checkpoint at which training had ended before.

    def begin_epoch(self, parts: Sequence[tuple[str, Any]]) -> None:
        """Note the optimizers among the stateful parts of the model, which may have replaced them."""
        self._optimizers = optimizers(parts)
        self._rates.set_optimizers(self._optimizers)
        if self._has_digests:
            self._digested = [part for _, part in parts if is_network(part)]
        self._session.context.precision.set_optimizers([*self._optimizers.values()], self._session.check_held)
        self.epoch_means = {}
        if self._state.epoch_batch == 0:
            self._epoch_time = Stopwatch(0.0, time.monotonic())
            self._epoch_totals.begin()

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Return the rest of an epoch, which measures how long its batches take."""
        return self._throughput.timed(batches)

    @property
    def loading_failed(self) -> bool:
        """Whether the last batch could not be loaded."""
        return self._throughput.loading_failed

    def expect_row(self, batch: Any = None) -> None:
        """Note the learning rates that the next step uses, for the row that may be written after it.

        Args:
            batch: the last batch before the row, as the loader gives it; None if it is not known to be the last.
        """
        self._rates.watch()
        self._session.context.expect_row(True)
        if batch is not None and self._has_digests and self._session.world.is_main:
            # Before the step, which may change the batch in place.
            self._last_batch = digest_of_batch(self._digests, batch)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time does not count as time of training steps."""
        if self._session.device.type != "cpu":  # What it still has to do is time of the steps, and not of the pause.
            torch.accelerator.synchronize(self._session.device)
        now = time.monotonic()
        self._row_time.stop(now)
        self._epoch_time.stop(now)
        yield
        now = time.monotonic()
        self._row_time.start(now)
        self._epoch_time.start(now)

    def hold(self) -> None:
        """Let checkpoints have the rows and the loggers as they are now, until `release`.

        If an error ends a validation, which is done again after a resume, what was written in it must not count.
        """
        self._held_place = self.place_of_last_row()
        self._held = self._written()

    def release(self) -> None:
        """Let checkpoints have the rows and the loggers as they are then."""
        self._held = None

    def _written(self) -> dict[str, Any]:
        rows = 0 if self._jsonl is None else self._jsonl.rows
        return {"rows": rows, "loggers": self._session.loggers.state_dict()}

    def place_of_last_row(self) -> list[int] | None:
        """Return where the last row that a checkpoint counts is in metrics.jsonl, None if there is none.

        It is no part of `state_dict`, because rows have measured times, which are not as long in every run.
        """
        place = None if self._jsonl is None else self._jsonl.place
        return self._held_place if self._held is not None else None if place is None else [*place]

    def load_place_of_last_row(self, place: Sequence[int] | None) -> None:
        """Restore what `place_of_last_row` returned, for `open`."""
        self._place_of_last_row = place

    def compute(self, *, with_objects: bool = True) -> Summary:
        """Return the training metrics since the last row, with the values of metric objects. Call on every rank.

        Args:
            with_objects: whether those are computed.

        Raises:
            FloatingPointError: a logged number, or the loss passed to `backward` last, was not finite
                (`check_finite`); the message has its name and step.
        """
        session = self._session
        checks = session.options.check_finite
        loss = session.context.precision.last_loss if checks else None
        summary = session.metrics.compute(session.world, loss=loss, with_objects=with_objects)
        session.context.precision.forget_loss()
        self._checked(summary)
        if not summary.loss_is_finite:
            raise self._not_finite("the loss passed to backward", self._state.step)
        return summary._replace(values=summary.values | self._epoch_totals.computed(summary.objects))

    def unwritten(self) -> dict[str, float]:
        """Return the training metrics that no row has, with those of `on_training_end`. Call on every rank."""
        if self._has_end:
            return {}
        summary = self.compute()
        self._window_digests = _highest_loss(summary)  # Of the samples nothing is known if this start has read none.
        values = summary.values | self.end_values
        return self._session.hooks.process_metrics("train", values) if values else {}

    def write_row(self, *, ends_epoch: bool) -> dict[str, float]:
        """Write the training metrics since the last row, and return them; none without a step since.

        Call on every rank.

        Args:
            ends_epoch: whether the epoch has ended. Its last row has its time, and every metric over the whole epoch as
                "<name>/epoch"; if that row was written before the end was known, these have a row of their own.
        """
        has_steps = self._state.step != self._logged_step
        if ends_epoch and not has_steps:  # Windows that were no steps may have left something, on any rank.
            has_steps = any(self._session.world.gather(not self._session.metrics.is_empty))
        values = self._take_values() if has_steps else {}
        if ends_epoch and not values:
            self._clock.tick()
        if ends_epoch and (seconds := self._epoch_time.seconds(self._clock.now)) is not None:
            values.setdefault("train/epoch_seconds", seconds)
            self._epoch_time = Stopwatch(None)
        if ends_epoch and (means := self._epoch_totals.take()):
            self.epoch_means = means
            values |= {f"{name}/epoch": value for name, value in means.items()}
        if values:
            self.write(values)
        return values

    def write_epoch_end(self) -> None:
        """Write a row with what `on_training_epoch_end` has logged, if it has. Call on every rank."""
        values = self.compute().values
        if values:
            self._session.metrics.reset()
            self._clock.tick()
            self.write(values)

    @contextlib.contextmanager
    def dropped(self, is_repeated: bool) -> Iterator[None]:
        """A context around a hook, whose values are dropped if it is called again by a run that was resumed."""
        context = self._session.context
        if is_repeated:
            context.begin_phase("train", MetricAccumulator(self._session.device))
        yield
        context.begin_phase("train", self._session.metrics)

    def _take_values(self) -> dict[str, float]:
        """Return the training metrics since the last row, and begin the next one. Call on every rank."""
        state = self._state
        if norms := self._session.options.log_param_norm:
            self._log_last(parameter_norms(self._networks(), of_each=norms == "per-parameter"))
        summary = self.compute()
        self._epoch_totals.add(summary, self._session.metrics.objects)
        self._clock.tick()
        seconds = self._row_time.seconds(self._clock.now)
        assert seconds is not None
        self._row_time = Stopwatch(0.0, self._clock.now)
        if self._logged_step == 0 and self._session.world.is_main:
            if not self._rates.used:
                self._warn_of_no_step()
            self._warn_of_options_without_effect()
        # What the model logs under the name of something measured stays.
        values = self._session.hooks.process_metrics("train", _completed(summary.values, self._rates.take()))
        if state.step != self._logged_step:
            values = _completed(values, self._throughput.take(seconds, state.step - self._logged_step))
        if (peak := peak_memory_mib(self._session.device)) is not None:
            values.setdefault("train/memory_mib", peak)  # The callback DeviceMemory has that of all ranks.
        self._session.metrics.reset()
        self._session.context.expect_row(False)
        self._logged_step = state.step
        self._take_window()
        self._window_digests |= _highest_loss(summary)
        return values

    def _warn_of_no_step(self) -> None:
        """Say at the first row what is missing in `train_step`, if it has optimizers and none of them has stepped."""
        optimizers = self._optimizers.values()
        has_stepped = any(len(optimizer.state) > 0 for optimizer in optimizers) or self._state.skipped_steps > 0
        if not optimizers or has_stepped:
            return
        has_gradients = any(
            p.grad is not None for each in optimizers for group in each.param_groups for p in group["params"]
        )
        missing = "optimizer_step(optimizer)" if has_gradients else "backward(loss) and optimizer_step(optimizer)"
        logger.warning(
            "no optimizer has changed a parameter up to step %d: train_step does not call %s", self._state.step, missing
        )

    def _warn_of_options_without_effect(self) -> None:
        """Say at the first row which options have no effect on a model that steps its optimizers itself."""
        options = self._session.options
        wanted = {"accumulation_steps": options.accumulation_steps > 1, "clip_norm": options.clip_norm is not None}
        unused = [name for name, is_wanted in wanted.items() if is_wanted]
        if unused and self._optimizers and not self._session.context.precision.makes_steps:
            logger.warning(
                "%s: without effect, because train_step does not call optimizer_step; write self.backward(loss) and "
                "self.optimizer_step(optimizer) in place of loss.backward() and optimizer.step()",
                " and ".join(unused),
            )

    def write(self, values: dict[str, float]) -> None:
        """Send a row of metrics to metrics.jsonl, with its digests, and to the loggers. Call on every rank."""
        self._session.context.record(values)
        row = self._row(values)
        with_digests: dict[str, Any] = {**row, **self._take_digests()}
        if self._jsonl is not None:
            self._jsonl.log_metrics(with_digests, self._state.step)
        self._keep(with_digests)
        self._session.loggers.log_metrics(row, self._state.step)

    def digests(self) -> dict[str, Any]:
        """Return the digests that a row would have now, and begin those of the next. Call on every rank."""
        self._take_window()
        return self._take_digests()

    def _take_window(self) -> None:
        """Note the digests of what was read since the last row, for the row that is written next."""
        if self._has_digests:
            samples, batch = self._session.train_data.take_digest(), added(self._last_batch)
            self._window_digests, self._last_batch = {"samples_digest": samples, "batch_digest": batch}, []

    def _take_digests(self) -> dict[str, Any]:
        """Return the columns of a row that are no metrics, those that are known. Call on every rank."""
        weights = self._digest_of_weights() if self._has_digests else None
        digests, self._window_digests = {**self._window_digests, "weights_digest": weights}, {}
        return {name: digest for name, digest in digests.items() if digest is not None}

    def _digest_of_weights(self) -> str | None:
        session = self._session
        has_shards = session.context.parallel.has_shards
        return digest_of_weights(self._digests, self._digested, session.world, has_shards=has_shards)

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """A context around `on_training_end`, whose values are kept apart. Call on every rank.

        A training that goes on later must not count them: it would differ from one that was never stopped.
        """
        metrics = MetricAccumulator(self._session.device)
        self._session.context.begin_phase("train", metrics)
        yield
        self._session.context.begin_phase("train", self._session.metrics)
        summary = metrics.compute(self._session.world)
        self.end_values = self._checked(summary) | self._epoch_totals.computed(summary.objects)

    def read_end(self) -> dict[str, float] | None:
        """Return the row that `write_end` has written in an earlier start, None if it has not. Call on every rank."""
        end = self._session.world.broadcast(None if self._jsonl is None else self._jsonl.end)
        if end is not None:
            self._has_end = True
            self._session.context.record(end)
        return end

    def write_end(self, values: dict[str, float]) -> None:
        """Write the last row: what has been logged since the one before, and the validation of the final weights.

        It comes after the last save. The checkpoint holds what had been logged too, and a training that goes on from it
        writes that with its next row. Call on every rank.
        """
        self._has_end = True
        if values:
            self._session.context.record(values)
            row = self._row(values)
            with_digests: dict[str, Any] = {**row, **self._take_digests()}
            # The loggers first: a start that finds no such row in the file sends it to them again.
            self._session.loggers.log_end(row, self._state.step)
            if self._jsonl is not None:
                self._jsonl.log_end(with_digests, self._state.step)
            self._keep(with_digests)

    def report_gradients(self, optimizer: Optimizer, parameters: list[Tensor], norm: Tensor) -> None:
        """Log the 2-norm of an optimizer's gradients, and with "per-parameter" of each. Call on every rank."""
        names = [name for name, part in self._optimizers.items() if part is optimizer and len(self._optimizers) > 1]
        self._log_last({"/".join(["grad_norm", *names]): norm})
        if self._session.options.log_grad_norm == "per-parameter":
            gradients = list(zip(parameters, gradient_values(parameters), strict=True))
            self._log_last(norms_by_parameter("grad_norm", self._networks(), gradients))

    def state_dict(self) -> dict[str, Any]:
        """Return the last values, the step of the last row, the number of rows, what the next needs, the end, and
        where the loggers are.
        """
        now = time.monotonic()
        return {
            "latest": self._session.context.latest,
            "flushed_step": self._logged_step,
            "row_seconds": self._row_time.seconds(now),
            "epoch_seconds": self._epoch_time.seconds(now),
            "rates": dict(self._rates.used),
            "throughput": self._throughput.state_dict(),
            "epoch_totals": self._epoch_totals.state_dict(metric_names(self._session.model)),
            "end": self.end_values,
            **(self._written() if self._held is None else self._held),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; `open` then drops the rows that were written later."""
        self._session.context.record(state_dict["latest"])
        self._logged_step, self._num_kept_rows = state_dict["flushed_step"], state_dict["rows"]
        self._logger_states = state_dict["loggers"]
        self._row_time = Stopwatch(state_dict["row_seconds"])
        self._epoch_time = Stopwatch(state_dict["epoch_seconds"])
        self._rates.restore(state_dict["rates"])
        self._throughput.load_state_dict(state_dict["throughput"])
        self._epoch_totals.load_state_dict(state_dict["epoch_totals"], metric_objects(self._session.model))
        self.end_values = state_dict["end"]

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

    def _keep(self, row: dict[str, Any]) -> None:
        if self.rows is not None:
            self.rows.append({"step": self._state.step, **row})

    def _networks(self) -> dict[str, nn.Module]:
        return named_networks(self._session.model)

    def _log_last(self, norms: Mapping[str, Tensor]) -> None:
        for name, norm in norms.items():
            self._session.context.log(name, norm, 1, "last")


def _completed(values: dict[str, float], measured: dict[str, float]) -> dict[str, float]:
    """Return values, followed by those of what was measured that they do not have."""
    return values | {name: value for name, value in measured.items() if name not in values}


def _highest_loss(summary: Summary) -> dict[str, Any]:
    """Return the column of a row with the highest loss; none if "loss" was not logged, or not to be averaged."""
    loss = summary.totals.get("train/loss")
    return {} if loss is None or loss.reduce != "mean" else {HIGHEST_LOSS: loss.high}
