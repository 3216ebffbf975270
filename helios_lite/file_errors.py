"""Errors of the file system that name the file that was being written, and the way out. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def naming(path: Path, *, when_full: str = "", when_read_only: str = "") -> Iterator[None]:
    """Context in which a file or folder is written. An OSError of it keeps its type, and names it.

    Python names no file when a write fails, and of a file that is written under a temporary name that name.

    Args:
        path: the file or folder.
        when_full: what to do if the disk is full, as a note of the error.
        when_read_only: what to do if nothing may be written there.
    """
    try:
        yield
    except OSError as error:
        _explain(error, path, when_full, when_read_only)
        raise
    except RuntimeError as error:
        # torch fails to close its archive after a failed write, which hides the first error.
        first = error.__context__
        if not isinstance(first, OSError):
            raise
        _explain(first, path, when_full, when_read_only)
        raise first from None


def _explain(error: OSError, path: Path, when_full: str, when_read_only: str) -> None:
    if getattr(error, "__notes__", None):
        return  # It was explained where it came from.
    error.filename = str(path)
    if error.filename2 is not None:  # Of a rename.
        del error.filename2
    if error.errno in _FULL:
        error.add_note(when_full or "the disk is full, or your part of it: make room, and run the program again")
    elif error.errno in _READ_ONLY and when_read_only:
        error.add_note(when_read_only)
    elif error.errno == errno.ENOENT and not path.parent.exists():
        error.add_note(f"{path.parent} is not there any more; the run had made it, or found it")


def follow_no_link(path: str, flags: int) -> int:
    """Open a file that is no symbolic link; an `opener` of `open`.

    In a folder of others a link may lead anywhere, and its target would be emptied or written to.

    Raises:
        OSError: it is a link; the message names it.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP or not os.path.islink(path):
            raise
        raise OSError(error.errno, "is a symbolic link, whose target is not written to; remove it", path) from None
