"""The log of a run: on the console, and in train.log. Of the other ranks than 0 only warnings are seen."""

from __future__ import annotations

import contextlib
import copy
import logging
import sys
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Self

from helios_lite.display import console
from helios_lite.display.progress import write_above_bars
from helios_lite.file_errors import follow_no_link
from helios_lite.processes.output import harmless

logger = logging.getLogger("helios_lite")
_LEVELS = {"quiet": logging.WARNING, "normal": logging.INFO, "verbose": logging.DEBUG}
"""The least level of the records that the console gets, by the option `log_level`."""


class RunLog:
    """Context in which the records of the logger `helios_lite` go to train.log and to the console.

    train.log gets all of rank 0, and the warnings of the other ranks. The console gets the records that `log_level`
    asks for, above the progress bars on stderr. If the program has configured logging itself (the root logger has
    handlers), they go to its handlers in place of stderr; a level that it has set for the logger `helios_lite` counts
    too. An exception that ends the context is written to train.log with its traceback. On exit logging is as before.

    Args:
        path: train.log; None writes no file.
        log_level: "quiet", "normal" or "verbose".
        rank: the rank of this process.
        is_required: whether it is an error if the file cannot be written to. Otherwise the records are lost.
        records_failure: False leaves an exception to the process that has launched this one.
    """

    def __init__(
        self,
        path: Path | None,
        log_level: str = "normal",
        *,
        rank: int = 0,
        is_required: bool = True,
        records_failure: bool = True,
    ) -> None:
        self._path, self._log_level, self._rank = path, log_level, rank
        self._is_required, self._records_failure = is_required, records_failure
        self._level, self._propagates = logger.level, logger.propagate
        self._file: logging.FileHandler | None = None
        self._handlers: list[logging.Handler] = []

    def __enter__(self) -> Self:
        self._level, self._propagates = logger.level, logger.propagate
        handler: logging.Handler = _Program() if logging.getLogger().handlers else _AboveBars()
        handler.setLevel(max(_LEVELS[self._log_level], self._level, logging.WARNING if self._rank > 0 else 0))
        handler.setFormatter(_ConsoleFormatter("%(levelname)s %(message)s"))
        self._handlers.append(handler)
        if self._path is not None:
            kind = _LogFile if self._is_required and self._rank == 0 else _OptionalFile
            self._file = kind(self._path, encoding="utf-8", delay=kind is _OptionalFile)
            self._file.setLevel(logging.WARNING if self._rank > 0 else logging.DEBUG)
            place = f" rank {self._rank}:" if self._rank > 0 else ""
            self._file.setFormatter(_Formatter(f"%(asctime)s %(levelname)s{place} %(message)s"))
            self._handlers.append(self._file)
        for handler in self._handlers:
            logger.addHandler(handler)
        # Who sees what is decided by these handlers alone: DEBUG records must not reach those of the program.
        logger.setLevel(min(handler.level for handler in self._handlers))
        logger.propagate = False
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and self._records_failure:
            self.record_failure(error)
        logger.setLevel(self._level)
        logger.propagate = self._propagates
        for handler in self._handlers:
            logger.removeHandler(handler)
            handler.close()
        self._handlers.clear()

    def record_failure(self, error: BaseException) -> None:
        """Write an exception to train.log with its traceback. The console gets it from Python."""
        if self._file is not None:
            # An exception that is no error, such as KeyboardInterrupt, needs no traceback.
            details = (type(error), error, error.__traceback__) if isinstance(error, Exception) else None
            text = f"ended by {type(error).__name__}"
            self._file.handle(logger.makeRecord(logger.name, logging.ERROR, __file__, 0, text, (), details))


class _Formatter(logging.Formatter):
    """Escapes what files of others may have put into a message to steer a terminal, which may show train.log too."""

    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))


class _ConsoleFormatter(logging.Formatter):
    """Escapes as `_Formatter`, and paints the level of warnings and errors."""

    def format(self, record: logging.LogRecord) -> str:
        text, level = harmless(super().format(record)), record.levelname
        return text if record.levelno < logging.WARNING else console.painted(level, "yellow") + text.removeprefix(level)


class _LogFile(logging.FileHandler):
    """Appends records to a file that could be opened. Those that a full disk does not take are lost, and it says so."""

    _has_failed = False

    def _open(self) -> TextIOWrapper:
        return _opened(self.baseFilename)

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._has_failed:
            self._has_failed = True
            logger.warning(
                "%s: cannot be written to (%s); the run goes on without it", self.baseFilename, sys.exception()
            )

    def close(self) -> None:
        with contextlib.suppress(OSError):  # What it could not write before.
            super().close()


def _opened(path: str) -> TextIOWrapper:
    return open(path, "a", encoding="utf-8", opener=follow_no_link)


class _OptionalFile(logging.FileHandler):
    """Appends records to a file as long as that is possible."""

    def _open(self) -> TextIOWrapper:
        return _opened(self.baseFilename)

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


class _Program(logging.Handler):
    """Gives records to the handlers of the program."""

    def emit(self, record: logging.LogRecord) -> None:
        text = harmless(record.getMessage())
        if text != record.getMessage():
            record = copy.copy(record)
            record.msg, record.args = text, None
        try:
            logging.getLogger().callHandlers(record)
        except Exception:  # Of a handler that lets them through.
            self.handleError(record)


class _AboveBars(logging.Handler):
    """Prints records above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            write_above_bars(self.format(record))
        except Exception:
            self.handleError(record)
