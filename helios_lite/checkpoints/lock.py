"""The lock of a folder, which lets one run at a time write there."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from helios_lite.file_errors import naming

logger = logging.getLogger("helios_lite")
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_locked_here: set[Path] = set()  # The operating system's locks exclude other processes only.
_without_locks: set[Path] = set()  # Those of which a warning has told.
_guard = threading.Lock()  # Of `_locked_here`, for runs in threads.


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """A context in which no other run can lock the folder.

    The lock is the operating system's and this process's: it ends with the process, however that ends. It is lockf and
    not flock, which forked workers would inherit; they may outlive a killed parent for seconds.

    Raises:
        RuntimeError: another run holds the lock.
        OSError: the file `.lock` cannot be opened; the message names it.
    """
    resolved = folder.resolve()
    with _guard:
        if resolved in _locked_here:
            raise RuntimeError(f"{folder}: another run of this process is running here")
        _locked_here.add(resolved)
    try:
        with _system_lock(folder / ".lock"):
            yield
    finally:
        _locked_here.discard(resolved)


@contextlib.contextmanager
def _system_lock(path: Path) -> Iterator[None]:
    """Context in which this process holds the lock of a file, which has the id of the process in it.

    A file system without locks is a warning, and the context holds nothing.

    Raises:
        RuntimeError: another process holds the lock, or the file is a link, whose target is not written to.
        OSError: the file cannot be opened or written; the message names it.
    """
    try:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise RuntimeError(f"{path}: is a symbolic link, and a lock must be a file; remove it") from None
        with naming(path, when_read_only="set root to a folder that can be written to"):
            raise
    with open(number, "r+b", buffering=0) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = file.read(20).decode(errors="replace").strip()
            raise RuntimeError(
                f"{path.parent}: process {holder} is running here; wait until it has ended, or set "
                'resume="new" or another run_name'
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            if path not in _without_locks:
                text = (
                    "%s: this file system has no locks (%s): a second run that is started here at the same time would "
                    "not be noticed, and both would write over each other's files"
                )
                logger.warning(text, path.parent, error.strerror)
            _without_locks.add(path)
        with naming(path):
            file.truncate(0)
            file.write(f"{os.getpid()}\n".encode())
        yield
