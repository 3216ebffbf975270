"""Training and evaluation mode of the parts of a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn


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


def trained_in_evaluation_mode(networks: dict[str, nn.Module]) -> list[str]:
    """Return the names of the modules that have parameters of their own to be trained, but are in evaluation mode."""
    return [
        f"{name}.{path}".rstrip(".")
        for name, net in networks.items()
        for path, module in net.named_modules()
        if not module.training and any(p.requires_grad for p in module.parameters(recurse=False))
    ]


def _in_evaluation(parts: list[Any]) -> list[nn.Module]:
    networks = (part for part in parts if isinstance(part, nn.Module))
    return [module for net in networks for module in net.modules() if not module.training]


def _switch(parts: list[Any], mode: str) -> None:
    for part in parts:
        if callable(switch := getattr(part, mode, None)):
            switch()
