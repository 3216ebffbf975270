"""Batches of any nesting: their number of samples, and moving them to a device."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


class DeviceMover:
    """Moves batches to a device: tensors, other objects with `.to`, and both in dicts, lists, tuples and dataclasses.

    Tensors are copied to a GPU from pinned memory on a separate CUDA stream, so that the copy overlaps with
    computation; only the step that uses the batch waits for it.

    Args:
        device: the device to move to.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, batch: Any) -> Any:
        """Return the batch on the device, in new containers of the same types; other objects are not copied."""
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
            moved = copy.copy(batch)  # Keeps the default of a defaultdict.
            moved.update((key, self._move(value)) for key, value in batch.items())
            return moved
        if isinstance(batch, Mapping):
            return type(batch)({key: self._move(value) for key, value in batch.items()})  # type: ignore[call-arg]
        if isinstance(batch, tuple) and hasattr(batch, "_fields"):
            return type(batch)(*(self._move(value) for value in batch))
        if isinstance(batch, list | tuple):
            return type(batch)(self._move(value) for value in batch)
        if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
            record = copy.copy(batch)
            for field in dataclasses.fields(batch):
                object.__setattr__(record, field.name, self._move(getattr(batch, field.name)))  # It may be frozen.
            return record
        return batch

    def _copy(self, tensor: Tensor) -> Tensor:
        if self._stream is None or not tensor.is_cpu:
            # A copy to the CPU that does not wait would be read before it is complete.
            return tensor.to(self.device, non_blocking=self.device.type != "cpu")
        with torch.cuda.stream(self._stream):
            copied = tensor.pin_memory().to(self.device, non_blocking=True)
        copied.record_stream(torch.cuda.current_stream(self.device))  # Its memory is kept until the step is over.
        return copied


def batch_size(batch: Any) -> int:
    """Return the number of samples in a nested batch.

    This is the leading dimension of the first tensor, else the length of the first list without tensors, else 1.
    """
    if type(batch) in (list, tuple) and batch and type(batch[0]) is Tensor and batch[0].ndim > 0:
        return batch[0].shape[0]  # What most loaders yield; `len` is a function in Python.
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
