"""Optimizers that evaluate other weights than they train, as the schedule-free ones do: `eval` puts them in place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from helios_lite.model_internals.attributes import named_networks, stateful_parts


@contextlib.contextmanager
def evaluation_weights(model: Any) -> Iterator[bool]:
    """Context in a training in which all optimizers with the methods `eval` and `train` are in evaluation mode.

    On exit every parameter has the bits that it had: to switch back and forth may round them.

    Yields:
        Whether there is such an optimizer.
    """
    optimizers = [part for _, part in stateful_parts(model) if _has_modes(part)]
    parameters = [p for each in optimizers for group in each.param_groups for p in group["params"]]
    kept = [p.detach().clone() for p in parameters]
    for optimizer in optimizers:
        optimizer.eval()
    try:
        yield len(optimizers) > 0
    finally:
        for optimizer in optimizers:
            optimizer.train()
        with torch.no_grad():
            for p, value in zip(parameters, kept, strict=True):
                p.copy_(value)


def evaluation_state_of(model: Any) -> dict[str, Any]:
    """Return copies of the states of the networks with the weights that evaluations use, by name.

    It is empty if no optimizer has such weights.
    """
    with evaluation_weights(model) as has_some:
        networks = named_networks(model) if has_some else {}
        return {name: _copied(net.state_dict()) for name, net in networks.items()}


def expect_evaluation_weights(model: Any) -> None:
    """Put the optimizers that have such weights in evaluation mode, before a model gets them from a checkpoint."""
    for _, part in stateful_parts(model):
        if _has_modes(part):
            part.eval()


def _has_modes(part: Any) -> bool:
    has_modes = callable(getattr(part, "eval", None)) and callable(getattr(part, "train", None))
    return has_modes and hasattr(part, "param_groups") and not isinstance(part, nn.Module)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return {name: _copied(item) for name, item in value.items()} if isinstance(value, dict) else value
