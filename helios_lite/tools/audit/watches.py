"""What is seen while steps run: modes of modules, what moves in frozen parts, and what optimizers do."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from helios_lite.metrics.measurements import learning_rates
from helios_lite.model_internals.attributes import hooked_modules
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
    """Notes the mode of dropout and normalization while steps run, and what changes in parts that are not trained.

    A part is trained if an optimizer has a parameter of it. One that no optimizer has, and that is the same in the end,
    is constant, such as a teacher; a moving average is neither.
    """

    def __init__(self) -> None:
        self._uses: dict[str, _Use] = {}  # By the name of the module.
        self._step: str | None = None
        self._number = 0  # Of the present step.
        self._is_watching = False
        self._in_module = 0
        self._networks: Mapping[str, nn.Module] = {}
        self._before: dict[str, str] = {}  # Digests of parameters and buffers.
        self._drops_in_validation = False  # A dropout that belongs to no module.
        self._validated: set[str] = set()  # Parameters that modules have which validations use.

    def watch(self, networks: Mapping[str, nn.Module]) -> None:
        """Watch the modules of the networks from now on."""
        self._is_watching, self._networks = True, networks
        self._before = _digests(networks)
        for name, net in networks.items():
            for path, module in hooked_modules(net):
                own = [f"{name}.{path}.{key}".replace("..", ".") for key, _ in module.named_parameters(recurse=False)]
                if own:
                    module.register_forward_pre_hook(self._note_use(own))
                if _has_modes(module):
                    self._uses[f"{name}.{path}"] = _Use(net, path)
                    module.register_forward_pre_hook(self._enter(f"{name}.{path}"))
                    module.register_forward_hook(self._leave)

    @contextlib.contextmanager
    def during(self, step: str) -> Iterator[None]:
        """Context of a step: "train" or "valid"."""
        self._step, self._in_module = step, 0
        self._number += step == "train"
        try:
            with _FunctionalDropout(self) if self._is_watching else contextlib.nullcontext():
                yield
        finally:
            self._step = None

    def note_functional_dropout(self) -> None:
        """Note a dropout that is in training mode, if it is that of no module."""
        if self._step == "valid" and self._in_module == 0:
            self._drops_in_validation = True

    def num_used(self) -> int:
        """Return how many modules with modes were used, with functional dropout in validations as one."""
        return sum(bool(use.steps or use.in_validation) for use in self._uses.values()) + self._drops_in_validation

    def findings(self, optimizers: Sequence[Optimizer]) -> tuple[list[str], list[str]]:
        """Return what is wrong with modes, and the names of buffers of constant parts that have changed.

        Args:
            optimizers: those of the model.
        """
        groups = [group["params"] for optimizer in optimizers for group in optimizer.param_groups]
        trained = {id(p) for group in groups for p in group if p.requires_grad}
        after, found = _digests(self._networks), list[str]()
        if self._drops_in_validation:
            found.append("functional dropout is in training mode in valid_step")
        for name, use in self._uses.items():
            around = use.parameters_around()
            is_trained = any(id(value) in trained for _, value in around)
            net = name.split(".")[0]
            is_constant = not is_trained and all(
                after.get(path := f"{net}.{key}") == self._before.get(path) for key, _ in around
            )
            modes = [use.steps[number] for number in sorted(use.steps)]
            if "training" in use.in_validation:
                found.append(f"{name} is in training mode in valid_step")
            elif is_constant and around and any("training" in each for each in use.any_steps):
                found.append(f"{name} is not trained, but in training mode in train_step")
            elif (
                is_trained and modes and all(each == {"evaluation"} for each in modes) and not use.is_kept_on_purpose()
            ):
                found.append(f"{name} is trained in evaluation mode")
            elif is_trained and {"evaluation"} in modes and any("training" in each for each in modes):
                first = next(number for number in sorted(use.steps) if use.steps[number] == {"evaluation"})
                found.append(
                    f"{name} is in training mode in some steps, but trained in evaluation mode in step {first}"
                )
            elif use.in_validation and use.has_first_statistics() and not is_constant:
                found.append(
                    f"{name} is validated with the statistics that it was made with, though its weights change"
                )
        return found, self._moved(trained, after)

    def validated(self) -> list[str]:
        """Return the networks that validations have used, if none of their parameters has changed, and others have."""
        after = _digests(self._networks)
        changed = {path for path in after if after[path] != self._before.get(path)}
        if not self._validated or not changed or self._validated & changed:
            return []
        return sorted({path.split(".")[0] for path in self._validated})

    def _moved(self, trained: set[int], after: Mapping[str, str]) -> list[str]:
        """Return the names of buffers that have changed in parts that no optimizer trains and nothing else moves."""
        moved = []
        for name, net in self._networks.items():
            for path, module in net.named_modules():
                around = _parameters_around(net, path)
                is_still = all(after.get(f"{name}.{key}") == self._before.get(f"{name}.{key}") for key, _ in around)
                if around and is_still and not any(id(value) in trained for _, value in around):
                    names = [
                        f"{name}.{path}.{key}".replace("..", ".") for key, _ in module.named_buffers(recurse=False)
                    ]
                    moved += [each for each in names if after.get(each) != self._before.get(each)]
        return moved

    def _note_use(self, names: list[str]) -> Any:
        def note(module: nn.Module, args: Any) -> None:
            if self._step == "valid":
                self._validated.update(names)

        return note

    def _enter(self, name: str) -> Any:
        def enter(module: nn.Module, args: Any) -> None:
            self._in_module += 1
            if self._step is not None:
                self._uses[name].note(self._step, self._number, "training" if module.training else "evaluation")

        return enter

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._in_module -= 1


class _Use:
    """How a module with modes was used.

    Attributes:
        steps: the modes of each train step, by its number, where gradients were computed.
        any_steps: the modes of all train steps.
        in_validation: the modes of validations.
    """

    def __init__(self, net: nn.Module, path: str) -> None:
        self.steps: dict[int, set[str]] = {}
        self.any_steps: list[set[str]] = []
        self.in_validation: set[str] = set()
        self._is_alone = True  # Whether its network was always in training mode when it was used.
        self._net, self._path = net, path

    def note(self, step: str, number: int, mode: str) -> None:
        """Note a use."""
        if step == "valid":
            self.in_validation.add(mode)
            return
        self.any_steps.append({mode})
        self._is_alone = self._is_alone and self._net.training
        if torch.is_grad_enabled():
            self.steps.setdefault(number, set()).add(mode)

    def parameters_around(self) -> list[tuple[str, nn.Parameter]]:
        """Return the parameters of the nearest module around it that has any, by their names in the network."""
        return _parameters_around(self._net, self._path)

    def has_first_statistics(self) -> bool:
        """Return whether it is batch normalization that has never learned its statistics."""
        module = self._net.get_submodule(self._path)
        mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        return mean is not None and variance is not None and not bool(mean.any()) and bool((variance == 1).all())

    def is_kept_on_purpose(self) -> bool:
        """Return whether it is batch normalization in evaluation mode in a network that is in training mode."""
        module = self._net.get_submodule(self._path)
        return isinstance(module, nn.modules.batchnorm._BatchNorm) and module is not self._net and self._is_alone


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


def _parameters_around(net: nn.Module, path: str) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters of the nearest module around a path that has any, by their names in the network."""
    parts, around = path.split(".") if path else [], [net]
    for part in parts:  # `get_submodule` is nothing that a scripted module has.
        around.append(cast(nn.Module, around[-1]._modules[part]))
    for length in range(len(parts), -1, -1):
        found = list(around[length].named_parameters(".".join(parts[:length])))
        if found:
            return found
    return []


def _digests(networks: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return digests of the parameters and buffers of networks by name."""
    return {
        f"{name}.{path}": digest(value)
        for name, net in networks.items()
        for path, value in [*net.named_parameters(), *net.named_buffers()]
    }


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

    def shared(self) -> list[str]:
        """Return pairs of parameters that are not one, though they have the same memory."""
        places, found = dict[tuple[int, int], tuple[str, int]](), list[str]()
        for name, net in self._networks.items():
            for path, value in net.named_parameters():
                if value.numel() > 0 and value.layout is torch.strided:
                    place = (value.data_ptr(), value.numel())
                    other, identity = places.setdefault(place, (f"{name}.{path}", id(value)))
                    if identity != id(value) and value.data_ptr() != 0:
                        found.append(f"{other} and {name}.{path}")
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
