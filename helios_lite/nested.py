"""Takes nested containers apart, and puts them together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
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
        if all(type(part) is Tensor and part.ndim > 0 and part.shape[0] == size for part in batch):
            return size  # type: ignore[return-value]
    parts = [*_parts_of_batch(batch)]
    tensors = [part for part in parts if isinstance(part, Tensor)]
    sizes = sorted({tensor.shape[0] for tensor in tensors if tensor.ndim > 0})
    if len(sizes) > 1:
        raise ValueError(f"tensors of a batch have the first dimensions {', '.join(map(str, sizes))}{_COUNT}")
    if tensors:
        return sizes[0] if sizes else 1
    for part in parts:
        if not isinstance(part, list | str | bytes | int | float | complex):
            raise ValueError(f"a batch is a {type(part).__name__}{_COUNT}")
    return next((len(part) for part in parts if isinstance(part, list)), 1)


def _parts_of_batch(batch: Any) -> Iterator[Any]:
    """Yield the tensors of a batch, the lists of it that hold neither tensors nor containers, and other objects."""
    if isinstance(batch, Mapping):
        parts = list(batch.values())
    elif isinstance(batch, list | tuple):
        parts = list(batch)
    elif _is_dataclass(batch):
        parts = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    else:
        yield batch
        return
    nested = [part for part in parts if isinstance(part, Tensor | Mapping | list | tuple) or _is_dataclass(part)]
    if not nested and parts:
        yield parts
    for part in nested:
        yield from _parts_of_batch(part)


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def rebuilt(value: Any, parts: Iterable[Any]) -> Any:
    """Return a container like another with other parts, in the order of its `items`; any mapping becomes a dict."""
    if isinstance(value, Mapping):
        return dict(zip(value, parts, strict=True))
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
