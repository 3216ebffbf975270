"""The planned number of steps of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from helios_lite.loading.train_data import TrainData
from helios_lite.options import Options


class PlannedSteps:
    """How many steps a training has, by its limits and the length of its epochs.

    The epochs are counted as they are at the start of the call. Those that a resumed run has finished, and the one that
    it has begun, count as they were, so that the number is right if the batch size or the data have changed.

    Args:
        options: the trainer, with its limits.
        train_data: the batches of an epoch.
    """

    def __init__(self, options: Options, train_data: TrainData) -> None:
        self._options, self._train_data = options, train_data
        # From that epoch on, before which there are so many steps, every epoch has so many; 0 if it is unknown.
        self._epoch, self._before, self._per_epoch = 0, 0, 0
        self._saved: Mapping[str, Any] | None = None
        self._is_counted = False
        self._samples: int | None = None
        self._length: int | None = None

    def goes_on(self, saved: Mapping[str, Any] | None) -> None:
        """Count on from a checkpoint. Called before `Model.setup`, and after it if that checkpoint is damaged.

        Args:
            saved: of its content what was "planned", the "state", the "config", and the "data" of rank 0; None to count
                from the beginning.
        """
        self._saved, self._is_counted = saved, False
        self._epoch = self._before = 0

    def per_epoch(self) -> int | None:
        """Return the number of steps of an epoch that has not begun yet, None if it is unknown."""
        if not self._is_counted:
            self._is_counted = True
            self._per_epoch = self._train_data.steps_per_epoch() or 0
            self._samples, self._length = self._train_data.samples_per_step(), self._train_data.length()
            if self._saved is not None:
                self._go_on(self._saved)
        return self._per_epoch or None

    def total(self) -> int:
        """Return the planned number of steps.

        Raises:
            ValueError: it cannot be known; the message says why, and what to set.
        """
        options, per_epoch = self._options, self.per_epoch()
        limits = [] if options.max_steps is None else [options.max_steps]
        if options.max_epochs is not None and per_epoch is not None:
            limits.append(self._before + max(0, options.max_epochs - self._epoch) * per_epoch)
        if not limits and options.max_epochs is None:
            raise ValueError("num_training_steps: is not known without max_epochs or max_steps; set one of them")
        if not limits:
            raise ValueError(
                "num_training_steps: is not known, because the train split has no length; set max_steps or "
                "steps_per_epoch"
            )
        total = min(limits)
        if self._saved is None or not options.fast_dev_run:
            return total
        # A quick check of a checkpoint does its next steps, though the training has ended there.
        return max(total, int(self._saved["state"]["step"]) + options.fast_dev_run)

    def known_total(self) -> int | None:
        """Return the planned number of steps, None if it cannot be known."""
        try:
            return self.total()
        except ValueError:
            return None

    def epoch_ends(self) -> tuple[int, int]:
        """Return the first epoch that is counted as it is now, and the number of steps before it."""
        self.per_epoch()
        return self._epoch, self._before

    def samples_per_step(self) -> int | None:
        """Return the number of samples of all ranks in a step, None if it is unknown or not always the same."""
        self.per_epoch()
        return self._samples

    def state_dict(self) -> dict[str, Any]:
        """Return what `goes_on` needs of the epochs until now."""
        epochs = {"steps_per_epoch": self.per_epoch() or 0, "samples_per_step": self._samples, "length": self._length}
        return {"epoch": self._epoch, "steps": self._before, "total": self.known_total(), **epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: `goes_on` has done it, before `Model.setup` could ask."""

    def _go_on(self, saved: Mapping[str, Any]) -> None:
        """Count what is finished, and the rest of the epoch that has begun, as they are, if epochs are others now."""
        plan, state = saved["planned"], saved["state"]
        self._epoch, self._before = plan["epoch"], plan["steps"]
        epochs = {"steps_per_epoch": self._per_epoch, "samples_per_step": self._samples, "length": self._length}
        if all(plan[name] == value for name, value in epochs.items()):
            return
        # Each accumulation window that has ended was a step, or was skipped.
        self._epoch, self._before = state["epoch"], state["step"] + state["skipped_steps"]
        if state["epoch_batch"] > 0:
            passes = saved["data"].get("passes")
            finished = -(-state["epoch_batch"] // saved["config"]["accumulation_steps"])
            finished = finished if passes is None else passes["epoch_updates"]
            self._before += self._train_data.steps_left(state, saved["data"], finished)
            self._epoch += 1
