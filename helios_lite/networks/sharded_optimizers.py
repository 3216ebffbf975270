"""Optimizers of sharded networks (FSDP2): steps that PyTorch cannot make with DTensors, and where states are placed."""

from __future__ import annotations

import copy
import inspect
import traceback
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Adafactor, Muon, Optimizer, Rprop

from helios_lite.networks.dtensors import distribute_like, full_tensor, is_dtensor

_BY_PARAMETER = (Adafactor, Muon, Rprop)
"""Optimizers whose steps fail with DTensors, or multiply shards of matrices in bf16, which rounds otherwise."""
_NUMBERS = {"step", "eta", "mu", "mu_product"}
"""States of one number that optimizers of PyTorch have as tensors of the CPU, beside sharded ones."""


def check_can_step(name: str, optimizer: Optimizer) -> None:
    """Raise a ValueError for an optimizer that cannot train a sharded network; `name` is its attribute."""
    if isinstance(optimizer, LBFGS) and _sharded_parameters(optimizer):
        raise ValueError(
            f"{name}: {type(optimizer).__name__} makes one vector of all parameters, which cannot be sharded; use "
            "strategy='ddp'"
        )


def step_by_parameter(optimizer: Optimizer, args: tuple[Any, ...], kwargs: Any) -> tuple[Any, Any] | None:
    """Make the step of an optimizer that needs full tensors, one parameter at a time. Call on every rank.

    It is a hook of `torch.optim.optimizer.register_optimizer_step_pre_hook`. A parameter, its gradient and its states
    are gathered; then this rank keeps its shards. States of the shape of the parameter are sharded between steps as it
    is, and the others are full on every rank.

    Returns:
        What the method goes on with, for parameters that are not sharded; None if it goes on with all.
    """
    if args[0] is not optimizer or not _steps_by_parameter(optimizer) or not _sharded_parameters(optimizer):
        return None
    if any(value is not None for value in (*args[1:], *kwargs.values())):
        raise ValueError(
            f"{type(optimizer).__name__}.step: takes no closure for sharded networks; call backward before it"
        )
    rest = []
    for group in optimizer.param_groups:
        rest.append({**group, "params": [p for p in group["params"] if not is_dtensor(p)]})
        for p in group["params"]:
            if is_dtensor(p) and p.grad is not None:
                full = full_tensor(p.detach())
                full.grad = full_tensor(p.grad)
                own = {name: full_tensor(value) for name, value in optimizer.state[p].items()}
                one = _like(optimizer, [{**group, "params": [full]}], defaultdict(dict, {full: own}))
                one.step()
                with torch.no_grad():
                    p.copy_(distribute_like(full, p))
                optimizer.state[p] = {name: _like_parameter(value, p) for name, value in one.state[full].items()}
    return (_like(optimizer, rest, optimizer.state), *args[1:]), kwargs


def settle_states(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Reduce what an optimizer of the user has kept as parts of sums or norms. Call on every rank.

    It is a hook of `torch.optim.optimizer.register_optimizer_step_post_hook`. A checkpoint holds sums, so a run that
    goes on from it would round otherwise; and DTensors that are parts of sums do not support all operations.
    """
    if type(optimizer).__module__.startswith("torch.optim."):
        return
    for state in optimizer.state.values():
        _settle(state)


def _settle(value: Any) -> Any:
    """Settle the DTensors in dicts and lists, which stay those they are, and return them; or a DTensor, or a tuple."""
    if isinstance(value, dict):
        value.update({name: _settle(item) for name, item in value.items()})
    elif type(value) is list:
        value[:] = map(_settle, value)
    elif type(value) is tuple:
        return tuple(map(_settle, value))
    return settled(value) if is_dtensor(value) else value


def settled(value: Any) -> Any:
    """Return a DTensor that is sharded along one dimension over the last dimension of its mesh, or is replicated.

    A part of a sum, or of a norm, becomes a replica of it. Call on every rank.
    """
    from torch.distributed.tensor import Replicate, Shard

    *_, last = value.placements
    wanted = (*[Replicate()] * (value.device_mesh.ndim - 1), last if type(last) is Shard else Replicate())
    return value if value.placements == wanted else value.redistribute(placements=wanted)


def place_states(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Return the state dict of an optimizer with its tensors placed as its steps need them. Call on every rank.

    It is a hook of `Optimizer.register_load_state_dict_pre_hook`. States of the shape of their parameter are placed as
    it is. Others keep the places of a sharded checkpoint. From a file, in which no tensor is sharded, they are
    replicated as DTensors: an optimizer has computed them from its parameters. This does not hold for counters.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    sharded = _sharded_parameters(optimizer)
    is_of_file = not any(is_dtensor(value) for part in state["state"].values() for value in _tensors(part))

    def placed(value: Any, name: str, like: Tensor | None) -> Any:
        if isinstance(value, dict):
            return {key: placed(item, str(key), like) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(placed(item, name, like) for item in value)
        if not isinstance(value, Tensor):
            return value
        if not sharded or (like is not None and not is_dtensor(like)):
            return full_tensor(value)
        if like is not None and (value.shape == like.shape or _steps_by_parameter(optimizer)):
            return _like_parameter(value, like)
        is_number = value.numel() == 1 and name in _NUMBERS
        return _replicated(value, sharded[0]) if is_of_file and not is_number else value

    parts = {
        key: placed(part, "", parameters[key] if isinstance(key, int) and key < len(parameters) else None)
        for key, part in state["state"].items()
    }
    return {**state, "state": parts}


def note_of_step(error: BaseException) -> str | None:
    """Return what to say of an error in the step of an optimizer that DTensors may cause; None if it is another."""
    if not isinstance(error, RuntimeError | AssertionError | IndexError | TypeError):
        return None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if isinstance(owner, Optimizer) and frame.f_code.co_name == "step" and _sharded_parameters(owner):
            return (
                f"{type(owner).__name__}.step computes with the parameters of a sharded network, which are DTensors, "
                "and PyTorch cannot do all operations with them. Make states by torch.zeros_like(p) or from p.grad, do "
                "not change those of other shapes in place, give other parameters a group of their own, or use "
                "strategy='ddp'"
            )
    return None


def _like(optimizer: Optimizer, groups: list[dict[str, Any]], states: Any) -> Optimizer:
    """Return an optimizer of the same class with other groups and states, and without hooks."""
    other = copy.copy(optimizer)
    other.__setstate__({"state": states, "param_groups": groups})
    return other


def _steps_by_parameter(optimizer: Optimizer) -> bool:
    step = inspect.unwrap(type(optimizer).step)  # The first of a class wraps it.
    return any(step is inspect.unwrap(kind.step) for kind in _BY_PARAMETER)


def _sharded_parameters(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"] if is_dtensor(p)]


def _like_parameter(value: Any, p: Tensor) -> Any:
    """Return a state placed as its parameter if it has the same shape, and in full otherwise."""
    is_alike = isinstance(value, Tensor) and value.shape == p.shape and value.ndim > 0
    return distribute_like(value, p) if is_alike else full_tensor(value)


def _replicated(value: Tensor, like: Any) -> Any:
    from torch.distributed.tensor import DTensor, Replicate

    placements = [Replicate()] * like.device_mesh.ndim
    return DTensor.from_local(value.to(like.device), like.device_mesh, placements, run_check=False)


def _tensors(value: Any) -> Sequence[Tensor]:
    """Return the tensors in containers."""
    if isinstance(value, dict):
        value = [*value.values()]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return [value] if isinstance(value, Tensor) else []
