"""The lifecycle hooks that a Model and every Callback have, in the order in which a run calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helios_lite.state import TrainingState

if TYPE_CHECKING:
    from helios_lite.model import Model


class Hooks:
    """What a run calls, and when. Every hook does nothing until it is written; all run on every rank.

    Numbers for people (`current_epoch`, `validation_cycle`) count from 1, batch indices (`step`) from 0.
    The model's hook is called first, then the callbacks' in their order. An exception ends the run and reaches
    the caller of the trainer as it is.
    """

    def setup(self, fast_init: bool = False) -> None:
        """Build what the run needs; the process and its device are known. `fast_init`: no training state."""

    def on_training_start(self) -> None:
        """Training is about to start or to go on after a resume; a finished run that has nothing to do skips it."""

    def on_training_epoch_start(self, current_epoch: int) -> None:
        """An epoch begins. A run that resumes inside an epoch calls it again, since its process is a new one.

        What it draws at random is drawn anew then. So it is the place for what no checkpoint holds (frozen layers,
        another data split); what is counted, such as a scheduler's step per epoch, belongs into
        `on_training_epoch_end`, which comes once.
        """

    def on_training_batch_start(self, state: TrainingState) -> None:
        """A training batch is about to be used; `state` counts what is finished, without it."""

    def on_training_batch_end(self, state: TrainingState, should_log: bool = False) -> None:
        """A training batch has been used and counted in `state`; `should_log`: a row of metrics follows."""

    def on_training_epoch_end(self, current_epoch: int) -> None:
        """An epoch has ended, its validation included; the counters move on right after."""

    def on_training_end(self) -> None:
        """Training has reached its end (not: was interrupted); the final checkpoint follows."""

    def on_validation_start(self, validation_cycle: int) -> None:
        """A validation begins, in evaluation mode without gradients; cycle 0 are the sanity batches."""

    def on_validation_batch_start(self, step: int) -> None:
        """A validation batch is about to be used; with several splits `step` counts through them."""

    def on_validation_batch_end(self, step: int) -> None:
        """A validation batch has been used."""

    def on_validation_end(self, validation_cycle: int) -> None:
        """All validation batches have been used; still in evaluation mode without gradients."""

    def on_testing_start(self) -> None:
        """Testing begins, in evaluation mode without gradients."""

    def on_testing_batch_start(self, step: int) -> None:
        """A test batch is about to be used; with several splits `step` counts through them."""

    def on_testing_batch_end(self, step: int) -> None:
        """A test batch has been used."""

    def on_testing_end(self) -> None:
        """All test batches have been used."""


class Callback(Hooks):
    """A part of training that can be added to any model: the same hooks, called after the model's.

    `self.model` is the model of the run (its `device`, `log`, `trainer`), set before `setup`, which runs right
    after the model's. A callback that must survive a resume writes `state_dict` and `load_state_dict`.
    """

    model: Model

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint should hold of this callback: tensors and plain containers."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; called only if a checkpoint holds something for it."""
