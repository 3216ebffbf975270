"""The tables of losses and scores that a model may fill by name instead of calling `log`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class ScoreTables:
    """The tables of one model. The dicts stay the same objects; only their content changes.

    Attributes:
        loss_items: losses of the current batch.
        running_losses: sums of `loss_items` since the last validation, as tensors on the device.
        val_scores: values of the current validation.
        test_scores: values of the current test.
    """

    loss_items: dict[str, Any] = dataclasses.field(default_factory=dict)
    running_losses: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    val_scores: dict[str, Any] = dataclasses.field(default_factory=dict)
    test_scores: dict[str, Any] = dataclasses.field(default_factory=dict)

    def clear(self) -> None:
        """Empty all tables."""
        for table in (self.loss_items, self.running_losses, self.val_scores, self.test_scores):
            table.clear()

    def add_running_loss(self, name: str, loss: Tensor | float) -> None:
        """Add a loss to its running sum."""
        value = torch.as_tensor(loss).detach()
        self.running_losses[name] = self.running_losses.get(name, torch.zeros_like(value)) + value


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
