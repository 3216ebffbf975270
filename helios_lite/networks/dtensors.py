"""Full and sharded tensors of networks and optimizers (FSDP2)."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def is_dtensor(value: Any) -> bool:
    """Return whether a value is a DTensor, the type of sharded parameters."""
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def full_tensor(value: Any) -> Any:
    """Return the full tensor of a DTensor, and any other value as it is. Call on every rank."""
    return value.full_tensor() if is_dtensor(value) else value


def alike(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Return tensors in one list or in two, full and sharded ones, as operations on lists take only one kind."""
    from torch.distributed.tensor import DTensor

    kinds: tuple[list[Tensor], list[Tensor]] = [], []
    for tensor in tensors:
        kinds[isinstance(tensor, DTensor)].append(tensor)
    return [kind for kind in kinds if kind]


def total_norm(kinds: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return the 2-norm, a full tensor without a dimension, of all tensors in these lists. Call on every rank."""
    norms: list[Tensor] = [full_tensor(nn.utils.get_total_norm(kind)) for kind in kinds]
    return norms[0] if len(norms) == 1 else nn.utils.get_total_norm(norms)


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


def forbid_reading_parts() -> Callable[[], Any]:
    """Make it an error to read a number of which this rank has a part; return what ends that.

    Of a norm or a sum of a sharded parameter, as in `float(p.grad.norm())`, PyTorch returns the part of this rank
    without notice (https://github.com/pytorch/pytorch/issues/166638), by which ranks would train different networks.
    """
    from torch.distributed.tensor import DTensor

    handlers: dict[Any, Any] = DTensor._op_dispatcher._custom_op_handlers  # No public name has them.
    operation = torch.ops.aten._local_scalar_dense.default
    if operation in handlers:
        return lambda: None
    handlers[operation] = _read_number
    return functools.partial(handlers.pop, operation, None)


def _read_number(operation: Any, arguments: tuple[Any, ...], options: Any) -> Any:
    (value,) = arguments
    if not all(placement.is_replicate() for placement in value.placements):
        raise RuntimeError(
            "a number that is computed from parameters or gradients of a sharded network is in parts on the ranks, and "
            "item(), float(), int() and bool() read the part of one rank; let every rank call value.full_tensor() "
            "before, as in self.log('norm', norm.full_tensor())"
        )
    return value.to_local().item()


def load_any_placement(net: nn.Module) -> None:
    """Let `load_state_dict` of a network take full and sharded tensors. Call it on every rank then."""
    net.register_load_state_dict_pre_hook(_place_network)  # type: ignore[no-untyped-call]


def _place_network(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any, strict: bool, *lists: Any
) -> None:
    parameters, buffers = (named(remove_duplicate=False) for named in (module.named_parameters, module.named_buffers))
    for name, value in [*parameters, *buffers]:  # Tied weights have a name each.
        if prefix + name in state:
            state[prefix + name] = distribute_like(state[prefix + name], value)


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
