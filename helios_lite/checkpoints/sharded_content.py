"""The tensors of sharded networks and optimizers (FSDP2) in the content of a checkpoint.

Under FSDP2 the state dicts of networks and optimizers hold DTensors, of which each rank has its part. A checkpoint
holds them apart from everything else: `take_sharded` puts a marker in place of each, and `replace_markers` puts tensors
back. Networks and optimizers load full tensors as well as sharded ones, so every checkpoint can be loaded under every
strategy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from helios_lite.networks.dtensors import is_dtensor
from helios_lite.networks.sharded_optimizers import settled

_MARKER = "sharded tensor"


class ShardedTensors(NamedTuple):
    """The DTensors of the content of a checkpoint.

    Attributes:
        tensors: the tensors by name, in their order.
        stored_as: for every name the name of the first tensor with the same memory, as tied weights have. It is right
            on rank 0 alone: the other parts of a small tensor may be empty, without memory to be recognized by.
    """

    tensors: dict[str, Tensor]
    stored_as: dict[str, str]


def take_sharded(content: Any, names: Mapping[str, str]) -> tuple[Any, ShardedTensors]:
    """Return the content of a checkpoint with a marker in place of every DTensor, and the DTensors.

    Call on every rank: a DTensor that is a part of a sum is reduced.

    Args:
        content: containers of any nesting; they are not changed.
        names: parts of the content that are called otherwise than by their path, as "model.optimizer.state.0".
    """
    found = ShardedTensors({}, {})
    first: dict[Any, str] = {}

    def mark(value: Any, path: str) -> Any:
        if not is_dtensor(value):
            return value
        value = settled(value)
        prefix, _, rest = path.rpartition(".")
        name = f"{names.get(prefix, prefix)}.{rest}"
        while name in found.tensors:  # The key of a dict may contain a dot.
            name += "_"
        local = value.to_local()
        memory = (local.data_ptr(), value.shape, value.stride(), value.dtype)
        found.tensors[name] = value
        found.stored_as[name] = first.setdefault(memory, name) if local.numel() > 0 else name
        return {_MARKER: found.stored_as[name]}

    return _replace(content, mark), found


def marked_names(content: Any) -> list[str]:
    """Return the names of the tensors for which markers stand in a content; that of tied weights comes twice."""
    names = list[str]()

    def note(value: Any, path: str) -> Any:
        if _is_marker(value):
            names.append(value[_MARKER])
        return value

    _replace(content, note)
    return names


def replace_markers(content: Any, tensors: Mapping[str, Any]) -> Any:
    """Return a content, in new containers, with tensors in place of the markers; a marker without a tensor stays."""
    return _replace(content, lambda value, path: tensors.get(value[_MARKER], value) if _is_marker(value) else value)


def _is_marker(value: Any) -> bool:
    return type(value) is dict and value.keys() == {_MARKER} and isinstance(value[_MARKER], str)


def _replace(value: Any, function: Callable[[Any, str], Any], path: str = "") -> Any:
    """Return a value in new containers, in which `function(part, path)` stands in place of every part.

    What is inside of a part is replaced as well, unless the part itself was.
    """
    new = function(value, path)
    if new is not value:
        return new
    if isinstance(value, dict):
        copied = copy.copy(value)
        for key, item in value.items():
            copied[key] = _replace(item, function, f"{path}.{key}".lstrip("."))
        return copied
    if type(value) in (list, tuple):
        return type(value)(_replace(item, function, f"{path}.{i}") for i, item in enumerate(value))
    return value


def state_names(parts: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """Return how the states of optimizers are called in shards: by the names of parameters instead of their numbers.

    "model.optimizer.state.0" is called "model.optimizer.state.net.0.weight". So the shards can be read without knowing
    in which order an optimizer was given its parameters.

    Args:
        parts: the stateful attributes of the model by name.
    """
    parts = list(parts)
    parameters: dict[int, str] = {}
    names = {}
    for name, net in parts:
        if isinstance(net, nn.Module):
            parameters.update((id(p), f"{name}.{path}") for path, p in net.named_parameters())
    for name, optimizer in parts:
        if isinstance(optimizer, torch.optim.Optimizer):
            trained = [p for group in optimizer.param_groups for p in group["params"]]
            for i, p in enumerate(trained):
                names[f"model.{name}.state.{i}"] = f"model.{name}.state.{parameters.get(id(p), i)}"
    return names
