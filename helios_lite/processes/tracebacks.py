"""Tracebacks of errors in a user's code: short in this process, and as text from another one."""

from __future__ import annotations

import os
import sys
from types import TracebackType

_NOT_OF_USERS = {"helios_lite", "torch", "tqdm", "rich", *sys.stdlib_module_names}
"""The packages whose functions stand before a user's line: this one, and all that it needs."""
_LOOP = "helios_lite.training.loop"
"""The file whose functions say where a training stands."""


class RemoteTraceback(Exception):
    """The traceback of an exception in another process, as text."""

    def __str__(self) -> str:
        """Return the text on lines of its own."""
        return f"\n{self.args[0]}"


class ShortTraceback:
    """Context of a call. Errors in the user's code leave it without our functions between the call and the user's line.

    Three of our functions stay: the first, which opens this context; the last of the training loop, which says where
    the training stands; and the last, which calls the user's. What lies below the user's line stays as well, and so do
    PyTorch's functions. An error without a line of the user's, which may be an error of this package, keeps its whole
    traceback. That of an error in another process is in the text of the error.

    A KeyboardInterrupt leaves it with the user's lines only: what the user has asked for needs no explanation.

    With the environment variable HELIOS_LITE_FULL_TRACEBACKS nothing is left out.
    """

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, call: TracebackType | None
    ) -> None:
        if error is None or call is None or os.environ.get("HELIOS_LITE_FULL_TRACEBACKS"):
            return
        if isinstance(error, KeyboardInterrupt):
            error.__traceback__, error.__suppress_context__ = _of_users(call), True
            return
        above, entry = [call], call.tb_next
        while entry is not None and _package(entry) in _NOT_OF_USERS:
            above.append(entry)
            entry = entry.tb_next
        if entry is None and not _is_of_another_process(error, above[-1]):
            return
        ours = [each for each in above if _package(each) == "helios_lite"]
        in_loop = [each for each in ours if _module(each) == _LOOP]
        for each in reversed(above):
            if each in (ours[0], *in_loop[-1:], ours[-1]) or _package(each) not in ("helios_lite", "contextlib"):
                entry = TracebackType(entry, each.tb_frame, each.tb_lasti, each.tb_lineno)
        error.__traceback__ = entry


def _of_users(first: TracebackType) -> TracebackType | None:
    """Return the lines of a traceback that are the user's; not those of libraries which wait when a signal comes."""
    entries, entry = list[TracebackType](), first.tb_next
    while entry is not None:
        entries.append(entry)
        entry = entry.tb_next
    for each in reversed(entries):
        if _package(each) not in _NOT_OF_USERS:
            entry = TracebackType(entry, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return entry


def _module(entry: TracebackType) -> str:
    return str(entry.tb_frame.f_globals.get("__name__"))


def _package(entry: TracebackType) -> str:
    return _module(entry).partition(".")[0]


def _is_of_another_process(error: BaseException, last: TracebackType) -> bool:
    """Return whether an error is that of a process which the trainer has launched, or of a worker that loads data."""
    return isinstance(error.__cause__, RemoteTraceback) or last.tb_frame.f_code.co_name == "reraise"
