"""The learning rates that updates use, as metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


class LearningRates:
    """Notes the learning rates with which the optimizers step.

    A scheduler changes a rate right after the update that used it, and a model may set it right before. Hooks of the
    optimizers therefore read it when they step. They are registered for the updates that a row may follow only.

    Attributes:
        used: the rates of the last step since the last row, by the name of the optimizer.
    """

    def __init__(self) -> None:
        self.used: dict[str, list[float]] = {}
        self._optimizers: dict[str, Optimizer] = {}
        self._handles: list[RemovableHandle] = []

    def set_optimizers(self, optimizers: Mapping[str, Optimizer]) -> None:
        """Use these optimizers, by the names of the model's attributes, from now on."""
        self.unwatch()
        self._optimizers = dict(optimizers)

    def watch(self) -> None:
        """Note the rates of the optimizers that step from now on, until `take`."""
        if not self._handles:
            for name, optimizer in self._optimizers.items():
                # One that wraps another may not have called `Optimizer.__init__`, which makes hooks possible.
                if hasattr(optimizer, "_optimizer_step_pre_hooks"):
                    self._handles.append(optimizer.register_step_pre_hook(self._note(name)))

    def take(self) -> dict[str, float]:
        """Return the rates of all parameter groups, and stop watching.

        The name is "train/lr", with that of the optimizer if there are several, and the index of the group if the
        optimizer has several. Of an optimizer that did not step, or has no hooks, it is the present rate.
        """
        rates = {}
        for name, optimizer in self._optimizers.items():
            used = self.used.get(name, _present_rates(optimizer))
            for i, rate in enumerate(used):
                path = ["train/lr"] + [name] * (len(self._optimizers) > 1) + [str(i)] * (len(used) > 1)
                rates["/".join(path)] = rate
        self.unwatch()
        self.used = {}
        return rates

    def restore(self, used: dict[str, list[float]]) -> None:
        """Set `used` to that of a checkpoint."""
        self.used = used

    def unwatch(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _note(self, name: str) -> Any:
        def hook(optimizer: Optimizer, arguments: Any, options: Any) -> None:
            self.used[name] = _present_rates(optimizer)

        return hook


def _present_rates(optimizer: Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]
