"""Takes nested containers apart, and puts them together again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


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


def rebuilt(value: Any, parts: Iterable[Any]) -> Any:
    """Return a container like another with other parts, in the order of its `items`; any mapping becomes a dict."""
    if isinstance(value, Mapping):
        return dict(zip(value, parts, strict=True))
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
