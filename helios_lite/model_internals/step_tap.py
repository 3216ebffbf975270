"""The tap on what the steps of a model call, for what looks at a training from outside of its loop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from helios_lite.metrics.measurements import before_steps
from helios_lite.model_internals.attributes import optimizers, stateful_parts
from helios_lite.state import TrainingState

Loss = tuple[float, float | None]
"""A loss that was passed to `backward`, and its weight if there was one."""
_CALLS = ("train_step", "backward", "optimizer_step", "log")


class StepTap:
    """Sees the calls of `train_step`, `backward`, `optimizer_step` and `log` of a model, and its optimizers' steps.

    The calls are wrapped where they are looked up first, among the attributes of the model, so that any class of models
    can be tapped, and nothing of it is in the loop of a training that is not.

    Args:
        train_step: is called in place of that of the model, which it calls as `StepTap.train_step`.
        on_loss: is called with each loss before its gradients are computed.
        on_log: is called with the name, the value and the reduction of each value that is logged.
        before_step: is called with name and optimizer before each step of an optimizer, after `watch_optimizers`.
        on_graph: is called with the tensor of each loss, in a probe too; None for nothing.
        after_optimizer_step: is called with what `optimizer_step` returns, but in a probe; None for nothing.
    """

    def __init__(
        self,
        *,
        train_step: Callable[[Any, TrainingState], None],
        on_loss: Callable[[Loss], None],
        on_log: Callable[[str, Tensor | float, Any], None],
        before_step: Callable[[str, Optimizer], None],
        on_graph: Callable[[Tensor], None] | None = None,
        after_optimizer_step: Callable[[bool], None] | None = None,
    ) -> None:
        self._on_loss, self._on_log, self._before, self._on_graph = on_loss, on_log, before_step, on_graph
        self._after_optimizer_step = after_optimizer_step
        self._wrappers = dict(zip(_CALLS, (train_step, self._backward, self._optimizer_step, self._log), strict=True))
        self._model: Any = None
        self._originals: dict[str, Callable[..., Any]] = {}
        self._of_model: dict[str, Any] = {}  # What the model had among its own attributes.
        self._handles: list[RemovableHandle] = []
        self._probed: list[Loss] | None = None  # The losses of a probe.
        self._probe_runs_backward = False

    def attach(self, model: Any) -> None:
        """See the calls of a model, which is set up, until `remove`."""
        self._model = model
        self._originals = {name: getattr(model, name) for name in _CALLS}
        self._of_model = {name: vars(model)[name] for name in _CALLS if name in vars(model)}
        vars(model).update(self._wrappers)

    def watch_optimizers(self) -> None:
        """Watch the optimizers that the model has now, also where a program calls their `step` itself."""
        self._handles += before_steps(optimizers(stateful_parts(self._model)), self._step)

    def remove(self) -> None:
        """Give the model back what it had, and its optimizers too."""
        for name in self._originals:
            if vars(self._model).get(name) is self._wrappers[name]:  # A step may have assigned another one.
                del vars(self._model)[name]
                if name in self._of_model:
                    vars(self._model)[name] = self._of_model[name]
        for handle in self._handles:
            handle.remove()

    def train_step(self, batch: Any, state: TrainingState) -> None:
        """Call the step of the model itself."""
        self._originals["train_step"](batch, state)

    @contextlib.contextmanager
    def probing(self, *, runs_backward: bool = False) -> Iterator[list[Loss]]:
        """Context in which steps change no weight and log nothing; it gives the list of their losses.

        Args:
            runs_backward: whether gradients are computed.
        """
        before = self._probed, self._probe_runs_backward
        self._probed, self._probe_runs_backward = [], runs_backward
        try:
            yield self._probed
        finally:
            self._probed, self._probe_runs_backward = before

    # What the model and its optimizers call.

    def _backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        weight = kwargs.get("weight", args[0] if args else None)
        found = float(loss.detach()), None if weight is None else float(weight)
        if self._on_graph is not None:
            self._on_graph(loss)
        if self._probed is None:
            self._on_loss(found)
            self._originals["backward"](loss, *args, **kwargs)  # An override may know less, or more.
            return
        self._probed.append(found)
        if self._probe_runs_backward:
            loss.backward(retain_graph=kwargs.get("retain_graph", len(args) > 1 and args[1]))  # type: ignore[no-untyped-call]

    def _optimizer_step(self, *args: Any, **kwargs: Any) -> bool:
        if self._probed is not None:
            return False
        has_changed = bool(self._originals["optimizer_step"](*args, **kwargs))
        if self._after_optimizer_step is not None:
            self._after_optimizer_step(has_changed)
        return has_changed

    def _log(self, name: str, value: Tensor | float, *args: Any, **kwargs: Any) -> None:
        if self._probed is None:
            self._on_log(name, value, kwargs.get("reduce", args[1] if len(args) > 1 else "mean"))
            self._originals["log"](name, value, *args, **kwargs)

    def _step(self, name: str, optimizer: Optimizer) -> None:
        if self._probed is None:
            self._before(name, optimizer)
