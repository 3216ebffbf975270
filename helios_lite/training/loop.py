"""The training loop. Read it from `Training.run` on; the parts that it moves forward are beside it in this folder."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
from collections.abc import Iterator

from torch import Tensor

from helios_lite.checkpoints.files import to_serializable
from helios_lite.display import console
from helios_lite.display.lines import limits_text, with_limits
from helios_lite.loading.batches import Batch
from helios_lite.model_internals.attributes import networks
from helios_lite.planning import due
from helios_lite.planning.training_plan import Planning
from helios_lite.processes.peers import watch_peers
from helios_lite.processes.signals import GracefulShutdown
from helios_lite.state import FitResult, TrainingState
from helios_lite.training.checkpointer import Checkpointer
from helios_lite.training.clock import Clock
from helios_lite.training.evaluator import Evaluator
from helios_lite.training.monitor import Monitor
from helios_lite.training.resuming import Resumed, Resumption, initialize, resume
from helios_lite.training.session import Session
from helios_lite.training.step_verifier import StepVerifier
from helios_lite.training.stopping import StopCoordinator
from helios_lite.training.training_log import TrainingLog
from helios_lite.training.training_report import TrainingReport

logger = logging.getLogger("helios_lite")


class Training:
    """One call of `fit`: the loop, and the parts that it moves forward."""

    def __init__(self, session: Session, shutdown: GracefulShutdown) -> None:
        self.session, self.shutdown = session, shutdown
        self.options, self.model, self.hooks = session.options, session.model, session.hooks
        self.valid_names: list[str] = []
        self.state = TrainingState()
        self.start_batch = 0
        self.has_left_out = False
        self.clock = Clock(self.state)
        self.train_data = session.train_data
        self.verifier = StepVerifier(session, self.state)
        self.evaluator = Evaluator(session, in_training=True)
        self.monitor = Monitor(session, self.state)
        self.log = TrainingLog(session, self.state, self.clock)
        self.report = TrainingReport(session, self.state, self.clock)
        self.planning: Planning | None = None
        self.stop = StopCoordinator(session, self.state, self.clock, shutdown)
        self.checkpointer = Checkpointer(session, self.state, self.clock, self.monitor, self.log)

    def run(self) -> FitResult:
        """Train to the end, or until a signal; return the result. Call on every rank."""
        watching = watch_peers(self.session.world, self.shutdown, self.session.status.end)
        with watching, self.log, contextlib.closing(self.train_data), contextlib.closing(self.verifier):
            reason = self.set_up()
            if reason is not None:
                title = f"{self.session.name} at step {self.state.step}"
                self.end()
                self.report.show_status("stopping", reason)
            else:
                self.check_validation()
                with self.shutdown:
                    self.start()
                    with self.saved_on_error():
                        if self.monitor.has_begun and not self.monitor.ends_epoch:
                            reason = self.validate_again()
                        while reason is None:
                            # The batches are passed on and not kept here, so that their workers end with the epoch.
                            window_start, reason = self.run_batches(self.start_epoch())
                            if reason is None:
                                reason = self.end_epoch(window_start)
                    self.finish(reason)
                title = f"stopped by {reason}"
                logger.debug("%s at step %d", title, self.state.step)
            return self.result(reason, title)

    def set_up(self) -> str | None:
        """Build the model and the data, and resume from a checkpoint if there is one, or take weights from one.

        Returns:
            The option that has ended the run already, None if there is something to train.
        """
        resumed = self.prepare()
        self.start_batch = self.state.batch
        initialize(self.session, self.checkpointer.resumed_from)
        has_weights = self.session.was_set_up and self.session.method == "fit"  # Those of a replay are its own.
        if has_weights and self.checkpointer.resumed_from is None and self.options.init_from is None:
            logger.warning(
                "%s: has been set up before; setup has made its networks anew, so the weights that it had are "
                "replaced. To start from trained weights, set init_from to their checkpoint",
                self.model.save_name,
            )
        self.train_data.loader()  # Raises if there is no train split, before anything is shown.
        # A validation that an error has ended in an earlier start comes before anything else.
        reason = None if self.monitor.has_begun else self.stop.limit_reached()
        for text in resumed.said if reason is None else [self.finished_before(reason)]:
            logger.info("%s", text)
        if text := limits_text(self.options, *self.phases()):
            logger.info("%s", text)
        source = self.checkpointer.resumed_from
        self.log.open(
            goes_on=reason is None,
            resumed_from=source,
            goes_back=resumed.goes_back,
            changes_rows=resumed.changes_rows,
        )
        if self.session.world.is_main and self.planning is not None:
            self.planning.start(self.state)
            plan = self.planning.plan(self.state, validates=bool(self.valid_names)) if reason is None else None
            self.report.open(plan)
            for text in () if plan is None else plan.warnings:
                logger.warning("%s", text)
        return reason

    def prepare(self, *, is_tried: bool = False) -> Resumed:
        """Build the model and the data, and resume from a checkpoint if there is one; return how the run goes on.

        Args:
            is_tried: whether nothing in the run folder is changed.
        """
        resumption = Resumption(self.session, is_tried=is_tried)
        if resumption.header is not None:
            self.session.planned.goes_on(resumption.header)
        self.session.setup(fast_init=False)
        to_serializable(self.model.hparams, "hparams")
        self.valid_names.extend(self.session.open_split("valid"))
        if not self.validates():
            self.valid_names.clear()
        saves = self.session.checkpoints is not None
        self.planning = Planning(self.model, self.options, self.session.planned, self.train_data, saves=saves)
        resumed = resume(self.session, resumption, self.checkpointer, self.monitor, is_tried=is_tried)
        self.stop.begin()
        if not self.valid_names:
            self.monitor.end()
        return resumed

    def finished_before(self, reason: str) -> str:
        """Return what is said of a run that had finished when this call began."""
        name, state, limit = self.session.name, self.state, getattr(self.options, reason, None)
        reached = {"max_steps": state.step, "max_epochs": state.epoch + (state.epoch_batch > 0)}.get(reason, 0)
        is_beyond = isinstance(limit, int) and reached > limit and reason != "patience"
        if is_beyond:
            return (
                f"{name} is at step {state.step}, in epoch {state.epoch + (state.epoch_batch > 0)}, beyond "
                f"{reason}={limit}: nothing to train. To train on, raise {reason}"
            )
        return (
            f"{name} had finished at step {state.step} ({reason}={limit}): nothing to train, also if the code or "
            f'the data have changed since. To train on, raise {reason}; for a new run set resume="new" or another '
            "run_name"
        )

    def phases(self) -> list[str]:
        """Return the splits that this run uses, or would use if no limit turned them off."""
        return ["train", "valid"] if self.valid_names or self.options.limit_of("valid") == 0 else ["train"]

    def check_validation(self) -> None:
        """Run some validation batches before a new training starts, so that errors in them come early.

        A run that goes on does it only if another metric is monitored than before, whose name may be wrong.
        """
        limit = 0 if self.options.fast_dev_run else self.options.sanity_batches  # It validates after its step.
        is_new = self.checkpointer.resumed_from is None or self.monitor.is_unknown
        if self.valid_names and is_new and limit > 0:
            values = self.evaluator.evaluate("valid", self.valid_names, cycle=0, limit=limit)
            if not self.monitor.is_of_training:
                self.monitor.check(values)

    def start(self) -> None:
        """Switch to training."""
        self.checkpointer.forget_final_score()
        with self.log.dropped(self.checkpointer.resumed_from is not None):
            self.hooks.call("on_training_start")
        self.model.train()
        self.clock.restart()
        self.log.restart()
        self.report.show_status("running")

    def validate_again(self) -> str | None:
        """Do the validation that an error has ended inside an epoch; return why the run stops, None if it does not.

        One at the end of an epoch comes when the epoch, whose batches are finished, ends again.
        """
        self.checkpointer.restore_rng()
        self.validate(ends_epoch=False)
        self.checkpointer.hold_rng()
        return self.stop_or_save()

    @contextlib.contextmanager
    def saved_on_error(self) -> Iterator[None]:
        """A context that saves the finished steps when an error comes between two of them, in a run of one process.

        That is, when a batch cannot be loaded, and in a validation. What an error in a step or in another hook has left
        behind is not a state of the training, and is not saved.
        """
        try:
            yield
        except Exception as error:
            is_between = self.monitor.has_begun or (
                self.log.loading_failed and self.train_data.is_at_boundary(self.state)
            )
            if is_between and self.session.world.size == 1 and self.state.batch > self.start_batch:
                self.save_after_error(error)
            raise

    def save_after_error(self, error: Exception) -> None:
        """Save the finished steps, and say where they are and which error has ended the run."""
        if self.session.checkpoints is None:
            return
        self.session.hooks.report_exception(error)  # Averaged weights are put back.
        tensors = (tensor for net in networks(self.model) for tensor in net.state_dict().values())
        if not all(bool(tensor.isfinite().all()) for tensor in tensors if isinstance(tensor, Tensor)):
            logger.warning("the state after step %d is not saved: a weight is not finite", self.state.step)
            return
        try:
            self.checkpointer.save(deletes=False)
            self.session.checkpoints.join()
        except Exception as other:
            logger.warning("the state after step %d could not be saved: %s", self.state.step, other)
        else:
            logger.warning(
                "%s after step %d: saved %s; run again to go on from there",
                type(error).__name__, self.state.step, self.checkpointer.last_checkpoint,
            )  # fmt: skip

    def finish(self, reason: str) -> None:
        """Save the last checkpoint and wait until it is durable; unless the run goes on later, end it."""
        self.report.show_status("stopping", reason)
        self.session.context.parallel.share_buffers()
        if reason != "interrupted":
            with self.log.ending():
                self.hooks.call("on_training_end")
        self.checkpointer.save()
        if self.session.checkpoints is not None:
            self.session.checkpoints.join()
        if reason != "interrupted":
            self.end()
        # What rank 0 has written exists before any rank ends, and none waits for one that a signal has ended.
        self.stop.sync(now=True)
        self.report.show_status("stopping", reason)
        if self.shutdown.received is not None and self.session.world.is_main:
            checkpoint = self.checkpointer.last_checkpoint
            self.shutdown.explain(self.report.describe_stop(self.shutdown.received, checkpoint))

    def end(self) -> None:
        """Validate the final weights if no validation was due after the last step, and write the last row.

        The last checkpoint holds nothing of this validation, because a training that goes on from there has never had
        it. A start that finds the training finished reads the row, or does the same again if a kill came first.
        """
        state = self.state
        is_due = bool(self.valid_names) and state.validated_step != state.step > 0
        values = self.log.read_end()
        has_validated = values is not None and any(name.startswith("valid/") for name in values)
        if values is not None and (has_validated or not is_due):
            if is_due:
                self.compare(values, decided=self.checkpointer.decided())
            return
        values = self.log.unwritten() if values is None else {}
        validated = self.validate_at_end() if is_due else {}
        values |= validated
        self.clock.tick()
        self.log.write_end(values)
        self.report.describe_row(values)
        if is_due:
            self.compare(values)
            self.hooks.call("on_validation_metrics", validated)
            self.report.show_validation(values, is_best=state.best_step == state.step, ends_run=True)
            if not self.monitor.is_of_training:
                self.checkpointer.record_final_score()

    def validate_at_end(self) -> dict[str, float]:
        """Return the metrics of the final weights."""
        try:
            return self.evaluator.evaluate("valid", self.valid_names, self.state.validation_cycle + 1)
        except Exception as error:
            saved = self.checkpointer.last_checkpoint
            error.add_note(
                "raised in the validation of the final weights, which comes after on_training_end; the training has "
                f"finished{'' if saved is None else f' and is saved in {saved}'}"
            )
            raise

    def start_epoch(self) -> Iterator[Batch]:
        """Return the batches of the epoch that are not finished."""
        state = self.state
        if state.epoch_batch == 0:
            self.checkpointer.restore_rng()
        with self.log.dropped(state.epoch_batch > 0):  # A resumed run has the values of this epoch's start.
            self.hooks.call("on_training_epoch_start", state.epoch + 1)
        parts = self.session.check_checkpoint_holds_all()
        self.log.begin_epoch(parts)
        batches = self.log.timed(self.train_data.rest_of_epoch(state))
        self.session.progress.start(f"epoch {state.epoch + 1}", self.train_data.epoch_batches, state.epoch_batch)
        if state.batch == self.start_batch:
            self.checkpointer.check_states()
        # In a resumed epoch this comes last, because the hook was called again and may have used random numbers.
        self.checkpointer.restore_rng()
        return batches

    def run_batches(self, batches: Iterator[Batch]) -> tuple[int, str | None]:
        """Train on the remaining batches of an epoch.

        What every step needs is looked up before the loop.

        Returns:
            `state.epoch_batch` at the last boundary, and why the run stops, None at the end of the epoch.
        """
        state, model, stop, options = self.state, self.model, self.stop, self.options
        context, progress, shutdown = self.session.context, self.session.progress, self.shutdown
        precision, parallel = context.precision, context.parallel
        begin_batch, moves = context.begin_batch, self.session.needs_transfer
        is_distributed = self.session.world.size > 1
        accumulates = is_distributed or options.accumulation_steps > 1
        logs_gradients, num_steps = options.log_grad_norm is not False, precision.num_steps
        log_every_steps, polls_hooks = options.log_every_steps, stop.polls_hooks
        has_batch_hooks = self.hooks.is_overridden("on_training_batch_start", "on_training_batch_end")
        needs_transfer = moves and not has_batch_hooks  # The hooks see the batch on the device.
        knows_last = self.train_data.knows_last_batch  # Otherwise a row may follow any step.
        loss_items = model._loss_items  # The default batch hooks matter only to a model that fills this table.
        window_start, next_check = state.epoch_batch, self.next_check()

        for data, size, samples, loss_weight, completes_step, is_last in batches:
            step = state.step + 1
            should_log = completes_step and (is_last or step % log_every_steps == 0)
            begin_batch(size, step, samples)
            if accumulates or logs_gradients:
                report = self.log.report_gradients if logs_gradients and should_log else None
                precision.begin_micro_batch(loss_weight, completes_step, report)
                parallel.begin_micro_batch(completes_step)
            if should_log or not knows_last:
                self.log.expect_row(data if should_log else None)
            if has_batch_hooks or loss_items:
                if has_batch_hooks:
                    data = context.hold_batch(model.batch_to_device(data, "train") if moves else data)
                self.hooks.call("on_training_batch_start", state)

            model.train_step(model.batch_to_device(data, "train") if needs_transfer else data, state)

            meets = is_distributed and completes_step and (should_log or step >= next_check)
            if meets:
                parallel.end_window()
            state.batch += 1
            state.epoch_batch += 1
            state.epoch_samples += samples
            if completes_step:
                num_steps += 1
                if precision.num_steps != num_steps:  # Not one step of the only optimizer, in fp32 or bf16.
                    is_step = self.close_window(num_steps - 1)
                    if not is_step:
                        step -= 1
                        should_log = should_log and is_last
                        next_check = step  # It counts on a step per window.
                    num_steps = precision.num_steps
                state.step = step
            if has_batch_hooks or loss_items or (should_log and is_distributed):
                self.hooks.call("on_training_batch_end", state, should_log)
                data = context.hold_batch(None)
            if meets:
                parallel.end_window()
            if should_log:
                self.write_row(ends_epoch=is_last)
            if polls_hooks:
                stop.poll_hooks()
            if progress.has_bars:
                progress.update(state.epoch_batch)

            # A boundary: skip it unless something may be due. All ranks must reach `sync` at the same step, so a signal
            # received by one rank waits until `next_check`.
            if not completes_step:
                continue
            if step < next_check and not is_last and (is_distributed or not shutdown.is_pending):
                continue
            stop.sync()
            if is_last and (stop.reason is None or stop.limit_reached() is not None):
                break  # What is due at this step is due at the end of the epoch, which a signal must not leave out.
            if self.validation_due(window_start, epoch_complete=False):
                self.validate(ends_epoch=False)
            if (reason := self.stop_or_save()) is not None:
                return window_start, reason
            window_start, next_check = state.epoch_batch, self.next_check()
        return window_start, None

    def next_check(self) -> float:
        """Return the next step at which something may be due, if every window until then is a step.

        The step that begins is verified if it is due.
        """
        options, due_step = self.options, min(self.stop.next_check(), self.verifier.prepare())
        if options.valid_every_epochs is None or options.valid_every_epochs >= 1 or not self.valid_names:
            return due_step
        state, _, epoch_batches = self.train_data.position(self.state, 0)
        part = due.part_of_epoch(options.valid_every_epochs, epoch_batches)
        left = math.ceil(part * (state.epoch_batch // part + 1)) - state.epoch_batch
        return min(due_step, state.step + max(1, left // self.train_data.batches_per_position))

    def close_window(self, num_steps: int) -> bool:
        """End a window in which other optimizers have stepped than the only one; return whether it was a step."""
        window = self.session.context.precision.close_window(num_steps)
        self.state.skipped_steps += window.is_skipped
        if window.is_left_out and not self.has_left_out:
            self.has_left_out = True
            logger.warning(
                "no optimizer has stepped after batch %d (train_step has not reached optimizer_step, or no loss has "
                "reached its parameters): the gradients are dropped, and the step is counted in skipped_steps",
                self.state.batch,
            )
        return window.is_step

    def write_row(self, *, ends_epoch: bool) -> None:
        """Write and show the metrics since the last row, if there is anything new. Call on every rank."""
        values = self.log.write_row(ends_epoch=ends_epoch)
        if values:
            self.report.show_row(values, self.train_data.epoch_batches, ends_epoch=ends_epoch)
            if self.session.world.is_main and self.planning is not None:
                self.checkpointer.warn_of_rare_saves()
                self.planning.look(self.state, ends_epoch=False)

    def end_epoch(self, window_start: int) -> str | None:
        """Write the last row, validate, and move to the next epoch; return why the run stops, None if it does not."""
        state = self.state
        self.session.progress.finish()
        self.write_row(ends_epoch=True)
        if self.monitor.is_of_training and not self.monitor.has_begun:  # It comes before the validation.
            self.monitor.update(self.log.epoch_means)
        is_due = self.validation_due(window_start, epoch_complete=True)
        if self.monitor.has_begun or is_due:
            self.validate(ends_epoch=True)
        self.report.show_epoch(self.log.epoch_means)
        self.session.context.begin_phase("train", self.session.metrics)
        self.hooks.call("on_training_epoch_end", state.epoch + 1)
        if self.hooks.is_overridden("on_training_epoch_end"):
            self.log.write_epoch_end()
        if self.session.world.is_main and self.planning is not None:
            self.planning.look(state, ends_epoch=True)
        state.epoch += 1
        state.epoch_batch = state.epoch_samples = 0
        self.stop.poll_hooks()
        self.stop.sync(now=True)
        return self.stop_or_save()

    def stop_or_save(self) -> str | None:
        """Decide at a boundary, after a validation that was due: return why the run stops, or save if it is due.

        Saving comes last, so that a checkpoint holds the decision and the counters that belong to it. The state in
        which a run stops is saved after `on_training_end`.
        """
        reason = self.stop.stop_reason()
        if reason is None and (self.stop.take_save_request() or self.checkpointer.due()):
            self.checkpointer.save()
            self.shutdown.after_save()
        return reason

    def validates(self) -> bool:
        """Return whether this run validates at all; raise a ValueError for options that need a validation."""
        options = self.options
        has_split = len(self.valid_names) > 0
        validates = has_split and (options.valid_every_epochs is not None or options.valid_every_steps is not None)
        if options.monitor is not None and not (validates or options.monitors_training):
            missing = "valid_every_epochs or valid_every_steps" if has_split else "a valid split in the datamodule"
            missing = "limit_valid_batches other than 0" if options.limit_of("valid") == 0 else missing
            raise ValueError(f"monitor={options.monitor!r} needs {missing}")
        compares = self.monitor.enabled and (validates or options.monitors_training)
        if options.patience is not None and not compares:
            raise ValueError(f"patience={options.patience} needs a validation, and monitor or have_metrics_improved")
        return validates

    def validation_due(self, window_start: int, epoch_complete: bool) -> bool:
        """Return whether a validation is due at this boundary, or a hook has asked for one.

        Args:
            window_start: `epoch_batch` at the previous boundary.
            epoch_complete: whether the epoch has ended.
        """
        is_requested = self.validation_requested()
        if not self.valid_names or self.options.fast_dev_run:
            return bool(self.valid_names) and self.stop.limit_reached() is not None
        state, window_start, epoch_batches = self.train_data.position(self.state, window_start)
        return is_requested or due.validation_due(
            state,
            self.options,
            window_start=window_start,
            epoch_batches=epoch_batches,
            epoch_complete=epoch_complete,
        )

    def validation_requested(self) -> bool:
        """Return whether a hook has asked for a validation, and these weights have not been validated."""
        is_requested = self.stop.take_validation_request()
        if is_requested and not self.valid_names:
            raise RuntimeError("request_validation: this run does not validate; it has no valid split, or it is off")
        return is_requested and self.state.validated_step != self.state.step

    def validate(self, *, ends_epoch: bool) -> None:
        """Run a validation cycle, and compare it with the best so far."""
        with self.log.paused():
            self.monitor.begin(ends_epoch=ends_epoch)
            self.log.hold()
            values = self.evaluator.evaluate("valid", self.valid_names, self.state.validation_cycle + 1)
            self.clock.tick()
            self.log.write(values)
            self.compare(values)
            self.hooks.call("on_validation_metrics", dict(values))
            self.log.release()
            is_best = self.state.best_step == self.state.step
            self.report.show_validation(values, is_best=is_best, ends_epoch=ends_epoch)
            self.stop.poll_hooks()
            self.stop.sync(now=True)

    def compare(self, values: dict[str, float], *, decided: bool | None = None) -> None:
        """Count a validation, and compare it with the best so far."""
        self.state.validation_cycle += 1
        self.state.validated_step = self.state.step
        self.monitor.end()
        if not self.monitor.is_of_training:
            self.monitor.update(values, decided=decided)

    def result(self, reason: str, title: str) -> FitResult:
        """Return what `fit` returns, and show it. Call on every rank."""
        session = self.session
        session.progress.close()
        checkpoints, best_step = session.checkpoints, self.state.best_step
        result = FitResult(
            state=copy.copy(self.state),
            metrics={**session.context.latest, **self.log.unwritten()},
            best_metrics=self.monitor.best_metrics,
            best_checkpoint=None if checkpoints is None or best_step is None else checkpoints.best(best_step),
            last_checkpoint=self.checkpointer.last_checkpoint,
            stop_reason=reason,
            run_folder=session.folder,
            monitor=self.options.monitor,
            rows=self.log.rows,
        )
        title = with_limits(title, self.options, *self.phases())
        if session.prints:
            is_verbose = self.options.log_level == "verbose"
            console.show_result(
                title, result, self.options.monitor, self.monitor.history, session.directory, with_timings=is_verbose
            )
        if reason != "interrupted":
            self.report.show_verdict(self.monitor.history, is_whole=self.start_batch == 0)
        return session.world.broadcast(result)  # Rank 0 alone writes files, and each rank measures its own times.
