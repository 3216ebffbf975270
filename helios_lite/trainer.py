"""The Trainer and its loop."""

from __future__ import annotations

import copy
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from signal import Signals
from typing import Any

import torch

from helios_lite import console
from helios_lite.checkpoint import plain
from helios_lite.data import Batch, DataModule
from helios_lite.distributed import choose_accelerator, choose_devices, is_launched
from helios_lite.interrupts import Interrupts
from helios_lite.launch import Interrupted, launch, watch
from helios_lite.model import Model, outside
from helios_lite.options import Options
from helios_lite.report import ReportingRun
from helios_lite.run import Evaluation, at_the_end
from helios_lite.state import FitResult
from helios_lite.stopping import has_improved, limit_reached, monitored_score, next_due, validation_due

logger = logging.getLogger("helios_lite")


class Trainer(Options):
    """Trains, validates and tests models. It holds the options of a run (see `Options`), never its state."""

    def fit(self, model: Model, datamodule: DataModule) -> FitResult:
        """Train the model, or go on with a training that was stopped; afterwards the model holds the final weights.

        Raises:
            FloatingPointError: a logged training value is not finite (`check_finite`).
            FileExistsError: `resume="never"` and the run folder has checkpoints.
            ValueError: a split is empty, or an option does not fit the model or the data; the message names it.
            Exception: whatever the model, the data or a callback raises, as it is, after `teardown`.
        """
        return self._perform("fit", model, datamodule)  # type: ignore[no-any-return]

    def validate(
        self, model: Model, datamodule: DataModule, checkpoint: str | os.PathLike[str] | None = "best"
    ) -> dict[str, float]:
        """Evaluate the validation split and return its metrics by full name; `checkpoint` is as in `test`."""
        return self._perform("valid", model, datamodule, checkpoint)  # type: ignore[no-any-return]

    def test(
        self, model: Model, datamodule: DataModule, checkpoint: str | os.PathLike[str] | None = "best"
    ) -> dict[str, float]:
        """Evaluate the test split and return its metrics by full name.

        Args:
            model: what to test; set up with `fast_init=True` unless a run has set it up already.
            datamodule: its `test` split is used.
            checkpoint: "best" (the newest if none was judged), "last", a path, or None for the weights the model
                has. If the run folder has no checkpoint, `load_for_testing` is called.

        Raises:
            FileNotFoundError, CheckpointError: the path given cannot be read.
            ValueError: there is no such split.
        """
        return self._perform("test", model, datamodule, checkpoint)  # type: ignore[no-any-return]

    def _perform(self, task: str, model: Model, datamodule: DataModule, checkpoint: Any = None) -> Any:
        """Do a task in this process, or in as many new ones as `devices` says."""
        for name, value, kind in (("model", model, Model), ("datamodule", datamodule, DataModule)):
            if not isinstance(value, kind):
                raise TypeError(f"{name}={value!r}: must be a {kind.__name__} object")
        arguments = {"trainer": self, "model": model, "datamodule": datamodule, "task": task, "checkpoint": checkpoint}
        processes = len(choose_devices(choose_accelerator(self.accelerator), self.devices))
        if processes == 1 or is_launched():
            return _perform(**arguments)

        def prepare() -> None:
            try:
                datamodule.prepare_data()
            except BaseException:
                datamodule.teardown()
                raise

        with tempfile.TemporaryDirectory(prefix="helios_lite-") as folder:
            arguments["weights"] = Path(folder) / "weights.pth"
            result = launch(_perform, arguments, first=prepare, processes=processes, max_restarts=self.max_restarts)
            weights = torch.load(arguments["weights"], map_location="cpu", weights_only=True)
        # The caller's model has trained in other processes; here it gets what came of it.
        model._runtime = outside(torch.device("cpu"))
        model.setup(fast_init=True)
        model.load_state_dict(weights, fast_init=True)
        model._runtime.is_set_up = True
        return result


def _perform(
    trainer: Trainer, model: Model, datamodule: DataModule, task: str, checkpoint: Any, weights: Path | None = None
) -> Any:
    """Do a task in this process. `weights`: where rank 0 leaves the model's state for the process that launched it."""
    if task == "fit":
        training = _Training(trainer, model, datamodule, prepared=weights is not None)
        training.interrupts.final = weights is not None
        try:
            result: Any = training.run()
        except (KeyboardInterrupt, SystemExit):
            received = training.interrupts.received
            if weights is None or received is None:
                raise
            raise Interrupted(received) from None
    else:
        result = Evaluation(trainer, model, datamodule, prepared=weights is not None).run(task, checkpoint)
    if weights is not None:
        state = model.state_dict()
        if model.global_rank == 0:
            torch.save(plain(state, "model"), weights)
    return result


class _Training(ReportingRun):
    """One call of `fit`: the loop, and the state of the run that it moves forward."""

    def __init__(self, trainer: Trainer, model: Model, datamodule: DataModule, prepared: bool = False) -> None:
        super().__init__(trainer, model, datamodule, prepared)
        self.own_verdict = type(model).have_metrics_improved is not Model.have_metrics_improved
        # Somebody says which validation is better: the monitor, or the user's own verdict.
        self.judged = trainer.monitor is not None or self.own_verdict
        self.asked_to_stop = False  # By the model on this rank.
        self.stop_reason: str | None = None  # What all ranks have agreed on.
        self.asks_every_step = type(model).should_training_stop is not Model.should_training_stop
        self.agreed_step, self.agreed_seconds, self.next_agreement = 0, 0.0, 0
        self.interrupts = Interrupts()
        self.several = self.world.size > 1

    def run(self) -> FitResult:
        with self.around(writes=True):
            if self.world.size > 1:
                self.stack.enter_context(watch(self.world, self.interrupts))
            for sink in self.loggers:
                self.stack.enter_context(at_the_end(sink.close))
            self.setup(fast_init=False)
            plain(self.model.hparams, "hparams")
            self.valid_loaders = self.loaders("valid")
            if not self.validates():
                self.valid_loaders = {}
            self.restore()
            self.epoch_loader()
            self.announce()
            reason = self.finished()
            if reason is None:
                reason = self.train()
                title = f"stopped by {reason}"
            else:
                title = f"had finished ({reason}): nothing left to train"
                logger.info("this run %s", title)
            self.bars.close()
            result = self.result(reason)
            if self.trainer.print_banner and self.world.is_main:
                console.show_result(title, result, self.trainer.monitor, self.history)
            return result

    # The loop.

    def train(self) -> str:
        """Train until a limit is reached, or a signal comes; return which."""
        if self.valid_loaders and self.resumed_from is None and self.trainer.sanity_batches > 0:
            self.judge(self.evaluate("valid", self.valid_loaders, cycle=0, limit=self.trainer.sanity_batches))
        with self.interrupts:
            self.call("on_training_start")
            self.model.train()
            self.clock = self.flush_clock = time.monotonic()
            reason = None
            while reason is None:
                reason = self.train_epoch()
            if reason != "interrupted":
                self.call("on_training_end")
            self.save()
            if self.checkpoints is not None:
                self.checkpoints.join()
            self.world.broadcast(None)  # What rank 0 has written is there before any rank ends.
            if self.interrupts.received is not None and self.world.is_main:
                saved = "" if self.last_checkpoint is None else f", saved {self.last_checkpoint}; run again to go on"
                logger.warning("%s: stopped at step %d%s", self.interrupts.received.name, self.state.step, saved)
        return reason

    def train_epoch(self) -> str | None:
        """Train to the end of an epoch; return why the run ends, None if it goes on."""
        state = self.state
        if state.epoch_batch == 0:
            self.restore_rng()
        self.call("on_training_epoch_start", state.epoch + 1)
        self.optimizers = self.model._optimizers()
        batches, length = self.epoch_loader().epoch(
            state.epoch,
            samples=state.epoch_samples,
            batches=state.epoch_batch,
            window=self.trainer.accumulation_steps,
        )
        epoch_batches = None if length is None else state.epoch_batch + length
        self.bars.start(f"epoch {state.epoch + 1}", epoch_batches, state.epoch_batch)
        self.restore_rng()  # The last thing a resume restores: the hook has been called again, and may have drawn.

        window_start, reason = self.train_batches(batches, epoch_batches)
        if reason is not None:
            return reason
        self.bars.finish()
        self.flush()
        if self.validation_due(window_start, epoch_batches, epoch_complete=True):
            self.validate()
        self.call("on_training_epoch_end", state.epoch + 1)
        state.epoch += 1
        state.epoch_batch = state.epoch_samples = 0
        if self.asks_every_step:
            self.asked_to_stop |= self.model.should_training_stop()
        self.agree(now=True)
        return self.boundary()

    def train_batches(self, batches: Iterator[Batch], epoch_batches: int | None) -> tuple[int, str | None]:
        """Train on the rest of an epoch's batches; return where the last boundary was, and why the run ends if it does.

        What a step would look up every time is looked up before: a step costs what is written here, and no more.
        """
        state, model, runtime, precision, metrics = self.state, self.model, self.runtime, self.precision, self.metrics
        bars, interrupts, log_every_steps = self.bars, self.interrupts, self.trainer.log_every_steps
        moves, several, asks, scales = self.moves, self.several, self.asks_every_step, precision.scaler is not None
        windowed = several or self.trainer.accumulation_steps > 1
        reports_gradients = self.trainer.log_grad_norm is not False
        hears = self.hears("on_training_batch_start") or self.hears("on_training_batch_end")
        window_start, due = state.epoch_batch, self.next_due()

        for data, size, samples, share, closes, last in batches:
            runtime.batch_size = size
            step = metrics.step = state.step + 1
            should_log = closes and (last or step % log_every_steps == 0)
            if windowed:
                precision.share = share
                precision.window_opens, precision.window_closes = precision.window_closes, closes
                runtime.parallel.sync_gradients(closes)
            if reports_gradients:
                precision.report = self.report_gradients if should_log else None
            if hears or model._loss_items:
                self.call("on_training_batch_start", state)

            model.train_step(model.batch_to_device(data, "train") if moves else data, state)

            state.batch += 1
            state.epoch_batch += 1
            state.epoch_samples += samples
            if closes:
                if scales:
                    updated, skipped = precision.close_window()
                    state.skipped_steps += skipped
                    step -= not updated
                    should_log = should_log and (updated or last)
                state.step = step
            if hears or model._loss_items:
                self.call("on_training_batch_end", state, should_log)
            if should_log:
                self.flush()
            if asks:
                self.asked_to_stop |= model.should_training_stop()
            if bars.enabled:
                bars.update(state.epoch_batch)

            # A boundary, unless nothing can be due. Ranks must come here together, so one's signal waits for `due`.
            if not closes or (step < due and not last and (several or interrupts.received is None)):
                continue
            self.agree()
            if last and self.stop_reason is None:
                break  # What is due at this step is due at the end of the epoch.
            if self.validation_due(window_start, epoch_batches, epoch_complete=False):
                self.validate()
            if (reason := self.boundary()) is not None:
                return window_start, reason
            window_start, due = state.epoch_batch, self.next_due()
        return window_start, None

    def boundary(self) -> str | None:
        """Between two updates, after a validation that was due: decide whether to stop, then save.

        Saving comes last, so that a file holds the decision and the counters that belong to it. The state in which
        a run stops is saved after `on_training_end`.
        """
        reason = self.finished() if self.stop_reason in (None, "interrupted") else self.stop_reason
        if reason is None:
            reason = self.stop_reason
        if reason is None and self.save_due():
            self.save()
        return reason

    def agree(self, now: bool = False) -> None:
        """Let all ranks know what single ones know: a signal, the model's wish to stop, the time. Call on every rank.

        Not at every update, unless the model has a `should_training_stop`: communicating about twice a second costs
        nothing, and all ranks find the same next time from the same numbers.
        """
        state, world = self.state, self.world
        timed = self.trainer.max_minutes is not None or self.trainer.save_every_minutes is not None
        if world.size == 1:
            stop, signal = self.asked_to_stop, self.interrupts.received
            if timed:
                self.tick()
        else:
            if not now and not self.asks_every_step and state.step < self.next_agreement:
                return
            self.tick()
            mine = [self.asked_to_stop, self.interrupts.received or 0, state.seconds]
            stopping, number, state.seconds = world.maximum(mine, self.device)
            stop, signal = bool(stopping), Signals(int(number)) if number else None
            each = (state.seconds - self.agreed_seconds) / max(1, state.step - self.agreed_step)
            self.agreed_step, self.agreed_seconds = state.step, state.seconds
            self.next_agreement = state.step + max(1, int(0.5 / max(each, 1e-6)))
        self.interrupts.received = signal
        self.stop_reason = "should_training_stop" if stop else "interrupted" if signal is not None else None

    def next_due(self) -> float:
        """Return the next update at which there may be anything to agree on, to validate, to save or to end."""
        trainer, step = self.trainer, self.state.step
        by_time = trainer.max_minutes is not None or trainer.save_every_minutes is not None
        by_part = trainer.valid_every_epochs is not None and trainer.valid_every_epochs < 1
        if by_time or by_part or trainer.fast_dev_run or self.asks_every_step:
            return step + 1
        due = next_due(step, trainer.valid_every_steps, trainer.save_every_steps, limit=trainer.max_steps)
        return min(due, self.next_agreement) if self.several else due

    def finished(self) -> str | None:
        """Return which of today's options ends the run at these counters; None if it goes on."""
        trainer = self.trainer
        if trainer.fast_dev_run:
            return "fast_dev_run" if self.state.step > 0 else None
        return limit_reached(
            self.state,
            max_epochs=trainer.max_epochs,
            max_steps=trainer.max_steps,
            max_minutes=trainer.max_minutes,
            patience=trainer.patience,
        )

    # Validation.

    def validates(self) -> bool:
        """Say whether this run validates at all; refuse options that cannot work without."""
        trainer = self.trainer
        there = len(self.valid_loaders) > 0
        does = there and (trainer.valid_every_epochs is not None or trainer.valid_every_steps is not None)
        if trainer.monitor is not None and not does:
            missing = "valid_every_epochs or valid_every_steps" if there else "a valid split in the datamodule"
            raise ValueError(f"monitor={trainer.monitor!r} needs {missing}")
        if trainer.patience is not None and not (self.judged and does):
            raise ValueError(f"patience={trainer.patience} needs a validation, and monitor or have_metrics_improved")
        return does

    def validation_due(self, window_start: int, epoch_batches: int | None, epoch_complete: bool) -> bool:
        if not self.valid_loaders or self.trainer.fast_dev_run:
            return bool(self.valid_loaders) and self.state.validated_step is None
        return validation_due(
            self.state,
            window_start=window_start,
            epoch_batches=epoch_batches,
            epoch_complete=epoch_complete,
            every_epochs=self.trainer.valid_every_epochs,
            every_steps=self.trainer.valid_every_steps,
        )

    def validate(self) -> None:
        """Run a validation cycle and draw the conclusions."""
        state, runtime = self.state, self.runtime
        started = time.monotonic()
        limit = 1 if self.trainer.fast_dev_run else None
        values = self.evaluate("valid", self.valid_loaders, state.validation_cycle + 1, limit)
        state.validation_cycle += 1
        state.validated_step = state.step
        self.tick()
        self.record(values)
        self.score, runtime.improved = self.judge(values)
        if self.score is not None:
            self.history.append(self.score)
        improved = self.model.have_metrics_improved()
        if self.own_verdict:
            improved = self.world.broadcast(improved)
        if not improved:
            state.early_stop_count += 1
        elif self.judged:
            state.early_stop_count = 0
            state.best_score, state.best_step = self.score, state.step
            self.best_metrics = dict(runtime.latest)
        if self.asks_every_step:
            self.asked_to_stop |= self.model.should_training_stop()
        self.agree(now=True)
        self.flush_clock += time.monotonic() - started

    def judge(self, values: dict[str, float]) -> tuple[float | None, bool]:
        """Return the monitored score of a validation, and whether it is an improvement."""
        trainer = self.trainer
        if trainer.monitor is None:
            return None, True
        score = monitored_score(values, trainer.monitor)
        if math.isnan(score):
            logger.warning("monitor=%r is NaN at step %d: no improvement", trainer.monitor, self.state.step)
        return score, has_improved(score, self.state.best_score, trainer.mode, trainer.min_delta)

    def result(self, reason: str) -> FitResult:
        return FitResult(
            state=copy.copy(self.state),
            metrics={**self.runtime.latest, **self.metrics.compute(self.world).values},
            best_metrics=self.best_metrics,
            best_checkpoint=None if self.checkpoints is None or not self.judged else self.checkpoints.best(),
            last_checkpoint=self.last_checkpoint,
            stop_reason=reason,
        )
