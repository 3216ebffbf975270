"""Epochs of a fixed number of updates. The split is read in passes, which do not end with an epoch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from helios_lite.engine.batches import Batch, Loader
from helios_lite.runtime import rng
from helios_lite.state import TrainingState


class PassReader:
    """Reads a split pass after pass, and gives epochs of `steps_per_epoch` updates.

    The next epoch continues where the last one ended. A pass is what an epoch is otherwise: seeds, orders and
    `set_epoch` depend on its index, and its last accumulation window may be shorter.

    Args:
        steps_per_epoch: updates per epoch; those that fp16 skips count.
        window: batches per accumulation window.

    Attributes:
        updates: the updates of the present epoch. At a boundary they are finished, as is all that is counted here.
    """

    def __init__(self, steps_per_epoch: int, window: int) -> None:
        self._steps_per_epoch, self._window = steps_per_epoch, window
        self._loader: Loader | None = None
        self._batches: Iterator[Batch] = iter(())
        self.updates = 0
        self._pass, self._pass_batches, self._pass_samples = 0, 0, 0
        self._is_restored = False

    def rest_of_epoch(self, loader: Loader, state: TrainingState) -> Iterator[Batch]:
        """Return the batches of the present epoch that are not finished.

        Another loader than that of the last call is read from the present position.
        """
        if not self._is_restored and self._loader is None:  # A new run, or one whose epochs were passes until now.
            self._pass, self._pass_batches, self._pass_samples = state.epoch, state.epoch_batch, state.epoch_samples
            self.updates = -(-state.epoch_batch // self._window)
        if state.epoch_batch == 0:
            self.updates = 0
        if self._loader is not loader:
            self._loader = loader
            # A run that is not interrupted would not read here, so its random numbers must not depend on it.
            is_inside = self._pass_batches > 0
            with rng.fork_rng(torch.device("cpu")) if is_inside else contextlib.nullcontext():
                self._batches = self._rest_of_pass(loader)
        return self._rest_of_epoch(loader)

    def close(self) -> None:
        """Let go of the pass, so that its workers end."""
        self._batches = iter(())

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the pass and in the epoch."""
        return {
            "pass": self._pass,
            "pass_batches": self._pass_batches,
            "pass_samples": self._pass_samples,
            "epoch_updates": self.updates,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the position."""
        self._pass, self._pass_batches = state_dict["pass"], state_dict["pass_batches"]
        self._pass_samples, self.updates = state_dict["pass_samples"], state_dict["epoch_updates"]
        self._is_restored = True

    def _rest_of_pass(self, loader: Loader) -> Iterator[Batch]:
        position = {"samples": self._pass_samples, "batches": self._pass_batches}
        return loader.epoch(self._pass, **position, window=self._window).batches

    def _rest_of_epoch(self, loader: Loader) -> Iterator[Batch]:
        while self.updates < self._steps_per_epoch:
            batch = next(self._batches, None)
            if batch is None:  # A new pass has a batch, or its loader raises an error.
                self._pass, self._pass_batches, self._pass_samples = self._pass + 1, 0, 0
                self._batches = self._rest_of_pass(loader)
                continue
            self._pass_batches += 1
            data, size, samples, loss_weight, completes_update, _ = batch
            self._pass_samples += samples
            self.updates += completes_update
            yield data, size, samples, loss_weight, completes_update, self.updates == self._steps_per_epoch
