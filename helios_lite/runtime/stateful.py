"""What an object consists of: its attributes that have a state, its networks, its optimizers."""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType
from typing import Any

from torch import nn
from torch.optim import Optimizer

_STATELESS_TYPES = (type, str, int, float, NoneType)


def stateful_parts(owner: object) -> Iterator[tuple[str, Any]]:
    """Yield every attribute that has `state_dict` and `load_state_dict`, by name, in the order of assignment.

    In lists, tuples and dicts the names are "name.0" and "name.key".
    """
    for name, value in vars(owner).items():
        yield from _parts(name, value)


def networks(owner: object) -> list[nn.Module]:
    """Return the attributes that are networks."""
    return [part for _, part in stateful_parts(owner) if isinstance(part, nn.Module)]


def optimizers(owner: object) -> dict[str, Optimizer]:
    """Return the attributes that are optimizers, by name."""
    return {name: part for name, part in stateful_parts(owner) if isinstance(part, Optimizer)}


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, _STATELESS_TYPES):  # The most frequent case; a vocabulary may have millions of strings.
        return
    if callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None)):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _parts(f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _parts(f"{name}.{i}", item)
