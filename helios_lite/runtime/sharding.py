"""The tensors of sharded networks and optimizers (FSDP2) in state dicts and in the content of a checkpoint.

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

_MARKER = "sharded tensor"
"""The only key of the dict that stands for a sharded tensor; its value is the name of the tensor."""


def is_dtensor(value: Any) -> bool:
    """Return whether a value is a DTensor, the type of sharded parameters."""
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def full_tensor(value: Any) -> Any:
    """Return the full tensor of a DTensor, and any other value as it is. Call on every rank."""
    return value.full_tensor() if is_dtensor(value) else value


def distribute_like(value: Any, like: Any) -> Any:
    """Return a tensor placed as another one of the same shape is: sharded or full. Call on every rank.

    Values that are no tensors or have another shape are returned as they are.
    """
    from torch.distributed.tensor import distribute_tensor

    if not isinstance(value, Tensor) or (is_dtensor(like) and value.shape != like.shape):
        return value
    if not is_dtensor(like):
        return full_tensor(value)
    if not is_dtensor(value):
        # Every rank has read the full tensor, so nothing needs to be sent.
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    sharded: Any = value
    return value if sharded.placements == like.placements else sharded.redistribute(placements=like.placements)


def load_any_placement(part: nn.Module | torch.optim.Optimizer) -> None:
    """Let `load_state_dict` of a network or an optimizer take full and sharded tensors. Call it on every rank then."""
    if isinstance(part, nn.Module):
        part.register_load_state_dict_pre_hook(_place_network)  # type: ignore[no-untyped-call]
    else:
        part.register_load_state_dict_pre_hook(_place_optimizer)


def _place_network(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any, strict: bool, *lists: Any
) -> None:
    parameters, buffers = (named(remove_duplicate=False) for named in (module.named_parameters, module.named_buffers))
    for name, value in [*parameters, *buffers]:  # Tied weights have a name each.
        if prefix + name in state:
            state[prefix + name] = distribute_like(state[prefix + name], value)


def _place_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parts = {
        index: {name: distribute_like(value, parameters[index]) for name, value in part.items()}
        for index, part in state["state"].items()
    }
    return {**state, "state": parts}


def gathered_to_rank_0(state: dict[str, Any], is_main: bool) -> dict[str, Any]:
    """Return the state dict of a network with full tensors in CPU memory on rank 0, and {} on the others.

    The sharded tensors are gathered one after the other. Call on every rank. Without any the state dict is returned as
    it is.
    """
    if not any(map(is_dtensor, state.values())):
        return state
    gathered = copy.copy(state)  # An OrderedDict keeps the versions of modules, which are an attribute of it.
    gathered.clear()
    for name, value in state.items():
        full = full_tensor(value)
        if is_main:
            gathered[name] = full.cpu() if is_dtensor(value) else full
    return gathered


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

    Args:
        content: containers of any nesting; they are not changed.
        names: parts of the content that are called otherwise than by their path, as "model.optimizer.state.0".
    """
    found = ShardedTensors({}, {})
    first: dict[Any, str] = {}

    def mark(value: Any, path: str) -> Any:
        if not is_dtensor(value):
            return value
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
