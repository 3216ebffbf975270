"""Which names of runs and models are accepted: those whose files stay in the folder of all runs."""

from __future__ import annotations

import os
from pathlib import PurePath
from typing import Any

# In bytes. File systems allow 255; the rest is for "_epoch_", "_iter_", ".pth" and two counters of 64 bits.
_LONGEST_SAVE_NAME = 200


def check_save_name(name: Any) -> None:
    """Check the name of a model, which becomes a part of file names too.

    Raises:
        TypeError, ValueError: as `check_folder_name`, or it has more than 200 bytes; the message begins with the name.
    """
    try:
        check_folder_name(name, _LONGEST_SAVE_NAME)
    except (TypeError, ValueError) as error:
        raise type(error)(f"save_name={name!r}: {error}") from None


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
