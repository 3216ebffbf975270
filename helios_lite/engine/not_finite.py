"""Finds what is not finite: in the samples of a batch, and in the outputs and gradients of modules."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn


class NotFiniteFinder:
    """Finds the first module with an output that is not finite, or else the first with such a gradient.

    Attributes:
        first: where it is, None if all is finite.
    """

    def __init__(self) -> None:
        self.first: str | None = None

    def note(self, where: str) -> None:
        """Note a place, if there is none before it."""
        if self.first is None:
            self.first = where

    @contextlib.contextmanager
    def watching(self, networks: dict[str, nn.Module]) -> Iterator[None]:
        """Context in which the modules of networks are watched."""
        with contextlib.ExitStack() as stack:
            for name, net in networks.items():
                for path, module in net.named_modules():
                    handle = module.register_forward_hook(self._hook(f"{name}.{path}" if path else name))
                    stack.callback(handle.remove)
            yield

    def _hook(self, path: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in _tensors(output):
                if not tensor.isfinite().all():
                    self.note(f"the output of {path}" + ("" if _is_finite(inputs) else ", whose input is not finite"))
                elif tensor.requires_grad:
                    tensor.register_hook(  # type: ignore[no-untyped-call]
                        lambda gradient: None if gradient.isfinite().all() else self.note(f"the gradient at {path}")
                    )

        return look


NO_SAMPLE = object()
"""What `sample_of` returns for a batch that cannot be divided."""


def sample_of(value: Any, position: int, size: int) -> Any:
    """Return one sample of a batch as a batch of one; `NO_SAMPLE` if a part has another first dimension."""
    if isinstance(value, Tensor):
        return value[position : position + 1] if value.ndim > 0 and len(value) == size else NO_SAMPLE
    if isinstance(value, dict):
        parts = {name: sample_of(part, position, size) for name, part in value.items()}
        return NO_SAMPLE if any(part is NO_SAMPLE for part in parts.values()) else parts
    if isinstance(value, list | tuple):
        if len(value) == size and not any(isinstance(part, Tensor | list | tuple | dict) for part in value):
            return value[position : position + 1]
        parts_list = [sample_of(part, position, size) for part in value]
        if any(part is NO_SAMPLE for part in parts_list):
            return NO_SAMPLE
        return type(value)(*parts_list) if hasattr(value, "_fields") else type(value)(parts_list)
    return NO_SAMPLE


def samples_not_finite(batch: Any, size: int) -> list[int]:
    """Return the positions of the samples of a batch that have a value that is not finite."""
    found = set()
    for tensor in _tensors(batch):
        if tensor.ndim > 0 and len(tensor) == size:
            bad = ~tensor.isfinite().flatten(1).all(1) if tensor.ndim > 1 else ~tensor.isfinite()
            found |= set(bad.nonzero().flatten().tolist())
    return sorted(found)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of floating-point or complex numbers in nested containers."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex():
            yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _tensors(part)


def _is_finite(value: Any) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in _tensors(value))
