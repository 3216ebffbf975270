"""What is seen while steps run: modes of modules, what moves in frozen parts, and what optimizers do."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from helios_lite.metrics.measurements import learning_rates
from helios_lite.tools.audit.record import digest

_MAX_ELEMENTS = 50_000_000  # What the gradients that are kept may have in all.
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_FUNCTIONAL = {
    torch.nn.functional.dropout,
    torch.nn.functional.dropout1d,
    torch.nn.functional.dropout2d,
    torch.nn.functional.dropout3d,
    torch.nn.functional.alpha_dropout,
    torch.nn.functional.feature_alpha_dropout,
}


class ModeWatch:
    """Notes the mode of dropout and normalization while steps run.

    Attributes:
        modes: of each such module: the modes in which each step has used it, and whether it is frozen. The entry
            "functional dropout" is for calls that belong to no module.
    """

    def __init__(self) -> None:
        self.modes: dict[str, dict[str, Any]] = {}
        self._step: str | None = None
        self._is_watching = False
        self._in_module = 0

    def watch(self, networks: Mapping[str, nn.Module]) -> None:
        """Watch the modules of the networks from now on."""
        self._is_watching = True
        for name, net in networks.items():
            for path, module in net.named_modules():
                if _has_modes(module):
                    self.modes[f"{name}.{path}"] = {"train": set(), "valid": set(), "is_frozen": _is_frozen(net, path)}
                    module.register_forward_pre_hook(self._enter(f"{name}.{path}"))
                    module.register_forward_hook(self._leave)

    @contextlib.contextmanager
    def during(self, step: str) -> Iterator[None]:
        """Context of a step: "train" or "valid"."""
        self._step, self._in_module = step, 0
        try:
            with _FunctionalDropout(self) if self._is_watching else contextlib.nullcontext():
                yield
        finally:
            self._step = None

    def note_functional_dropout(self) -> None:
        """Note a dropout that is in training mode, if it is that of no module."""
        if self._step is not None and self._in_module == 0:
            entry = self.modes.setdefault("functional dropout", {"train": set(), "valid": set(), "is_frozen": False})
            entry[self._step].add("training")

    def _enter(self, name: str) -> Any:
        def enter(module: nn.Module, args: Any) -> None:
            self._in_module += 1
            if self._step is not None:
                self.modes[name][self._step].add("training" if module.training else "evaluation")

        return enter

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._in_module -= 1


class _FunctionalDropout(TorchFunctionMode):
    """Sees every call of a functional dropout."""

    def __init__(self, watch: ModeWatch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FUNCTIONAL:
            probability = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
            drops = probability > 0 and kwargs.get("training", args[2] if len(args) > 2 else True)
        else:
            is_attention = func is torch.nn.functional.scaled_dot_product_attention
            drops = is_attention and kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0) > 0
        if drops:
            self._watch.note_functional_dropout()
        return func(*args, **kwargs)


def _has_modes(module: nn.Module) -> bool:
    """Return whether a module computes something else in training mode."""
    if isinstance(module, _DROPOUTS):
        return module.p > 0
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.track_running_stats
    return isinstance(module, nn.RNNBase | nn.MultiheadAttention) and float(module.dropout) > 0


def _is_frozen(net: nn.Module, path: str) -> bool:
    """Return whether the nearest module around a path that has parameters trains none of them."""
    parts = path.split(".") if path else []
    for length in range(len(parts), -1, -1):
        parameters = list(net.get_submodule(".".join(parts[:length])).parameters())
        if parameters:
            return not any(parameter.requires_grad for parameter in parameters)
    return False


def frozen_buffers(networks: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return digests of the buffers of frozen parts, by name."""
    found = {}
    for name, net in networks.items():
        for path, module in net.named_modules():
            if _is_frozen(net, path):
                for buffer_name, buffer in module.named_buffers(recurse=False):
                    found[f"{name}.{path}.{buffer_name}".replace("..", ".")] = digest(buffer)
    return found


class OptimizerWatch:
    """Watches the steps of optimizers, also those that a program makes itself.

    Args:
        keeps_gradients: whether the gradients are kept, and not only looked at.

    Attributes:
        rates, gradients: the learning rate of each group, and the gradient of each parameter, in the present step.
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

    def take_step(self) -> tuple[list[float], dict[str, Tensor]]:
        """Return the rates and gradients of the step that has ended."""
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

    def note_step(self, name: str, optimizer: Optimizer) -> None:
        """Note a step that an optimizer is about to make."""
        self._stepped.add(id(optimizer))
        self.rates += learning_rates(optimizer)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                gradient, path = parameter.grad, self._names.get(id(parameter), "a parameter of no network")
                if gradient is None:
                    continue
                self._seen[path] = self._seen.get(path, False) or bool(gradient.count_nonzero() > 0)
                if self._keeps_gradients and self._num_kept < _MAX_ELEMENTS:
                    self._num_kept += gradient.numel()
                    self.gradients[path] = gradient.detach().float().cpu().clone()
