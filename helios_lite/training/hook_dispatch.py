"""Calls the hooks of a model and of the callbacks, and keeps the callbacks' states."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from helios_lite.callbacks import Callback
from helios_lite.data import DataModule
from helios_lite.hooks import Hooks
from helios_lite.metrics.rows import ROW_COLUMNS
from helios_lite.model import Model
from helios_lite.options import Options

logger = logging.getLogger("helios_lite")
_STEP_HOOKS = {"on_training_batch_start", "on_training_batch_end"}
_EPOCH_HOOKS = {
    "on_training_epoch_start",
    "on_training_epoch_end",
    "on_validation_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_end",
}


class HookDispatcher:
    """Calls hooks: the model's first, then those of the callbacks in their order.

    Args:
        model: the model of the run.
        datamodule: its data, for the callbacks.
        options: the trainer; its callbacks may still change in `Model.setup`.
    """

    def __init__(self, model: Model, datamodule: DataModule, options: Options) -> None:
        self._model, self._datamodule, self._options = model, datamodule, options
        self._adds_metrics = False  # Whether the model or a callback overrides `process_metrics`.
        self._has_periods = False  # Whether a callback wants some steps or epochs only.
        self._reported: BaseException | None = None
        self._step = self._epoch = 0  # Numbers of those that have begun, from 1; kept only if `_has_periods`.

    def call(self, hook: str, *arguments: Any) -> None:
        """Call a hook of the model, and of every callback that is to be called in this step and epoch."""
        listeners = self._due_listeners(hook, *arguments) if self._has_periods else self._listeners()
        for listener in listeners:
            getattr(listener, hook)(*arguments)

    def call_in_reverse(self, hook: str, *arguments: Any) -> None:
        """Call a hook at the end of an evaluation: that of the model, and those of the callbacks from the last on.

        What several callbacks have put in place of the same weights is so undone in reverse.
        """
        model, *callbacks = self._due_listeners(hook, *arguments) if self._has_periods else self._listeners()
        for listener in (model, *reversed(callbacks)):
            getattr(listener, hook)(*arguments)

    def report_exception(self, error: BaseException) -> None:
        """Tell the model and the callbacks, from the last on and once, of the exception that ends the call.

        What they raise is logged.
        """
        if error is self._reported:
            return
        self._reported = error
        for listener in (self._model, *reversed(self._callbacks)):
            try:
                listener.on_exception(error)
            except Exception:
                logger.exception("one more error in %s.on_exception", type(listener).__name__)

    def should_training_stop(self) -> bool:
        """Return whether the model or a callback wants to stop; all of them are asked."""
        wants = [listener.should_training_stop() for listener in self._listeners()]
        return any(wants)

    def checkpoint_saved(self, path: Path, is_best: bool) -> None:
        """Tell the model and every callback that a checkpoint is durable. Rank 0 does it."""
        for listener in self._listeners():
            listener.on_checkpoint_saved(path, is_best)

    def process_metrics(self, phase: str, metrics: dict[str, float]) -> dict[str, float]:
        """Return metrics together with those that `process_metrics` adds. Call on every rank.

        Raises:
            TypeError: what a hook returned is not a dict of numbers by name.
            ValueError: it has a name that is a column of every row.
        """
        if not self._adds_metrics:
            return metrics
        context, metrics = self._model._context, dict(metrics)
        with context.refuse_log():
            for listener in self._listeners():
                added = listener.process_metrics(phase, dict(metrics))
                metrics |= _checked_metrics(added, f"{type(listener).__name__}.process_metrics")
        # What hooks compute may differ among the ranks, but these must stop and save together.
        return context.world.broadcast(metrics)

    def is_overridden(self, *hooks: str) -> bool:
        """Return whether the model or a callback overrides one of the hooks."""
        return any(
            getattr(getattr(listener, hook), "__func__", None) not in (getattr(Model, hook), getattr(Hooks, hook))
            for hook in hooks
            for listener in self._listeners()
        )

    def set_up_callbacks(self, fast_init: bool) -> None:
        """Give every callback the model and the data, and call its `setup`."""
        for callback in self._callbacks:
            callback._attach(self._model, self._datamodule)
            callback.setup(fast_init=fast_init)
        self._adds_metrics = self.is_overridden("process_metrics")
        self._has_periods = any(each.every_n_steps > 1 or each.every_n_epochs > 1 for each in self._callbacks)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every callback by name."""
        return {name: callback.state_dict() for name, callback in self._named_callbacks().items()}

    def load_state_dict(self, state_dict: dict[str, Any], warn_unknown: bool = True) -> None:
        """Restore the states of the callbacks; those without a state forget theirs.

        Args:
            state_dict: states by name.
            warn_unknown: log a warning for each state whose callback this run does not have.
        """
        callbacks = self._named_callbacks()
        for name in callbacks.keys() - state_dict.keys():
            callbacks[name].forget_state()
        for name, state in state_dict.items():
            if name in callbacks:
                callbacks[name].load_state_dict(state)
            elif warn_unknown and state:  # Most callbacks have none, and nothing of theirs is lost.
                logger.warning("the checkpoint has the state of a callback that this run does not have: %s", name)

    @property
    def _callbacks(self) -> Sequence[Callback]:
        return cast(Sequence[Callback], self._options.callbacks)

    def _listeners(self) -> list[Hooks]:
        return [self._model, *self._callbacks]

    def _due_listeners(self, hook: str, *arguments: Any) -> list[Hooks]:
        if hook == "on_training_batch_start":
            self._step = arguments[0].step + 1
        elif hook == "on_training_epoch_start":
            self._epoch = arguments[0]
        callbacks = self._callbacks
        if hook in _STEP_HOOKS:
            return [self._model, *(each for each in callbacks if self._step % each.every_n_steps == 0)]
        if hook in _EPOCH_HOOKS:  # Outside of a training the epoch is 0, and all are called.
            return [self._model, *(each for each in callbacks if self._epoch % each.every_n_epochs == 0)]
        return self._listeners()

    def _named_callbacks(self) -> dict[str, Callback]:
        """Return the callbacks by a name that a resumed run finds again: the class, numbered if there are several."""
        names: dict[str, Callback] = {}
        for callback in self._callbacks:
            kind = type(callback).__name__
            same = sum(name.split("#")[0] == kind for name in names)
            names[f"{kind}#{same + 1}" if same else kind] = callback
        return names


def _checked_metrics(metrics: Any, where: str) -> dict[str, float]:
    if not isinstance(metrics, dict):
        raise TypeError(f"{where} returned {metrics!r}: must be a dict of numbers by full name ({{}} adds nothing)")
    values = {}
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise TypeError(f"{where} returned the name {name!r}: must be a str, such as 'valid/perplexity'")
        if name in ROW_COLUMNS:
            raise ValueError(f"{where} returned {name!r}, which every row has already: choose another name")
        is_one_number = value.numel() == 1 and not value.is_complex() if isinstance(value, Tensor) else False
        if not is_one_number and not isinstance(value, Real):
            raise TypeError(f"{where} returned {name!r}: {value!r}: must be a number or a tensor of one element")
        values[name] = float(value)
    return values
