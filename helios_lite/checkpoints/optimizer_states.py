"""Loads the state of an optimizer as it was saved, which `Optimizer.load_state_dict` does not do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def load_optimizer(optimizer: Any, state: dict[str, Any], saved_types: Mapping[int, torch.dtype]) -> None:
    """Load a state dict, and let each tensor keep the data type that it had when it was saved.

    PyTorch converts all states of a parameter but "step" to the data type of the parameter: fp32 weights or averages
    beside bf16 parameters, and counters, would be rounded. It also takes a string for a sequence. If the parameter has
    another data type than in the checkpoint, its states are converted as PyTorch does.

    Args:
        optimizer: an optimizer, which has PyTorch's `load_state_dict` or calls it in its own.
        state: the state dict. Its tensors may be shared with the optimizer afterwards.
        saved_types: the data types of parameters in the checkpoint by `id`, of those that are known.
    """
    given: dict[Any, Any] = {}

    def remember(_: Optimizer, placed: dict[str, Any]) -> None:
        given.update(placed["state"])

    def correct(optimizer: Optimizer) -> None:
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        numbers = (number for group in state["param_groups"] for number in group["params"])
        for number, p in zip(numbers, parameters, strict=True):
            if number in given and saved_types.get(id(p), p.dtype) == p.dtype:
                optimizer.state[p] = _as_saved(given[number], optimizer.state[p])

    hooks = []
    # One that wraps another may not have called `Optimizer.__init__`, which makes hooks possible: it has no states.
    if hasattr(optimizer, "_optimizer_load_state_dict_pre_hooks"):
        hooks.append(optimizer.register_load_state_dict_pre_hook(remember))  # After the one that places shards.
        hooks.append(optimizer.register_load_state_dict_post_hook(correct, prepend=True))
    try:
        optimizer.load_state_dict(state)
    finally:
        for hook in hooks:
            hook.remove()
    if isinstance(optimizer, torch.optim.NAdam):
        _return_products(optimizer)


def _return_products(optimizer: torch.optim.NAdam) -> None:
    """Return to the CPU what NAdam reads there at every step, for which it would wait for the device.

    PyTorch leaves the counts of steps there when it loads a state, and moves all the rest to the parameters.
    """
    for group in optimizer.param_groups:
        for state in (optimizer.state[p] for p in group["params"] if p in optimizer.state and not group["capturable"]):
            state["mu_product"] = state["mu_product"].cpu()


def _as_saved(saved: Any, loaded: Any) -> Any:
    """Return what an optimizer has loaded with the data types that were saved, where it is now."""
    if isinstance(saved, Tensor) and isinstance(loaded, Tensor):
        return loaded if saved.dtype == loaded.dtype else saved.to(loaded.device)
    if isinstance(saved, dict):
        return {
            name: part if name == "step" or name not in saved else _as_saved(saved[name], part)
            for name, part in loaded.items()
        }
    if isinstance(saved, list | tuple):
        return type(saved)(map(_as_saved, saved, loaded))
    return saved if isinstance(saved, str) else loaded  # PyTorch makes a tensor of a number where one is wanted.
