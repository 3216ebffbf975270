"""The attributes of a model that have a state, its networks, and the modes of their parts."""

from __future__ import annotations

import dataclasses
import gc
import sys
from collections import UserDict, deque
from collections.abc import Callable, Iterable, Iterator
from types import MappingProxyType, NoneType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from helios_lite.metrics.metric_objects import is_network, metric_objects_in
from helios_lite.nested import leaves
from helios_lite.processes.devices import DeviceMover

_ATOMS = frozenset(
    {type, bool, int, float, complex, str, bytes, NoneType, Tensor, nn.Parameter, torch.device, torch.dtype}
)
_BUILTIN_CONTAINERS = frozenset({list, tuple, dict, set, frozenset, deque})
_MAPPINGS, _SEQUENCES = (dict, UserDict, MappingProxyType), (list, tuple, deque)
_SCANNED_LEVELS, _MAX_SCANNED_ITEMS = 3, 10_000_000
_OF_PYTORCH = frozenset(vars(nn.Module())) | {"defaults", "param_groups", "state"}


def stateful_parts(owner: object) -> Iterator[tuple[str, Any]]:
    """Yield every attribute that has `state_dict` and `load_state_dict`, by name, in the order of assignment.

    In lists, tuples, deques and dicts the names are "name.0" and "name.key"; in a SimpleNamespace and in dataclasses
    "name.attribute". Other objects and sets are not entered. A part that is held twice has two names. Containers may
    be nested to any depth, and may contain themselves.

    Optimizers and schedulers that a network, or an optimizer that wraps another, has among its attributes come after
    all these: "net.optimizer", "optimizer.base". Last come the plain attributes that `state_attributes` names.
    """
    parts = [*_parts_in(owner, vars(owner), is_stateful)]
    yield from parts
    known = {id(part) for _, part in parts}
    for name, part in parts:
        for path, inner in _updaters_in(part):
            if id(inner) not in known:
                known.add(id(inner))
                parts.append((f"{name}.{path}", inner))  # It may wrap one more.
                yield parts[-1]
    for name in getattr(owner, "state_attributes", ()):
        if hasattr(owner, name):  # After `setup` it has.
            yield name, AttributeState(owner, name)


def optimizers(parts: Iterable[tuple[str, Any]]) -> dict[str, Optimizer]:
    """Return the optimizers among parts by name, without those whose groups are those of one before, as if wrapped."""
    found: dict[str, Optimizer] = {}
    for name, part in parts:
        if isinstance(part, Optimizer) and not any(share_groups(part, other) for other in found.values()):
            found[name] = part
    return found


def share_groups(a: Optimizer, b: Optimizer) -> bool:
    """Return whether two optimizers have the same parameter groups, of which one cannot change without the other."""
    pairs = zip(a.param_groups, b.param_groups, strict=False)
    return a is not b and len(a.param_groups) == len(b.param_groups) > 0 and all(x is y for x, y in pairs)


def moves(scheduler: Any, optimizer: Optimizer) -> bool:
    """Return whether a scheduler sets the learning rates of an optimizer."""
    own = getattr(scheduler, "optimizer", None)
    return own is optimizer or (isinstance(own, Optimizer) and share_groups(own, optimizer))


def own_attributes(part: Any) -> dict[str, Any]:
    """Return the attributes of a module or an optimizer that not every one has."""
    return {
        name: value for name, value in vars(part).items() if name not in _OF_PYTORCH and not name.endswith("_hooks")
    }


def _updaters_in(part: Any) -> Iterator[tuple[str, Any]]:
    """Yield the optimizers and schedulers among the attributes of a network, its modules, or an optimizer, by name."""
    if isinstance(part, nn.Module | Optimizer):
        for path, each in part.named_modules() if isinstance(part, nn.Module) else [("", part)]:
            attributes = own_attributes(each)
            if not set(map(type, attributes.values())) <= _ATOMS:
                for name, updater in _parts_in(each, attributes, _is_updater):
                    yield f"{path}.{name}".lstrip("."), updater


def _is_updater(value: Any) -> bool:
    is_duck = callable(getattr(type(value), "load_state_dict", None)) and hasattr(value, "param_groups")
    return is_duck or isinstance(value, LRScheduler)


def _parts_in(owner: object, attributes: dict[str, Any], is_part: Callable[[Any], bool]) -> Iterator[tuple[str, Any]]:
    """Yield what is a part among attributes of an object, and in containers there, by name; see `stateful_parts`."""
    stack: list[tuple[object, Iterator[tuple[str, Any]], int]] = [(owner, iter(attributes.items()), 0)]
    prefixes, entered, without_parts = [""], {id(owner)}, set[int]()
    num_parts = 0
    while stack:
        container, items, num_before = stack[-1]
        name, value = next(items, (None, None))
        if name is None:
            stack.pop()
            prefixes.pop()
            entered.remove(id(container))
            if num_parts == num_before:
                without_parts.add(id(container))
        elif type(value) in _ATOMS:  # The most frequent case; a vocabulary may have millions of strings.
            continue
        elif type(value) not in _BUILTIN_CONTAINERS and is_part(value):
            num_parts += 1
            yield prefixes[-1] + name, value
        elif id(value) not in entered and id(value) not in without_parts:
            children = named_items(value)
            if children is not None and not holds_only_atoms(value):
                stack.append((value, children, num_parts))
                prefixes.append(f"{prefixes[-1]}{name}.")
                entered.add(id(value))


class AttributeState:
    """A plain attribute of an object, as a part with a state.

    The state is the value itself; that of a NumPy array is a tensor, and that of a deque a list.

    Args:
        owner: the object.
        name: the name of the attribute.
    """

    def __init__(self, owner: object, name: str) -> None:
        self._owner, self._name = owner, name

    def state_dict(self) -> dict[str, Any]:
        """Return the value, of which kind it is, and whether all its tensors are in CPU memory."""
        value = getattr(self._owner, self._name)
        is_array = "numpy" in sys.modules and isinstance(value, sys.modules["numpy"].ndarray)
        kind = "array" if is_array else "deque" if type(value) is deque else ""
        if is_array:
            value = torch.from_numpy(value)
        elif kind == "deque":
            value = [value.maxlen, *value]
        is_on_cpu = all(leaf.device.type == "cpu" for _, leaf in leaves(value) if isinstance(leaf, Tensor))
        return {"value": value, "kind": kind, "is_on_cpu": is_on_cpu}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Assign the value that `state_dict` returned."""
        value = (
            DeviceMover(torch.device("cpu"))(state_dict["value"]) if state_dict["is_on_cpu"] else state_dict["value"]
        )
        if state_dict["kind"] == "array":
            value = value.numpy()
        elif state_dict["kind"] == "deque":
            value = deque(value[1:], maxlen=value[0])
        setattr(self._owner, self._name, value)


def named_networks(owner: object) -> dict[str, nn.Module]:
    """Return the attributes that are networks, by name."""
    return {name: part for name, part in stateful_parts(owner) if is_network(part)}


def hooked_modules(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of a network that take hooks, by path; scripted ones take none."""
    return ((path, part) for path, part in net.named_modules() if not isinstance(part, torch.jit.ScriptModule))


def networks(owner: object) -> list[nn.Module]:
    """Return the attributes that are networks."""
    return [*named_networks(owner).values()]


def metric_objects(owner: object) -> dict[str, Any]:
    """Return the attributes that are metric objects, and those that networks have, by name."""
    return {name: each for path, part in stateful_parts(owner) for name, each in metric_objects_in(path, part)}


def metric_names(owner: object) -> dict[int, str]:
    """Return the names of the metric objects by their ids."""
    return {id(metric): name for name, metric in metric_objects(owner).items()}


def is_stateful(value: Any) -> bool:
    """Return whether an object (not a class) has `state_dict` and `load_state_dict`."""
    if isinstance(value, type):
        return False
    return callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))


def named_items(value: Any) -> Iterator[tuple[str, Any]] | None:
    """Return the items of a container by name; None for what is not entered.

    Mappings of other types are not entered, because reading a value may load it from a file.
    """
    if isinstance(value, _SEQUENCES):
        return ((str(i), item) for i, item in enumerate(value))
    if isinstance(value, _MAPPINGS):
        return ((str(key), item) for key, item in value.items())
    if isinstance(value, SimpleNamespace):
        return iter(vars(value).items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if hasattr(value, "__dict__"):
            return iter(vars(value).items())
        names = [field.name for field in dataclasses.fields(value)]
        return ((name, getattr(value, name)) for name in names if hasattr(value, name))
    return None


def holds_only_atoms(container: Any) -> bool:
    """Return True only if a builtin container holds nothing but numbers, strings, tensors and other atoms.

    The first levels are scanned in C and not item by item, because data may have millions of small tuples.
    """
    level = [container] if type(container) in _BUILTIN_CONTAINERS else []
    for _ in range(_SCANNED_LEVELS):
        items = gc.get_referents(*level)
        types = set(map(type, items))
        if types <= _ATOMS:
            return bool(level)
        if not types <= _ATOMS | _BUILTIN_CONTAINERS:
            return False
        level = items if types <= _BUILTIN_CONTAINERS else [item for item in items if type(item) in _BUILTIN_CONTAINERS]
        if sum(map(len, level)) > _MAX_SCANNED_ITEMS:  # Many lists may share one.
            return False
    return False


class Modes:
    """Switches parts between training and evaluation mode; what was in evaluation mode before a switch stays in it."""

    def __init__(self) -> None:
        self._in_evaluation: list[nn.Module] | None = None  # Before `eval`; None in training.

    def train(self, parts: Iterable[Any]) -> None:
        """Switch parts to training mode, but for modules that were in evaluation mode before `eval`."""
        parts = list(parts)
        kept = _in_evaluation(parts) if self._in_evaluation is None else self._in_evaluation
        _switch(parts, "train")
        for module in kept:
            module.training = False
        self._in_evaluation = None

    def eval(self, parts: Iterable[Any]) -> None:
        """Switch parts to evaluation mode."""
        parts = list(parts)
        if self._in_evaluation is None:
            self._in_evaluation = _in_evaluation(parts)
        _switch(parts, "eval")


def trained_in_evaluation_mode(owner: object) -> list[str]:
    """Return the names of the modules with parameters of their own that an optimizer has, but in evaluation mode.

    A teacher that no optimizer has is not trained, whether its parameters require gradients or not.
    """
    updated = optimizers(stateful_parts(owner)).values()
    trained = {id(p) for optimizer in updated for group in optimizer.param_groups for p in group["params"]}
    return [
        f"{name}.{path}".rstrip(".")
        for name, net in named_networks(owner).items()
        for path, module in net.named_modules()
        if not module.training and any(p.requires_grad and id(p) in trained for p in module.parameters(recurse=False))
    ]


def _in_evaluation(parts: list[Any]) -> list[nn.Module]:
    networks = (part for part in parts if isinstance(part, nn.Module))
    return [module for net in networks for module in net.modules() if not module.training]


def _switch(parts: list[Any], mode: str) -> None:
    for part in parts:
        if callable(switch := getattr(part, mode, None)):
            switch()
