"""stdout and stderr, whatever they are: what cannot be written there is not shown, and ends no run.

Standard library only.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import select
import sys
from collections.abc import Callable, Iterator
from typing import Any

logger = logging.getLogger("helios_lite")
_STDERR = 2
_MILLISECONDS = 200  # How long `write_stderr` waits for a reader that is slow.


@contextlib.contextmanager
def guarded_output() -> Iterator[None]:
    """Context in which `sys.stdout` and `sys.stderr` can always be written to, by this package and by the user's code.

    They may be a broken pipe, a file on a full disk, closed, None, or an object that has `write` and `flush` only. One
    that cannot be written to is turned off, and rank 0 says so in train.log. On exit what has been printed is flushed,
    and both are as before. Within another such context it does nothing.
    """
    guards = guard_output()
    with _standard_files_open():  # After the guards, which have noted what was closed.
        try:
            yield
        finally:
            for name, guard in guards.items():
                guard.release()
                if getattr(sys, name) is guard:
                    setattr(sys, name, guard.guarded_stream)


def guard_output() -> dict[str, GuardedStream]:
    """Guard `sys.stdout` and `sys.stderr` as `guarded_output`, and return what stands in for those that were not."""
    names = [name for name in ("stdout", "stderr") if not isinstance(getattr(sys, name), GuardedStream)]
    guards = {name: GuardedStream(name, getattr(sys, name)) for name in names}
    for name, guard in guards.items():
        setattr(sys, name, guard)
    return guards


class GuardedStream:
    """Stands in for a standard stream, and has its attributes. `write` and `flush` raise nothing until `release`.

    Args:
        name: "stdout" or "stderr".
        stream: the stream, which may be None.
    """

    def __init__(self, name: str, stream: Any) -> None:
        self.guarded_stream = stream
        self._stream_name = name
        self._is_guarding, self._pid = True, os.getpid()
        self._why_off = "it is closed" if _is_closed(stream) else ""
        self._level = logging.DEBUG  # What was closed from the beginning is meant to be.

    def write(self, text: str) -> int:
        """Write a text, if that is possible, and return its length."""
        try:
            self._do(lambda stream: stream.write(text))
        except UnicodeEncodeError:
            if not self._is_guarding:
                raise
            plain = text.encode("ascii", "backslashreplace").decode()
            self._do(lambda stream: stream.write(plain))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write texts."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand on what has been written."""
        self._do(lambda stream: stream.flush())

    def isatty(self) -> bool:
        """Return whether it is a terminal; an object that cannot tell is none."""
        try:
            return bool(self.guarded_stream.isatty())
        except Exception:
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.guarded_stream, name)

    def say_why_off(self) -> None:
        """Log why nothing is shown there, if so. Rank 0 does it, and no process that was forked from it."""
        if self._why_off and os.environ.get("RANK", "0") == "0" and os.getpid() == self._pid:
            logger.log(
                self._level,
                "%s cannot be written to (%s): nothing more is shown there",
                self._stream_name,
                self._why_off,
            )

    def release(self) -> None:
        """Flush, and stand in for the stream without catching its errors from now on."""
        self.flush()
        if self._why_off:  # What others have written past this object.
            _empty_buffer(self.guarded_stream)
        self._is_guarding = False

    def _do(self, what: Callable[[Any], object]) -> None:
        if self._why_off and self._is_guarding:
            return
        try:
            what(self.guarded_stream)
        except UnicodeEncodeError:  # The stream is in order.
            raise
        except Exception as error:
            if not self._is_guarding:
                raise
            if isinstance(error, BlockingIOError):  # The reader is slow, and may be in time for the next text.
                return
            self._why_off, self._level = _reason(error), logging.WARNING
            _empty_buffer(self.guarded_stream)
            self.say_why_off()


def harmless(text: str) -> str:
    """Return a text with escapes for what steers a terminal: a file of others may have such characters anywhere.

    Line breaks and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


@contextlib.contextmanager
def harmless_errors() -> Iterator[None]:
    """Context or decorator for what reads files of others: what an exception says, which Python prints, is harmless."""
    try:
        yield
    except Exception as error:
        if error.args and isinstance(error.args[0], str):
            error.args = (harmless(error.args[0]), *error.args[1:])
        raise


def say_what_is_off() -> None:
    """Log which of stdout and stderr cannot be written to, once the log of the run is open."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, GuardedStream):
            stream.flush()
            stream.say_why_off()


def flush_output() -> None:
    """Hand on what has been printed, as long as the log of the run is open for what cannot be."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def write_stderr(text: str) -> None:
    """Write a text to stderr at once. Unlike `print` it may be called in a signal handler, and waits for no lock.

    It raises nothing, and does not wait for a reader that has stopped.
    """
    if (number := stderr_number()) is None:
        return
    content, poller = text.encode(errors="replace"), select.poll()
    poller.register(number, select.POLLOUT)
    with contextlib.suppress(OSError):
        while content and any(event & select.POLLOUT for _, event in poller.poll(_MILLISECONDS)):
            # A pipe that is ready takes as much without waiting.
            content = content[os.write(number, content[: select.PIPE_BUF]) :]


def write_stacks() -> None:
    """Write the stacks of all threads of this process to stderr, as `write_stderr`."""
    number = os.memfd_create("stacks")
    with open(number, "r+b") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        write_stderr(file.read().decode(errors="replace"))


def stderr_number() -> int | None:
    """Return the number of the file of stderr; None if it is closed, also if another file has its number now."""
    return None if sys.__stderr__ is None or _has_other_file(_STDERR) else _STDERR


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _is_closed(stream: Any) -> bool:
    """Return whether a standard stream was closed, or never open."""
    if stream is None:
        return True
    try:
        number = stream.fileno()
    except Exception:  # It is no file of the operating system, or does not say so.
        return bool(getattr(stream, "closed", False))
    return _has_other_file(number)


def _has_other_file(number: int) -> bool:
    """Return whether no file, or not the one that programs inherit, has a number.

    Standard files are inherited by the programs that a process starts. What Python opens is not.
    """
    try:
        return number <= _STDERR and not os.get_inheritable(number)
    except OSError:
        return True


def _empty_buffer(stream: Any) -> None:
    """Drop what a stream holds that could not be written. Python would try again at its end, and fail for it."""
    with contextlib.suppress(Exception):
        number = stream.fileno()
        is_inherited, kept, null = os.get_inheritable(number), os.dup(number), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, number, is_inherited)
            stream.flush()
        finally:
            os.dup2(kept, number, is_inherited)
            os.close(kept)
            os.close(null)


@contextlib.contextmanager
def _standard_files_open() -> Iterator[None]:
    """Context in which stdin, stdout and stderr are open, so that no file gets their numbers and is written to."""
    opened = []
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:  # Another thread was quicker.
                os.close(null)
                continue
            os.set_inheritable(number, True)
            opened.append(number)
    try:
        yield
    finally:
        for number in opened:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.fstat(number), os.stat(os.devnull)):
                    os.close(number)
