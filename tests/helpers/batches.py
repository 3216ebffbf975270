"""The batches of a loader, with names for what they say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from helios_lite.loading.batches import Batch


class NamedBatch(NamedTuple):
    """See `helios_lite.loading.batches.Batch`."""

    data: Any
    size: int
    samples: int
    loss_weight: float
    completes_step: bool
    is_last: bool


def named(batches: Iterable[Batch]) -> list[NamedBatch]:
    """Read all batches."""
    return [NamedBatch(*batch) for batch in batches]
