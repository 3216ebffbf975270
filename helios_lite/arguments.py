"""Checks of arguments: the rules of options, the kinds of objects, the names of runs and models.

Standard library only.

A rule accepts only what a run can use, so that a bad value fails in `Trainer(...)` and not hours later. The messages
continue a text that begins with the name of the option.
"""

from __future__ import annotations

import difflib
import functools
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any, TypeAlias, TypeVar

Rule: TypeAlias = Callable[[Any], None]  # Raises a TypeError or ValueError for a value that it does not accept.
T = TypeVar("T")
_LONGEST_SHOWN = 200  # Characters.
_LONGEST_PART, _LONGEST_PATH = 255, 3000  # Bytes; file systems allow 255 and 4096, and the run adds names of its own.
# In bytes. File systems allow 255; the rest is for "_epoch_", "_iter_", ".pth" and two counters of 64 bits.
_LONGEST_SAVE_NAME = 200
_MANY_PROCESSES = 2**16  # More than any machine has.


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return the end of a message about an unknown name: the most similar of those that are known, else all of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {prefix}{near[0]}?" if near else f"there are {', '.join(names) or 'none'}"


def shown(value: Any) -> str:
    """Return the `repr` of a value for a message: without its middle if it is long, its type if it has none."""
    try:
        text = repr(value)
    except Exception:  # Python refuses to print an int of more than 4300 digits.
        return f"<{type(value).__name__}>"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN // 2]}...{text[-_LONGEST_SHOWN // 2 :]}"


def of_type(expected: Any, description: str) -> Rule:
    """Accept instances of a type, or of a union of types."""

    def check(value: Any) -> None:
        if not isinstance(value, expected):
            raise TypeError(f"must be {description}")

    return check


flag = of_type(bool, "True or False")


def choice(*choices: str) -> Rule:
    """Accept the given strings."""

    def check(value: Any) -> None:
        if not isinstance(value, str) or value not in choices:
            error = ValueError if isinstance(value, str) else TypeError
            raise error(f"must be one of {', '.join(choices)}")

    return check


def integer(*, least: int, below: int = 2**63) -> Rule:
    """Accept integers in a range; unless another bound is given, those that fit into 64 bits."""

    def check(value: Any) -> None:
        if not _is_integer(value):
            raise TypeError("must be an int")
        if value < least:
            raise ValueError(f"must be at least {least}")
        if value >= below:
            raise ValueError(f"must be below 2**{math.log2(below):.0f}")

    return check


def number(*, allow_zero: bool = False) -> Rule:
    """Accept finite, positive numbers."""

    def check(value: Any) -> None:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise TypeError("must be a number")
        try:
            is_finite = math.isfinite(float(value))
        except OverflowError:
            is_finite = False
        if not is_finite or value < 0:
            raise ValueError("must be finite and positive" + (" or 0" if allow_zero else ""))
        if value == 0 and not allow_zero:
            raise ValueError("must be positive")

    return check


def optional(rule: Rule) -> Rule:
    """Accept None, and whatever `rule` accepts."""

    def check(value: Any) -> None:
        if value is not None:
            rule(value)

    return check


def list_of(expected: type, name: str) -> Rule:
    """Accept lists and tuples of instances of a class or protocol, which has a name for people."""

    def check(value: Any) -> None:
        # A class can have the methods of a protocol too, so classes are refused explicitly.
        is_list = isinstance(value, list | tuple)
        if not is_list or any(isinstance(item, type) or not isinstance(item, expected) for item in value):
            hint = ""
            if is_list and (names := [item for item in value if isinstance(item, str)]):
                hint = (
                    f"; {names[0][:100]!r} is only a name, which `config` gives for an object whose arguments it "
                    "cannot read: pass the object itself"
                )
            raise TypeError(f"must be a list of {name} objects{hint}")

    return check


def device_selection(value: Any) -> None:
    """Accept a number of devices, a list of device indices, or "auto"."""
    description = 'must be a number, a list of numbers or "auto"'
    if isinstance(value, list | tuple):
        if not all(map(_is_integer, value)):
            raise TypeError(description)
        if not value or len(set(value)) < len(value) or min(value) < 0 or max(value) >= _MANY_PROCESSES:
            raise ValueError("must name different devices, from 0")
    elif isinstance(value, str):
        if value != "auto":
            raise ValueError(description)
    else:
        integer(least=1, below=_MANY_PROCESSES)(value)


def minutes_or_auto(value: Any) -> None:
    """Accept numbers from 0.01 on, None and "auto"."""
    if isinstance(value, str):
        choice("auto")(value)
    else:
        optional(number())(value)
        if value is not None and value < 0.01:
            raise ValueError("must be at least 0.01")


def whole_or_fraction(value: Any) -> None:
    """Accept a whole number of epochs, or a fraction of one epoch."""
    number()(value)
    if value > 1 and value != int(value):
        raise ValueError("must be whole or below 1")


def batch_limit(*, least: int) -> Rule:
    """Accept a number of batches, as an int of at least `least`, or a part of them, as a float."""

    def check(value: Any) -> None:
        if _is_integer(value):
            integer(least=least)(value)
        elif not isinstance(value, float):
            raise TypeError("must be an int, the number of batches, or a float up to 1.0, the part of them")
        elif not 0 < value <= 1:
            raise ValueError("must be above 0 and at most 1.0 as a float, which is a part of the batches")

    return check


def flag_or_count(value: Any) -> None:
    """Accept True, False, and a number from 0 on."""
    of_type(bool | int, "True, False or a number")(value)
    integer(least=0)(int(value))


def path(description: str, *, types: Any = str | os.PathLike) -> Rule:
    """Accept paths that a file system can hold, as instances of the given types."""

    def check(value: Any) -> None:
        text = os.fspath(value) if isinstance(value, types) else None
        if not isinstance(text, str):
            raise TypeError(f"must be {description}")
        if isinstance(value, str) and not value:
            raise ValueError("must not be empty")
        try:
            encoded = os.fsencode(text)
        except UnicodeEncodeError:
            raise ValueError("must be text that the name of a file can hold") from None
        if b"\0" in encoded:
            raise ValueError("must not have a null character")
        if len(encoded) > _LONGEST_PATH or any(len(os.fsencode(part)) > _LONGEST_PART for part in Path(text).parts):
            raise ValueError(f"must have at most {_LONGEST_PATH} bytes, and {_LONGEST_PART} in each part")

    return check


def all_of(*rules: Rule) -> Rule:
    """Accept what every rule accepts."""

    def check(value: Any) -> None:
        for rule in rules:
            rule(value)

    return check


def metric_names(value: Any) -> None:
    """Accept the name of a metric, or a list of names."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError("must be a name or a list of names")
    if len(names) == 0 or "" in names:
        raise ValueError("must not be empty")


def part_names(value: Any) -> None:
    """Accept None, "all", and a list of names."""
    if value is None or (isinstance(value, str) and value == "all"):
        return
    description = 'must be None, "all" or a list of names'
    if isinstance(value, str):
        raise ValueError(description)
    if not isinstance(value, Sequence) or not all(isinstance(name, str) for name in value):
        raise TypeError(description)
    if len(value) == 0 or "" in value:
        raise ValueError("must not be empty")


def norm_selection(value: Any) -> None:
    """Accept True, False and "per-parameter"."""
    of_type(bool | str, 'True, False or "per-parameter"')(value)
    if value not in (True, False, "per-parameter"):
        raise ValueError('must be True, False or "per-parameter"')


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def require(name: str, value: object, rule: Rule) -> None:
    """Raise a TypeError or ValueError that names an argument, unless a rule accepts its value."""
    try:
        rule(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}={shown(value)}: {error}") from None


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


def check_save_name(name: Any) -> None:
    """Check the name of a model, which becomes a part of file names too.

    Raises:
        TypeError, ValueError: as `check_folder_name`, or it has more than 200 bytes; the message begins with the name.
    """
    require("save_name", name, functools.partial(check_folder_name, longest=_LONGEST_SAVE_NAME))


def check_folder_name(name: Any, longest: int = 255) -> None:
    """Check a name that becomes a folder in `root`, or a path of several such as "sweep/rate-0.1".

    Args:
        name: the name.
        longest: the largest number of bytes of each part of the path.

    Raises:
        TypeError, ValueError: the name is no str, is empty, leads out of `root`, or is too long.
    """
    if not isinstance(name, str):
        raise TypeError("must be a str")
    path = PurePath(name)
    if not path.parts:
        raise ValueError("must not be empty")
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError('must be a path inside of root: not absolute, and without ".."')
    try:
        size = max(len(os.fsencode(part)) for part in path.parts)
    except UnicodeEncodeError:
        raise ValueError("must be text that the name of a file can hold") from None
    if size > longest:
        raise ValueError(f"must have at most {longest} bytes, and has {size}")
