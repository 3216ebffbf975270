"""The error for an argument of a wrong kind."""

from __future__ import annotations

import os


def require_kind(name: str, value: object, kinds: type | tuple[type, ...], wanted: str) -> None:
    """Raise a TypeError that names an argument, unless its value is of one of the kinds.

    Args:
        name: the name of the argument.
        value: its value.
        kinds: the types that it may have.
        wanted: what it must be, such as "an nn.Module".
    """
    if not isinstance(value, kinds):
        raise TypeError(f"{name}={value!r}: must be {wanted}")


def require_path(name: str, value: object, *, or_none: bool = False) -> None:
    """Raise a TypeError that names an argument, unless its value is a path, or None if that is allowed."""
    if value is not None or not or_none:
        require_kind(name, value, (str, os.PathLike), "a path" + " or None" * or_none)
