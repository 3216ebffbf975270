"""Checks of a model: what checkpoints would miss, methods that are hidden, and hooks that are misspelt."""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from helios_lite.model_internals.attributes import (
    AttributeState,
    holds_only_atoms,
    is_stateful,
    named_items,
    own_attributes,
    stateful_parts,
)
from helios_lite.other_trainers import METHODS_ELSEWHERE

_NOT_SEARCHED = (type, ModuleType, FunctionType, MethodType, BuiltinFunctionType)
_WHERE = "hold it in an attribute of the model, or in a list, tuple, deque, dict, SimpleNamespace or dataclass there"

# Another callable may take the place of these methods.
_REPLACEABLE = {"train_step", "valid_step", "test_step", "predict_step", "prepare_data", "setup", "teardown"}

_LIKENESS = {"on_": 0.75, "step": 0.9}  # From 0 to 1; a model may have a method `pretrain_step` of its own.


def check_names(owner: object) -> list[tuple[str, Any]]:
    """Return the stateful parts of an object by name.

    Raises:
        ValueError: two of them have the same name, of which one would replace the other in a checkpoint; or
            `state_attributes` names an attribute that is not there.
    """
    names = getattr(owner, "state_attributes", ())
    if not isinstance(names, tuple | list):
        raise TypeError(f"state_attributes={names!r}: must be a tuple of names of attributes")
    for name in names:
        if not hasattr(owner, name):
            kind = type(owner).__name__
            raise ValueError(f"state_attributes: {kind} has no attribute {name!r}; assign it in __init__ or in setup")
    parts = list(stateful_parts(owner))
    known: dict[str, Any] = {}
    for name, part in parts:
        if known.setdefault(name, part) is not part:
            raise ValueError(f"{name}: is the name of two attributes or keys, of which a checkpoint can hold only one")
    return parts


def check_hidden_parts(owner: object, parts: Sequence[tuple[str, Any]]) -> None:
    """Check that optimizers and schedulers are where checkpoints look for them, and that no set holds the only
    reference to something with a state.

    Args:
        owner: its attributes are searched, also in sets and in objects that checkpoints do not enter. What has a state
            of its own decides itself what that holds.
        parts: its stateful parts by name.

    Raises:
        ValueError: a checkpoint would not hold a part; the message has its path.
    """
    held = {id(part) for _, part in parts}
    held |= {id(module) for _, net in parts if isinstance(net, nn.Module) for module in net.modules()}
    for path, value, is_in_set in _search(owner, _decide_themselves(parts)):
        if id(value) in held:
            continue
        if is_in_set and is_stateful(value):
            raise ValueError(
                f"{path}: is a {type(value).__name__} in a set, which no checkpoint holds, because the order of a set "
                f"differs between runs; use a list or a dict"
            )
        if isinstance(value, Optimizer | LRScheduler):
            raise ValueError(f"{path}: is a {type(value).__name__} that no checkpoint holds; {_WHERE}")


def check_held(owner: object, others: Iterable[object], optimizer: Any) -> None:
    """Check that checkpoints hold an optimizer that steps in one window after another.

    Args:
        owner: has it among its attributes, or not.
        others: objects that hold themselves what they have.
        optimizer: the optimizer.

    Raises:
        ValueError: they do not; the message has its path, if it can be found.
    """
    parts = list(stateful_parts(owner))
    if any(part is optimizer for _, part in parts):
        return
    path = next((path for path, value, _ in _search(owner, _decide_themselves(parts)) if value is optimizer), None)
    found = (value for each in (owner, *others) for _, value, _ in _search(each))
    if path is not None or not any(value is optimizer for value in found):
        kind = type(optimizer).__name__
        raise ValueError(f"{path or 'optimizer_step'}: steps with a {kind} that no checkpoint holds; {_WHERE}")


def check_trained(owner: object, parts: Sequence[tuple[str, Any]]) -> None:
    """Check that checkpoints hold all tensors that the optimizers train.

    Args:
        owner: where the path of a tensor is looked for.
        parts: its stateful parts by name.

    Raises:
        ValueError: an optimizer trains a tensor that no part holds. The message has its path, if it can be found, and
            the optimizer, the parameter group and the shape.
    """
    held = {id(p) for _, part in parts if isinstance(part, nn.Module) for p in part.parameters()}
    missing = [
        (name, i, p)
        for name, optimizer in parts
        if isinstance(optimizer, Optimizer)
        for i, group in enumerate(optimizer.param_groups)
        for p in group["params"]
        if id(p) not in held and (p.requires_grad or p.grad is not None)
    ]
    if not missing:
        return
    others = _is_held_otherwise(parts)
    for name, i, p in missing:
        if not others(p):
            paths = (path for path, value, _ in _search(owner) if value is p)
            raise ValueError(
                f"{next(paths, 'a tensor')}: is trained (optimizer {name}, group {i}, shape {tuple(p.shape)}), but no "
                f"checkpoint holds it; make it a parameter of a network, make the optimizer after parallelize, and "
                f"for the network: {_WHERE}"
            )


def _decide_themselves(parts: Sequence[tuple[str, Any]]) -> set[int]:
    """Return the identities of the parts whose states hold what their classes choose."""
    return {id(part) for _, part in parts if not isinstance(part, nn.Module | Optimizer)}


def _is_held_otherwise(parts: Sequence[tuple[str, Any]]) -> Callable[[Tensor], bool]:
    """Return a function that tells whether a tensor is a buffer of a network, or in the state of another object."""
    identities, addresses = set[int](), set[int]()
    for _, part in parts:
        if isinstance(part, nn.Module):
            for module in part.modules():
                names = {*module._buffers.keys()} - module._non_persistent_buffers_set
                identities |= {id(module._buffers[name]) for name in names}
        elif not isinstance(part, Optimizer | LRScheduler | AttributeState):  # A resume assigns an attribute anew.
            pending = deque([part.state_dict()])
            while pending:
                value = pending.popleft()
                if isinstance(value, Tensor):
                    addresses.add(value.data_ptr())
                elif (items := named_items(value)) is not None:
                    pending.extend(item for _, item in items)
    return lambda tensor: id(tensor) in identities or (tensor.numel() > 0 and tensor.data_ptr() in addresses)


def _search(owner: object, closed: Collection[int] | None = None) -> Iterator[tuple[str, Any, bool]]:
    """Yield every object that is reachable from the attributes of an object: (path, object, is in a set).

    Each object is visited once, in breadth-first order. Objects of helios_lite are not searched.

    Args:
        owner: the object.
        closed: the identities of objects whose attributes are not searched; None if tensors are looked for.
    """
    seen = {id(owner)}
    pending: deque[tuple[str, Any, bool]] = deque((name, value, False) for name, value in vars(owner).items())
    while pending:
        path, value, is_in_set = pending.popleft()
        if id(value) in seen or isinstance(value, _NOT_SEARCHED):
            continue
        seen.add(id(value))
        yield path, value, is_in_set
        if isinstance(value, Tensor | LRScheduler) or _is_of_the_trainer(value):
            continue
        if closed is not None and (id(value) in closed or holds_only_atoms(value)):
            continue
        if isinstance(value, set | frozenset):
            pending.extend((path, item, True) for item in value)
        elif (items := named_items(value)) is not None:
            pending.extend((f"{path}.{name}", item, False) for name, item in items)
        elif isinstance(attributes := getattr(value, "__dict__", None), dict):
            if isinstance(value, nn.Module | Optimizer):
                attributes = own_attributes(value)
            if isinstance(value, nn.Module):  # Its parameters have the names that its state dict gives them.
                attributes |= {**value._parameters, **value._buffers, **value._modules}
            pending.extend((f"{path}.{name}", item, False) for name, item in attributes.items())


def _is_of_the_trainer(value: Any) -> bool:
    return any(base.__module__.partition(".")[0] == __name__.partition(".")[0] for base in type(value).__mro__)


def check_is_no_module(cls: type) -> None:
    """Raise a TypeError if a subclass of Model is an `nn.Module` too."""
    if issubclass(cls, nn.Module):
        raise TypeError(
            f"{cls.__name__}: a Model cannot be an nn.Module too, because it has networks as attributes; write the "
            "nn.Module as a class of its own, and in setup assign `self.net = self.parallelize(Net())`"
        )


def check_no_method_is_hidden(owner: object, base: type) -> None:
    """Check that no attribute of an object has the name of a public method of its base class.

    `self.log = []` would otherwise fail much later, where `self.log(...)` is called. A step, or what prepares and tears
    down, may be replaced by another callable, as `self.train_step = torch.compile(self.train_step)` does. An assignment
    to a property is an AttributeError of Python itself.

    Args:
        owner: the object.
        base: the class whose methods must not be hidden.

    Raises:
        AttributeError: an attribute hides a method; the message names both.
    """
    for name, value in vars(owner).items():
        if name.startswith("_") or not callable(getattr(base, name, None)):
            continue
        if not (name in _REPLACEABLE and callable(value)):
            raise AttributeError(
                f"{type(owner).__name__}.{name}: is an attribute ({type(value).__name__}) that hides the method "
                f"`{name}` of {base.__name__}; give the attribute another name"
            )


def misspelt_hooks(owner: object, base: type) -> Iterator[tuple[str, str]]:
    """Yield the names of methods that look like hooks and are none, each with what is in their place.

    A method that another one of its class calls has a use of its own.

    Args:
        owner: an object of a user's class.
        base: the class of this package whose methods the user's class overrides.
    """
    known = [name for name in dir(base) if not name.startswith("_") and callable(getattr(base, name))]
    classes = [cls for cls in type(owner).__mro__ if issubclass(cls, base) and cls is not base]
    methods = [(cls, name, value) for cls in classes for name, value in vars(cls).items() if callable(value)]
    for cls, name, _ in methods:
        if name in known or (instead := _instead(name, known)) is None:
            continue
        others = (value for _, other, value in methods if other != name)
        if not any(name in _names_in(getattr(value, "__code__", None)) for value in others):
            yield f"{cls.__name__}.{name}", instead


def _names_in(code: CodeType | None) -> set[str]:
    """Return the names that a function uses, and the functions in it."""
    if code is None:
        return set()
    inner = (_names_in(const) for const in code.co_consts if isinstance(const, CodeType))
    return set(code.co_names).union(*inner)


def _instead(name: str, known: list[str]) -> str | None:
    if name in METHODS_ELSEWHERE:
        return f"here it is {METHODS_ELSEWHERE[name]}"
    is_event = name.startswith("on_")
    if not is_event and not name.endswith("step"):
        return None
    candidates = [each for each in known if each.startswith("on_") and is_event]
    candidates += [each for each in known if each.endswith("step") and not is_event and each not in name]
    nearest = difflib.get_close_matches(name, candidates, 1, _LIKENESS["on_" if is_event else "step"])
    return f"the nearest is {nearest[0]}" if nearest else None
