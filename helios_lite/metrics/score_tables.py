"""The tables of losses and scores that a model may fill by name instead of calling `log`, and the hooks that keep them.

`Model` has these hooks as its methods. One that overrides a hook calls `super()`, or keeps the tables itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from helios_lite.processes.devices import sum_dtype
from helios_lite.processes.world import World


class ScoreTables:
    """The tables of one model. The dicts stay the same objects; only their content changes.

    Attributes:
        loss_items: `Model._loss_items`: losses of the current batch by name, filled in `train_step`. Cleared before
            every batch, logged as "train/<name>" after it.
        running_losses: `Model._running_losses`: sums of `_loss_items` since the last validation, as tensors. With
            several processes they are over all ranks, a batch counting with the mean over its samples, as of the last
            logging step or validation.
        pending_losses: this rank's part of what `running_losses` does not have yet.
        val_scores: `Model._val_scores`: values of the current validation by name, filled in its hooks; logged as
            "valid/<name>" at its end.
        test_scores: `Model._test_scores`: the same for a test, logged as "test/<name>".
    """

    def __init__(self) -> None:
        self.loss_items: dict[str, Any] = {}
        self.running_losses: dict[str, Tensor] = {}
        self.pending_losses: dict[str, Tensor] = {}
        self.val_scores: dict[str, Any] = {}
        self.test_scores: dict[str, Any] = {}

    def clear(self) -> None:
        """Empty all tables."""
        for table in (self.loss_items, self.val_scores, self.test_scores):
            table.clear()
        self.clear_running_losses()

    def clear_running_losses(self) -> None:
        """Begin new sums."""
        self.running_losses.clear()
        self.pending_losses.clear()

    def add_losses(self, share: float) -> None:
        """Add this rank's part of the losses of a batch to `pending_losses`.

        The loss of a batch over all ranks is the mean over its samples. A sum of such means is a sum over ranks too, so
        the ranks need not communicate at every batch.

        Args:
            share: the part of this rank in the samples of the batch of all ranks.

        Raises:
            TypeError: a loss is None.
        """
        for name, loss in self.loss_items.items():
            if loss is None:
                raise TypeError(f"_loss_items[{name!r}] is None: assign the loss in train_step, or leave the name out")
            value = torch.as_tensor(loss).detach()
            value = value.to(sum_dtype(value.device))  # A long sum loses digits in fp32.
            self.pending_losses[name] = self.pending_losses.get(name, 0.0) + (value if share == 1.0 else value * share)

    def reduce_losses(self, world: World) -> None:
        """Add the pending losses of all ranks to `running_losses`. Call on every rank.

        Several ranks communicate once.

        Raises:
            ValueError: a rank has no loss of a name that others have; raised on every rank.
        """
        totals = self.pending_losses
        if world.size > 1:
            totals = {}
            pending = {name: loss.cpu() for name, loss in self.pending_losses.items()}
            gathered = world.gather((pending, {*self.running_losses}))
            known = {name for losses, _ in gathered for name in losses}
            for rank, (losses, names) in enumerate(gathered):
                if missing := sorted(known - losses.keys() - names):
                    raise ValueError(
                        f"_loss_items differ among the ranks: rank {rank} has not filled {missing}; fill the same "
                        "names on every rank, with a loss of 0 where there is none"
                    )
                for name, loss in losses.items():
                    totals[name] = totals.get(name, 0.0) + loss
        for name, total in totals.items():
            running = self.running_losses.get(name)
            self.running_losses[name] = total if running is None else running + total.to(running.device)
        self.pending_losses.clear()

    def state_dict(self) -> dict[str, Any]:
        """Return the running losses, which are alike on all ranks, and the pending ones of this rank."""
        return {
            "running": {name: loss.cpu() for name, loss in self.running_losses.items()},
            "pending": {name: loss.cpu() for name, loss in self.pending_losses.items()},
        }

    def load_ranks(self, by_rank: list[dict[str, Any]], world: World) -> None:
        """Restore what `state_dict` has returned on the ranks.

        A pending loss of any rank gets a sum, so that all ranks know of it; the next `reduce_losses` counts it.

        Args:
            by_rank: what it has returned, by rank.
            world: the ranks of now; each takes its part of a larger number.
        """
        self.running_losses.update(by_rank[0]["running"])
        for rank, state in enumerate(by_rank):
            for name, loss in state["pending"].items():
                self.running_losses.setdefault(name, torch.zeros_like(loss))
                if rank % world.size == world.rank:
                    self.pending_losses[name] = self.pending_losses.get(name, 0.0) + loss


class _HasTables(Protocol):
    _tables: ScoreTables


class Table:
    """One of a model's tables as an attribute of the model; assigning to it replaces the table's content.

    Args:
        name: attribute of `ScoreTables`.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, model: _HasTables, owner: type | None = None) -> dict[str, Any]:
        table: dict[str, Any] = getattr(model._tables, self._name)
        return table

    def __set__(self, model: _HasTables, values: Mapping[str, Any]) -> None:
        content = dict(values)
        table = self.__get__(model)
        table.clear()
        table.update(content)


def on_training_batch_start(self: Any, state: Any) -> None:
    """Clear `_loss_items`."""
    self._loss_items.clear()


def on_training_batch_end(self: Any, state: Any, should_log: bool = False) -> None:
    """Log `_loss_items` and add them to `_running_losses`; several ranks exchange the sums at logging steps."""
    self._context.log_losses(self._tables, should_log)


def on_validation_start(self: Any, validation_cycle: int) -> None:
    """Clear `_val_scores`, and bring `_running_losses` up to date."""
    self._val_scores.clear()
    self._tables.reduce_losses(self._context.world)


def on_validation_end(self: Any, validation_cycle: int) -> None:
    """Clear `_running_losses`."""
    self._tables.clear_running_losses()


def on_testing_start(self: Any) -> None:
    """Clear `_test_scores`."""
    self._test_scores.clear()
