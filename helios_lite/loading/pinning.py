"""Puts batches of workers into pinned memory, from which they are copied to a GPU beside its computation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from helios_lite.processes.devices import map_batch


class Pinning:
    """Collates samples in a worker, to a batch that a DataLoader with `pin_memory=True` pins as we move it.

    By itself it would count a Counter twice, and fail with mappings that forbid `update`.

    Args:
        collate: makes the batch.
    """

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self._collate = collate

    def __call__(self, samples: Any) -> PinnedBatch:
        """Return the batch, on its way to pinned memory."""
        return PinnedBatch(self._collate(samples))


class PinnedBatch:
    """A batch on its way; a thread of the DataLoader calls `pin_memory`."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def pin_memory(self) -> PinnedBatch:
        """Return the batch with its tensors in pinned memory, and with other objects as they are."""
        return PinnedBatch(map_batch(self.batch, Tensor.pin_memory, _as_it_is))


def batches_of(pinned: Iterator[PinnedBatch]) -> Iterator[Any]:
    """Yield the batches themselves."""
    return (each.batch for each in pinned)


def _as_it_is(value: Any) -> Any:
    return value
