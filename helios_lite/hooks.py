"""The lifecycle hooks that a Model and every Callback have, in the order in which a run calls them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from helios_lite.state import TrainingState


class Hooks:
    """The hooks of a run. Each does nothing until it is overridden, and runs on every rank.

    Numbers that people read (`current_epoch`, `validation_cycle`) count from 1, batch indices (`step`) count from 0.
    The model's hook is called first, then those of the callbacks in their order; at the end of a validation, test or
    prediction from the last callback to the first. An exception ends the run, and reaches the caller of the trainer
    unchanged.
    """

    def setup(self, fast_init: bool = False) -> None:
        """Build what the run needs; the process and its device are known.

        Args:
            fast_init: leave out what only training needs.
        """

    def on_training_start(self) -> None:
        """Called before the first batch, also after a resume; not called if the run had finished already."""

    def on_training_epoch_start(self, current_epoch: int) -> None:
        """Called at the start of an epoch, and once more when a run resumes inside the epoch.

        The hook of a resumed epoch runs in a new process, and its random numbers are new ones. Use it for settings that
        checkpoints do not hold (frozen layers, another train split). What is counted, such as the step of a scheduler
        per epoch, belongs in `on_training_epoch_end`, which is called once per epoch.
        """

    def on_training_batch_start(self, state: TrainingState) -> None:
        """Called before `train_step`; `state` does not count this batch."""

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        """Called after `train_step`; `state` counts this batch. `should_log`: a row of metrics is written next."""

    def on_training_epoch_end(self, current_epoch: int) -> None:
        """Called at the end of an epoch, after its validation and before the counters move to the next epoch."""

    def on_training_end(self) -> None:
        """Called when training has reached its end (not when it was interrupted), before the last checkpoint.

        What is logged here is written in a row of its own.
        """

    def on_validation_start(self, validation_cycle: int) -> None:
        """Called at the start of a validation, in evaluation mode without gradients; cycle 0 is the sanity check."""

    def on_validation_batch_start(self, step: int) -> None:
        """Called before `valid_step`; with several splits `step` counts through them."""

    def on_validation_batch_end(self, step: int) -> None:
        """Called after `valid_step`."""

    def on_validation_end(self, validation_cycle: int) -> None:
        """Called after the last validation batch, still in evaluation mode without gradients."""

    def on_validation_metrics(self, metrics: dict[str, float]) -> None:
        """Called after every validation of a training but the sanity check, when it was compared with the best so far.

        It is called once for each validation, in training mode. It is the place for what follows a validation, such as
        the step of a `ReduceLROnPlateau`.

        Args:
            metrics: the values of all splits, reduced over batches and ranks, by full name ("valid/loss"). It is a
                copy, equal on every rank.
        """

    def on_testing_start(self) -> None:
        """Called at the start of a test, in evaluation mode without gradients."""

    def on_testing_batch_start(self, step: int) -> None:
        """Called before `test_step`; with several splits `step` counts through them."""

    def on_testing_batch_end(self, step: int) -> None:
        """Called after `test_step`."""

    def on_testing_end(self) -> None:
        """Called after the last test batch."""

    def on_predicting_start(self) -> None:
        """Called at the start of a prediction, in evaluation mode without gradients."""

    def on_predicting_end(self) -> None:
        """Called after the last batch of a prediction, also if its caller takes no more outputs."""

    def on_checkpoint_saved(self, path: Path, is_best: bool) -> None:
        """Called on rank 0 when a checkpoint is durable under its name, and older ones are deleted.

        With `async_save` it is called in the thread that writes, while the training goes on, so it must not use
        networks or optimizers. What it raises ends the run, at the next save or at the end.

        Args:
            path: the file, or the folder of a sharded checkpoint.
            is_best: whether the validation of exactly these weights was the best so far. The final weights are
                validated after they are saved, so of the last checkpoint it may not be known.
        """

    def on_exception(self, error: BaseException) -> None:
        """Called when an exception, Ctrl-C or a signal ends the call, on the ranks where it does.

        Undo here what is undone otherwise in a hook that is not reached then. In an evaluation it is called before the
        trainer restores the modes of the training. What it raises is logged, and the caller gets the first error.

        Args:
            error: the exception, a KeyboardInterrupt or SystemExit after a signal.
        """

    def should_training_stop(self) -> bool:
        """Return whether training should end now. Called after every batch, every validation and every epoch.

        With several processes one rank is enough. They communicate at every step if it is overridden; `request_stop` of
        the model in any hook costs nothing.
        """
        return False

    def process_metrics(self, phase: str, metrics: dict[str, float]) -> dict[str, float]:
        """Return metrics that are computed from others, such as a perplexity from the mean loss of all tokens.

        Called for every training row before it is written, for every validation (also the sanity check) and test after
        its last batch, and for the values that no row holds at the end of a training. What it returns is recorded,
        monitored and logged like the metrics themselves, but `check_finite` does not check it.

        Args:
            phase: "train", "valid" or "test".
            metrics: the values of all splits, reduced over batches and ranks, by full name ("valid/loss"), and what
                hooks called before have added; of a training row also the learning rates. Not every call has every
                name: the last row may have nothing but what was logged in `on_training_end`. It is a copy, equal on
                every rank.

        Returns:
            Numbers or tensors of one element by full name. A name that `metrics` has already replaces its value. With
            several processes the values of rank 0 are used. Return them and do not `log` them: `log` is an error here.
        """
        return {}


@runtime_checkable
class CallbackLike(Protocol):
    """What the trainer needs of a callback beside the hooks. `helios_lite.Callback` has it; a Model does not."""

    every_n_steps: int
    every_n_epochs: int

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint holds."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state."""
