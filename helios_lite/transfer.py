"""Batches of any nesting: how many samples they have, and their way to the device."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


class Transfer:
    """Moves batches to a device: tensors, anything else with `.to`, and these in dicts, lists, tuples and dataclasses.

    Tensors go to a GPU from pinned memory and on a stream of their own: the copy runs beside what is computing, and
    only the step that uses the batch waits for it.

    Args:
        device: where to.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, batch: Any) -> Any:
        """Return the batch on the device: containers are new ones of the same type, other objects as they are."""
        moved = self._move(batch)
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
        return moved

    def _move(self, batch: Any) -> Any:
        if isinstance(batch, Tensor):
            return batch if batch.device == self.device else self._copy(batch)
        if type(batch) in (list, tuple):
            return type(batch)([self._move(value) for value in batch])
        if callable(getattr(batch, "to", None)):
            return batch.to(self.device)
        if isinstance(batch, dict):
            twin = copy.copy(batch)  # Keeps the default of a defaultdict.
            twin.update((key, self._move(value)) for key, value in batch.items())
            return twin
        if isinstance(batch, Mapping):
            return type(batch)({key: self._move(value) for key, value in batch.items()})  # type: ignore[call-arg]
        if isinstance(batch, tuple) and hasattr(batch, "_fields"):
            return type(batch)(*(self._move(value) for value in batch))
        if isinstance(batch, list | tuple):
            return type(batch)(self._move(value) for value in batch)
        if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
            moved = copy.copy(batch)
            for field in dataclasses.fields(batch):
                object.__setattr__(moved, field.name, self._move(getattr(batch, field.name)))
            return moved
        return batch

    def _copy(self, tensor: Tensor) -> Tensor:
        if self._stream is None or not tensor.is_cpu:
            return tensor.to(self.device, non_blocking=True)
        with torch.cuda.stream(self._stream):
            twin = tensor.pin_memory().to(self.device, non_blocking=True)
        twin.record_stream(torch.cuda.current_stream(self.device))  # Its memory stays until the step is over.
        return twin


def batch_size(batch: Any) -> int:
    """Return the leading dimension of the first tensor in a nested batch, else the first length found, else 1."""
    if type(batch) in (list, tuple) and batch and type(batch[0]) is Tensor and batch[0].ndim > 0:
        return len(batch[0])  # What most loaders give.
    leaves = list(_leaves(batch))
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            return leaf.shape[0] if leaf.ndim > 0 else 1
    return max(1, next((len(leaf) for leaf in leaves if isinstance(leaf, list | tuple)), 1))


def _leaves(batch: Any) -> Iterator[Any]:
    """Yield the tensors of a nested batch, and the lists that hold neither tensors nor containers."""
    if isinstance(batch, Mapping):
        parts = list(batch.values())
    elif isinstance(batch, list | tuple):
        parts = list(batch)
    elif dataclasses.is_dataclass(batch):
        parts = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    else:
        yield batch
        return
    nested = [
        part for part in parts if isinstance(part, Tensor | Mapping | list | tuple) or dataclasses.is_dataclass(part)
    ]
    if not nested and parts:
        yield tuple(parts)
    for part in nested:
        yield from _leaves(part)
