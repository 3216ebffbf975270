"""What the optimizers of a program do: the rates and gradients of their steps, and which parameters they have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

_MAX_ELEMENTS = 50_000_000  # What the gradients that are kept may have in all.


class OptimizerWatch:
    """Watches the steps of optimizers, also those that a program makes itself.

    Args:
        keeps_gradients: whether the gradients are kept, and not only looked at.

    Attributes:
        rates, gradients: the learning rate of each group, and the gradient of each parameter, in the present update.
    """

    def __init__(self, keeps_gradients: bool) -> None:
        self.rates: list[float] = []
        self.gradients: dict[str, Tensor] = {}
        self._keeps_gradients, self._num_kept = keeps_gradients, 0
        self._networks: Mapping[str, nn.Module] = {}
        self._optimizers: Sequence[Optimizer] = ()
        self._names: dict[int, str] = {}  # Of the parameters, by identity.
        self._seen: dict[str, bool] = {}  # Of each parameter that had a gradient, whether one was not zero.
        self._stepped: set[int] = set()

    def watch(self, networks: Mapping[str, nn.Module], optimizers: Sequence[Optimizer]) -> None:
        """Watch these from now on."""
        self._networks, self._optimizers = networks, optimizers
        for name, net in networks.items():
            self._names.update((id(parameter), f"{name}.{path}") for path, parameter in net.named_parameters())
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(self._before_step)

    def take_update(self) -> tuple[list[float], dict[str, Tensor]]:
        """Return the rates and gradients of the update that has ended."""
        taken = self.rates, self.gradients
        self.rates, self.gradients = [], {}
        return taken

    def num_stepped(self) -> int:
        """Return how many optimizers have stepped."""
        return len(self._stepped)

    def parameters(self) -> dict[str, tuple[int, bool, bool, bool]]:
        """Return of each trainable parameter what `Record.parameters` says."""
        counts = Counter(
            id(parameter)
            for optimizer in self._optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        )
        found = {}
        for name, net in self._networks.items():
            parameters = [(f"{name}.{path}", value) for path, value in net.named_parameters() if value.requires_grad]
            is_trained = any(id(value) in counts or value.grad is not None for _, value in parameters)
            for full_name, value in parameters:
                has_gradient = full_name in self._seen or value.grad is not None
                found[full_name] = counts[id(value)], has_gradient, self._seen.get(full_name, False), is_trained
        return found

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._stepped.add(id(optimizer))
        for group in optimizer.param_groups:
            self.rates.append(float(group.get("lr", 0.0)))
            for parameter in group["params"]:
                gradient, name = parameter.grad, self._names.get(id(parameter), "a parameter of no network")
                if gradient is None:
                    continue
                self._seen[name] = self._seen.get(name, False) or bool(gradient.count_nonzero() > 0)
                if self._keeps_gradients and self._num_kept < _MAX_ELEMENTS:
                    self._num_kept += gradient.numel()
                    self.gradients[name] = gradient.detach().float().cpu().clone()
