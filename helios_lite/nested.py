"""Takes nested containers apart, and puts them together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from types import NoneType
from typing import Any

from torch import Tensor

_COUNT = ", so the number of its samples is not known: override Model.count_samples(batch), or use a Split"


def items(value: Any) -> list[tuple[Any, Any]] | None:
    """Return the items of a mapping, a list or a tuple, those of a named tuple by field; None for anything else."""
    if isinstance(value, Mapping):
        return [*value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [*zip(value._fields, value, strict=True)]
    return [*enumerate(value)] if isinstance(value, list | tuple) else None


def leaves(value: Any, name: str = "", entered: Any = Mapping | list | tuple) -> Iterator[tuple[str, Any]]:
    """Yield what nested containers hold with dotted names; empty containers are leaves.

    Args:
        value: a container, or a leaf.
        name: the name of the value.
        entered: the types of containers that are entered, some of those that have `items`.
    """
    if isinstance(value, entered) and value:
        for key, item in items(value) or ():
            yield from leaves(item, f"{name}.{key}" if name else str(key), entered)
    else:
        yield name, value


def count_samples(batch: Any) -> int:
    """Return the number of samples in a batch: the first dimension that all of its tensors have.

    Of a batch without tensors it is the length of a list, and a number or a string is one sample.

    Raises:
        ValueError: the tensors have several first dimensions, or the batch holds none in a container that is known.
    """
    if type(batch) in (list, tuple) and batch:  # What most loaders yield.
        size = batch[0].shape[0] if type(batch[0]) is Tensor and batch[0].ndim > 0 else None
        for part in batch:
            if type(part) is not Tensor or part.ndim == 0 or part.shape[0] != size:
                break
        else:
            return size  # type: ignore[return-value]
    parts = [*_parts_of_batch(batch)]
    arrays = [part for part in parts if hasattr(part, "shape")]  # Tensors, and those of numpy.
    sizes = sorted({array.shape[0] for array in arrays if len(array.shape) > 0})
    if len(sizes) > 1:
        raise ValueError(f"tensors of a batch have the first dimensions {', '.join(map(str, sizes))}{_COUNT}")
    if arrays:
        return sizes[0] if sizes else 1
    for part in parts:
        if not isinstance(part, list | range | str | bytes | int | float | complex | NoneType):
            raise ValueError(f"a batch is a {type(part).__name__}{_COUNT}")
    return next((len(part) for part in parts if isinstance(part, list | range)), 1)


def _parts_of_batch(batch: Any) -> Iterator[Any]:
    """Yield what the containers of a batch hold; a list that holds no containers or arrays as it is."""
    if isinstance(batch, Mapping):
        parts = list(batch.values())
    elif isinstance(batch, list | tuple):
        parts = list(batch)
        if parts and all(isinstance(part, str | bytes | int | float | complex | NoneType) for part in parts):
            yield parts
            return
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        parts = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    else:
        yield batch
        return
    for part in parts:
        yield from _parts_of_batch(part)


def rebuilt(value: Any, parts: Iterable[Any]) -> Any:
    """Return a container like another with other parts, in the order of its `items`; any mapping becomes a dict."""
    if isinstance(value, Mapping):
        return dict(zip(value, parts, strict=True))
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
