"""Calls the hooks of a model and of the callbacks, and keeps the callbacks' states."""

from __future__ import annotations

import logging
from typing import Any

from helios_lite.callbacks import Callback
from helios_lite.hooks import Hooks
from helios_lite.model import Model
from helios_lite.options import Options

logger = logging.getLogger("helios_lite")


class HookDispatcher:
    """Calls hooks: the model's first, then those of the callbacks in their order.

    Args:
        model: the model of the run.
        options: the trainer; its callbacks may still change in `Model.setup`.
    """

    def __init__(self, model: Model, options: Options) -> None:
        self._model, self._options = model, options

    def call(self, hook: str, *arguments: Any) -> None:
        """Call a hook of the model and of every callback."""
        for listener in self._listeners():
            getattr(listener, hook)(*arguments)

    def is_overridden(self, *hooks: str) -> bool:
        """Return whether the model or a callback overrides one of the hooks."""
        return any(
            getattr(getattr(listener, hook), "__func__", None) not in (getattr(Model, hook), getattr(Hooks, hook))
            for hook in hooks
            for listener in self._listeners()
        )

    def set_up_callbacks(self, fast_init: bool) -> None:
        """Give every callback the model, and call its `setup`."""
        for callback in self._options.callbacks:
            callback._attach(self._model)
            callback.setup(fast_init=fast_init)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every callback by name."""
        return {name: callback.state_dict() for name, callback in self._named_callbacks().items()}

    def load_state_dict(self, state_dict: dict[str, Any], warn_unknown: bool = True) -> None:
        """Restore the states of the callbacks.

        Args:
            state_dict: states by name.
            warn_unknown: log a warning for each state whose callback this run does not have.
        """
        callbacks = self._named_callbacks()
        for name, state in state_dict.items():
            if name in callbacks:
                callbacks[name].load_state_dict(state)
            elif warn_unknown:
                logger.warning("the checkpoint has the state of a callback that this run does not have: %s", name)

    def _listeners(self) -> list[Hooks]:
        return [self._model, *self._options.callbacks]

    def _named_callbacks(self) -> dict[str, Callback]:
        """Return the callbacks by a name that a resumed run finds again: the class, numbered if there are several."""
        names: dict[str, Callback] = {}
        for callback in self._options.callbacks:
            kind = type(callback).__name__
            same = sum(name.split("#")[0] == kind for name in names)
            names[f"{kind}#{same + 1}" if same else kind] = callback
        return names
