"""Calls the loggers of the trainer, on rank 0 only."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

from helios_lite.loggers import Logger, RunStatus
from helios_lite.training.cleanup import cleanup

logger = logging.getLogger("helios_lite")


class RunLoggers:
    """The loggers of one call of the trainer. As a context it closes them, however the call ends.

    Args:
        loggers: those of the trainer.
        is_main: whether this is rank 0; the other ranks call no logger.
        is_training: whether the call is a training, which has a status.
    """

    def __init__(self, loggers: Iterable[Logger], *, is_main: bool, is_training: bool) -> None:
        self._loggers = list(loggers) if is_main else []
        self._is_training = is_training
        self._status: RunStatus = "finished"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        for logger in self._loggers:
            self._stack.enter_context(cleanup(lambda logger=logger: self._close(logger)))  # type: ignore[misc]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._status = _status(error)
        return self._stack.__exit__(kind, error, traceback)

    def start(self, config: Mapping[str, Any], step: int, *, goes_back: bool) -> None:
        """Begin a training that starts or resumes after a step; with `goes_back` otherwise than before."""
        for logger in self._loggers:
            _call_if_defined(logger, "branch" if goes_back and hasattr(logger, "branch") else "rewind", step)
            logger.log_config(config)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Send a row to every logger."""
        for logger in self._loggers:
            logger.log_metrics(metrics, step)

    def _close(self, logger: Logger) -> None:
        try:
            if self._is_training:
                _call_if_defined(logger, "log_status", self._status)
        finally:
            logger.close()


def report_failure(loggers: Iterable[Logger]) -> None:
    """Tell loggers in the launching process that the training has failed; rank 0 may have been ended before it could.

    Loggers without `log_status` are not called.
    """
    for logger in loggers:
        if hasattr(logger, "log_status"):
            _call_if_defined(logger, "log_status", "failed")
            logger.close()


def _status(error: BaseException | None) -> RunStatus:
    if error is None:
        return "finished"
    is_signal = isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM
    return "interrupted" if is_signal or isinstance(error, KeyboardInterrupt) else "failed"


def _call_if_defined(logger: Logger, method: str, argument: Any) -> None:
    """Call one of the methods that a logger need not have."""
    function = getattr(logger, method, None)
    if function is not None:
        function(argument)
