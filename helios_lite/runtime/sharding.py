"""Full tensors in the state dicts of sharded networks and optimizers (FSDP2), so that a checkpoint is independent of
the strategy and of the number of processes.

`torch.distributed.checkpoint.state_dict` gathers as well, but it keys the state of an optimizer by parameter name and
wants pairs of a network and an optimizer. Here any attribute of a model may be an optimizer, and a plain
`optimizer.load_state_dict` must be able to load the file.
"""

from __future__ import annotations

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


def distribute_like(value: Any, like: Any) -> Any:
    """Return a full tensor sharded as a DTensor of the same shape is, and any other value as it is."""
    from torch.distributed.tensor import distribute_tensor

    if isinstance(value, Tensor) and is_dtensor(like) and not is_dtensor(value) and value.shape == like.shape:
        # Every rank has read the full tensor, so nothing needs to be sent.
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return value


def use_full_tensors_in_network(net: nn.Module) -> None:
    """Let `net.state_dict` return full tensors, and `net.load_state_dict` take them. Call both on every rank."""
    net.register_state_dict_post_hook(_gather_network)  # type: ignore[no-untyped-call]
    net.register_load_state_dict_pre_hook(_shard_network)  # type: ignore[no-untyped-call]


def use_full_tensors_in_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Let `optimizer.state_dict` return full tensors, and `load_state_dict` take them. Call both on every rank."""
    optimizer.register_state_dict_post_hook(_gather_optimizer)
    optimizer.register_load_state_dict_pre_hook(_shard_optimizer)


def _gather_network(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name, value in state.items():
        if is_dtensor(value):
            state[name] = full_tensor(value)


def _shard_network(
    module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any, strict: bool, *lists: Any
) -> None:
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if prefix + name in state:
            state[prefix + name] = distribute_like(state[prefix + name], value)


def _gather_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    parts = {
        index: {name: full_tensor(value) for name, value in part.items()} for index, part in state["state"].items()
    }
    return {**state, "state": parts}


def _shard_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parts = {
        index: {name: distribute_like(value, parameters[index]) for name, value in part.items()}
        for index, part in state["state"].items()
    }
    return {**state, "state": parts}
